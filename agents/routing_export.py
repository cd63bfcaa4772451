"""Routers as files: the same two as an agent's, `agent.safetensors` and `agent.json` with `"kind": "router"`. Never a
pickle. Reading needs numpy only and checks everything before a router exists.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as tensors_to_bytes

from agents.export import (
    FORMAT,
    MANIFEST,
    MAX_LAYERS,
    WEIGHTS,
    checked_layers,
    read_json,
    read_weights,
)
from agents.network import ACTIVATIONS
from agents.routing_network import FEATURES, INPUTS, NumpyRouter
from llm_env.config import RoutingSettings
from llm_env.errors import UserError
from llm_env.provenance import versions
from llm_env.routing_systems import base_parameters

KIND = "router"


def router_files(router: NumpyRouter) -> dict[str, bytes]:
    """A router's files by name."""
    tensors: dict[str, np.ndarray] = {}
    for k, (weight, bias) in enumerate(router.layers):
        tensors[f"layer.{k}.weight"] = np.ascontiguousarray(weight, np.float32)
        tensors[f"layer.{k}.bias"] = np.ascontiguousarray(bias, np.float32)
    weights = tensors_to_bytes(tensors)
    manifest = {
        "format": FORMAT,
        "kind": KIND,
        "activation": router.activation,
        "layers": len(router.layers),
        "rule_weight": router.rule_weight,
        "choice_weight": router.choice_weight,
        "routing": router.routing,
        "base": router.base,
        "features": list(FEATURES),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": versions(),
        "about": router.about,
    }
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    return {WEIGHTS: weights, MANIFEST: text.encode()}


def load_router(folder: str | Path) -> NumpyRouter:
    """Reads a router that `agents.files.save` wrote, and checks all of it.

    Raises:
        InputOutputError: a file cannot be read.
        UserError: a file is damaged, or made for other features; names the file and the field.
    """
    folder = Path(folder)
    place, manifest = folder / MANIFEST, read_json(folder / MANIFEST)

    def check(name: str, good: bool, expected: str) -> None:
        if not good:
            got = repr(manifest.get(name))
            raise UserError(f"{place}: {name}: expected {expected}, got {got if len(got) <= 80 else got[:77] + '...'}")

    check("format", _is_number(manifest.get("format")) and manifest["format"] == FORMAT, f"{FORMAT}")
    check("kind", manifest.get("kind") == KIND, f"{KIND!r}")
    activation = manifest.get("activation")
    check("activation", isinstance(activation, str) and activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
    count = manifest.get("layers")
    check("layers", isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MAX_LAYERS, "1 to 16")
    for name in ("rule_weight", "choice_weight"):
        check(name, _is_number(manifest.get(name)), "a number")
    check("sha256", isinstance(manifest.get("sha256"), str), "text")
    check("about", isinstance(manifest.get("about"), dict), "an object")
    check("features", manifest.get("features") == list(FEATURES), "those of llm_env/Routing-v0")
    for name in ("routing", "base"):
        given = manifest.get(name)
        check(name, isinstance(given, dict) and all(_is_number(value) for value in given.values()), "numbers by name")
    check("routing", set(manifest["routing"]) <= set(RoutingSettings.model_fields), "settings of [system.routing]")
    try:
        base_parameters(manifest["base"])
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    names, place = [f"layer.{k}" for k in range(manifest["layers"])], folder / WEIGHTS
    expected = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    tensors = read_weights(place, manifest["sha256"], expected)
    return NumpyRouter(
        activation=manifest["activation"],
        layers=checked_layers(place, tensors, names, 1, INPUTS),
        rule_weight=float(manifest["rule_weight"]),
        choice_weight=float(manifest["choice_weight"]),
        routing=manifest["routing"],
        base=manifest["base"],
        about=manifest["about"],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
