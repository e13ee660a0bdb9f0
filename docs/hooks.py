"""Fills the pages whose text is elsewhere: the help of the commands, and tables of the README."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: In a page: the place of the help of all commands, and of the README's section of this name.
_HELP, _SECTION = "<!-- help -->", re.compile(r"<!-- README: (.+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page; returns the text to render."""
    if _HELP in markdown:
        markdown = markdown.replace(_HELP, _help())
    return _SECTION.sub(lambda found: _section(found[1]), markdown)


def _section(title: str) -> str:
    readme = (ROOT / "README.md").read_text()
    return readme.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def _help() -> str:
    os.environ["COLUMNS"] = "96"
    from gbp.cli.main import _parser

    made = _parser()
    parts = [f"## gbp\n\n```text\n{made.format_help()}```\n"]
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                parts.append(f"## gbp {name}\n\n```text\n{command.format_help()}```\n")
    return "\n".join(parts)
