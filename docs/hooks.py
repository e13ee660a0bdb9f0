"""Fills the page of the commands with their help, and the tables of parameters with each one's own type."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

import griffe

#: The place in a page of the help of all commands.
_HELP = "<!-- help -->"


class OwnTypes(griffe.Extension):
    """Gives each of several parameters in one paragraph its own type and default, not the first one's."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Called by griffe with each function and method."""
        self._correct(func)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe with each class, whose docstring has the parameters of `__init__`."""
        self._correct(cls)

    def _correct(self, documented: griffe.Function | griffe.Class) -> None:
        text = documented.docstring
        if text is None or not re.search(r"^ *\w+(, \w+)+$", text.value, re.MULTILINE):
            return
        own = {each.name.lstrip("*"): each for each in documented.parameters}
        for section in text.parsed:
            if section.kind is griffe.DocstringSectionKind.parameters:
                for said in section.value:
                    if said.name in own:
                        said.annotation, said.value = own[said.name].annotation, own[said.name].default


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page; returns the text to render."""
    return markdown.replace(_HELP, _help()) if _HELP in markdown else markdown


def _help() -> str:
    os.environ["COLUMNS"] = "80"  # as wide as the column of the page
    from gbp.cli.main import _parser

    made = _parser()
    parts = [f"## gbp\n\n```text\n{made.format_help()}```\n"]
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                parts.append(f"## gbp {name}\n\n```text\n{command.format_help()}```\n")
    return "\n".join(parts)
