"""Run the fast tests on each Python at hand, with the lowest and the newest dependencies that gbp allows.

    python .ci/matrix.py [PYTHON ...] [-- PYTEST OPTIONS]

For example `python .ci/matrix.py python3.11 -- tests/test_demo.py`.  Each combination gets an environment in
out/matrix.  The table of results is printed.  Where no arguments are given, it is written to .ci/matrix.md as
well, after each combination.  Needs packaging, which pytest brings.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "out" / "matrix"
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
SHOWN = ("numpy", "numba", "onnx", "pillow")
#: How rows without a result begin.
_NOT_RUN = "not run"
VERSIONS = (
    "from importlib.metadata import version; import platform;"
    f"print(platform.python_version(), *map(version, {SHOWN}))"
)


def interpreters(named: list[str]) -> Iterator[tuple[str, str]]:
    """(path, major.minor) of those named, else of all.  The path is "" where an interpreter is not here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for name in named or PYTHONS:
        found = [shutil.which(name), *map(str, pyenv.glob(f"{name.removeprefix('python')}.*/bin/python"))]
        for path in filter(None, found):
            code = "import sys; print('%d.%d' % sys.version_info[:2])"
            done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
            if done.returncode == 0:  # pyenv's stand-ins fail where the version is not chosen
                yield path, done.stdout.strip()
                break
        else:
            yield "", name.removeprefix("python")


def lowest(python: str) -> list[str]:
    """The lower bounds of pyproject.toml for this Python, as pins."""
    bounds: dict[str, Version] = {}
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (bound,) = (Version(s.version) for s in requirement.specifier if s.operator == ">=")
            bounds[requirement.name] = max(bound, bounds.get(requirement.name, bound))
    return [f"{name}=={bound}" for name, bound in bounds.items()]


def trial(path: str, python: str, which: str, options: list[str]) -> list[str]:
    """A row of the table."""
    folder = WORK / f"{python}-{which}"
    binary = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([path, "-m", "venv", "--clear", str(folder)], check=True)
    pins = lowest(python) if which == "lowest" else []
    pip = [str(binary), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*pip, "--only-binary", ":all:", *pins, *TOOLS], check=False)
    if done.returncode == 0:
        done = subprocess.run([*pip, str(ROOT)], check=False)
    if done.returncode != 0:
        return [python, which, *["" for _ in SHOWN], "cannot be installed"]
    shown = subprocess.run([str(binary), "-c", VERSIONS], capture_output=True, text=True, check=True)
    run = subprocess.run(
        [str(binary), "-m", "pytest", "--numprocesses", "2", "--dist", "worksteal", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "GBP_CACHE_DIR": str(folder / "cache")},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(run.stdout)
    (end,) = re.findall(r"^=+ (.*) in [\d.]+s.*=+$", run.stdout, re.M)[-1:] or ["no test ran"]
    version, *others = shown.stdout.split()
    return [version, which, *others, end]


def main(arguments: list[str]) -> int:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    named, options = arguments[:at], arguments[at + 1 :]
    rows = [["Python", "dependencies", *SHOWN, "tests"], ["---"] * (3 + len(SHOWN))]
    for path, python in interpreters(named):
        for which in ("lowest", "newest"):
            print(f"Python {python}, {which} dependencies", flush=True)
            if path:
                rows.append(trial(path, python, which, options or ["-m", "fast"]))
            else:
                rows.append([python, which, *["" for _ in SHOWN], f"{_NOT_RUN}: this Python is not here"])
            table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            if not arguments:
                machine = f"{platform.system()} {platform.machine()}"
                text = f"# Results of `make matrix`\n\nThe fast tests, on {machine}.\n\n{table}\n"
                (ROOT / ".ci" / "matrix.md").write_text(text)
    print(table)
    passed = re.compile(r"\d+ passed(, \d+ (skipped|deselected|warnings?))*")
    ends = [row[-1] for row in rows[2:] if not row[-1].startswith(_NOT_RUN)]
    return not (ends and all(map(passed.fullmatch, ends)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
