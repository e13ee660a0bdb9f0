"""The documents: what they quote is in the code, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / part / "README.md" for part in ("gbp", "models")),
    *(ROOT / "docs").glob("*.md"),
]


def without_indent(text: str) -> str:
    """The lines that hold something, as the formatter may part them otherwise in a document."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def test_quoted_code_is_the_code() -> None:
    text = (ROOT / "docs/adding-an-op.md").read_text()
    quotes = re.findall(r"From `([^`]+)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert len(quotes) == text.count("```python")
    for file, quote in quotes:
        code = (ROOT / file).read_text()
        assert without_indent(quote) in without_indent(code), f"{file} has no longer:\n{quote}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index
