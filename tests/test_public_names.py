"""What `gbp` exports is there, is all of it, and says what its parameters are."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, is_typeddict

import pytest

import gbp
import gbp.doubt
import gbp.methods

NAMES = [
    "PROBABILITY",
    "RULES",
    "At",
    "Attribution",
    "BatchSummary",
    "Channel",
    "ChannelOrder",
    "Contrast",
    "Explainer",
    "GbpError",
    "Head",
    "Images",
    "InputError",
    "Layout",
    "LookOptions",
    "Model",
    "ModelError",
    "OutOfMemoryError",
    "Panel",
    "Picture",
    "Preprocess",
    "Probability",
    "Provenance",
    "Question",
    "Reduction",
    "Resize",
    "Rule",
    "Run",
    "Sample",
    "Score",
    "Several",
    "Style",
    "Target",
    "Tensor",
    "Top",
    "Unit",
    "UnitSeed",
    "UnsupportedError",
    "__version__",
    "batch",
    "explain",
]


#: The page that documents the functions and classes outside `gbp` itself.
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def public() -> Iterator[tuple[str, Any]]:
    """Everything that `gbp`, `gbp.doubt` and `gbp.methods` export or the reference documents, by name."""
    for package in (gbp, gbp.doubt, gbp.methods):
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
    assert gbp.__all__ == NAMES
    assert dir(gbp) == sorted([*NAMES, "compat", "doubt", "methods"])
    assert dir(gbp.compat) == ["captum", "keras_explainable", "saliency", "xplique"]
    assert all(hasattr(gbp, name) for name in NAMES)
    with pytest.raises(AttributeError, match="'gbp' has no attribute 'nothing'"):
        _ = gbp.nothing


def test_public_packages_need_no_import_of_their_own() -> None:
    named = "gbp.methods.grad_cam", "gbp.doubt.insertion", "gbp.compat.captum", "gbp.compat.xplique"
    code = f"import gbp; print(*(each.__name__ for each in ({', '.join(named)})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["grad_cam", "insertion", "gbp.compat.captum", "gbp.compat.xplique"]


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
    """But those of an exception, which is a message, of an Enum, and of a TypedDict."""
    texts = {name: inspect.getdoc(value) for name, value in DOCUMENTED.items()}
    assert [name for name, text in texts.items() if not text] == []
    for name, value in DOCUMENTED.items():
        if not (inspect.isclass(value) and issubclass(value, Exception | Enum)) and not is_typeddict(value):
            assert {*parameters(value)} == {*listed(texts[name] or "")}, name


#: Only gbp makes these: the parameters of their constructors are its own affair.
MADE_BY_GBP = [
    "Attribution",
    "Curve",
    "Features",
    "Head",
    "Method",
    "Provenance",
    "Run",
    "Sample",
    "Sanity",
    "BatchSummary",
    "Tensor",
    "Window",
]


def defined() -> Iterator[str]:
    """The names of the types that the modules of gbp define."""
    for path in Path(gbp.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Assign):
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id


def annotations(name: str, value: Any) -> str:
    """The annotations of a signature, and those of a class's fields, as they are written."""
    if isinstance(value, property):
        value = value.fget
    if not inspect.isclass(value):
        return str([*inspect.unwrap(value).__annotations__.values()])
    if name in MADE_BY_GBP or issubclass(value, Exception) or is_typeddict(value):
        return ""  # the fields of a TypedDict are arguments of a function, which documents them
    own = [vars(base) for base in value.__mro__ if base.__module__.startswith("gbp")]
    holders = [*own, *(vars(names["__init__"]) for names in own if "__init__" in names)]
    texts = (names.get("__annotations__", {}).items() for names in holders)
    return str([text for each in texts for key, text in each if not key.startswith("_")])


def test_what_a_function_returns_is_exported_beside_it() -> None:
    types = {*defined()} - {*gbp.__all__} - vars(builtins).keys()
    alone = {
        f"{package.__name__}.{name}: {word}"
        for package in (gbp, gbp.doubt, gbp.methods)
        for name in package.__all__
        if inspect.isfunction(value := getattr(package, name))
        for word in re.findall(r"[A-Za-z_]\w*", value.__annotations__["return"])
        if word in types - {*package.__all__}
    }
    assert alone == set()


def test_no_signature_names_a_private_type() -> None:
    """A user who annotates code with the types of gbp finds each where the documents say."""
    private = {*defined()} - {name for name, _ in public()} - vars(builtins).keys()
    mentioned = {
        f"{name}: {word}"
        for name, value in DOCUMENTED.items()
        for word in re.findall(r"[A-Za-z_]\w*", annotations(name, value))
        if word in private
    }
    assert mentioned == set()
