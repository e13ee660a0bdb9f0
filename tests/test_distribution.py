"""What is handed out: the wheel and the sdist, and that the files around the package agree with it.

The package is built from a copy of the sources, installed into an environment of its own, and used there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from builder import Builder
from packaging.requirements import Requirement
from PIL import Image

import gbp

ROOT = Path(__file__).resolve().parent.parent
TOP = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md")

#: A program that uses gbp, for a type checker: without gbp/py.typed it would take everything for Any.
USE = """
from gbp import Attribution, Explainer, __version__

result: Attribution = Explainer("model.onnx").explain("cat.png")
version: str = __version__
reveal_type(result)
"""


def run(*arguments: object, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a program prints that must succeed.  It finds no gbp but the installed one."""
    environment = dict(environment or os.environ)
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What fills the environments of builds from a package index: uv, or pip, which takes longer.

    Skips where neither reaches one.
    """
    for tool in ("build", "twine"):
        if find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed; the extra dev has it")
    folder = tmp_path_factory.mktemp("index")
    python = sys.executable
    commands = {
        "uv": ("uv", "pip", "install", "--no-deps", "--python", python, "--target", folder, "setuptools"),
        "pip": ("pip", "download", "--no-deps", "--retries", "1", "-d", folder, "setuptools"),
    }
    for tool, command in commands.items():
        if find_spec(tool) is not None:
            done = subprocess.run([python, "-m", *command], capture_output=True, check=False, timeout=300)
            if done.returncode == 0:
                return tool
    pytest.skip("neither uv nor pip reaches a package index here")


@pytest.fixture(scope="module")
def built(installer: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("build")
    outputs = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out")
    shutil.copytree(ROOT, folder / "source", ignore=outputs)
    options = ("--installer", installer, "--outdir", folder / "dist")
    run(sys.executable, "-m", "build", *options, folder / "source", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and the packages that it requires, and no others.

    These are links to the packages of this environment; pip would unpack a quarter of a gigabyte again.
    """
    wheel, _ = built
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", "--no-index", "--no-deps", wheel, cwd=folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(programs / "python", "-c", code, cwd=folder).strip())
    (metadata,) = site.glob("gbp_explain-*.dist-info")
    for package in required_by(Distribution.at(metadata)):
        for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            (site / name).symlink_to(str(package.locate_file(name)))
    run(*pip, "check", cwd=folder)  # each is there, in a version that the others take
    return programs


def required_by(package: Distribution) -> list[Distribution]:
    """What a package without extras requires, and what that requires, from this environment."""
    found: dict[str, Distribution] = {}
    waiting = [package]
    while waiting:
        for requirement in map(Requirement, waiting.pop().requires or ()):
            is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_needed and requirement.name not in found:
                found[requirement.name] = Distribution.from_name(requirement.name)
                waiting.append(found[requirement.name])
    return list(found.values())


def test_the_index_would_take_them(built: tuple[Path, Path]) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=built[0].parent)


def test_what_is_in_them(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    assert wheel.name == f"gbp_explain-{gbp.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = file.read(f"gbp_explain-{gbp.__version__}.dist-info/METADATA").decode()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gbp").rglob("*.py")}
    assert sources | {"gbp/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {"gbp", f"gbp_explain-{gbp.__version__}.dist-info"}
    assert f"gbp_explain-{gbp.__version__}.dist-info/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata.splitlines()
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    demo = {"models/demo.onnx", "models/demo.toml", "models/demo.png"}
    assert sources | tests | demo | {*TOP, "Makefile", "constraints.txt", "pyproject.toml"} <= names


def test_the_wheel_runs_where_there_is_nothing_else(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"GBP_CACHE_DIR": str(tmp_path / "cache")}
    command = installed / "gbp"
    assert run(command, "--version", cwd=tmp_path) == f"gbp {gbp.__version__}\n"
    code = "import importlib.metadata as m, gbp; print(m.version('gbp-explain'), gbp.__file__)"
    version, file = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert version == gbp.__version__
    assert Path(file).is_relative_to(installed.parent)
    b = Builder()  # few kernels: all are compiled anew
    model = b.model(b.flatten(b.relu(b.input(1, 3, 8, 8))))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    arguments = ("net.onnx", "red.png", "--preprocess", "unit", "-o", "map.png")
    run(command, "explain", *arguments, cwd=tmp_path, environment=environment)
    with Image.open(tmp_path / "map.png") as picture:
        picture.verify()


def test_its_types_are_seen(installed: Path, tmp_path: Path) -> None:
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed; the extra dev has it")
    (tmp_path / "use.py").write_text(USE)
    cache = tmp_path / "cache"
    if (ROOT / ".mypy_cache").is_dir():  # `make lint` has read most of the same files
        shutil.copytree(ROOT / ".mypy_cache", cache)
    options = ("--strict", "--python-executable", installed / "python", "--cache-dir", cache)
    found = run(sys.executable, "-m", "mypy", *options, "use.py", cwd=tmp_path)
    assert re.search(r'Revealed type is "gbp\.[\w.]*Attribution"', found)


@pytest.mark.fast
def test_types_are_declared() -> None:
    assert (ROOT / "gbp" / "py.typed").is_file()
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in package_data["gbp"]


@pytest.mark.fast
def test_the_files_at_the_top_name_this_version() -> None:
    changes, citation = (ROOT / name for name in ("CHANGELOG.md", "CITATION.cff"))
    versions = re.findall(r"^## \[([\d.]+)\] - (?:Unreleased|\d{4}-\d\d-\d\d)$", changes.read_text(), re.M)
    assert versions[0] == gbp.__version__
    assert f"\nversion: {gbp.__version__}\n" in citation.read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    for name in TOP:
        assert (ROOT / name).stat().st_size > 500, name


@pytest.mark.fast
def test_numba_has_an_upper_bound() -> None:
    """Private parts of it are used: a new minor version may lack them."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(re.fullmatch(r"numba>=[\d.]+,<[\d.]+", dependency) for dependency in dependencies)


def test_every_constraint_is_one_version_of_one_package() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line)] == []
    names = [re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in pinned]
    assert len(set(names)) == len(names)


def script_of_the_matrix() -> Any:
    """The script of `make matrix`."""
    spec = spec_from_file_location("matrix", ROOT / ".ci" / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with two Pythons, writing its results elsewhere; the commit "new" is current."""
    script = script_of_the_matrix()
    monkeypatch.setattr(script, "RESULTS", tmp_path / "matrix.md")
    monkeypatch.setattr(script, "PYTHONS", ("3.11", "3.12"))
    monkeypatch.setattr(script, "is_current", lambda tested: tested == "new")
    return script


def a_row(python: str, which: str, end: str, commit: str) -> list[str]:
    return [f"{python}.1", which, "1", "2", "3", "4", end, commit]


def test_the_matrix_passes_without_pythons_that_are_not_here(
    matrix: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "interpreter", lambda _: "")
    absent = matrix.trial

    def code(end: str) -> int:
        present = a_row("3.12", "lowest", end, "new")
        monkeypatch.setattr(matrix, "trial", lambda *row: present if row[0] == "3.12" else absent(*row))
        return int(matrix.main([]))

    assert code("1 failed, 5 passed") == 1
    assert code("5 passed, 1 skipped") == 0
    assert matrix.main(["3.11"]) == 1  # none ran


@pytest.mark.parametrize(
    ("log", "end"),
    [
        ("...\n===== 1 failed, 5 passed in 83.20s (0:01:23) =====\n", "1 failed, 5 passed"),
        ("..s\n5 passed, 1 skipped in 3.00s\n", "5 passed, 1 skipped"),
        ("===== no tests ran in 0.01s =====\nERROR: file not found\n", "no test ran"),
    ],
)
def test_the_matrix_reads_how_pytest_ends(matrix: Any, log: str, end: str) -> None:
    assert matrix.end_of(log) == end


def test_a_commit_of_the_table_alone_leaves_the_rows_current(tmp_path: Path) -> None:
    script = script_of_the_matrix()
    script.ROOT = tmp_path
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")

    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def save() -> str:
        script.git("add", "--all")
        assert script.git(*identity, "commit", "--quiet", "--message", "x").returncode == 0
        return str(script.commit())

    script.git("init", "--quiet")
    put("a.py", "1")
    put(".ci/matrix.md", "one row")
    first = save()
    assert script.is_current(first)
    put(".ci/matrix.md", "two rows")
    assert script.is_current(first)
    assert save() != first
    assert script.is_current(first)
    put("a.py", "2")
    assert script.commit().endswith("+")
    assert not script.is_current(first)
    assert not script.is_current(script.commit())
    second = save()
    assert (script.is_current(first), script.is_current(second)) == (False, True)
    assert not any(map(script.is_current, ("", "before 951965c", "0000000")))


def test_the_matrix_goes_on_where_it_was(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"3.11-lowest": "5 passed", "3.11-newest": "2 failed, 3 passed", "3.12-lowest": "5 passed"}
    ran: list[str] = []

    def trial(python: str, which: str, options: list[str]) -> list[str]:
        ran.append(f"{python}-{which}")
        if ran[-1] not in ends:
            raise KeyboardInterrupt
        return a_row(python, which, ends[ran[-1]], "new")

    monkeypatch.setattr(matrix, "trial", trial)
    with pytest.raises(KeyboardInterrupt):
        matrix.main([])
    assert [row[-2] for row in matrix.recorded().values()] == [*ends.values(), "not run"]
    ran.clear()
    ends |= {"3.11-newest": "5 passed", "3.12-newest": "5 passed, 1 warning"}
    assert matrix.main([]) == 0
    assert ran == ["3.11-newest", "3.12-newest"]  # what failed, and what was not run
    monkeypatch.setattr(matrix, "is_current", lambda tested: False)
    ran.clear()
    assert matrix.main([]) == 0
    assert ran == [*ends]  # another commit: all
    ran.clear()
    assert matrix.main(["3.12-lowest", "--", "tests/test_demo.py"]) == 0
    assert ran == ["3.12-lowest"]
    with pytest.raises(SystemExit, match="no row is named"):
        matrix.main(["3.9"])
