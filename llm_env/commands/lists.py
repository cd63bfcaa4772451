"""What there is to choose from, as text: policies, routing rules, scenarios, service presets."""

from __future__ import annotations

import re
import textwrap

from rich.console import Console
from rich.text import Text

from baselines import POLICIES, policy_info
from llm_env.scenarios import load_scenario, preset_names, scenario_names, service_from_text
from llm_env.system_settings import ROUTER_MEANINGS


def print_policies(console: Console) -> None:
    """Every policy with its parameters, rule and source, and every routing rule."""
    for name in POLICIES:
        info = policy_info(name)
        console.print(Text(name, "bold"))
        _print_prose(console, info.summary)
        for parameter in info.parameters:
            kind = getattr(parameter.kind, "__name__", None)
            kind = kind if isinstance(parameter.kind, type) else 'int or "slo"'
            console.print(Text(f"  --set {parameter.name}={str(parameter.default).lower()}  ({kind})"))
        _print_prose(console, info.rule)
        console.print()
    console.print(Text("routing rules", "bold"))
    _print_prose(console, "Which worker gets a request: system.router of a scenario, or POLICY/RULE in evaluate.py.")
    for rule, meaning in ROUTER_MEANINGS.items():
        console.print(Text(f"  {rule:24s} {meaning}"))
    console.print()


def _print_prose(console: Console, text: str) -> None:
    """Fills paragraphs anew; one begins after an empty line and with a capital word and a colon, such as "Source:"."""
    for paragraph in re.split(r"\n\s*\n|\n(?=[A-Z][a-z]+: )", text.strip()):
        filled = textwrap.wrap(" ".join(paragraph.split()), console.width - 2, break_long_words=False)
        console.print(Text("\n".join(f"  {line}" for line in filled)), soft_wrap=True)


def print_scenarios(console: Console) -> None:
    """Every shipped scenario, and the presets of service curves."""
    for name in scenario_names():
        scenario = load_scenario(name)
        console.print(Text(name, "bold"))
        _print_prose(console, scenario.description)
        console.print()
    console.print(Text("service presets", "bold"))
    for name in preset_names():
        service = service_from_text(f"{name}:linear")
        curve = f"{service.setup_ms:g},{service.per_token_ms:g},{service.free_tokens}"
        console.print(Text(f"  {name:28s} {curve} as {name}:linear"))
