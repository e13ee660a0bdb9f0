"""What `gbp` exports is there, is all of it, and says what its parameters are."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import gbp
import gbp.methods

NAMES = (
    *("PROBABILITY", "RULES", "At", "Attribution", "Channel", "Contrast", "Explainer", "GbpError"),
    *("InputError", "ModelError"),
    *(
        "OutOfMemoryError",
        "Preprocess",
        "Rule",
        "Run",
        "Sample",
        "Several",
        "Tensor",
        "Top",
        "Unit",
        "UnsupportedError",
        "__version__",
        "batch",
        "explain",
    ),
)


#: The page that documents the functions and classes outside `gbp` itself.
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def public() -> Iterator[tuple[str, Any]]:
    """Everything that `gbp` and `gbp.methods` export or the reference documents, by name."""
    for package in (gbp, gbp.methods):
        yield from ((name, getattr(package, name)) for name in package.__all__)
    for block in REFERENCE.read_text().split("\n::: ")[1:]:
        path, members = block.split()[0], re.search(r"members: \[(.*)\]", block)
        module, _, name = (path, "", "") if members else path.rpartition(".")
        found = import_module(module)
        for each in members[1].split(", ") if members else [name]:
            yield each, getattr(found, each)


def documented() -> Iterator[tuple[str, Any]]:
    """Every public function and class, and every method and property that these classes add."""
    for name, value in public():
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        for base in reversed(value.__mro__) if inspect.isclass(value) else ():
            if base.__module__.startswith("gbp"):
                for key, found in vars(base).items():
                    member = getattr(found, "__func__", found)
                    if not key.startswith("_") and (
                        inspect.isfunction(member) or isinstance(member, property)
                    ):
                        yield f"{name}.{key}", member


DOCUMENTED = dict(documented())


def test_the_names_are_these() -> None:
    assert tuple(gbp.__all__) == NAMES
    assert dir(gbp) == sorted(NAMES)
    assert all(hasattr(gbp, name) for name in NAMES)
    with pytest.raises(AttributeError, match="'gbp' has no attribute 'nothing'"):
        _ = gbp.nothing


def test_a_star_imports_them_all() -> None:
    names: dict[str, Any] = {}
    exec("from gbp import *", names)
    assert {*NAMES} <= names.keys()


def test_the_import_alone_needs_no_numba() -> None:
    code = "import sys, gbp; print(*{'numba', 'onnx', 'PIL'} & sys.modules.keys())"
    assert not subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def parameters(value: Any) -> list[str]:
    if isinstance(value, property):
        return []
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]


def listed(text: str) -> list[str]:
    """The parameters that a docstring lists one by one, as NumPy's do."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^(\S[^\n]*)\n    \S", section[1], re.MULTILINE) if section else []
    return [part.strip().lstrip("*") for line in lines for part in line.split(",")]


def test_their_parameters_are_listed() -> None:
    """An exception's message alone needs no list."""
    texts = {name: inspect.getdoc(value) for name, value in DOCUMENTED.items()}
    assert [name for name, text in texts.items() if not text] == []
    for name, value in DOCUMENTED.items():
        if not (inspect.isclass(value) and issubclass(value, Exception)):
            assert {*parameters(value)} == {*listed(texts[name] or "")}, name
