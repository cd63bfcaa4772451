"""`calibrate`: the service settings that fit measured batches best. Reads by `llm_env.measured`; runs no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from scipy.optimize import nnls

from llm_env.config import ServiceSettings
from llm_env.errors import UserError
from llm_env.files import staged_folder
from llm_env.measured import read_batches
from llm_env.plots import plot_fit

FILES = ("service.toml", "fit.png")
_GRID = 65  # values of b0 that are tried at a time
_TERMS = {  # column of the file -> setting, and in what unit the setting counts it
    "decodes": ("decode_fixed_ms", 1.0),
    "cached_tokens": ("kv_ms_per_1k_cached_tokens", 1e3),
    "prefill_context": ("prefill_attention_ms_per_1m_token_context", 1e6),
}


@dataclass(frozen=True)
class Fit:
    """Fitted settings and how well they describe the batches."""

    service: ServiceSettings
    fitted_ms: np.ndarray  # (n,) float64, of each measured batch
    r2: float  # 1 - residual / total sum of squares; NaN if all batches took equally long
    mape: float  # mean of |fitted - measured| / measured
    terms: tuple[str, ...]  # names of the settings that were fitted, in the order of the settings
    left_out: tuple[str, ...]  # columns that hold one value only: their term cannot be told from the setup


def fit_service(batches: dict[str, np.ndarray], place: str = "batches") -> Fit:
    """Least squares for S = c + a * max(0, b - b0) + a term per optional column, every coefficient at least 0.

    For a given b0 the rest is non-negative linear least squares (Lawson and Hanson, "Solving Least Squares Problems",
    1974). b0 is searched among whole numbers: on a grid over the token counts that occur, then on ever finer ones
    around the best. Of those that fit equally well it is the smallest: 0 if no batch is short enough to show it.

    Args:
        batches: column -> (n,) float64, as `read_batches` gives them.
        place: named in errors.

    Raises:
        UserError: too few batches, all of one size, or columns that cannot be told apart.
    """
    tokens, ms = batches["tokens"], batches["ms"]
    columns, names, left_out = [np.ones_like(tokens)], ["setup_ms", "per_token_ms"], []
    for name, (setting, unit) in _TERMS.items():
        if name not in batches:
            continue
        column = (batches[name] > 0).astype(np.float64) if name == "decodes" else batches[name] / unit
        if np.ptp(column) == 0:
            left_out.append(name)
        else:
            columns.append(column)
            names.append(setting)
    if np.ptp(tokens) == 0:
        raise UserError(f"{place}: tokens: expected batches of different sizes, got {tokens[0]:g} in all of them")
    if len(tokens) <= len(names) + 1:
        raise UserError(f"{place}: expected more than {len(names) + 1} batches for as many numbers, got {len(tokens)}")
    others = np.stack(columns, axis=1)
    scaled = np.column_stack([others, tokens]) / np.linalg.norm(np.column_stack([others, tokens]), axis=0)
    if np.linalg.matrix_rank(scaled, tol=1e-9 * len(tokens) ** 0.5) < scaled.shape[1]:
        raise UserError(f"{place}: {', '.join(names)} cannot be told apart: their columns depend on each other")

    free_tokens = _search(others, tokens, ms)
    _, found = _solve(others, tokens, ms, free_tokens)
    matrix = np.insert(others, 1, np.maximum(0.0, tokens - free_tokens), axis=1)
    fitted = matrix @ found
    coefficients: dict[str, Any] = dict(zip(names, map(float, found), strict=True))
    total = float(((ms - ms.mean()) ** 2).sum())
    return Fit(
        service=ServiceSettings(free_tokens=free_tokens, **coefficients),
        fitted_ms=fitted,
        r2=1.0 - float(((ms - fitted) ** 2).sum()) / total if total > 0 else float("nan"),
        mape=float((abs(fitted - ms) / ms).mean()),
        terms=("setup_ms", "per_token_ms", "free_tokens", *names[2:]),
        left_out=tuple(left_out),
    )


def _solve(others: np.ndarray, tokens: np.ndarray, ms: np.ndarray, free_tokens: int) -> tuple[float, np.ndarray]:
    """Residual (2-norm) and coefficients for one b0, those of the setup and of the tokens first."""
    matrix = np.column_stack([np.insert(others, 1, np.maximum(0.0, tokens - free_tokens), axis=1), ms])
    small = np.asarray(np.linalg.qr(matrix, mode="r"))  # the same problem in as many rows as there are columns
    scale = np.linalg.norm(small[:, :-1], axis=0)
    scale[scale == 0] = 1.0
    found, residual = nnls(small[:, :-1] / scale, small[:, -1])
    return float(residual), found / scale


def _search(others: np.ndarray, tokens: np.ndarray, ms: np.ndarray) -> int:
    """The b0 with the smallest residual, below the largest batch."""
    tried: dict[int, float] = {}
    slack = 1e-9 * float(np.linalg.norm(ms))
    occurring = np.quantile(np.unique(tokens), np.linspace(0.0, 1.0, _GRID))
    grid = sorted({0, *(min(int(b), int(tokens.max()) - 1) for b in occurring)})
    while True:
        for b in grid:
            if b not in tried:
                tried[b] = _solve(others, tokens, ms, b)[0]
        limit = min(tried.values()) + slack
        best = min(b for b, residual in tried.items() if residual <= limit)
        below = max((b for b in tried if b < best), default=best)
        above = min((b for b in tried if b > best), default=best)
        if best - below <= 1 and above - best <= 1:
            return best
        grid = sorted({int(b) for b in np.linspace(below, above, _GRID)})


def service_toml(fit: Fit, source: str) -> str:
    """The fit as a scenario file of its own: all else has the default, and the table can be pasted into another."""
    note = f"Fitted to {len(fit.fitted_ms)} batches of {source}: R^2 {fit.r2:.6f}, mean error {fit.mape:.2%}."
    settings = fit.service.model_dump(mode="json", exclude_none=True)
    return tomli_w.dumps({"name": "calibrated", "description": note, "system": {"service": settings}})


def calibrate(path: Path, out: Path | None) -> Fit:
    """Fits the batches of a file; with `out` also writes FILES there.

    Raises:
        UserError, InputOutputError: the file is wrong or cannot be read, `out` cannot be written.
    """
    batches = read_batches(path)
    if out is None:
        return fit_service(batches, str(path))
    with staged_folder(out) as folder:
        fit = fit_service(batches, str(path))
        (folder / FILES[0]).write_text(service_toml(fit, path.name), encoding="utf-8")
        plot_fit(batches["tokens"], batches["ms"], fit.fitted_ms, fit.r2, fit.mape, folder / FILES[1])
    return fit
