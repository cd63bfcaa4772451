"""Writes docs/environment.md and docs/policies.md from the code: `python docs/make_pages.py`. A test compares them."""

from __future__ import annotations

from pathlib import Path

import baselines
from llm_env.env import ServingEnv

DOCS = Path(__file__).resolve().parent


def environment_page() -> str:
    """The environment's docstring as a page."""
    return f"# llm_env/Serving-v0\n\n{ServingEnv.__doc__}\n"


def policies_page() -> str:
    """Every policy with its rule, source and parameters."""
    parts = ["# Policies\n\nOne file each in `baselines/`; this page is made from their docstrings.\n"]
    for name in baselines.POLICIES:
        info = baselines.policy_info(name)
        defaults = ", ".join(f"`{p.name}={p.default}`" for p in info.parameters) or "none"
        parts.append(f"## {name}\n\n{info.summary}\n\n{info.rule}\n\nParameters: {defaults}\n")
    return "\n".join(parts)


def pages() -> dict[Path, str]:
    """File and text of each generated page."""
    return {DOCS / "environment.md": environment_page(), DOCS / "policies.md": policies_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
