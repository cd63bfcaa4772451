"""README and docs tell the truth: every example runs, every command is understood, generated pages are up to date."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
GAPS = np.random.default_rng(0).standard_exponential(500)
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{s:.3f},{100 + k % 90},{2 + k % 5}\n" for k, s in enumerate(np.cumsum(GAPS).tolist())
)
BATCHES = "tokens,ms\n" + "".join(f"{b},{40 + 0.25 * max(0, b - 50) + b % 3}\n" for b in range(1, 400, 7))


def run(arguments: list[str], folder: Path) -> str:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_example_runs(number, tmp_path):
    path = tmp_path / "example.py"
    path.write_text(EXAMPLES[number], encoding="utf-8")
    run([sys.executable, str(path)], ROOT)


def test_readme_has_the_promised_examples():
    assert sum("gym.make(" in example for example in EXAMPLES) == 1
    assert sum("gym.make_vec(" in example for example in EXAMPLES) == 1
    sb3 = next(example for example in EXAMPLES if "model.learn" in example)
    assert len([line for line in sb3.splitlines() if line.strip()]) <= 20


def shortened(command: str, folder: Path) -> list[str]:
    """The command as written, but brief: fewer steps and seeds, results in a temporary folder."""
    words = shlex.split(command, comments=True)
    for flag, value in (("--timesteps", "2048"), ("--seeds", "2")):
        if flag in words:
            words[words.index(flag) + 1] = value
    if words[:2] == ["python", "train.py"]:
        words += ["--num-envs", "16"] if "es" not in words else ["--es.generations", "2", "--es.pairs", "2"]
        words += ["--validation-seeds", "1"]
    return [str(folder / w) if w.startswith(("runs/", "results/", "mytrace", "mybatches")) else w for w in words]


def test_readme_commands_work_one_after_the_other(tmp_path):
    (tmp_path / "mytrace.csv").write_text(TRACE)
    (tmp_path / "mybatches.csv").write_text(BATCHES)
    ran = 0
    for command in COMMANDS:
        words = shortened(command, tmp_path)
        if words[:1] == ["python"]:
            run([sys.executable, *words[1:]], ROOT)
            ran += 1
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
        else:
            assert words[0] == "tensorboard"
            assert list((tmp_path / "runs").rglob("events.out.tfevents*"))
    assert ran >= 6


@pytest.mark.parametrize("name", ["environment.md", "policies.md"])
def test_generated_page_is_what_the_code_says(name):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_pages
    finally:
        sys.path.pop(0)
    path = ROOT / "docs" / name
    assert path.read_text(encoding="utf-8") == make_pages.pages()[path], "run: python docs/make_pages.py"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_every_measure_of_results_and_cells_is_explained(tmp_path):
    from llm_env.evaluation import main

    changes = ["episode.arrivals_s=60", "episode.warmup_s=0", "workload.load=2.0", "slo.classes.0.weight=2.0"]
    words = ["--scenario", "multi-tenant", "--baselines", "sarathi:slo", "--seeds", "2", "--price", "2", "--change"]
    words += [*changes, "--processes", "1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    cells = next(csv.reader((tmp_path / "cells.csv").open()))
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))
    assert {"weighted_attainment", "client_jain_index", "cost_per_hour"} <= set(rows[0])
    assert {name.removesuffix("_ci95") for name in (*rows[0], *cells) if name not in told} <= told


TRACE_FILES = {
    "mytrace.csv": TRACE,
    "mooncake.jsonl": "".join(
        f'{{"timestamp": {k // 3 * 3000}, "input_length": {50 + k}, "output_length": {1 + k % 4}, "hash_ids": [{k}]}}\n'
        for k in range(30)
    ),
    "timed.jsonl": '{"timestamp": 12.4, "input_length": 42, "output_length": 8, "hash_ids": [981, 4412, 7]}\n',
    "sessions.csv": "arrival_s,prompt_tokens,output_tokens,session\n"
    + "".join(f"{k * 20},{100 + 200 * k},5,{k % 10}\n" for k in range(100)),
}


@pytest.mark.parametrize(
    ("page", "written"),
    [
        ("traces.md", ("mooncake.csv", "timed.csv", "half.csv.gz", "ten-minutes.csv")),
        ("traffic.md", ("results/traffic/summary.json", "plots/burst.svg", "mytraffic.csv.gz")),
        ("fitting.md", ("mine.toml",)),
    ],
)
def test_commands_of_a_page_on_traffic_work_one_after_the_other(page, written, tmp_path):
    for name, content in TRACE_FILES.items():
        (tmp_path / name).write_text(content)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(commands) >= 3
    for command in commands:
        run([sys.executable, *shlex.split(command, comments=True)[1:]], tmp_path)
    for name in written:
        assert (tmp_path / name).stat().st_size > 0
