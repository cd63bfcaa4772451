"""Trained policies as files: `agent.safetensors` with the weights and `agent.json` with what they mean. Never a pickle.

Reading needs numpy only, runs nothing that it reads, and checks everything before an agent exists.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as tensors_to_bytes

from agents.lstm import TENSORS, checked_lstm, lstm_from_torch
from agents.network import ACTIVATIONS, OUTPUTS, Layer, NumpyAgent
from llm_env.actions import FLOAT_NAMES
from llm_env.errors import InputOutputError, UserError
from llm_env.features import FEATURE_NAMES, NUM_FEATURES
from llm_env.provenance import versions
from llm_env.ranking import NUM_REQUEST_FEATURES, REQUEST_FEATURES
from llm_env.records import MOST_RANKED

FORMAT = 1
POLICY = "policy"  # the kind of an agent that `NumpyAgent` is; files without a kind are of this one
WEIGHTS, MANIFEST = "agent.safetensors", "agent.json"
MAX_BYTES = 256 * 1024 * 1024  # of either file: a policy of this project has some kilobytes
MAX_LAYERS, MAX_WIDTH = 16, 8192
REQUEST_FEATURE_NAMES = tuple(name for name, *_ in REQUEST_FEATURES)


# ---- from torch ----------------------------------------------------------------------------------------------------
def agent_from_policy(policy: Any, action: str, activation: str, masked: bool, about: dict[str, Any]) -> NumpyAgent:
    """The NumpyAgent that decides as a Stable-Baselines3 MlpPolicy or MlpLstmPolicy does; a copy of its weights.

    Args:
        policy: ActorCriticPolicy with separate networks for policy and value. Of one with an LSTM, which has one layer,
            the value is left out.
        action: one of `llm_env.actions.ACTION_KINDS`.
        activation: "tanh" or "relu".
        masked: trained with action masks.
        about: kept with the agent (scenario, timesteps, ...).
    """
    tensors = {
        name: np.array(tensor.detach().cpu().numpy(), np.float32) for name, tensor in policy.state_dict().items()
    }

    def layers(network: str, last: str) -> tuple[Layer, ...]:
        names = [name.removesuffix(".weight") for name in tensors if name.startswith(f"mlp_extractor.{network}.")]
        names = [name for name in dict.fromkeys(names) if not name.endswith(".bias")]
        return tuple((tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in (*names, last))

    ranked, recurrent = action == "ranked", hasattr(policy, "lstm_actor")
    return NumpyAgent(
        action=action,
        activation=activation,
        policy=layers("policy_net", "mlp_extractor.head" if ranked else "action_net"),
        scorer=layers("scorer", "mlp_extractor.score") if ranked else None,
        log_std=tensors.get("log_std"),
        values=None if recurrent else layers("value_net", "value_net"),
        lstm=lstm_from_torch(tensors, "lstm_actor") if recurrent else None,
        masked=masked,
        about=about,
    )


# ---- writing -------------------------------------------------------------------------------------------------------
def agent_files(agent: NumpyAgent) -> dict[str, bytes]:
    """An agent's files by name."""
    tensors: dict[str, np.ndarray] = {} if agent.lstm is None else agent.lstm.tensors()
    for network, layers in (("policy", agent.policy), ("value", agent.values or ()), ("scorer", agent.scorer or ())):
        for k, (weight, bias) in enumerate(layers):
            tensors[f"{network}.{k}.weight"] = np.ascontiguousarray(weight)
            tensors[f"{network}.{k}.bias"] = np.ascontiguousarray(bias)
    if agent.log_std is not None:
        tensors["log_std"] = agent.log_std
    weights = tensors_to_bytes(tensors)
    manifest = {
        "format": FORMAT,
        "kind": POLICY,
        "action": agent.action,
        "activation": agent.activation,
        "masked": agent.masked,
        "lstm": agent.lstm is not None,
        "policy_layers": [f"policy.{k}" for k in range(len(agent.policy))],
        "value_layers": None if agent.values is None else [f"value.{k}" for k in range(len(agent.values))],
        "scorer_layers": None if agent.scorer is None else [f"scorer.{k}" for k in range(len(agent.scorer))],
        "features": list(FEATURE_NAMES),
        "request_features": None if agent.scorer is None else list(REQUEST_FEATURE_NAMES),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": versions(),
        "about": agent.about,
    }
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    return {WEIGHTS: weights, MANIFEST: text.encode()}


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files to a new folder, or in place of an old one: whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        staged.chmod(0o755)
        for name, data in files.items():
            with (staged / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():  # a folder cannot replace one that holds files: the old one steps aside first
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            staged.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


# ---- reading -------------------------------------------------------------------------------------------------------
def load_agent(folder: str | Path) -> NumpyAgent:
    """Reads an agent that `agents.files.save` wrote, and checks all of it.

    Raises:
        InputOutputError: a file cannot be read.
        UserError: a file is damaged, or made for other features; names the file and the field.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder / MANIFEST)
    place = folder / WEIGHTS
    action, values, scorer = manifest["action"], manifest["value_layers"], manifest.get("scorer_layers")
    recurrent = manifest.get("lstm", False)
    names = {*manifest["policy_layers"], *(values or []), *(scorer or [])}
    expected = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    expected |= {"log_std"} if action in FLOAT_NAMES else set()
    expected |= set(TENSORS) if recurrent else set()
    tensors = read_weights(place, manifest["sha256"], expected)
    if action in FLOAT_NAMES and tensors["log_std"].shape != (OUTPUTS[action],):
        raise UserError(f"{place}: log_std: expected shape ({OUTPUTS[action]},), got {tensors['log_std'].shape}")
    lstm = checked_lstm(place, tensors) if recurrent else None
    outputs = OUTPUTS[action] - (0 if scorer is None else MOST_RANKED)
    policy = checked_layers(
        place, tensors, manifest["policy_layers"], outputs, NUM_FEATURES if lstm is None else lstm.hidden
    )
    scorer_width = NUM_REQUEST_FEATURES + policy[-1][0].shape[1]
    return NumpyAgent(
        action=action,
        activation=manifest["activation"],
        policy=policy,
        scorer=None if scorer is None else checked_layers(place, tensors, scorer, 1, scorer_width),
        log_std=tensors.get("log_std"),
        values=None if values is None else checked_layers(place, tensors, values, 1),
        lstm=lstm,
        masked=manifest["masked"],
        about=manifest["about"],
    )


def read_weights(place: Path, sha256: str, expected: set[str]) -> dict[str, np.ndarray]:
    """The tensors of a file of weights by name: just the expected ones, float32, finite.

    Raises:
        InputOutputError: it cannot be read.
        UserError: it is not the file that its manifest speaks of, or damaged; names what.
    """
    data = read_file(place)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{place}: sha256 differs from that in {MANIFEST}: the file is damaged or was changed")
    try:
        tensors = read_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: not a safetensors file: {error}") from None
    if set(tensors) != expected:
        odd = ", ".join(sorted(set(tensors) ^ expected))
        raise UserError(f"{place}: its tensors are not those that {MANIFEST} names: {odd}")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise UserError(f"{place}: {name}: expected float32, got {tensor.dtype}")
        if not np.isfinite(tensor).all():
            raise UserError(f"{place}: {name}: holds NaN or infinite numbers")
    return tensors


def checked_layers(
    place: Path, tensors: Mapping[str, np.ndarray], names: list[str], outputs: int, width: int = NUM_FEATURES
) -> tuple[Layer, ...]:
    """Checks that the layers fit together, from `width` to `outputs`."""
    layers = []
    for name in names:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if weight.ndim != 2 or weight.shape[1] != width or not 1 <= weight.shape[0] <= MAX_WIDTH:
            raise UserError(f"{place}: {name}.weight: expected shape (n, {width}), got {weight.shape}")
        if bias.shape != weight.shape[:1]:
            raise UserError(f"{place}: {name}.bias: expected shape ({weight.shape[0]},), got {bias.shape}")
        layers.append((weight, bias))
        width = weight.shape[0]
    if width != outputs:
        raise UserError(f"{place}: {names[-1]}.weight: expected {outputs} rows, got {width}")
    return tuple(layers)


def read_file(path: Path) -> bytes:
    """The bytes of a file of an agent.

    Raises:
        UserError: it is far too large for one.
        InputOutputError: it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES} bytes: no agent of this project")
        return path.read_bytes()
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from None


def kind_of(folder: Path) -> str:
    """Which kind of agent a folder holds: who reads it depends on that.

    Raises:
        InputOutputError: it cannot be read.
        UserError: its manifest is damaged.
    """
    kind = read_json(folder / MANIFEST).get("kind", POLICY)
    if not isinstance(kind, str):
        raise UserError(f"{folder / MANIFEST}: kind: expected text, got {kind!r:.80}")
    return kind


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        UserError: it holds no JSON, or no object.
        InputOutputError: it cannot be read.
    """
    try:
        manifest = json.loads(read_file(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: expected an object, got {type(manifest).__name__}")
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)

    def check(field: str, good: bool, expected: str) -> None:
        if not good:
            got = repr(manifest.get(field))
            raise UserError(f"{path}: {field}: expected {expected}, got {got if len(got) <= 80 else got[:77] + '...'}")

    def is_names(value: Any) -> bool:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_LAYERS:
            return False
        return all(isinstance(name, str) for name in value) and len(set(value)) == len(value)

    number = manifest.get("format")
    check("format", isinstance(number, int) and not isinstance(number, bool) and number == FORMAT, f"{FORMAT}")
    check("kind", manifest.get("kind", POLICY) == POLICY, POLICY)
    for field, known in (("action", OUTPUTS), ("activation", ACTIVATIONS)):
        value = manifest.get(field)
        check(field, isinstance(value, str) and value in known, f"one of {', '.join(known)}")
    check("masked", isinstance(manifest.get("masked"), bool), "true or false")
    recurrent = manifest.get("lstm", False)  # files without it are of agents without memory
    feedforward_only = manifest["action"] == "ranked" or manifest["masked"] or manifest.get("value_layers") is not None
    check("lstm", isinstance(recurrent, bool), "true or false")
    check("lstm", not (recurrent and feedforward_only), "false for an agent with masks, ranks or a value")
    check("sha256", isinstance(manifest.get("sha256"), str), "text")
    check("about", isinstance(manifest.get("about"), dict), "an object")
    check("policy_layers", is_names(manifest.get("policy_layers")), f"1 to {MAX_LAYERS} different names")
    values = manifest.get("value_layers")
    check("value_layers", values is None or is_names(values), f"null or 1 to {MAX_LAYERS} different names")
    ranks, scorer = manifest["action"] == "ranked", manifest.get("scorer_layers")
    check(
        "scorer_layers", is_names(scorer) if ranks else scorer is None, f"1 to {MAX_LAYERS} names" if ranks else "null"
    )
    for field, mine in (
        ("features", FEATURE_NAMES),
        *((("request_features", REQUEST_FEATURE_NAMES),) if ranks else ()),
    ):
        if manifest.get(field) != list(mine):
            difference = _difference(mine, manifest.get(field))
            raise UserError(f"{path}: {field}: {difference}: the agent was made for other observations")
    return manifest


def _difference(names: tuple[str, ...], given: Any) -> str:
    if not isinstance(given, list):
        return "expected a list of names"
    for k, (mine, theirs) in enumerate(zip(names, given, strict=False)):
        if mine != theirs:
            return f"expected {mine!r} at place {k}, got {theirs!r}"
    return f"expected {len(names)} names, got {len(given)}"
