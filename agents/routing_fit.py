"""Fits the shared network of a router to labelled arrivals: regression on the advantages of the workers.

The target of a worker is the mean cost of all workers minus its own, so that what no choice can change is no target.
Some networks that differ in their first weights and in their order of samples are fitted and averaged; each keeps the
weights that were best on arrivals that it did not learn from. Their mean is one network again: a wider one.

Source: Baird, "Advantage updating" (Wright Laboratory, WL-TR-93-1146, 1993); Huber, "Robust estimation of a location
parameter" (Annals of Mathematical Statistics 35(1), 1964); Lakshminarayanan et al., "Simple and scalable predictive
uncertainty estimation using deep ensembles" (NeurIPS 2017).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from agents.network import Layer
from agents.routing_labels import Labels
from agents.routing_network import INPUTS, network_inputs


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Hyperparameters of the regression."""

    networks: int = 3
    """How many are averaged."""

    width: int = 32
    """Of both hidden layers of each."""

    epochs: int = 40
    """Most passes over the arrivals."""

    minibatch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    """Of AdamW."""

    huber: float = 1.5
    """Missed requests beyond which an error counts linearly."""

    held_out: float = 0.15
    """Share of the arrivals, the last ones, that tell which weights are best."""


class Fit(NamedTuple):
    """What a regression gave."""

    layers: tuple[Layer, ...]  # from INPUTS to 1
    explained: float  # share of the variance of the held-out targets


def shared_network(width: int, zero: bool) -> nn.Sequential:
    """INPUTS - width - width - 1 with tanh. Args: zero: the last layer begins with zeros."""
    network = nn.Sequential(
        nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5 if layer.out_features > 1 else 0.1)
            nn.init.zeros_(layer.bias)
            if zero and layer.out_features == 1:
                nn.init.zeros_(layer.weight)
    return network


def numpy_layers(network: nn.Sequential) -> tuple[Layer, ...]:
    """Copies of the weights and biases of its linear layers, float32."""
    return tuple(
        (layer.weight.detach().numpy().astype(np.float32), layer.bias.detach().numpy().astype(np.float32))
        for layer in network
        if isinstance(layer, nn.Linear)
    )


def mean_network(networks: list[tuple[Layer, ...]]) -> tuple[Layer, ...]:
    """The layers of one network whose output is the mean of theirs: side by side, block by block."""
    last = len(networks[0]) - 1
    merged: list[Layer] = []
    for k in range(last + 1):
        weights, biases = [layers[k][0] for layers in networks], [layers[k][1] for layers in networks]
        if k == last:
            weight, bias = np.concatenate(weights, axis=1) / len(networks), sum(biases) / len(networks)
        else:
            bias = np.concatenate(biases)
            weight = np.concatenate(weights) if k == 0 else _block_diagonal(weights)
        merged.append((np.asarray(weight, np.float32), np.asarray(bias, np.float32)))
    return tuple(merged)


def _block_diagonal(weights: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros(np.sum([weight.shape for weight in weights], axis=0), np.float32)
    row = column = 0
    for weight in weights:
        whole[row : row + weight.shape[0], column : column + weight.shape[1]] = weight
        row, column = row + weight.shape[0], column + weight.shape[1]
    return whole


def fit_advantages(labels: Labels, settings: FitSettings, seed: int) -> Fit:
    """Fits networks to the labels. The same arguments give the same weights."""
    inputs = torch.from_numpy(network_inputs(labels.observations))
    targets = torch.from_numpy((labels.costs.mean(axis=1, keepdims=True) - labels.costs).astype(np.float32))
    learned = len(inputs) - max(1, int(settings.held_out * len(inputs)))
    networks = [_fitted(inputs, targets, learned, settings, seed + k) for k in range(settings.networks)]
    with torch.no_grad():
        predicted = torch.stack([_centred(network, inputs[learned:]) for network in networks]).mean(dim=0)
    rest = targets[learned:]
    explained = 1.0 - float(((predicted - rest) ** 2).mean() / (rest**2).mean().clamp_min(1e-12))
    return Fit(mean_network([numpy_layers(network) for network in networks]), explained)


def _centred(network: nn.Sequential, inputs: torch.Tensor) -> torch.Tensor:
    """(n, num_workers) advantages, of mean zero over the workers."""
    values = network(inputs)[:, :, 0]
    return values - values.mean(dim=1, keepdim=True)


def _fitted(
    inputs: torch.Tensor, targets: torch.Tensor, learned: int, settings: FitSettings, seed: int
) -> nn.Sequential:
    """One network, with the weights of the epoch that was best on the arrivals from `learned` on."""
    torch.manual_seed(seed)
    network = shared_network(settings.width, zero=False)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    loss_of = nn.HuberLoss(delta=settings.huber)
    best, least = copy.deepcopy(network.state_dict()), float("inf")
    for _ in range(settings.epochs):
        order = torch.randperm(learned)
        for begin in range(0, learned, settings.minibatch):
            k = order[begin : begin + settings.minibatch]
            loss = loss_of(_centred(network, inputs[k]), targets[k])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(loss_of(_centred(network, inputs[learned:]), targets[learned:]))
        if loss < least:
            best, least = copy.deepcopy(network.state_dict()), loss
    network.load_state_dict(best)
    return network
