"""Easy traffic first: which loads are drawn when."""

from __future__ import annotations

import pytest

from agents.curriculum import Course
from agents.es import ESSettings
from agents.es_training import Evolution, comparing
from llm_env.spaces import workload_of
from tests.test_es import form_at, task
from tests.test_population import SHORT


@pytest.mark.parametrize(
    ("share", "done", "highest"),
    [(0.5, 0.0, 0.4), (0.5, 0.25, 0.8), (0.5, 0.26, 0.88), (0.5, 0.5, 1.2), (0.5, 1.0, 1.2), (0.0, 0.0, 1.2)],
)
def test_the_highest_load_rises_to_its_own(share, done, highest):
    course = Course(share)
    course.done = done
    assert course.highest(0.4, 1.2) == pytest.approx(highest)


def test_workloads_follow_the_course():
    course = Course(1.0)
    draw = course.workload(SHORT, (0.2, 1.2), None)
    lowest, all_loads = (workload_of(SHORT, (0.2, high), None) for high in (0.2, 1.2))
    assert draw(5).tobytes() == lowest(5).tobytes()
    course.done = 1.0
    assert draw(5).tobytes() == all_loads(5).tobytes()
    assert sum(len(all_loads(seed)) for seed in range(20)) > 2 * sum(len(lowest(seed)) for seed in range(20))


def test_scenarios_with_their_own_load_are_left_alone():
    course = Course(1.0)
    assert course.workload(SHORT, None, None)(3).tobytes() == workload_of(SHORT, None, None)(3).tobytes()


def test_evolution_meets_low_loads_first(tmp_path):
    """In the first of four generations loads are .8, in the last up to 1.2."""
    settings = ESSettings(generations=4, pairs=6, hidden=(), validate_every=4)
    earned = {}
    for share in (0.0, 0.5):
        run = Evolution(task(tmp_path), form_at(1.0), settings, 0, {}, share)
        with comparing(run.work, 1) as compare:
            earned[share] = [float(compare(run.state.vector, generation).scores.mean()) for generation in (0, 3)]
    assert earned[0.5][0] > earned[0.0][0]
    assert earned[0.5][1] == earned[0.0][1]  # the course is over
