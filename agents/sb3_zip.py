"""Reads a model.zip of Stable-Baselines3. THIS RUNS CODE FROM THE FILE: only `agents.load` calls it, when told to.

The zip holds settings as pickles (`stable_baselines3.common.save_util`), so whoever made it decides what reading does.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from agents.export import agent_from_policy
from agents.network import NumpyAgent
from llm_env.actions import ACTION_KINDS
from llm_env.errors import UserError
from llm_env.spaces import action_space, observation_space

_ACTIVATIONS = {torch.nn.Tanh: "tanh", torch.nn.ReLU: "relu"}
# what acting needs none of, so that nothing of it is built
_LEFT_OUT: dict[str, Any] = {
    "rollout_buffer_class": None,
    "rollout_buffer_kwargs": {},
    "n_steps": 2,
    "lr_schedule": lambda _: 0.0,
    "clip_range": lambda _: 0.0,
    "clip_range_vf": None,
}


def load_zip(path: Path) -> NumpyAgent:
    """The agent that a PPO, A2C or MaskablePPO with an MlpPolicy is, or a RecurrentPPO with an MlpLstmPolicy.

    It has learned on an environment of this project.

    Raises:
        UserError: the file is damaged, or the model is another one or saw other observations.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
            policy, n_epochs = str(data["policy_class"].get("__module__")), "n_epochs" in data
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is no zip that Stable-Baselines3 saved: {error}") from None
    masked = policy.startswith("sb3_contrib.common.maskable.")
    recurrent = policy.startswith("sb3_contrib.common.recurrent.")
    kind = MaskablePPO if masked else RecurrentPPO if recurrent else PPO if n_epochs else A2C
    try:
        model = kind.load(path, device="cpu", custom_objects=_LEFT_OUT)
    except Exception as error:  # whatever its pickles do
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: cannot be read as {kind.__name__}: {type(error).__name__}: {first}") from None
    found: Any = model.policy
    if not isinstance(found, ActorCriticPolicy) and not masked:
        raise UserError(f"{path}: policy: expected an MlpPolicy, got {type(found).__name__}")
    if type(found.features_extractor) is not FlattenExtractor:
        raise UserError(f"{path}: policy: expected an MlpPolicy, got {type(found).__name__}")
    lstm: Any = getattr(found, "lstm_actor", None)
    if lstm is not None and (not recurrent or lstm.num_layers > 1 or found.lstm_kwargs):
        raise UserError(f"{path}: policy: expected an MlpPolicy, or an MlpLstmPolicy of one layer, got {lstm}")
    if found.activation_fn not in _ACTIVATIONS:
        raise UserError(f"{path}: activation_fn: expected Tanh or ReLU, got {found.activation_fn.__name__}")
    expected, got = observation_space().shape, model.observation_space.shape
    if got != expected:
        raise UserError(f"{path}: observation_space: expected shape {expected}, got {got}")
    for action in ACTION_KINDS:
        if action_space(action) == model.action_space:
            about = {"name": path.stem, "algo": kind.__name__, "timesteps": int(model.num_timesteps)}
            return agent_from_policy(found, action, _ACTIVATIONS[found.activation_fn], masked, about)
    raise UserError(
        f"{path}: action_space: expected that of one of {', '.join(ACTION_KINDS)}, got {model.action_space}"
    )
