"""Evolution strategies: the gradient of a known function, mirrored pairs on equal terms, and a rule that is learned."""

from __future__ import annotations

import os

import numpy as np
import pytest

from agents.es import ESSettings, ESState, episode_seeds, next_generation, perturbations
from agents.es_training import Evolution, comparing
from agents.forms import Deciding
from agents.population import Earned, Weights
from agents.progress import Display
from agents.task import Task
from agents.validation import FIRST_VALIDATION_SEED, Keeper, ValidationSet
from llm_env.adaptive import BUDGET, NEUTRAL, to_unit
from llm_env.errors import UserError
from llm_env.systems import NUM_TRAINING_SEEDS
from tests.test_population import SHORT

WEIGHTS = Weights((2, 2), np.zeros(2, np.float32), np.ones(2, np.float32))  # 6 numbers


def climb(best, settings, noise=0.0):
    """Moves from 0 on -|v - best|^2, with the same noise for both of a pair."""
    state = ESState(np.zeros(WEIGHTS.size))

    def compare(vector, generation):
        moved = settings.sigma * perturbations(WEIGHTS.size, 7, generation, range(settings.pairs))
        shared = noise * np.random.default_rng(generation).normal(size=settings.pairs)
        scores = [-((vector + sign * moved - best) ** 2).sum(axis=1) + shared for sign in (1, -1)]
        return Earned(np.array(scores), 10)

    while state.generation < settings.generations:
        next_generation(state, WEIGHTS, settings, 7, compare)
    return state


def test_it_climbs_a_parabola_through_noise_that_pairs_share():
    best = np.array([0.5, -0.4, 0.3, 0.0, -0.2, 0.1])
    settings = ESSettings(generations=150, pairs=16, learning_rate=0.03)
    for noise in (0.0, 5.0):
        state = climb(best, settings, noise)
        assert np.abs(state.average - best).max() < 0.1
        assert state.decisions == 1500
    assert (climb(best, settings).vector == climb(best, settings).vector).all()


def test_nothing_moves_where_nothing_differs():
    state = ESState(np.ones(WEIGHTS.size))
    settings = ESSettings(generations=1, pairs=4)
    next_generation(state, WEIGHTS, settings, 0, lambda _vector, _generation: Earned(np.full((2, 4), 0.5), 1))
    assert (state.vector == 1).all()
    assert state.generation == 1


def test_a_step_goes_up_the_mean_of_the_differences():
    """One pair: the first step of Adam is the learning rate along the sign of its direction."""
    state = ESState(np.zeros(WEIGHTS.size))
    settings = ESSettings(generations=10, pairs=1, learning_rate=0.02)
    direction = perturbations(WEIGHTS.size, 3, 0, [0])[0]
    next_generation(state, WEIGHTS, settings, 3, lambda _vector, _generation: Earned(np.array([[0.2], [0.7]]), 1))
    np.testing.assert_allclose(state.vector, -0.02 * np.sign(direction), rtol=1e-4)
    np.testing.assert_allclose(state.average, 0.1 * state.vector)


def test_pairs_are_drawn_the_same_in_any_company_and_from_training_seeds():
    assert (perturbations(5, 1, 2, [0, 1, 2])[2] == perturbations(5, 1, 2, [2])[0]).all()
    assert (perturbations(5, 1, 2, [0]) != perturbations(5, 1, 3, [0])).all()
    assert abs(perturbations(1000, 0, 0, range(20)).std() - 1) < 0.03
    seeds = episode_seeds(1, 2, range(200), 3)
    assert (seeds[7] == episode_seeds(1, 2, [7], 3)[0]).all()
    assert 0 <= seeds.min() <= seeds.max() < NUM_TRAINING_SEEDS
    assert len(np.unique(seeds)) > 590


@pytest.mark.parametrize(
    "bad", [{"pairs": 0}, {"sigma": 0.0}, {"generations": 0}, {"hidden": (0,)}, {"learning_rate": -1.0}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match=f"es.{next(iter(bad)).replace('_', '-')}: expected"):
        ESSettings(**bad)


# ---- on the simulator ----------------------------------------------------------------------------------------------
def task(tmp_path):
    against = ValidationSet(
        cases=(("a", SHORT, None),), seeds=tuple(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + 8))
    )
    return Task(
        name="t",
        together="t",
        out=tmp_path,
        scenarios=(SHORT,),
        load_ranges=((0.8, 1.2),),
        learned=None,
        against=against,
    )


def form_at(budget):
    found = np.array(NEUTRAL)
    found[BUDGET] = budget
    return Deciding((SHORT,), "adaptive", to_unit(found))


def test_it_learns_to_leave_a_bad_budget(tmp_path):
    """Batches of three times tau* break the TBT target; a linear policy must come down."""
    settings = ESSettings(generations=12, pairs=12, sigma=0.3, learning_rate=0.1, hidden=(), validate_every=6)
    mine = task(tmp_path)
    run = Evolution(mine, form_at(3.0), settings, 0, {})
    keeper, logged = Keeper(mine.against), []
    run.learn(keeper, Display(keeper, settings.generations), lambda found, step: logged.append((found, step)), 1)
    first, *_, last = keeper.history
    assert last[1] > first[1] + 0.1
    assert keeper.best is not None
    assert [step for _, step in logged] == sorted({step for _, step in logged})
    assert logged[-1][0]["validation/attainment"] == last[1]
    assert "es/attainment" in logged[-1][0]


def test_the_start_is_kept_where_nothing_better_is_found(tmp_path):
    settings = ESSettings(generations=2, pairs=2, sigma=0.5, learning_rate=10.0, hidden=(4,), validate_every=1)
    mine = task(tmp_path)
    run = Evolution(mine, form_at(1.0), settings, 0, {})
    keeper = Keeper(mine.against)
    run.learn(keeper, Display(keeper, 2), lambda *_: None, 1)
    assert keeper.best_timesteps == 0
    assert keeper.best_attainment == keeper.history[0][1] > keeper.history[2][1]
    assert keeper.best_attainment >= keeper.history[1][1]


def test_the_number_of_processes_changes_nothing(tmp_path):
    settings = ESSettings(generations=1, pairs=3, hidden=(4,))
    mine = task(tmp_path)
    run = Evolution(mine, form_at(1.0), settings, 5, {})
    found = []
    for processes in (1, 2):
        with comparing(run.work, processes) as compare:
            found.append(compare(run.state.vector, 0))
    assert (found[0].scores == found[1].scores).all()
    assert found[0].scores.shape == (2, 3)
    assert found[0].decisions == found[1].decisions


def test_a_dead_process_is_one_clear_error(tmp_path, monkeypatch):
    settings = ESSettings(generations=1, pairs=2, hidden=())
    run = Evolution(task(tmp_path), form_at(1.0), settings, 0, {})
    monkeypatch.setattr("agents.es_training._compare_in_child", die)
    with comparing(run.work, 2) as compare, pytest.raises(UserError, match="fewer --processes"):
        compare(run.state.vector, 0)


def die(*_):
    os._exit(1)
