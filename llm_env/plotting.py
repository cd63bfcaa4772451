"""How every picture of the project looks and is saved: style, colours, equal bytes for equal content. Knows matplotlib.

Colours can be told apart by the colour-blind (Okabe and Ito, 2008).
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#B8B8B8"
DARK_GREY = "#444444"  # lines that mark a value
_METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}  # nothing that changes by itself


def pyplot() -> Any:
    """matplotlib.pyplot in the project's style, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "figure.dpi": 120,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.grid": True,
            "grid.color": "#EAEAEA",
            "axes.axisbelow": True,
            "legend.frameon": False,
            "svg.fonttype": "none",  # text stays text: it can be searched, and is small
            "svg.hashsalt": "llm_env",  # else the names inside differ from run to run
        }
    )
    return plt


def titled(text: str, width: int = 96) -> str:
    """A title in as many lines as it needs in a picture of the usual width."""
    return "\n".join(textwrap.wrap(text.replace(" %", "\u00a0%"), width))  # a number stays with its unit


def figure_text(value: float) -> str:
    """A number for a title, in three or four digits: 0.123, 13.5, 173, 1,155, 18.7k, 2.35M."""
    size = abs(value)
    if size >= 1e4:
        scaled, unit = (
            (value / 1e3, "k") if size < 999_500 else (value / 1e6, "M") if size < 1e9 else (value / 1e9, "G")
        )
        return f"{scaled:,.3g}{unit}" if abs(scaled) < 999.5 else f"{scaled:,.0f}{unit}"
    return f"{value:.3g}" if size < 999.5 else f"{value:,.0f}"


def save(fig: Any, *paths: Path) -> None:
    """Writes a figure to each path, PNG or SVG by its name, and closes it."""
    for path in paths:
        fig.savefig(path, bbox_inches="tight", metadata=_METADATA[path.suffix])
    pyplot().close(fig)
