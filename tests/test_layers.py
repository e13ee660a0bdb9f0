"""Which part of gbp may import which: the folders are the flow, and nothing points back up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import gbp

PACKAGE = Path(gbp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: Part of gbp → the parts that it may import, all of which stand above it.  A part is a folder, or a file
#: beside the folders.
MAY_IMPORT: dict[str, set[str]] = {
    part: set(allowed.split())
    for part, allowed in {
        "errors": "",
        "arguments": "errors",
        "limits": "errors",
        "files": "errors",
        "version": "",
        "first_use": "",
        "graph": "errors limits",
        "kernels": "errors",
        "devices": "errors kernels limits",
        "ops": "errors graph kernels limits",
        "passes": "errors graph ops",
        "rewrites": "errors graph limits ops passes",
        "rules": "errors rewrites",
        "importer": "arguments errors files graph kernels limits ops",
        "plan": "devices errors graph limits ops passes",
        "runtime": "devices errors kernels limits ops plan",
        "packed": "errors kernels",
        "pictures": "errors files",
        "inputs": "arguments errors limits pictures",
        "questions": "arguments errors",
        "result": "errors files pictures questions rules version",
        "engine": "arguments devices errors graph importer inputs kernels limits packed pictures "
        "plan questions result rules runtime",
        "explainer": "engine importer inputs pictures questions result rules",
        "methods": "arguments engine errors explainer first_use graph inputs limits pictures questions "
        "result rules",
        "bulk": "arguments engine errors explainer files inputs kernels methods pictures questions result "
        "rules version",
        # What stands behind it uses the names that it exports, as a user does.
        "gbp": "bulk engine errors explainer first_use graph importer inputs pictures questions result rules "
        "version",
        "diagnostics": "gbp graph importer limits ops plan runtime",
        "doubt": "arguments errors first_use gbp importer methods pictures result",
        "compat": "arguments errors first_use gbp graph methods pictures",
        "features": "arguments bulk errors files gbp graph importer ops pictures rules",
        "report": "errors gbp methods pictures result rules",
        "serve": "errors gbp kernels methods pictures questions rules",
        "cli": "diagnostics doubt engine errors features files gbp kernels methods pictures questions "
        "report result rules serve",
        "__main__": "cli",
    }.items()
}


def module_of(path: Path) -> tuple[str, ...]:
    parts = ("gbp", *path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path) for path in FILES}


def part_of(module: tuple[str, ...]) -> str:
    return module[1] if len(module) > 1 else "gbp"


def run_imports(tree: ast.AST) -> Iterator[ast.ImportFrom]:
    """All relative imports but those for type checkers alone, which never run."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.ImportFrom) and child.level:
            yield child
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield from run_imports(child)


def imports_of(path: Path) -> set[tuple[str, ...]]:
    """The modules of gbp that a file imports, anywhere in it, or on the first use of a name."""
    folder = ("gbp", *path.relative_to(PACKAGE).parts[:-1])
    lazy = getattr(import_module(".".join(folder)), "_LAZY", {}) if path.name == "__init__.py" else {}
    found = {(*folder, *module.split(".")) for module in lazy.values()}
    for node in run_imports(ast.parse(path.read_text())):
        base = (*folder[: len(folder) - node.level + 1], *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            found.add((*base, alias.name) if (*base, alias.name) in MODULES else base)
    return found


@cache
def graph() -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """What each module imports."""
    return {module_of(path): imports_of(path) for path in FILES}


@pytest.mark.parametrize("part", sorted({part_of(module) for module in MODULES}))
def test_a_part_imports_what_it_may(part: str) -> None:
    imported = {part_of(t) for module, targets in graph().items() if part_of(module) == part for t in targets}
    assert imported - {part} <= MAY_IMPORT[part]


def test_what_is_allowed_is_no_circle_and_is_used() -> None:
    above: set[str] = set()
    for part, allowed in MAY_IMPORT.items():
        assert allowed <= above, part
        above.add(part)
        used = {part_of(t) for module, targets in graph().items() if part_of(module) == part for t in targets}
        assert used - {part} == allowed, part


def test_no_module_imports_itself_by_way_of_others() -> None:
    # A package's __init__ may import what is in it, which then imports the package's other modules.
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {error.args[1]}")


def test_annotations_need_no_circle_either() -> None:
    """Imports for type checkers alone: where the command line waits for nothing, and nowhere below it."""
    for path in FILES:
        if "TYPE_CHECKING" in path.read_text():
            assert part_of(module_of(path)) in ("cli", "compat", "doubt", "gbp", "methods"), path


def test_parameters_of_kernels_are_explained() -> None:
    """A kernel's own parameters are named in a docstring of its file, or of its twin's; others are shared."""
    folder = PACKAGE / "kernels"
    found = []
    shared = _docstrings(folder / "__init__.py")
    for path in folder.glob("*.py"):
        twin = path.with_name(path.name.replace("_cuda.py", ".py"))
        said = shared | _docstrings(path) | (_docstrings(twin) if twin.exists() else set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "kernel" in map(_name_of, node.decorator_list):
                found += [f"{path.name}: {node.name}({a.arg})" for a in node.args.args if a.arg not in said]
    assert not found


def _docstrings(path: Path) -> set[str]:
    """The words of all docstrings of a file."""
    nodes = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    ]
    return {word for node in nodes for word in re.findall(r"\w+", ast.get_docstring(node) or "")}


def _name_of(decorator: ast.expr) -> str:
    return ast.unparse(decorator).partition("(")[0]


def test_files_are_short() -> None:
    long = {str(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not long
    assert len((PACKAGE / "explainer.py").read_text().splitlines()) <= 250


def test_every_folder_says_what_it_is() -> None:
    for path in FILES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(docstring.split()) >= 20, path
            assert "import" in docstring, path


def test_every_folder_says_what_it_may_import() -> None:
    """By name, but for those at the end of the flow, which say "everything" or "what makes" something."""
    for part, allowed in MAY_IMPORT.items():
        if (path := PACKAGE / part / "__init__.py").exists():
            docstring = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
            said = set(re.findall(r"\w+", docstring.partition("ay import ")[2].partition(". ")[0]))
            assert said & {"everything", "what"} or said & (MAY_IMPORT.keys() - {"gbp"}) == allowed, part


def test_the_tour_names_files_that_exist() -> None:
    """Each folder has a row in the tour, and the files that the row names are in the folder."""
    rows = dict(re.findall(r"^\| `([\w/]+)/` \|(.*)$", (PACKAGE / "README.md").read_text(), re.M))
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in FILES if path.parent != PACKAGE}
    parts_of_rows = {"ops/conv", "compat/captum", "compat/keras_explainable"}
    assert set(rows) == folders - parts_of_rows
    missing = {
        (folder, name)
        for folder, text in rows.items()
        for name in re.findall(r"`(\w+\.(?:py|html))`", text)
        if not (PACKAGE / folder / name).exists()
    }
    assert not missing


def test_the_tour_names_every_file_beside_the_folders() -> None:
    tour = (PACKAGE / "README.md").read_text()
    unnamed = {path.name for path in PACKAGE.glob("[a-z]*.py") if f"`{path.name}`" not in tour}
    assert not unnamed
