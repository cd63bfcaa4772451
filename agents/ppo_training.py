"""`python train.py --algo ppo`: the learner of Stable-Baselines3 with what watches it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.arguments import Arguments
from agents.callbacks import Advance, EpisodeMetrics, ProgressLine, Validation
from agents.curriculum import Course
from agents.export import agent_from_policy
from agents.imitation import NUM_ENVS, Act, Teacher, imitate
from agents.learning_run import LearningRun
from agents.network import NumpyAgent
from agents.paired import PairedVecEnv, moore_hodgson_action
from agents.ppo import ACTIVATION, PPOSettings, make_ppo
from agents.run_state import Checkpoints
from agents.vec_env import ServingVecEnv
from llm_env.command import Terminated
from llm_env.config import Scenario
from llm_env.systems import NUM_TRAINING_SEEDS


def learn_by_ppo(run: LearningRun) -> NumpyAgent:
    """Learns to the end. Returns the last agent; the best is with the keeper."""
    task, arguments, keeper = run.task, run.arguments, run.keeper
    masked, form = arguments.algo == "maskable-ppo", arguments.form
    course = Course(arguments.curriculum)
    env = _environment(run, course)
    undecided, recurrent = arguments.init == "none", arguments.algo == "recurrent-ppo"
    model = make_ppo(env, _fitting(arguments), arguments.seed, masked, run.start, undecided, recurrent)
    env.seed(first_episode_seed(arguments.seed, arguments.num_envs))
    model.set_logger(run.logger)

    def export() -> NumpyAgent:
        about = run.about() | {"timesteps": int(model.num_timesteps)}
        return agent_from_policy(model.policy, form, ACTIVATION, masked, about)

    began = run.start is not None or bool(arguments.imitate.teacher)  # what it is before it learns may be kept
    validation = Validation(export, keeper, arguments.validation_every, began, arguments.patience)
    progress = ProgressLine(keeper, arguments.timesteps)
    writer = run.writer()
    checkpoints = Checkpoints(writer, {"environment": env, "validation": keeper})
    if run.checkpoint is not None:
        checkpoints.restore(model, run.checkpoint)
    callbacks: list[Any] = [
        Advance(course, arguments.timesteps),
        EpisodeMetrics(form),
        validation,
        progress,
        checkpoints,
    ]
    try:
        if run.teacher is not None:
            _imitate(run, run.teacher, model, export)
        to_go = arguments.timesteps - model.num_timesteps
        model.learn(to_go, callback=callbacks, reset_num_timesteps=run.checkpoint is None)
    except (KeyboardInterrupt, Terminated):
        progress.stop()
        run.keep_stopped(export(), model.num_timesteps)
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        writer.give_up(f"{error.filename or task.out}: {error.strerror or error}")
    return export()


def _imitate(run: LearningRun, teacher: Teacher, model: Any, export: Callable[[], NumpyAgent]) -> None:
    """Fits the policy to its teacher before it learns by itself."""
    arguments, task, settings = run.arguments, run.task, run.arguments.imitate
    env = ServingVecEnv(task.scenarios, NUM_ENVS, arguments.form, task.workloads(), _stagger_steps(task.scenarios))
    env.seed(first_episode_seed(arguments.seed, NUM_ENVS))
    rng = np.random.default_rng([arguments.seed, 2])

    def act() -> Act:
        agent = export()
        return lambda observations: agent.act(observations, False, rng)

    imitate(model, env, teacher, settings, arguments.seed, act, lambda line: sys.stdout.write(f"{line}\n"))


def _environment(run: LearningRun, course: Course) -> ServingVecEnv:
    task, arguments, form = run.task, run.arguments, run.arguments.form
    stagger_steps = _stagger_steps(task.scenarios)
    if not arguments.paired:
        return ServingVecEnv(task.scenarios, arguments.num_envs, form, task.workloads(course), stagger_steps)
    reference = moore_hodgson_action(form) if run.start is None else run.start
    return PairedVecEnv(task.scenarios, arguments.num_envs, form, task.workloads(course), stagger_steps, reference)


def first_episode_seed(seed: int, num_envs: int) -> int:
    """Where the episodes of a run begin: different seeds give different ones, all below NUM_TRAINING_SEEDS."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] % (NUM_TRAINING_SEEDS - num_envs))


def _stagger_steps(scenarios: Sequence[Scenario]) -> int:
    """About the number of decisions while requests arrive: episodes begin spread over that."""
    decisions = max(s.episode.arrivals_s / (s.slo.tightest_tbt_ms / 1000.0) for s in scenarios)
    return max(1, min(int(decisions), 5000))


def _fitting(arguments: Arguments) -> PPOSettings:
    """Shorter rollouts where one would be longer than the whole training."""
    steps = -(-arguments.timesteps // arguments.num_envs)
    return dataclasses.replace(arguments.ppo, num_steps=min(arguments.ppo.num_steps, steps))
