"""Settings that an episode draws, `[[vary]]`: which, and from what. Knows nothing of the scenario they are in."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from llm_env.changes import changed, setting
from llm_env.errors import UserError
from llm_env.settings import Settings


def _checked_path(path: str) -> str:
    if not re.fullmatch(r"(system|slo|workload|episode|reward)(\.[a-z0-9_]+)+", path):
        raise ValueError(
            f"expected a path like slo.classes.0.ttft_ms, in system, slo, workload, episode or reward, got {path!r}"
        )
    return path


Path = Annotated[str, AfterValidator(_checked_path)]
Number = Annotated[float, Field(ge=-1e12, le=1e12)]
FACTOR_KEYS = {"times", "of"}


class VarySettings(Settings):
    """One draw of an episode.

    A range: `setting` is drawn from `low` to `high`, uniformly, or its logarithm uniformly (`scale` = "log"), and
    rounded where it is an integer. With `of` the draw is a factor on that other setting (or on the setting itself),
    as it is after the entries before this one.

    Choices: `setting` gets one of `choices`, all equally likely. Settings that go together have a `name` in place of
    `setting`, and each choice is a table of dotted paths and values; the value {times = 3.0, of = "PATH"} is three
    times that other setting.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9 _-]{0,31}$")] | None = None
    setting: Path | None = None
    low: Number | None = None
    high: Number | None = None
    scale: Literal["linear", "log"] = "linear"
    of: Path | None = None
    choices: Annotated[tuple[Any, ...], Field(min_length=1, max_length=64, strict=False)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> VarySettings:
        if (self.name is None) == (self.setting is None):
            raise ValueError("give setting, or name for settings that go together")
        if (self.low is None) != (self.high is None) or (self.low is None) == (self.choices is None):
            raise ValueError("give low and high, or choices")
        if self.low is not None and self.high is not None:
            if self.setting is None:
                raise ValueError("low and high are of one setting: give setting")
            if not self.low < self.high:
                raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
            if self.scale == "log" and self.low <= 0:
                raise ValueError(f"scale 'log' needs low above 0, got {self.low:g}")
        elif self.scale != "linear" or self.of is not None:
            raise ValueError("choices have no scale and no of")
        if self.setting is None:
            for table in self.choices or ():
                if not isinstance(table, dict) or not table:
                    raise ValueError(f"each choice of {self.name!r} must be a table of settings, got {table!r}")
                for path in table:
                    _checked_path(path)
                if set(table) != set(self.paths):
                    raise ValueError(f"all choices of {self.name!r} must give the same settings")
        return self

    def __hash__(self) -> int:
        return hash(self.label)

    @property
    def label(self) -> str:
        """What the draw is called: its stream of the seed goes by it."""
        return self.setting or self.name or ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The settings that are drawn."""
        return (self.setting,) if self.setting is not None else tuple(next(iter(self.choices or ({},))))

    @property
    def alternatives(self) -> tuple[float, ...]:
        """Draws of the uniform variable that together show every choice, or both ends of the range."""
        count = len(self.choices) if self.choices is not None else 0
        return tuple((k + 0.5) / count for k in range(count)) or (0.0, 1.0)

    def applied(self, data: dict[str, Any], uniform: float) -> dict[str, Any]:
        """The settings of a scenario with this draw made.

        Args:
            data: nested tables.
            uniform: in [0, 1].

        Raises:
            UserError: a path that leads nowhere, or `of` names what is no number.
        """
        if self.choices is not None:
            choice = self.choices[min(int(uniform * len(self.choices)), len(self.choices) - 1)]
            table = {self.setting: choice} if self.setting is not None else choice
            return changed(data, {path: _value(data, path, value) for path, value in table.items()})
        assert self.setting is not None
        assert self.low is not None
        assert self.high is not None
        if self.scale == "log":
            low, high = math.log(self.low), math.log(self.high)
            value = min(max(math.exp(low + uniform * (high - low)), self.low), self.high)
        else:
            value = self.low + uniform * (self.high - self.low)
        if self.of is not None:
            value *= _number(data, self.of)
        now = setting(data, self.setting)
        return changed(data, {self.setting: round(value) if isinstance(now, int) else value})

    def without(self, path: str) -> VarySettings | None:
        """This draw where the setting at `path` is given; None if nothing is left of it.

        Raises:
            UserError: `path` is a part of what is drawn as a whole.
        """
        for mine in self.paths:
            if path.startswith(f"{mine}."):
                raise UserError(f"scenario: {path}: {mine} is drawn by {self.label!r} of vary; change it as a whole")
        kept = [mine for mine in self.paths if mine != path and not mine.startswith(f"{path}.")]
        if len(kept) == len(self.paths):
            return self
        if not kept:
            return None
        choices = tuple({key: table[key] for key in kept} for table in self.choices or ())
        return self.model_copy(update={"choices": choices})


def _value(data: dict[str, Any], path: str, value: Any) -> Any:
    """A value of a choice; a multiple of another setting is worked out."""
    if not isinstance(value, dict) or set(value) != FACTOR_KEYS:
        return value
    if isinstance(value["times"], bool) or not isinstance(value["times"], int | float):
        raise UserError(f"{path}: times: expected a number, got {value['times']!r}")
    product = value["times"] * _number(data, str(value["of"]))
    return round(product) if isinstance(setting(data, path), int) else product


def _number(data: dict[str, Any], path: str) -> float:
    found = setting(data, path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(f"of: {path} is no number, got {found!r}")
    return found
