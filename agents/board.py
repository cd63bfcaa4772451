"""What TensorBoard shows of a run beside its curves: dashboards, what an agent chooses, a picture of its batches, and
the settings as hyper-parameters. One for all algorithms; it only looks, and draws no random number.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard.summary import hparams

from agents.forms import Trained
from agents.learning_run import LearningRun
from agents.network import NumpyAgent
from agents.paired import moore_hodgson_action
from agents.references import TAG, ReferenceLines
from agents.validation import MARGINS
from llm_env.actions import FLOAT_NAMES
from llm_env.choices import CHOICE, choice_of_action
from llm_env.render import History, render_rgb
from llm_env.systems import Systems

BEST = "validation/best"  # attainment of the best agent so far
NUM_DECISIONS = 128  # that are looked at after each validation
CHOSEN = ("budget_in_slo_budgets", "chunk_tokens", "batch_tokens")  # histograms, under "chosen/"


def layout() -> dict[str, dict[str, list[Any]]]:
    """The custom scalars: title -> chart -> lines, as patterns of tags over all runs in the folder.

    Every rival is a run of its own with a tag of the same name: its line lies over the agent's curve.
    """

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    margins = {
        f"{what.upper()}: 1 - percentile / target": lines(*(f"validation/{m}" for m in MARGINS if m.startswith(what)))
        for what in ("ttft", "tbt")
    }
    attainment = {
        "Attainment beside the references": lines(TAG),
        "Attainment, and the best so far": lines(TAG, BEST),
        "Attainment by load": lines("validation/slo_attainment_.+"),
    }
    return {"Promises": attainment, "Margins": margins}


class Board:
    """Writes after each validation.

    Args:
        run: whose.
        reached: by rivals on the validation workloads.
    """

    def __init__(self, run: LearningRun, reached: Mapping[str, float]) -> None:
        self._run = run
        first_step = None if run.checkpoint is None else run.checkpoint.step + 1
        self._lines = ReferenceLines(run.task.out / "tb", reached, first_step)
        self._systems: Systems | None = None
        self._saved: dict[str, Any] = {}
        self._begun = False

    def mark(self, step: int, agent: Trained) -> None:
        """After a validation. Args: step: of the points; agent: who was validated."""
        self._lines.mark(step)
        formats = self._run.logger.output_formats
        writer = next(form for form in formats if isinstance(form, TensorBoardOutputFormat)).writer
        if not self._begun:
            self._begun = True
            writer.add_custom_scalars(layout())
            assert writer.file_writer is not None  # until it is closed
            for summary in hparams(self._hyper_parameters(), {TAG: 0.0, BEST: 0.0}):
                writer.file_writer.add_summary(summary)
        if math.isfinite(self._run.keeper.best_attainment):
            writer.add_scalar(BEST, self._run.keeper.best_attainment, step)
        if isinstance(agent, NumpyAgent):
            chosen, picture = self._look(agent)
            for name, values in zip(CHOSEN, chosen, strict=True):
                if len(values):  # no request may have come
                    writer.add_histogram(f"chosen/{name}", values, step)
            writer.add_image("batches", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files of the rivals; those of the run are its own."""
        self._lines.close()

    def _hyper_parameters(self) -> dict[str, Any]:
        """The arguments that are numbers or words; of the algorithms, those of the one that learns."""
        given = dataclasses.asdict(self._run.arguments)
        ppo, es, imitate = given.pop("ppo"), given.pop("es"), given.pop("imitate")
        if imitate["teacher"]:
            given |= {f"imitate.{name}": value for name, value in imitate.items()}
        mine = {f"es.{name}": value for name, value in es.items()} if given["algo"] == "es" else ppo
        flat = given | mine
        return {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flat.items()
            if name not in ("out", "overwrite", "resume", "processes", "seeds") and value not in (None, ())
        }

    def _look(self, agent: NumpyAgent) -> tuple[list[np.ndarray], np.ndarray]:
        """NUM_DECISIONS decisions from the middle of the last validation case's first workload.

        Until then one action is taken, so that each validation looks at the same situation: Moore-Hodgson at tau*, of
        floats their middle.

        Returns:
            Values of CHOSEN at each decision, and the image after the last.
        """
        systems, history = self._middle(agent.action), History()
        act = agent.deciding(systems)
        active = systems.active()
        observations = systems.observe(active)
        choices, tokens = [np.zeros(0, CHOICE)], []
        while active[0] and len(tokens) < NUM_DECISIONS:
            state = systems.state(0)
            worker = int(state.system[0]["worker"])
            systems.set_actions(act(observations))
            choices.append(choice_of_action(state, systems.kind, *systems.action(0)))
            step = systems.step(active)
            observations = step.observations
            tokens.append(int(step.infos["batch_tokens"][0]))
            history.note(systems.state(0), worker)
            active = systems.active()
        made = np.concatenate(choices)
        chunks = np.minimum(np.minimum(made["chunk_tokens"], made["prefill_tokens"]), made["token_budget"])
        values = [made["token_budget"] / made["slo_budget"], chunks, np.array(tokens)]
        return values, render_rgb(systems.state(0), history)

    def _middle(self, action: str) -> Systems:
        """One system where half of its requests' time is over."""
        if self._systems is not None:
            self._systems.restore(self._saved)
            return self._systems
        against = self._run.task.against
        _, scenario, workload = against.cases[-1]
        self._systems = systems = Systems([scenario], 1, action, None if workload is None else [workload])
        systems.reset(0, against.seeds[0])
        middle_s = systems.scenario(0).episode.arrivals_s / 2
        floats = FLOAT_NAMES.get(action)
        same = moore_hodgson_action(action) if floats is None else np.zeros(len(floats))
        systems.set_actions(same[None])
        while (active := systems.active())[0] and systems.state(0).system["now_s"][0] < middle_s:
            systems.step(active)
        self._saved = copy.deepcopy(systems.saved())
        return systems
