"""What was run, in words: a scenario's system, promises and traffic, and where the results come from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from llm_env.config import Scenario, scenario_to_toml
from llm_env.dtypes import SLO_RULES
from llm_env.report.markup import escaped
from llm_env.study import Study
from llm_env.workload import WHOLE

RULES = dict(
    zip(
        SLO_RULES,
        (
            "every gap between two tokens is within the TBT target",
            "at most 1 % of a request's gaps between tokens are above the TBT target",
            "the j-th token comes within the TTFT target and j − 1 times the TBT target",
        ),
        strict=True,
    )
)


def promise(scenario: Scenario) -> str:
    """What counts as a promise kept, in one sentence."""
    if any(path.startswith("slo.classes") for entry in scenario.vary for path in entry.paths):
        first = "the first token comes within the TTFT target of its class, which each workload draws"
    elif len(scenario.slo.classes) == 1:
        only = scenario.slo.classes[0]
        first = f"the first token comes within {_ms(only.ttft_ms)} (TTFT) and, with a TBT target of {_ms(only.tbt_ms)}"
    else:
        first = "the first token comes within the TTFT target of its class and"
    first += "," if first.endswith((" ms", " s")) else ""
    kept = f"A request's promise is kept if {first} {RULES[scenario.slo.rule]}."
    return f"{kept} Unfinished and rejected requests are misses."


def _ms(value: float) -> str:
    return f"{value / 1e3:g} s" if value >= 1000 else f"{value:g} ms"


def what_was_run(study: Study, results: dict[str, Any], command: Sequence[str]) -> str:
    """A definition list, the command, and the whole scenario folded away. HTML."""
    scenario = study.scenario
    facts = [
        ("Scenario", _first_sentence(scenario)),
        ("System", _system(scenario)),
        ("Service time", _service(scenario)),
        ("KV memory", _memory(scenario)),
        ("Promises", "; ".join(_class(scenario))),
        ("Traffic", _traffic(study)),
        ("Measured", _measured(study)),
        ("Intervals", "95 % t-intervals over the workloads; differences are paired: same requests, same noise"),
        ("Code", results["git_commit"] or "no git checkout"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items())),
    ]
    if scenario.vary:
        drawn = ", ".join(entry.label for entry in scenario.vary)
        facts.insert(5, ("Drawn for each workload", f"{drawn}; what is stated here is not that of each"))
    listed = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(text)}</dd></div>" for name, text in facts if text)
    return (
        f'<dl class="facts">{listed}</dl>'
        "<h3>To give these results again</h3>"
        f'<pre tabindex="0" aria-label="Command"><code>{escaped(shlex.join(command))}</code></pre>'
        "<details><summary>The whole scenario</summary>"
        f'<pre tabindex="0" aria-label="Scenario"><code>{escaped(scenario_to_toml(scenario))}</code></pre></details>'
    )


def _first_sentence(scenario: Scenario) -> str:
    text = " ".join(scenario.description.split())
    return f"{scenario.name}. {text}" if text else scenario.name


def _system(scenario: Scenario) -> str:
    system = scenario.system
    many = system.workers != 1
    words = [f"{system.workers} worker{'s' if many else ''}"]
    if many:
        words += [f"layout {system.layout}", f"router {system.router}"]
    if system.prefill_workers:
        words.append(f"{system.prefill_workers} of them prefill")
    if system.speeds:
        words.append(f"speeds {', '.join(f'{speed:g}' for speed in system.speeds)}")
    return ", ".join([*words, f"at most {system.max_running} requests run on each"])


def _service(scenario: Scenario) -> str:
    service = scenario.system.service
    if service.form == "linear":
        text = (
            f"a batch of b tokens takes {service.setup_ms:g} ms + {service.per_token_ms:g} ms for each token"
            f" beyond {service.free_tokens}"
        )
    elif service.form == "staircase":
        text = f"{service.setup_ms:g} ms + {service.step_ms:g} ms for every {service.step_tokens} tokens begun"
    else:
        text = f"a table of {len(service.points or ())} measured points"
    if service.decode_fixed_ms or service.kv_ms_per_1k_cached_tokens:
        text += ", with terms for decodes and their cached tokens"
    noises = {service.setup_noise, service.per_token_noise} - {"none"}
    return text + (f", with {' and '.join(sorted(noises))} noise" if noises else ", without noise")


def _memory(scenario: Scenario) -> str:
    kv = scenario.system.kv
    if kv.blocks is None:
        return "unlimited"
    cache = ", with a prefix cache" if kv.prefix_cache else ""
    size = f"{kv.blocks * kv.block_tokens:,} tokens for each worker"
    return f"{size} ({kv.blocks:,} blocks of {kv.block_tokens} tokens){cache}"


def _class(scenario: Scenario) -> list[str]:
    return [
        f"{c.name}: first token within {_ms(c.ttft_ms)}, TBT target {_ms(c.tbt_ms)}"
        + (f", weight {c.weight:g}" if scenario.slo.weighted else "")
        + (f", {100 * c.share:.0f} % of the requests" if c.share < 1 else "")
        for c in scenario.slo.classes
    ] + [f"rule {scenario.slo.rule}: {RULES[scenario.slo.rule]}"]


def _traffic(study: Study) -> str:
    scenario = study.scenario
    if study.trace is not None:
        start, end = study.trace_part
        part = "" if study.trace_part == WHOLE else f" from {start:g} to {end:g} of its time"
        scaled = "" if study.time_scale == 1 else f", arrival times × {study.time_scale:g}"
        loads = f", squeezed to loads {_listed(study)}" if study.loads else ""
        return f"trace {study.trace.replace(chr(92), '/').rpartition('/')[2]}{part}{scaled}{loads}"
    workload = scenario.workload
    words = [f"arrivals {workload.arrivals.kind}"]
    if study.loads:
        words.append(f"loads {_listed(study)} (1 is the capacity within the TBT target)")
    elif workload.load is not None:
        words.append(f"load {workload.load:g} (1 is the capacity within the TBT target)")
    elif workload.rate_per_s is not None:
        words.append(f"{workload.rate_per_s:g} requests per second")
    if workload.pairs is not None:
        words.append("measured pairs of lengths")
    elif workload.kinds is not None:
        words.append("kinds of requests: " + ", ".join(kind.name for kind in workload.kinds))
    else:
        words.append(f"prompts {workload.prompt.kind}, outputs {workload.output.kind}")
    if workload.sessions is not None:
        words.append("in sessions of several turns")
    return ", ".join(words)


def _listed(study: Study) -> str:
    return ", ".join(f"{load:g}" for load in study.loads)


def _measured(study: Study) -> str:
    if study.trace is not None:
        return "every request of the trace"
    episode, seeds = study.scenario.episode, study.seeds
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return (
        f"{len(seeds)} workload{'s' if len(seeds) > 1 else ''} ({which}); requests that arrive between"
        f" {episode.warmup_s:g} and {episode.arrivals_s:g} s; runs end at {episode.horizon_s:g} s at the latest"
    )
