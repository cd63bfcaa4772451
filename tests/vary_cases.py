"""A small scenario in which something of every group of settings varies, for the tests of what is drawn."""

from __future__ import annotations

from llm_env.config import Scenario, scenario_from_dict

SEEDS = range(8)


def varying(**more) -> Scenario:
    """Short episodes of a small system in which something of every group of settings varies, the array sizes too."""
    return scenario_from_dict(
        {
            "name": "varying",
            "system": {
                "workers": 2,
                "router": "round-robin",
                "max_running": 16,
                "service": {"setup_noise": "gamma", "setup_noise_cv": 0.2},
                "kv": {"blocks": 300},
            },
            "slo": {"classes": [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "weight": 2.0}]},
            "workload": {
                "arrivals": {"kind": "mmpp2", "rate_ratio": 2.0, "busy_share": 0.2, "cycle_s": 5.0},
                "prompt": {"kind": "uniform", "min_tokens": 10, "max_tokens": 900},
                "output": {"kind": "geometric", "p": 0.05, "max_tokens": 200},
            },
            "episode": {"arrivals_s": 12.0, "warmup_s": 1.0, "horizon_s": 30.0},
            "vary": [
                {
                    "name": "device",
                    "choices": [
                        {"system.service.setup_ms": 30.0, "system.speeds": [1.0, 1.0]},
                        {"system.service.setup_ms": 60.0, "system.speeds": [1.0, 0.5]},
                    ],
                },
                {"setting": "slo.classes.0.ttft_ms", "low": 300.0, "high": 3000.0, "scale": "log"},
                {"setting": "slo.classes.1.tbt_ms", "low": 1.5, "high": 6.0, "of": "system.service.setup_ms"},
                {"setting": "slo.rule", "choices": ["p99", "max", "deadline"]},
                {"setting": "slo.classes.1.weight", "choices": [1.0, 4.0]},
                {"setting": "system.kv.blocks", "low": 120, "high": 400},
                {"setting": "system.service.setup_noise_cv", "low": 0.1, "high": 0.5},
                {"setting": "workload.load", "low": 0.4, "high": 1.2},
                {
                    "setting": "workload.output",
                    "choices": [
                        {"kind": "geometric", "p": 0.05, "max_tokens": 200},
                        {"kind": "uniform", "min_tokens": 1, "max_tokens": 60},
                    ],
                },
                {"setting": "episode.arrivals_s", "low": 6.0, "high": 16.0},
                {"setting": "reward.queue", "low": 0.0, "high": 0.1},
                {"setting": "reward.token", "choices": [0.0, 0.01]},
                {"setting": "reward.discount_horizon_s", "low": 5.0, "high": 50.0},
            ],
            **more,
        }
    )
