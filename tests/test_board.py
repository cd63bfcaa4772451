"""What TensorBoard is given beside curves: dashboards of tags that exist, what was chosen, pictures, the settings."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.hparams import metadata as hparams_metadata

from agents.board import BEST, CHOSEN
from agents.curves import learning_of
from agents.references import TAG
from agents.training import main
from llm_env.actions import BUDGET_LEVELS
from llm_env.config import scenario_from_dict, scenario_to_toml

TINY = {
    "name": "tiny",
    "episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 6.0},
    "workload": {"load": 0.8},
}
PPO = ["--timesteps", "256", "--validation-every", "128", "--num-envs", "4", "--num-steps", "16", "--minibatch", "32"]
ES = ["--algo", "es", "--es.generations", "2", "--es.pairs", "2", "--es.validate-every", "1", "--processes", "1"]
ROUTE = [*ES, "--action", "route", "--change", "system.workers=2"]
RIVAL = {"a rule": 0.25}


@pytest.fixture(scope="module", params=[PPO, ES, ROUTE], ids=["ppo", "es", "route"])
def run(request, tmp_path_factory):
    """Folder of a run, and its events."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(scenario_to_toml(scenario_from_dict(TINY)))
    arguments = ["--scenario", str(folder / "tiny.toml"), "--out", str(folder / "run"), "--validation-seeds", "2"]
    assert main([*arguments, *request.param], lambda _: RIVAL) == 0
    events = EventAccumulator(str(folder / "run" / "tb"), {"tensors": 0, "histograms": 0, "images": 0, "scalars": 0})
    return folder / "run", events.Reload(), request.param


def charts(events) -> dict[str, list[str]]:
    (tensor,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout: Any = layout_pb2
    layout = layout.Layout.FromString(tensor.tensor_proto.string_val[0])
    return {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}


def test_a_dashboard_names_tags_that_nobody_writes(run):
    _, events, _ = run
    scalars = events.Tags()["scalars"]
    found = charts(events)
    assert len(found) == 5
    for title, patterns in found.items():
        for pattern in patterns:
            assert any(re.match(pattern, tag) for tag in scalars), (title, pattern)
    assert len(found["TTFT: 1 - percentile / target"]) == len(found["TBT: 1 - percentile / target"]) == 3


def test_a_rival_is_no_line_over_the_curve_of_the_agent(run):
    folder, events, _ = run
    (rival,) = (folder / "tb").glob("reference-*")
    steps = [point.step for point in events.Scalars(TAG)]
    points = EventAccumulator(str(rival)).Reload().Scalars(TAG)
    assert [(point.step, point.value) for point in points] == [(step, RIVAL["a rule"]) for step in steps]
    assert TAG in {pattern.strip("^$") for pattern in charts(events)["Attainment beside the references"]}


def test_a_margin_is_not_what_is_left_of_the_target(run):
    _, events, _ = run
    for tag, field, target_s in (("ttft_p99", "ttft_p99_s", 2.0), ("tbt_p99", "tbt_p99_s", 0.15)):
        margins = [point.value for point in events.Scalars(f"validation/{tag}_margin")]
        values = [point.value for point in events.Scalars(f"validation/{field}")]
        np.testing.assert_allclose(margins, 1 - np.array(values) / target_s, atol=1e-6)


def test_choices_and_pictures_are_missing_at_a_validation(run):
    _, events, arguments = run
    steps = [point.step for point in events.Scalars(TAG)]
    assert len(steps) >= 3
    if arguments is ROUTE:  # a router forms no batches
        assert not events.Tags()["images"]
        return
    for name in CHOSEN:
        assert [event.step for event in events.Histograms(f"chosen/{name}")] == steps
    budgets = events.Histograms("chosen/budget_in_slo_budgets")[0].histogram_value
    if arguments is PPO:
        assert BUDGET_LEVELS[0] * 0.99 <= budgets.min <= budgets.max <= BUDGET_LEVELS[-1]  # a budget is a whole number
    (first, *_), images = events.Images("batches"), events.Images("batches")
    assert [image.step for image in images] == steps
    assert (first.width, first.height) == (960, 600)


def test_the_agent_keeps_another_curve_than_was_shown(run):
    folder, events, _ = run
    learning = learning_of(folder)
    assert learning is not None
    ((name, points),) = learning.runs
    assert name == learning.chosen == "seed 0"
    assert [steps for steps, _ in points] == [point.step for point in events.Scalars(TAG)]
    np.testing.assert_allclose(
        [value for _, value in points], [point.value for point in events.Scalars(TAG)], atol=1e-6
    )
    assert dict(learning.references) == RIVAL


def test_settings_are_not_told_with_what_came_of_them(run):
    _, events, arguments = run
    content = events.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    told = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
    assert told["algo"].string_value == ("ppo" if arguments is PPO else "es")
    assert told["validation_seeds"].number_value == 2
    assert not any(name.startswith("imitate") for name in told), "nobody was imitated"
    assert ("es.pairs" in told, "learning_rate" in told) == ((False, True) if arguments is PPO else (True, False))
    content = events.SummaryMetadata(hparams_metadata.EXPERIMENT_TAG).plugin_data.content
    metrics = {info.name.tag for info in hparams_metadata.parse_experiment_plugin_data(content).metric_infos}
    assert metrics == {TAG, BEST}
    best = [point.value for point in events.Scalars(BEST)]
    assert best == sorted(best)
    assert metrics <= set(events.Tags()["scalars"])
