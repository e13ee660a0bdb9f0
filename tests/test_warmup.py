"""Compiling ahead of use, and what is told of it.  Each program runs in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builder import Builder
from PIL import Image

from gbp import Explainer
from gbp.kernels.codegen.cache import ROOT as CACHE

ROOT = Path(__file__).resolve().parent.parent
LINE = "gbp: compiling kernels, once on this machine: about half a minute\n"


def gbp(folder: Path, *arguments: str, cache: str = "cache") -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, with the cache in a folder of that name there, or at that path."""
    return python(folder, "-m", "gbp", *arguments, cache=cache)


def python(folder: Path, *arguments: str, cache: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    chosen = {"GBP_CACHE_DIR": str(folder / cache), "GBP_NUM_THREADS": str(threads)}
    environment = os.environ | chosen | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def kept(folder: Path) -> dict[str, int]:
    """The files of the cache and when each was written."""
    files = (file for file in (folder / "cache").rglob("*") if file.is_file())
    return {file.name: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of few kernels that compile fast, the second with more, and an image."""
    folder = tmp_path_factory.mktemp("warmup")
    for name, pools in (("plain", False), ("pooled", True)):
        b = Builder()
        x = b.input(1, 3, 8, 8)
        x = b.node("GlobalMaxPool", x) if pools else x
        model = b.model(b.flatten(b.relu(x)))
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "cat.png")
    return folder


def test_after_a_warmup_nothing_is_compiled(folder: Path) -> None:
    first = gbp(folder, "warmup", "plain.onnx")
    assert (first.returncode, first.stderr) == (0, LINE)
    reporting, where = first.stdout.splitlines()
    assert reporting.startswith("plain.onnx: ")
    kernels = int(reporting.split()[1])
    assert kernels > 1
    assert where.startswith(f"All are kept in {folder / 'cache'}")
    before = kept(folder)
    assert sum(name.endswith(".nbc") for name in before) == kernels

    again = gbp(folder, "warmup", "plain.onnx", "plain.onnx")
    assert again.stdout.splitlines()[:2] == ["plain.onnx: 0 kernel(s) compiled in 0.0 s"] * 2
    for rule in ("vanilla", "all"):
        used = gbp(folder, "explain", "plain.onnx", "cat.png", "--preprocess", "unit", "--rule", rule)
        assert (used.returncode, used.stderr) == (0, "")
    assert kept(folder) == before

    # Another model, which needs more kernels, says so although most are there.
    other = gbp(folder, "explain", "pooled.onnx", "cat.png", "--preprocess", "unit")
    assert (other.returncode, other.stderr) == (0, LINE)
    assert before.items() < kept(folder).items()


def test_processes_that_compile_at_once(folder: Path) -> None:
    """Each kernel is compiled by one of them, and all get the same picture."""

    def warm_up_and_explain(i: int) -> tuple[int, bytes]:
        warmed = gbp(folder, "warmup", "plain.onnx", cache="at once")
        assert warmed.returncode == 0, warmed.stderr
        arguments = ("plain.onnx", "cat.png", "--preprocess", "unit", "-o", f"{i}.png")
        explained = gbp(folder, "explain", *arguments, cache="at once")
        assert (explained.returncode, explained.stderr) == (0, "")  # there was nothing left to compile
        return int(warmed.stdout.split()[1]), (folder / f"{i}.png").read_bytes()

    with ThreadPoolExecutor(3) as pool:
        compiled, pictures = zip(*pool.map(warm_up_and_explain, range(3)), strict=True)
    kept = list((folder / "at once").rglob("*.nbc"))
    if sys.platform != "win32":  # where processes do not wait for one another
        assert sum(compiled) == len(kept) > 1
    assert len(set(pictures)) == 1


TOGETHER = """
import sys
from pathlib import Path
import numpy as np
from gbp import Explainer
from gbp.cli.compiling import compile_on_new_machine, compile_together
from gbp.kernels.codegen.jit import Native, compiled
from gbp.warming import kernels_of

alone, compile_alone = [], Native._compiled
Native._compiled = lambda kernel: alone.append(kernel.module) or compile_alone(kernel)
explainer, x = Explainer("pooled.onnx"), np.ones((1, 3, 8, 8), np.float32)
compile_on_new_machine(explainer)
count = len(compiled)
assert count > 1
compile_on_new_machine(Explainer("plain.onnx"))  # it is no longer new
assert len(compiled) == count
assert explainer.warmup() == len(alone) and set(alone) <= {"gbp.kernels.parallel.team"}
count = len(compiled)
assert all(kernel.is_stored for kernel in kernels_of(explainer._engine, None))
before = explainer.explain(x).map
kernels_of(explainer._engine, None)  # which runs nothing, and leaves all memory as it was
assert np.array_equal(before, explainer.explain(x).map) and before.any()
compile_together(explainer)
assert len(compiled) == count

for file in Path(sys.argv[1]).rglob("*.nbc"):
    file.unlink()
sys.executable = sys.argv[2]  # processes that do not answer: all is compiled here, on first use
Native._compiled = compile_alone
fresh = Explainer("plain.onnx", cache=False)
compile_together(fresh)
assert len(compiled) == count
"""


def test_kernels_that_several_processes_compile(folder: Path) -> None:
    """The process itself compiles those of its threads, and no other."""
    done = python(
        folder, "-c", TOGETHER, str(folder / "new"), shutil.which("true") or "", cache="new", threads=2
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", LINE)


READ_ONLY = """
import os, tempfile

def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")

os.makedirs = os.replace = tempfile.TemporaryFile = refuse

import numpy as np
from gbp import Explainer
from gbp.kernels.codegen.jit import compiled

explainer = Explainer("plain.onnx")
assert explainer.warmup() == 0 and explainer.explain(np.ones((1, 3, 8, 8), np.float32)).map.any()
assert not compiled
"""


def test_a_cache_that_is_read_only(folder: Path) -> None:
    """What a container's build has compiled serves a user who cannot write there."""
    assert gbp(folder, "warmup", "plain.onnx").returncode == 0
    done = python(folder, "-c", READ_ONLY, cache="cache")
    assert (done.returncode, done.stderr) == (0, "")


NOWHERE = """
import sys
import numpy as np
from gbp import Explainer
from gbp.cli import main as cli
from gbp.kernels.codegen.jit import compiled

explainer = Explainer("plain.onnx")
assert explainer.explain(np.ones((1, 3, 8, 8), np.float32)).map.any() and compiled
print("the library", file=sys.stderr)
assert cli.main(["explain", "pooled.onnx", "cat.png", "--preprocess", "unit"]) == 0
print("explain", file=sys.stderr)
assert cli.main(["warmup", "plain.onnx"]) == 2
"""


def test_a_cache_that_cannot_be_written(folder: Path) -> None:
    """All is explained, and the command line says what is lost; a warmup would be for nothing."""
    done = python(folder, "-c", NOWHERE, cache="cat.png")  # a file, where no folder can be
    assert done.returncode == 0, done.stderr
    silent, explained, warmed = re.split("the library\n|explain\n", done.stderr)
    assert silent == ""
    assert explained.startswith(LINE + "gbp: they cannot be kept in ")
    assert explained.count("\n") == 2
    assert warmed.startswith("gbp: error: kernels cannot be kept in ")
    assert warmed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["warmup", "gone.onnx"], "gone.onnx"),
        (["warmup", "plain.onnx", "cat.png"], "cat.png"),
        (["warmup", "open.onnx"], "leaves the image size open"),
    ],
)
def test_warmup_refuses_on_one_line(folder: Path, arguments: list[str], says: str) -> None:
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", b.input(1, 3, 8, 8))), 4))
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "any"
    (folder / "open.onnx").write_bytes(model.SerializeToString())
    Explainer(folder / "plain.onnx").warmup()  # here, so the process need not
    done = gbp(folder, *arguments, cache=CACHE)
    assert done.returncode == 2
    assert done.stderr.startswith("gbp: error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
