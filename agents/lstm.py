"""The memory of a trained policy as plain numpy arrays: one LSTM layer, advanced by a decision at a time. No torch.

Source: Hochreiter and Schmidhuber, "Long short-term memory" (Neural Computation 9(8), 1997), with the forget gate of
Gers, Schmidhuber and Cummins (2000); order of the gates and names of the weights as in `torch.nn.LSTM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_env.errors import UserError
from llm_env.features import NUM_FEATURES

MAX_HIDDEN = 4096
TENSORS = ("lstm.weight_ih", "lstm.weight_hh", "lstm.bias")  # of a file


@dataclass(frozen=True, kw_only=True)
class LSTM:
    """i, f, o = sigmoid, g = tanh of W_ih x + W_hh h + b; c becomes f c + i g, and h becomes o tanh(c).

    Attributes:
        weight_ih: (4 hidden, features) float32, rows of the gates i, f, g, o.
        weight_hh: (4 hidden, hidden) float32.
        bias: (4 hidden,) float32; the sum of torch's two.
    """

    weight_ih: np.ndarray
    weight_hh: np.ndarray
    bias: np.ndarray

    @property
    def hidden(self) -> int:
        """Width of h and of c."""
        return self.weight_hh.shape[1]

    def memory(self, num_systems: int) -> np.ndarray:
        """(num_systems, 2 hidden) float32 zeros: h and c of each system when an episode begins."""
        return np.zeros((num_systems, 2 * self.hidden), np.float32)

    def step(self, observations: np.ndarray, memory: np.ndarray) -> np.ndarray:
        """One decision of each system.

        Args:
            observations: (n, features) float32.
            memory: (n, 2 hidden) float32, changed in place.

        Returns:
            (n, hidden) float32: the new h, a part of the memory.

        Raises:
            ValueError: the memory has another shape or type.
        """
        expected = (len(observations), 2 * self.hidden)
        if memory.shape != expected or memory.dtype != np.float32:
            raise ValueError(f"memory: expected {expected} float32, got {memory.shape} {memory.dtype}")
        h, c = memory[:, : self.hidden], memory[:, self.hidden :]
        gates = observations @ self.weight_ih.T + h @ self.weight_hh.T + self.bias
        i, f, g, o = np.split(gates, 4, axis=1)
        c[:] = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h[:] = _sigmoid(o) * np.tanh(c)
        return h

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights by their names in a file."""
        return dict(zip(TENSORS, (self.weight_ih, self.weight_hh, self.bias), strict=True))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # which does not overflow


def lstm_from_torch(tensors: Mapping[str, np.ndarray], name: str) -> LSTM:
    """The LSTM of one layer that a state dict holds.

    Args:
        tensors: float32 by name.
        name: of the torch.nn.LSTM.
    """
    return LSTM(
        weight_ih=tensors[f"{name}.weight_ih_l0"],
        weight_hh=tensors[f"{name}.weight_hh_l0"],
        bias=tensors[f"{name}.bias_ih_l0"] + tensors[f"{name}.bias_hh_l0"],
    )


def checked_lstm(place: Path, tensors: Mapping[str, np.ndarray]) -> LSTM:
    """The LSTM of a file.

    Raises:
        UserError: its weights do not fit together or to the features; names which.
    """
    weight_ih, weight_hh, bias = (tensors[name] for name in TENSORS)
    hidden = weight_hh.shape[-1] if weight_hh.ndim else 0
    if weight_hh.shape != (4 * hidden, hidden) or not 1 <= hidden <= MAX_HIDDEN:
        raise UserError(f"{place}: {TENSORS[1]}: expected shape (4 n, n), n up to {MAX_HIDDEN}, got {weight_hh.shape}")
    for name, array, expected in (
        (TENSORS[0], weight_ih, (4 * hidden, NUM_FEATURES)),
        (TENSORS[2], bias, (4 * hidden,)),
    ):
        if array.shape != expected:
            raise UserError(f"{place}: {name}: expected shape {expected}, got {array.shape}")
    return LSTM(weight_ih=weight_ih, weight_hh=weight_hh, bias=bias)
