"""Run the fast tests on each Python at hand, with the lowest and the newest dependencies that gbp allows.

    python .ci/matrix.py [ROW ...] [-- PYTEST OPTIONS]

A row is a Python with one set of dependencies: 3.13-lowest or 3.13-newest; 3.13 names both.  Where none is
named, all rows run but those that passed on files that are the same now.  Each row gets an environment and
a log in out/matrix.  It is written to .ci/matrix.md when it ends, so a run that was stopped goes on with
the next row, also after the table was committed.  With options for pytest, for example `python
.ci/matrix.py 3.11 -- tests/test_demo.py`, the results are printed alone.  Needs packaging, which pytest
brings.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "out" / "matrix"
RESULTS = ROOT / ".ci" / "matrix.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SETS = ("lowest", "newest")
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
SHOWN = ("numpy", "numba", "onnx", "pillow")
#: The files that a commit is tested with: a commit of the table changes none of them.
TESTED = (".", ":!.ci/matrix.md")
#: How rows without a result begin.
_NOT_RUN = "not run"
TITLES = ("Python", "dependencies", *SHOWN, "tests", "commit")
PASSED = re.compile(r"\d+ passed(, \d+ (skipped|deselected|warnings?))*")
VERSIONS = (
    "from importlib.metadata import version; import platform;"
    f"print(platform.python_version(), *map(version, {SHOWN}))"
)


def interpreter(python: str) -> str:
    """The path of this Python, or "" where it is not here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for path in (shutil.which(f"python{python}"), *map(str, pyenv.glob(f"{python}.*/bin/python"))):
        # pyenv's stand-ins fail where the version is not chosen.
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return ""


def lowest(python: str) -> list[str]:
    """The lower bounds of pyproject.toml for this Python, as pins."""
    bounds: dict[str, Version] = {}
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (bound,) = (Version(s.version) for s in requirement.specifier if s.operator == ">=")
            bounds[requirement.name] = max(bound, bounds.get(requirement.name, bound))
    return [f"{name}=={bound}" for name, bound in bounds.items()]


def commit() -> str:
    """The commit that is tested, with a + where files were changed since."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *TESTED).stdout.strip()
    return git("rev-parse", "--short=7", "HEAD").stdout.strip() + ("+" if changed else "")


def is_current(tested: str) -> bool:
    """Whether no file differs from those of the commit `tested`, other than the table itself."""
    return (
        re.fullmatch("[0-9a-f]+", tested) is not None
        and not git("diff", "--quiet", tested, "--", *TESTED).returncode
    )


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def recorded() -> dict[tuple[str, str], list[str]]:
    """The rows of the table, by Python ("3.11") and dependencies."""
    rows = {(python, which): [python, which, *[""] * 4, _NOT_RUN, ""] for python in PYTHONS for which in SETS}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else []:
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        python = re.match(r"\d+\.\d+", row[0]) if len(row) == len(TITLES) else None
        if python:
            rows[python[0], row[1]] = row
    return rows


def table(rows: list[list[str]]) -> str:
    lines = [TITLES, ["---"] * len(TITLES), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def end_of(log: str) -> str:
    """The counts in pytest's last line, which is framed unless an option asks for less."""
    ends = re.findall(r"^(?:=+ )?(\d+ \w+.*) in [\d.]+s", log, re.M)
    return ends[-1] if ends else "no test ran"


def trial(python: str, which: str, options: list[str]) -> list[str]:
    """A row of the table."""
    path = interpreter(python)
    if not path:
        return [python, which, *[""] * 4, f"{_NOT_RUN}: this Python is not here", ""]
    tested, folder = commit(), WORK / f"{python}-{which}"
    binary = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([path, "-m", "venv", "--clear", str(folder)], check=True)
    pins = lowest(python) if which == "lowest" else []
    pip = [str(binary), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*pip, "--only-binary", ":all:", *pins, *TOOLS], check=False)
    if done.returncode == 0:
        done = subprocess.run([*pip, str(ROOT)], check=False)
    if done.returncode != 0:
        return [python, which, *[""] * 4, "cannot be installed", tested]
    shown = subprocess.run([str(binary), "-c", VERSIONS], capture_output=True, text=True, check=True)
    log = folder / "log"
    with log.open("w") as file:
        subprocess.run(
            [str(binary), "-m", "pytest", "--numprocesses", "2", "--dist", "worksteal", *options],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "GBP_CACHE_DIR": str(folder / "cache")},
            stdout=file,
            check=False,
        )
    print(log.read_text())
    version, *others = shown.stdout.split()
    return [version, which, *others, end_of(log.read_text()), tested]


def main(arguments: list[str]) -> int:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    named, options = {*arguments[:at]}, arguments[at + 1 :]
    rows = recorded()
    if unknown := named - {name for python, which in rows for name in (python, f"{python}-{which}")}:
        sys.exit(f"no row is named {', '.join(sorted(unknown))}")
    shown = {}
    for (python, which), old in rows.items():
        if named and not named & {python, f"{python}-{which}"}:
            continue
        if not named and not options and PASSED.fullmatch(old[-2]) and is_current(old[-1]):
            shown[python, which] = old
            continue
        print(f"Python {python}, {which} dependencies", flush=True)
        shown[python, which] = trial(python, which, options or ["-m", "fast"])
        if not options and (shown[python, which][-1] or not old[-1]):
            # The file is read again: a run beside this one may have added to it.
            machine = f"{platform.system()} {platform.machine()}"
            text = table([*(recorded() | {(python, which): shown[python, which]}).values()])
            RESULTS.write_text(
                f"# Results of `make matrix`\n\nThe fast tests, without the extras, on {machine}.\n\n{text}"
            )
    print(table([*shown.values()]))
    ends = [row[-2] for row in shown.values() if not row[-2].startswith(_NOT_RUN)]
    return not (ends and all(map(PASSED.fullmatch, ends)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
