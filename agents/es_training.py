"""`python train.py --algo es`: generations over parallel processes, validation, and what is left behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.curriculum import Course
from agents.es import Compare, ESSettings, ESState, compare_pairs, next_generation
from agents.forms import Form, Trained
from agents.learning_run import LearningRun
from agents.population import Earned, Population, Weights, feature_statistics
from agents.progress import Display
from agents.stored import Stored
from agents.task import Task
from agents.validation import Keeper
from llm_env.command import Terminated, check_stopped
from llm_env.processes import death_is_an_error, worker_pool

VECTORS = ("vector", "average", "first", "second")  # of an ESState
Log = Callable[[dict[str, float], int], None]  # scalars and the step they belong to


# ---- processes -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Work:
    """What every process knows."""

    task: Task
    form: Form
    weights: Weights
    settings: ESSettings
    seed: int
    curriculum: float = 0.0  # see `agents.curriculum.Course`


class _Worker:
    """Compares pairs; systems are kept from one generation to the next."""

    def __init__(self, work: Work) -> None:
        self._work, self._course = work, Course(work.curriculum)
        self._populations: dict[int, Population] = {}  # by the number of pairs

    def compare(self, vector: np.ndarray, generation: int, pairs: Sequence[int]) -> Earned:
        work = self._work
        self._course.done = generation / work.settings.generations
        if len(pairs) not in self._populations:
            workloads = work.task.workloads(self._course)
            self._populations[len(pairs)] = Population(work.form, workloads, 2 * len(pairs), work.settings.episodes)
        population = self._populations[len(pairs)]
        return compare_pairs(population, work.weights, vector, work.settings, work.seed, generation, pairs)


_workers: list[_Worker] = []  # of a child process: its only one


def _begin_child(work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides when it ends
    _workers.append(_Worker(work))


def _compare_in_child(vector: np.ndarray, generation: int, pairs: Sequence[int]) -> Earned:
    return _workers[0].compare(vector, generation, pairs)


@contextmanager
def comparing(work: Work, processes: int) -> Iterator[Compare]:
    """A function that compares all pairs of a generation, in so many processes. Their number does not change results.

    Raises:
        UserError: a process died.
    """
    every = [part.tolist() for part in np.array_split(np.arange(work.settings.pairs), processes) if part.size]
    here = _Worker(work)
    if len(every) == 1:
        yield lambda vector, generation: here.compare(vector, generation, every[0])
        return
    with worker_pool(len(every) - 1, _begin_child, (work,)) as pool:

        def compare(vector: np.ndarray, generation: int) -> Earned:
            futures = [pool.submit(_compare_in_child, vector, generation, pairs) for pairs in every[1:]]
            with death_is_an_error():
                parts = [here.compare(vector, generation, every[0]), *(future.result() for future in futures)]
            scores, decisions = zip(*parts, strict=True)
            return Earned(np.concatenate(scores, axis=1), sum(decisions))

        yield compare


# ---- learning ------------------------------------------------------------------------------------------------------
class Evolution:
    """One run: where it stands, and how it goes on.

    Args:
        task: what is learned.
        form: what is decided, and with what it begins.
        settings: of the algorithm.
        seed: of the weights, the perturbations and the episodes.
        about: kept with the agents.
        curriculum: share of the generations over which the highest load rises.

    Attributes:
        state: what changes from generation to generation.
    """

    def __init__(
        self,
        task: Task,
        form: Form,
        settings: ESSettings,
        seed: int,
        about: dict[str, Any],
        curriculum: float = 0.0,
    ) -> None:
        mean, scale = feature_statistics(form, task.workloads(), seed)
        weights = Weights((form.inputs, *settings.hidden, form.outputs), mean, scale)
        self.work = Work(task, form, weights, settings, seed, curriculum)
        self.state = ESState(weights.start(form.bias, np.random.default_rng(seed)))
        self._about = about

    def agent(self) -> Trained:
        """The averaged policy."""
        about = self._about | {"timesteps": self.state.decisions, "generations": self.state.generation}
        return self.work.form.agent(self.work.weights.layers(self.state.average), about)

    def saved(self) -> dict[str, Any]:
        """For a checkpoint: where it stands. What else there is follows from its arguments."""
        state = self.state
        arrays = {name: getattr(state, name) for name in VECTORS}
        return arrays | {"generation": state.generation, "decisions": state.decisions}

    def restore(self, stored: Stored) -> None:
        """Goes on from there.

        Raises:
            UserError: it does not fit this run; names the field.
        """
        shape = self.state.vector.shape
        for name in VECTORS:
            setattr(self.state, name, stored.array(name, np.float64, shape).copy())
        self.state.generation = stored.integer("generation", 1, self.work.settings.generations)
        self.state.decisions = stored.integer("decisions", 0, 10**15)

    def learn(
        self,
        keeper: Keeper,
        display: Display,
        log: Log,
        processes: int,
        after: Callable[[int], None] = lambda _decisions: None,
        patience: int = 0,
    ) -> None:
        """All generations that are left; validates before the first, on the way and after the last.

        Args:
            keeper: validates.
            display: shows.
            log: writes the scalars of a generation.
            processes: how many.
            after: called with the decisions so far after each generation.
            patience: stops after so many validations without a better one; 0: never.
        """
        settings, state = self.work.settings, self.state
        display.begin()
        with comparing(self.work, processes) as compare:
            if not keeper.history:
                log(keeper.measure(self.agent(), 0, explores=False), 0)
            display.show(state.generation, state.decisions)
            while state.generation < settings.generations and not 0 < patience <= keeper.since_best():
                check_stopped()
                before = state.vector
                scores = next_generation(state, self.work.weights, settings, self.work.seed, compare)
                display.start_clock(state.decisions)
                found = {
                    "es/generation": float(state.generation),
                    "es/attainment": float(scores.mean()),
                    "es/difference": float(np.sqrt(np.mean((scores[0] - scores[1]) ** 2))),
                    "es/step": float(np.linalg.norm(state.vector - before)),
                }
                if state.generation % settings.validate_every == 0 or state.generation == settings.generations:
                    found |= keeper.measure(self.agent(), state.decisions, explores=False)
                log(found, state.decisions)
                display.show(state.generation, state.decisions)
                after(state.decisions)
        display.stop()


def learn_by_es(run: LearningRun) -> Trained:
    """Learns to the end. Returns the last agent; the best is with the keeper."""
    arguments, keeper, writer = run.arguments, run.keeper, run.writer()
    about, curriculum = run.about(), arguments.curriculum
    assert run.form is not None  # of what is learned by evolution
    evolution = Evolution(run.task, run.form, arguments.es, arguments.seed, about, curriculum)
    parts = {"evolution": evolution, "validation": keeper}
    if run.checkpoint is not None:
        for name, part in parts.items():
            part.restore(run.checkpoint.state.below(name))
        writer.last_step = run.checkpoint.step

    def log(found: dict[str, float], step: int) -> None:
        for name, value in found.items():
            run.logger.record(name, value)
        run.logger.dump(step)

    def after(decisions: int) -> None:
        if writer.is_due(decisions):
            writer.write(decisions, parts, run.logger)

    display = Display(keeper, arguments.es.generations)
    try:
        evolution.learn(keeper, display, log, arguments.processes, after, arguments.patience)
    except (KeyboardInterrupt, Terminated):
        display.stop()
        run.keep_stopped(evolution.agent(), evolution.state.decisions)
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        writer.give_up(f"{error.filename or run.task.out}: {error.strerror or error}")
    return evolution.agent()
