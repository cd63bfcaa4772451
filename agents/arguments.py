"""The arguments of `python train.py`, which are its help, its checks and the table kept with a run. Runs nothing."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from agents.es import ESSettings
from agents.imitation import ImitationSettings, checked
from agents.ppo import PPOSettings
from llm_env.actions import FLOAT_NAMES
from llm_env.errors import UserError
from llm_env.systems import checked_load_range
from llm_env.workload import WHOLE, checked_part


@dataclass(frozen=True)
class Arguments:
    """Trains a scheduler by PPO or by evolution strategies, validating it on workloads of its own, and keeps the best.

    Writes settings, scenario, versions and command, TensorBoard events (tb/, with a horizontal line for each rival),
    progress.csv, the agent with the best validation (agent/) and the last one (last/). The same arguments give the
    same weights. docs/training.md says what to expect of each choice.

    What is learned: --scenario, --change, --load-range, --trace, like

    python train.py --scenario chat-bursty --change system.workers=2 --load-range 0.4 1.2

    How: --algo and, of it, num-steps ... lstm-hidden (all of ppo) or es.* (es); --action and where it begins: --init,
    --start, imitate.*, like

    python train.py --scenario classes-two --algo es --init tuned --es.generations 150

    python train.py --action adaptive --start budget=0.7 margin=1.2 --paired

    python train.py --imitate.teacher adaptive@tuned

    How often and what is kept: --seed or --seeds, --validation-..., --checkpoint-every, --resume, --out, like

    python train.py --algo es --seeds 0 1 2 --validation-seeds 24 --out runs/three

    python train.py --resume runs/three/seed-1
    """

    scenario: tuple[str, ...] = ("chat-bursty",)
    """A shipped scenario's name or a TOML file: system, promises, traffic, reward. Of several, each episode draws
    one."""

    change: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Settings of every scenario to change, like system.workers=4 reward.token=0.1."""

    timesteps: int = 2_000_000
    """Decisions to learn from, over all environments; rounded up to whole rollouts."""

    algo: Literal["ppo", "maskable-ppo", "recurrent-ppo", "es"] = "ppo"
    """How it learns. ppo: from the reward of every decision; maskable-ppo: never tries levels that make no difference,
    needs multidiscrete actions and is slower; recurrent-ppo: remembers what it saw in the episode (an LSTM), is slower
    too, for all of its actions but ranked ones; es: evolution strategies, from the attainment of whole episodes, for
    box, adaptive and roles actions and for routes."""

    seed: int = 0
    """Of everything: weights, exploration, and which of the training episodes (seeds 0 to 999,999) are met."""

    seeds: tuple[int, ...] = ()
    """In place of --seed: one run for each, side by side in processes of their own, then a summary of all."""

    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Parallel processes of --algo es and of --seeds. The results do not depend on it."""

    num_envs: int = 256
    """Systems side by side, of ppo."""

    action: Literal["multidiscrete", "discrete", "box", "adaptive", "ranked", "roles", "route"] | None = None
    """What is decided: four choices (the default of ppo), one of 18 combinations, four numbers around a heuristic, all
    numbers of the adaptive rule (the default of es), or these and a score for each of the most urgent requests. roles:
    the numbers of the rule of role-switch, for workers that may change role. route, of es: which worker gets each
    request, while the adaptive rule forms the batches."""

    init: Literal["heuristic", "tuned", "none"] = "heuristic"
    """Where a policy begins. heuristic: multidiscrete among the choices that keep TBT targets, Moore-Hodgson order
    likelier than others; box, adaptive and ranked exactly at the Moore-Hodgson rule, roles at role-switch; tuned:
    exactly at the form's rule with the scenario's tuned settings, so that whatever is learned is a gain over it; none:
    undecided."""

    start: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Numbers of the form's rule to begin at, like budget=0.8 kv_high=0.9, in place of those of --init."""

    paired: bool = False
    """Have ppo learn from the difference to the rule that it begins at (of levels: Moore-Hodgson at tau*), which runs
    beside it on the same episodes: the luck of the traffic cancels out, for twice the simulation."""

    load_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """Each episode draws its load between these; 0.5 to 1.1 by default, or a trace, a closed loop or a scenario that
    varies as it is. A trace is squeezed or stretched in time to the load."""

    curriculum: float = 0.0
    """Easy traffic first: over this share of the training the highest load rises from the lowest to its own."""

    trace: str | None = None
    """Learn from windows of this trace file in place of the scenario's traffic: of the first 80 % of its time; what is
    left is for validation."""

    time_scale: float = 1.0
    """Factor on the trace's arrival times: 2 halves the rate."""

    trace_part: Annotated[tuple[float, float], tyro.conf.arg(metavar="FROM TO")] = WHOLE
    """Use the trace between these shares of its time alone: 0 0.7 leaves 0.7 1 to evaluate.py."""

    out: str | None = None
    """Folder of the run; runs/SCENARIO-ALGO-SEED by default."""

    overwrite: bool = False
    """Replace a run that left an agent, finished or interrupted."""

    validation_every: int = 130_000
    """Steps between validations, of ppo."""

    validation_seeds: int = 12
    """Workloads per load, seeds from 1,000,000 on."""

    validation_loads: tuple[float, ...] = (0.6, 0.8, 1.0)
    """Loads of the validation, of a scenario whose episodes draw theirs."""

    patience: int = 0
    """Stop after so many validations without a better one; 0: never."""

    checkpoint_every: int = 250_000
    """Steps between checkpoints, from which --resume goes on; a finished run removes them."""

    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with the run in this folder as if it had never been stopped: the same weights in the end. Goes alone."""

    ppo: Annotated[PPOSettings, tyro.conf.arg(name="")] = field(default_factory=PPOSettings)

    es: ESSettings = field(default_factory=ESSettings)

    imitate: ImitationSettings = field(default_factory=ImitationSettings)

    @property
    def form(self) -> str:
        """Of the action."""
        return self.action or ("adaptive" if self.algo == "es" else "multidiscrete")

    def __post_init__(self) -> None:
        for name, low, high in (
            ("timesteps", 1, 10**12),
            ("seed", 0, 2**32 - 1),
            ("processes", 1, 1024),
            ("num_envs", 1, 65_536),
            ("validation_every", 1, 10**12),
            ("checkpoint_every", 1, 10**12),
            ("validation_seeds", 1, 1000),
            ("patience", 0, 10**6),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name.replace('_', '-')}: expected {low} to {high}, got {value}")
        if not (math.isfinite(self.time_scale) and self.time_scale > 0):
            raise UserError(f"time-scale: expected above 0, got {self.time_scale:g}")
        if not 0 <= self.curriculum <= 1:
            raise UserError(f"curriculum: expected 0 to 1, got {self.curriculum:g}")
        if not self.validation_loads:
            raise UserError("validation-loads: expected at least one")
        for load in self.validation_loads:
            checked_load_range((load, load))
        for seed in self.seeds:
            if not 0 <= seed < 2**32 or self.seeds.count(seed) > 1:
                raise UserError(f"seeds: expected different numbers from 0 to {2**32 - 1}, got {seed}")
        if self.algo == "es" and self.form not in ("box", "adaptive", "roles", "route"):
            raise UserError(f"algo: es needs --action box, adaptive, roles or route, got {self.form}")
        if self.algo != "es" and self.form == "route":
            raise UserError(f"action: route is learned by --algo es, got {self.algo}")
        if self.algo == "es" and self.init == "none":
            raise UserError("algo: es needs a place to begin: --init heuristic or tuned")
        if self.paired and self.algo == "es":
            raise UserError("paired: only for ppo; es compares policies on the same episodes anyway")
        if self.paired and self.init == "none" and self.form in FLOAT_NAMES:
            raise UserError("paired: needs a rule to begin at: --init heuristic or tuned")
        if self.algo == "maskable-ppo" and self.form != "multidiscrete":
            raise UserError(f"algo: maskable-ppo needs --action multidiscrete, got {self.form}")
        if self.algo == "recurrent-ppo" and self.form == "ranked":
            raise UserError(
                "algo: recurrent-ppo needs --action multidiscrete, discrete, box, adaptive or roles, got ranked"
            )
        checked(self.imitate, self.form, self.algo)
        if self.load_range is not None:
            checked_load_range(self.load_range)
        checked_part(self.trace_part)
