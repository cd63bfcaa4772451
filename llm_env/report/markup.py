"""HTML and SVG as text: escaping, numbers, scales and axes. Knows nothing of studies.

An SVG is a panel of WIDTH units that is never shown much narrower than it was drawn, so that its words stay readable
on a telephone. Colours are CSS classes: the page decides them, for light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MINUS = "−"
WIDTH = 480  # units of a panel; about as many pixels
FONT = 13  # units
NAMES = 132  # units at the right of a panel, for names of lines


def escaped(text: object) -> str:
    """Text that is safe between tags and in quoted attributes; control characters become "?"."""
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))
    return html.escape(plain, quote=True)


def number(value: float, digits: int = 1, sign: bool = False) -> str:
    """A number with a true minus; a dash for NaN, and no sign before what is shown as 0."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+" if sign else "") + text


def plus_minus(mean: float, half_width: float, digits: int = 1, sign: bool = False) -> str:
    """As in 78.9 ±4.6, or the mean alone where there is no interval."""
    half = f" ±{half_width:.{digits}f}" if math.isfinite(half_width) else ""
    return number(mean, digits, sign) + half


def seconds(value: float) -> str:
    """A time in the unit that suits it: "150 ms", "2.3 s"."""
    if not math.isfinite(value):
        return "–"
    if value < 0.9995:
        return f"{1e3 * value:.0f} ms"
    return f"{value:.3g} s" if value < 999.5 else f"{value:.0f} s"


def at(value: float) -> str:
    """A coordinate, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0").replace("-0", "0" if value > -0.05 else "-0")


def points(xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray) -> str:
    """Coordinates for a polyline or polygon."""
    return " ".join(f"{at(x)},{at(y)}" for x, y in zip(xs, ys, strict=True))


class Axis(NamedTuple):
    """A scale: values in [low, high] to units in [start, end], linear or logarithmic (low above 0)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies, cut at the ends."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.log:
            value = math.log(max(value, 1e-300))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def all(self, values: Sequence[float] | np.ndarray) -> list[float]:
        """Where many lie."""
        return [self(float(value)) for value in values]


def steps(high: float, most: int = 5) -> list[float]:
    """Round ticks from 0 that end at or above `high`: 0, 20, 40, ..."""
    if not high > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(high))
    for factor in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0):
        step = factor * power
        if math.ceil(high / step - 1e-9) <= most:
            break
    return [k * step for k in range(math.ceil(high / step - 1e-9) + 1)]


class Panel:
    """An SVG that is drawn piece by piece.

    Args:
        title, description: what a screen reader says; the description tells the finding in words.
        height: units.
        left, right, top, bottom: margins around the plotting area, units.
    """

    def __init__(
        self,
        title: str,
        description: str,
        height: int = 320,
        left: int = 46,
        right: int = 16,
        top: int = 14,
        bottom: int = 46,
    ):
        """An empty panel."""
        self.title, self.description, self.height = title, description, height
        self.x0, self.x1, self.y0, self.y1 = left, WIDTH - right, height - bottom, top
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Words at a place; kind: CSS classes."""
        self.parts.append(
            f'<text x="{at(x)}" y="{at(y)}" class="{kind}" text-anchor="{anchor}">{escaped(words)}</text>'
        )

    def line(self, x: float, y: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.parts.append(f'<line x1="{at(x)}" y1="{at(y)}" x2="{at(x2)}" y2="{at(y2)}" class="{kind}"/>')

    def path(self, xs: Sequence[float], ys: Sequence[float], kind: str, title: str = "") -> None:
        """A line through points; title: what is shown when the pointer rests on it."""
        said = f"<title>{escaped(title)}</title>" if title else ""
        self.parts.append(f'<polyline points="{points(xs, ys)}" class="line {kind}">{said}</polyline>')

    def area(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], kind: str) -> None:
        """What lies between two lines."""
        self.parts.append(f'<polygon points="{points([*xs, *xs[::-1]], [*low, *high[::-1]])}" class="{kind}"/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 4, title: str = "") -> None:
        """A filled circle with a rim in the colour of the page."""
        said = f"<title>{escaped(title)}</title>" if title else ""
        self.parts.append(f'<circle cx="{at(x)}" cy="{at(y)}" r="{at(radius)}" class="dot {kind}">{said}</circle>')

    def cell(self, x: float, y: float, wide: float, high: float, kind: str, strength: float, title: str) -> None:
        """A rectangle of a map on a faint ground; strength: of its colour, from 0 to 1."""
        place = f'x="{at(x)}" y="{at(y)}" width="{at(wide)}" height="{at(high)}"'
        self.parts.append(
            f'<rect {place} class="ground"/><rect {place} class="cell {kind}" fill-opacity="{strength:.2f}">'
            f"<title>{escaped(title)}</title></rect>"
        )

    def y_axis(self, axis: Axis, ticks: Sequence[float], words: Callable[[float], str], label: str) -> None:
        """Grid lines with their values; the label stands above the axis, level, where it is easily read."""
        for tick in ticks:
            y = axis(tick)
            self.line(self.x0, y, self.x1, y, "grid")
            self.text(self.x0 - 8, y + 4.5, words(tick), "tick", "end")
        self.text(0, self.y1 - 12, label, "label")

    def x_axis(self, axis: Axis, ticks: Sequence[float], words: Callable[[float], str], label: str) -> None:
        """Ticks below the area, and the label in the middle."""
        self.line(self.x0, self.y0, self.x1, self.y0, "axis")
        for tick in ticks:
            self.line(axis(tick), self.y0, axis(tick), self.y0 + 4, "axis")
            self.text(axis(tick), self.y0 + 18, words(tick), "tick", "middle")
        self.text((self.x0 + self.x1) / 2, self.y0 + 38, label, "label", "middle")

    def end_labels(self, labels: Sequence[tuple[float, str, str]], x: float) -> None:
        """Names at the right ends of lines, moved apart where they would lie over each other.

        Args:
            labels: (y, name, CSS classes) of each.
            x: where the words begin.
        """
        for y, (_, name, kind) in zip(spread([y for y, *_ in labels], FONT + 3, self.y1, self.y0), labels, strict=True):
            self.text(x, y + 4.5, shortened(name), f"name {kind}")

    def svg(self) -> str:
        """The whole."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escaped(self.title)}">'
            f"<title>{escaped(self.title)}</title><desc>{escaped(self.description)}</desc>{''.join(self.parts)}</svg>"
        )


def shortened(name: str, most: int = 17) -> str:
    """A name for a margin: its beginning and its end."""
    return name if len(name) <= most else f"{name[: most - 5]}…{name[-4:]}"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near as can be to those wanted, in their order, `gap` apart, within [low, high] if there is room.

    Less k gaps, the k-th place may not be above the next: that is isotonic regression, by pooling neighbours.
    """
    order = sorted(range(len(wanted)), key=lambda k: (wanted[k], k))
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for k, index in enumerate(order):
        pools.append((wanted[index] - gap * k, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, n), (mean_before, n_before) = pools.pop(), pools.pop()
            pools.append(((mean * n + mean_before * n_before) / (n + n_before), n + n_before))
    level = [mean for mean, n in pools for _ in range(n)]
    last = max(low, high - gap * (len(wanted) - 1))
    placed = [0.0] * len(wanted)
    for k, index in enumerate(order):
        placed[index] = min(max(level[k], low), last) + gap * k
    return placed
