"""Fills the page of the commands with their help."""

from __future__ import annotations

import argparse
import os
from typing import Any

#: The place in a page of the help of all commands.
_HELP = "<!-- help -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page; returns the text to render."""
    return markdown.replace(_HELP, _help()) if _HELP in markdown else markdown


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
