"""An HTML document that loads nothing: its policy allows the style and the scripts that are in it, and nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from llm_env.report.markup import escaped


def document(title: str, body: str, scripts: Sequence[str] = ()) -> str:
    """The text. Args: body: HTML; scripts: names of files beside this one."""
    style, texts = _asset("style.css"), [_asset(name) for name in scripts]
    allowed = " ".join(_source_hash(text) for text in texts) or "'none'"
    policy = (
        f"default-src 'none'; style-src {_source_hash(style)}; script-src {allowed}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        + "".join(f"<script>{text}</script>\n" for text in texts)
        + "</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return (files("llm_env.report") / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _source_hash(text: str) -> str:
    """How a Content-Security-Policy names a text between tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
