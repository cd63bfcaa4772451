"""What a training run depends on, taken out between two updates and put back: learner, random numbers, logs.

After an update the rollout buffer is spent and every step of the environment has been learned from, so nothing is
half done. Environment and validation save themselves; here is what belongs to Stable-Baselines3 and torch.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils.tensorboard import SummaryWriter

from agents.checkpoint import BEST, Checkpoint, write_checkpoint
from agents.files import files_of
from agents.forms import Trained
from agents.stored import Stored
from llm_env.errors import InputOutputError, UserError

PROGRESS = "progress.csv"
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_SCALARS = {"float": float, "int": int, "float32": np.float32, "float64": np.float64}  # kinds of logged numbers


class Resumable(Protocol):
    """Something that a checkpoint holds."""

    def saved(self) -> dict[str, Any]:
        """Arrays and JSON values by name."""
        ...

    def restore(self, stored: Stored) -> None:
        """Takes over what was saved."""
        ...


# ---- the learner ---------------------------------------------------------------------------------------------------
class Learner:
    """Weights, optimiser, counters and the last observation of a Stable-Baselines3 learner.

    Args:
        model: PPO, MaskablePPO or RecurrentPPO, with its logger set.
    """

    def __init__(self, model: OnPolicyAlgorithm) -> None:
        self._model: Any = model

    def saved(self) -> dict[str, Any]:
        """Between an update and the next rollout.

        Raises:
            UserError: a weight is not a finite number any more.
        """
        model = self._model
        values = {f"policy.{name}": _array(tensor) for name, tensor in model.policy.state_dict().items()}
        for name, weights in values.items():
            if not np.isfinite(weights).all():
                raise UserError(
                    f"training has diverged: after {model.num_timesteps} steps {name} holds NaN or infinity"
                )
        optimiser = model.policy.optimizer.state_dict()
        for k, moments in optimiser["state"].items():
            values |= {f"adam.{k}.{name}": _array(moments[name]) for name in _ADAM}
        for k, array in enumerate(_lstm_states(model)):
            values[f"lstm.{k}"] = _array(array)
        episodes = [[info["r"], info["l"], info["t"]] for info in model.ep_info_buffer]
        return values | {
            "learning_rate": float(optimiser["param_groups"][0]["lr"]),
            "num_timesteps": int(model.num_timesteps),
            "num_updates": int(model._n_updates),
            "num_episodes": int(model._episode_num),
            "progress_remaining": float(model._current_progress_remaining),
            "observations": model._last_obs,
            "episode_starts": model._last_episode_starts,
            "episodes": np.array(episodes, np.float64).reshape(-1, 3),
            "logged": _logged(model.logger),
        }

    def restore(self, stored: Stored) -> None:
        """Goes on as the learner that had saved this.

        Raises:
            UserError: something is missing, is not finite or does not fit this learner; names it.
        """
        model, names = self._model, stored.below("policy").values.keys()
        own = model.policy.state_dict()
        for name in names - own.keys():
            raise UserError(f"{stored.place}: {stored.prefix}policy.{name}: this policy has no such weights")
        weights = {
            name: torch.as_tensor(stored.array(f"policy.{name}", np.float32, tuple(tensor.shape)).copy())
            for name, tensor in own.items()
        }
        model.policy.load_state_dict(weights)
        self._restore_optimiser(stored)
        for k, tensor in enumerate(_lstm_states(model)):
            tensor.copy_(torch.as_tensor(stored.array(f"lstm.{k}", np.float32, tuple(tensor.shape)).copy()))
        model.num_timesteps = stored.integer("num_timesteps", 1, 10**13)
        model._n_updates = stored.integer("num_updates", 0, 10**13)
        model._episode_num = stored.integer("num_episodes", 0, 10**13)
        model._current_progress_remaining = stored.number("progress_remaining")
        shape = (model.n_envs, *model.observation_space.shape)
        model._last_obs = stored.array("observations", np.float32, shape).copy()
        model._last_episode_starts = stored.array("episode_starts", np.bool_, (model.n_envs,)).copy()
        episodes = stored.value("episodes")
        episodes = stored.array("episodes", np.float64, (np.shape(episodes)[0] if np.ndim(episodes) else 0, 3))
        infos = [{"r": r, "l": int(length), "t": t} for r, length, t in episodes.tolist()]
        model.ep_info_buffer = deque(infos, maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)
        _restore_logged(model.logger, stored)
        self._count_on(model.num_timesteps // (model.n_steps * model.n_envs))

    def _restore_optimiser(self, stored: Stored) -> None:
        optimiser = self._model.policy.optimizer
        own, moments = optimiser.state_dict(), stored.below("adam").values
        state = {}
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for k, parameter in enumerate(parameters if moments else ()):
            shapes = {"step": ()} | dict.fromkeys(_ADAM[1:], tuple(parameter.shape))
            arrays = {name: stored.array(f"adam.{k}.{name}", np.float32, shape) for name, shape in shapes.items()}
            if (arrays["exp_avg_sq"] < 0).any() or arrays["step"] < 0:
                raise UserError(f"{stored.place}: {stored.prefix}adam.{k}: holds numbers below 0")
            state[k] = {name: torch.as_tensor(array.copy()) for name, array in arrays.items()}
        groups = [group | {"lr": stored.number("learning_rate")} for group in own["param_groups"]]
        optimiser.load_state_dict({"state": state, "param_groups": groups})

    def _count_on(self, done: int) -> None:
        """Has the rollouts of the log counted from the beginning of the run: `learn` counts its own."""
        dump = self._model.dump_logs
        self._model.dump_logs = lambda iteration=0: dump(iteration + done)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def _lstm_states(model: Any) -> list[torch.Tensor]:
    """Hidden and cell states of policy and value; none of a learner without memory."""
    states = getattr(model, "_last_lstm_states", None)
    return [] if states is None else [*states.pi, *states.vf]


def _logged(logger: Logger) -> dict[str, Any]:
    """What was recorded and has not been written: kind, value in hexadecimal, count, and where it is left out."""
    values = {}
    for name, value in logger.name_to_value.items():
        kind = type(value).__name__
        assert kind in _SCALARS, f"{name}: {kind} is recorded outside of rollouts"
        excluded = logger.name_to_excluded[name]
        values[name] = [kind, float(value).hex(), logger.name_to_count[name], list(excluded) if excluded else None]
    return values


def _restore_logged(logger: Logger, stored: Stored) -> None:
    for name, entry in stored.object("logged").items():
        try:
            kind, text, count, excluded = entry
            logger.name_to_value[name] = _SCALARS[kind](float.fromhex(text))
            logger.name_to_count[name] = int(count)
            logger.name_to_excluded[name] = tuple(excluded) if excluded else None  # type: ignore[assignment]
        except (ValueError, TypeError, KeyError, OverflowError):
            stored.fail(f"logged.{name}", "kind, number, count and where it is left out", entry)


# ---- random numbers ------------------------------------------------------------------------------------------------
class RandomNumbers:
    """The generators that exploration and minibatches draw from: torch's, numpy's and Python's own.

    `apply` puts what was restored in place, where it had been taken out: what is drawn in between does not matter.
    """

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, tuple[Any, ...], tuple[Any, ...]] | None = None

    def saved(self) -> dict[str, Any]:
        """The present states."""
        _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (that of SB3's minibatches)
        version, words, python_gauss = random.getstate()
        return {
            "torch": torch.get_rng_state().numpy().copy(),
            "numpy": np.array(keys, np.uint32),
            "numpy_place": [int(position), int(has_gauss), float(gauss).hex()],
            "python": [version, list(words), None if python_gauss is None else float(python_gauss).hex()],
        }

    def restore(self, stored: Stored) -> None:
        """Checks the states; `apply` puts them in place.

        Raises:
            UserError: one is no state of its generator.
        """
        own = torch.get_rng_state()
        state = torch.as_tensor(stored.array("torch", np.uint8, tuple(own.shape)).copy())
        keys = stored.array("numpy", np.uint32, (624,)).copy()
        python, place = stored.list("python"), stored.list("numpy_place")
        name, value = "torch", "another state"
        try:
            torch.Generator().set_state(state)
            name, value = "numpy_place", place
            position, has_gauss, gauss = place
            numpy_state = ("MT19937", keys, int(position), int(has_gauss), float.fromhex(gauss))
            if not (0 <= position <= 624 and has_gauss in (0, 1)):
                raise ValueError("out of range")
            np.random.RandomState().set_state(numpy_state)
            name, value = "python", python
            version, words, python_gauss = python
            python_state = (version, tuple(words), None if python_gauss is None else float.fromhex(python_gauss))
            random.Random().setstate(python_state)
        except (RuntimeError, ValueError, TypeError, OverflowError):
            stored.fail(name, "the state of a generator", value)
        self._pending = state, numpy_state, python_state

    def apply(self) -> None:
        """Puts in place what was restored, once."""
        if self._pending is not None:
            state, numpy_state, python_state = self._pending
            torch.set_rng_state(state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
            self._pending = None


# ---- logs ----------------------------------------------------------------------------------------------------------
class _Progress(CSVOutputFormat):
    """progress.csv that goes on after the rows it had."""

    def __init__(self, path: Path, text: str, keys: list[str]) -> None:
        super().__init__(str(path))
        self.file.write(text)
        self.file.flush()
        self.keys = keys


class Events(TensorBoardOutputFormat):
    """TensorBoard's files in a folder.

    Args:
        folder: where they are.
        first_step: from it on points in files of before are no longer shown; None: there are none.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=first_step)
        self._is_closed = False


def make_logger(out: Path, checkpoint: Checkpoint | None = None) -> Logger:
    """Writes progress.csv and tb/ of a run, from the beginning or on from a checkpoint.

    Raises:
        UserError: the checkpoint's rows are no text.
        InputOutputError: they cannot be written.
    """
    tb, progress = out / "tb", out / PROGRESS
    try:
        if checkpoint is None:
            return Logger(str(out), [CSVOutputFormat(str(progress)), Events(tb)])
        stored = checkpoint.state.below("progress")
        keys = [str(key) for key in stored.list("columns")]
        try:
            text = checkpoint.files.get(PROGRESS, b"").decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{checkpoint.folder / PROGRESS}: is no text") from None
        return Logger(str(out), [_Progress(progress, text, keys), Events(tb, checkpoint.step + 1)])
    except OSError as error:
        raise InputOutputError(f"{error.filename or out}: cannot be written: {error.strerror}") from None


# ---- all of a run --------------------------------------------------------------------------------------------------
class Writer:
    """Writes checkpoints of a run, however it learns.

    Args:
        out: the run's folder.
        every: environment steps between checkpoints.
        identity: what they belong to (see `agents.resume.run_identity`).
        scenarios: files of the scenarios within that folder, in their order.
        best: the best agent so far, None before the first.

    Attributes:
        last_step: of the newest checkpoint.
    """

    def __init__(
        self,
        out: Path,
        every: int,
        identity: Mapping[str, str],
        scenarios: Sequence[str],
        best: Callable[[], Trained | None],
    ) -> None:
        self._out, self._every, self._identity = out, every, identity
        self._scenarios, self._best = list(scenarios), best
        self.last_step = 0

    def is_due(self, step: int) -> bool:
        """Whether `every` steps were taken since the newest."""
        return step - self.last_step >= self._every

    def write(self, step: int, parts: Mapping[str, Resumable], logger: Logger) -> None:
        """Writes one. Args: parts: what it holds, by name; the logs come by themselves.

        Raises:
            InputOutputError: it cannot be written; says what is kept.
        """
        state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.saved().items()}
        progress = next(form for form in logger.output_formats if isinstance(form, CSVOutputFormat))
        state["progress.columns"] = list(progress.keys)
        state["run.scenarios"] = self._scenarios
        best = self._best()
        files = {} if best is None else {f"{BEST}/{name}": data for name, data in files_of(best).items()}
        try:
            files[PROGRESS] = (self._out / PROGRESS).read_bytes()
            write_checkpoint(self._out, step, self._identity, state, files)
        except OSError as error:
            self.give_up(f"{error.filename or self._out / PROGRESS}: {error.strerror}")
        except InputOutputError as error:
            self.give_up(str(error))
        self.last_step = step

    def give_up(self, why: str) -> NoReturn:
        """Ends a run that cannot write any more, and says what is kept.

        Raises:
            InputOutputError: always.
        """
        kept = f"the one of step {self.last_step} is kept" if self.last_step else "there is none before it"
        raise InputOutputError(f"{why}; {kept}. Once there is room: python train.py --resume {self._out}") from None


class Checkpoints(BaseCallback):
    """Has a checkpoint written before each rollout that begins when one is due.

    Args:
        writer: writes them.
        parts: what they hold, by name; the learner, the random numbers and the logs come by themselves.
    """

    def __init__(self, writer: Writer, parts: Mapping[str, Resumable]) -> None:
        super().__init__()
        self._writer, self._parts = writer, dict(parts)
        self._random = RandomNumbers()

    def _all(self, model: OnPolicyAlgorithm) -> dict[str, Resumable]:
        return {**self._parts, "learner": Learner(model), "random": self._random}

    def restore(self, model: OnPolicyAlgorithm, checkpoint: Checkpoint) -> None:
        """Puts everything that a checkpoint holds into a learner and the parts.

        Raises:
            UserError: it does not fit them; names file and field.
        """
        for name, part in self._all(model).items():
            part.restore(checkpoint.state.below(name))
        if model.num_timesteps != checkpoint.step:
            raise UserError(f"{checkpoint.folder}: learner.num_timesteps: expected {checkpoint.step}")
        self._writer.last_step = checkpoint.step

    def _on_rollout_start(self) -> None:
        self._random.apply()
        if self._writer.is_due(self.model.num_timesteps):
            self._writer.write(self.model.num_timesteps, self._all(self.model), self.logger)  # type: ignore[arg-type]

    def _on_step(self) -> bool:
        return True
