"""The documents: what they quote is in the code, and what they link to is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gbp.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *(ROOT / part / "README.md" for part in ("gbp", "models")), *PAGES]


#: A block of code that is taken from a file.
_QUOTE = re.compile(r"From `([^`]+)`:\n\n```python\n(.*?)```", re.DOTALL)
#: A block that is run: Python, or lines of the shell.
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(path: Path) -> list[tuple[str, str]]:
    """The language and the text of each block of a page that is to run."""
    return _BLOCK.findall(_QUOTE.sub("", path.read_text()))


def without_indent(text: str) -> str:
    """The lines that hold something, as the formatter may part them otherwise in a document."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def test_quoted_code_is_the_code() -> None:
    quotes = [quote for page in PAGES for quote in _QUOTE.findall(page.read_text())]
    assert quotes
    for file, quote in quotes:
        code = (ROOT / file).read_text()
        assert without_indent(quote) in without_indent(code), f"{file} has no longer:\n{quote}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs/index.md").read_text()
    for path in PAGES:
        assert path.name == "index.md" or f"]({path.name})" in index


@pytest.fixture
def a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents name: the demo's under other names."""
    shutil.copy(ROOT / "models/demo.onnx", tmp_path / "model.onnx")
    labels = tomllib.loads((ROOT / "models/demo.toml").read_text())["labels"]
    for name in ("labels.txt", "imagenet.txt"):
        (tmp_path / name).write_text("\n".join(["dog", *labels[1:]]))
    scenes = sorted(path for path in (ROOT / "models/scenes").glob("*.png") if "mask" not in path.name)
    photos = ("cat.jpg", "dog.jpg", "photos/a.jpg", "photos/b.jpg", "more/c.jpg")
    for name, scene in zip(photos, scenes[:5], strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(scene).convert("RGB").save(tmp_path / name)
    (tmp_path / "list.txt").write_text("dog.jpg\n")
    np.save(tmp_path / "sample.npy", np.zeros((3, 96, 96), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if blocks(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_blocks_of_code_run(path: Path, a_users_folder: Path) -> None:
    """Those of Python in turn, with the names of the ones before; of the shell, what calls gbp."""
    if path.name == "batch.md":
        pytest.importorskip("pyarrow", reason="gbp batch needs the extra batch")
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, text in blocks(path):
        if language == "python":
            exec(compile(text, str(path), "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command = shlex.split(line, comments=True)
            if command[:2] == ["gbp", "serve"]:  # up to where it would listen for ever
                pytest.importorskip("uvicorn", reason="gbp serve needs the extra serve")
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("gbp.serve.server.serve", lambda *_, **__: None)
                    assert main([*command[1:], "--port", "0"]) == 0, line
            elif command[:1] == ["gbp"]:
                assert main(command[1:]) == 0, line


#: Cells with these tags need a framework that the tests do not have.
FRAMEWORKS = {"needs-torch", "needs-keras"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs"), "outputs are not committed"
        if cell["cell_type"] == "code" and FRAMEWORKS.isdisjoint(cell["metadata"].get("tags", ())):
            exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), names)


def test_every_page_is_in_the_site_and_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    config = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page.name}" in config for page in PAGES)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gbp explain" in (tmp_path / "site/commands.html").read_text()
    reference = (tmp_path / "site/reference.html").read_text()
    explain = reference.partition('id="gbp.explain"')[2].partition('id="gbp.Explainer"')[0]
    assert explain.count("required") == 2  # `rule` has a default, and shares a paragraph with `images`
