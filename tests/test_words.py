"""Comments and docstrings have a subject: no sentence begins with "Of", "What" or "That which"."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import gbp

FILES = sorted(Path(gbp.__file__).parent.rglob("*.py"))
WITHOUT_SUBJECT = re.compile(r"(?:Of|What|That which)\b(?![^.]*\?)")
DEFINITIONS = ast.Module, ast.ClassDef, ast.FunctionDef


def comments(source: str) -> Iterator[str]:
    """The comments, with those of successive lines as one."""
    run, line = "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != line + 1:
                yield run
                run = ""
            run, line = f"{run} {token.string.lstrip('#: ')}", token.start[0]
    yield run


def paragraphs(text: str) -> Iterator[str]:
    """The lines of a paragraph, or of a parameter's description, as one."""
    run, indent = "", 0
    for line in text.splitlines():
        found = len(line) - len(line.lstrip())
        if not line.strip(" -") or found != indent:
            yield run.strip()
            run, indent = "", found
        run = f"{run} {line.strip(' -')}"
    yield run.strip()


def sentences(source: str) -> Iterator[str]:
    docstrings = (
        ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, DEFINITIONS)
    )
    for text in (*docstrings, *comments(source)):
        for paragraph in paragraphs(text):
            yield from re.split(r"(?<=[.;:])\s+", paragraph)


@pytest.mark.parametrize(
    "text", ["# Of two, the first.", '"""Rules.\n\nThat which is left is 0."""', "# A. What is it."]
)
def test_a_sentence_without_a_subject_is_found(text: str) -> None:
    assert any(map(WITHOUT_SUBJECT.match, sentences(text)))


def test_sentences_have_a_subject() -> None:
    found = [
        f"{path.name}: {sentence}"
        for path in FILES
        for sentence in sentences(path.read_text())
        if WITHOUT_SUBJECT.match(sentence)
    ]
    assert not found
