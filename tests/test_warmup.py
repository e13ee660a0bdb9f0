"""Compiling ahead of use, and what is told of it.  Each program runs in a process of its own."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from builder import Builder
from compile_kernels import every_kernel
from forked import Forked
from PIL import Image
from test_cache import RUNNERS, with_kernels

from gbp import Explainer, InputError
from gbp.cli import compiling
from gbp.cli import main as cli
from gbp.engine.warming import _noise, kernels_of
from gbp.kernels.checksum import _sum_blocks
from gbp.kernels.codegen.jit import found
from gbp.kernels.parallel.team import run_team, work

ROOT = Path(__file__).resolve().parent.parent
LINE = "gbp: compiling kernels, once on this machine: about half a minute\n"


def gbp(folder: Path, *arguments: str, cache: str = "cache") -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, with the cache in a folder of that name there."""
    process = Forked(("-m", "gbp", *arguments), folder, environment(folder, cache, 1))
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(arguments, process.returncode or 0, out, err)


def environment(folder: Path, cache: str, threads: int) -> dict[str, str]:
    chosen = {"GBP_CACHE_DIR": str(folder / cache), "GBP_NUM_THREADS": str(threads)}
    return os.environ | chosen | {"PYTHONPATH": str(ROOT)}


def python(folder: Path, *arguments: str, cache: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder, cache, threads),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def kept(folder: Path) -> dict[str, int]:
    """The files of the cache and when each was written."""
    files = (file for file in (folder / "cache").rglob("*") if file.is_file())
    return {file.name: file.stat().st_mtime_ns for file in files}


def share(folder: Path) -> None:
    """Let all users read a folder: `chmod -R a+rX`."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of few kernels that compile fast, the second with more, and an image."""
    folder = tmp_path_factory.mktemp("warmup")
    for name, has_more in (("plain", False), ("larger", True)):
        b = Builder()
        x = b.input(1, 3, 8, 8)
        x = b.node("Abs", x) if has_more else x
        model = b.model(b.flatten(b.relu(x)))
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "cat.png")
    return folder


def test_after_a_warmup_nothing_is_compiled(folder: Path) -> None:
    given = len(list(with_kernels(folder / "cache").rglob("*.nbc")))
    first = gbp(folder, "warmup", "plain.onnx")
    assert (first.returncode, first.stderr) == (0, LINE)
    reporting, where, *more = first.stdout.splitlines()
    assert reporting.startswith("plain.onnx: ")
    kernels = int(reporting.split()[1])
    assert kernels > 1
    assert where.startswith(f"All are kept in {folder / 'cache'}")
    status = Path(where.removeprefix("All are kept in ")).stat()
    is_root = status.st_uid == 0
    to_share = f"Only root may read them. To let other users run them: chmod -R a+rX {folder / 'cache'}"
    assert more == [to_share] * is_root
    before = kept(folder)
    assert sum(name.endswith(".nbc") for name in before) == kernels + given

    again = gbp(folder, "warmup", "plain.onnx", "plain.onnx")
    assert again.stdout.splitlines()[:2] == ["plain.onnx: 0 kernels compiled in 0.0 s"] * 2
    for rule in ("vanilla", "all"):
        used = gbp(folder, "explain", "plain.onnx", "cat.png", "--preprocess", "unit", "--rule", rule)
        assert (used.returncode, used.stderr) == (0, "")
    assert kept(folder) == before

    # Another model, which needs more kernels, says so although most are there.
    share(folder / "cache")
    assert to_share not in gbp(folder, "warmup", "plain.onnx").stdout
    other = gbp(folder, "warmup", "larger.onnx")
    assert (other.returncode, other.stderr) == (0, LINE)
    assert other.stdout.splitlines()[2:] == [to_share] * is_root
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

    given = len(list(with_kernels(folder / "at once").rglob("*.nbc")))
    with ThreadPoolExecutor(3) as pool:
        compiled, pictures = zip(*pool.map(warm_up_and_explain, range(3)), strict=True)
    kept = list((folder / "at once").rglob("*.nbc"))
    if sys.platform != "win32":  # where processes do not wait for one another
        assert sum(compiled) == len(kept) - given > 1
    assert len(set(pictures)) == 1


TOGETHER = """
import io, os, subprocess, sys
from contextlib import redirect_stdout
from pathlib import Path
import numpy as np
from gbp import Explainer
from gbp.cli import main as cli
from gbp.cli.compiling import compile_on_new_machine, compile_together
from gbp.kernels.codegen.jit import Native, compiled
from gbp.engine.warming import kernels_of

del os.environ["PYTHONPATH"]  # the others find gbp where this process found it, and Numba too
alone, compile_alone = [], Native._compiled
Native._compiled = lambda kernel: alone.append(kernel.module) or compile_alone(kernel)
with redirect_stdout(io.StringIO()):
    assert cli.main(["explain", "larger.onnx", "cat.png", "--preprocess", "unit"]) == 0
count, before = len(compiled), len(alone)
assert count > before + 1
explainer, x = Explainer("larger.onnx"), np.ones((1, 3, 8, 8), np.float32)
compile_on_new_machine(Explainer("plain.onnx"), None)  # it is no longer new
assert len(compiled) == count
assert explainer.warmup() == len(alone) - before and set(alone) <= {"gbp.kernels.parallel.team"}
count = len(compiled)
assert all(kernel.is_stored for kernel in kernels_of(explainer._engine, None))
before = explainer.explain(x).map
kernels_of(explainer._engine, None)  # which runs nothing, and leaves all memory as it was
assert np.array_equal(before, explainer.explain(x).map) and before.any()
compile_together(explainer)
assert len(compiled) == count

for file in Path(sys.argv[1]).rglob("*.nbc"):
    file.unlink()
started, popen = [], subprocess.Popen
subprocess.Popen = lambda command, **options: started.append(command) or popen(command, **options)
fresh = Explainer("larger.onnx", cache=False)
for kernel in kernels_of(fresh._engine, None):
    kernel._address = 0
sys.executable = sys.argv[2]  # processes that do not answer: all is compiled here, on first use
compile_together(fresh)
assert len(started) == 2 and len(compiled) == count
compile_together(Explainer("larger.onnx", cache=False, threads=1))
sys.executable = None  # Python is part of another program
compile_together(fresh)
sys.executable, sys.frozen = sys.argv[2], True  # a program that was made of Python
compile_together(fresh)
assert len(started) == 2
"""


def test_kernels_that_several_processes_compile(folder: Path) -> None:
    """The process itself compiles those of its threads, and no other; none imports from the folder."""
    stranger = folder / "stranger"
    stranger.mkdir()
    for name in ("plain.onnx", "larger.onnx", "cat.png"):
        shutil.copy(folder / name, stranger)
    for name in ("numba.py", "numpy.py", "gbp.py"):
        (stranger / name).write_text("raise SystemExit")
    true = shutil.which("true") or ""
    done = python(stranger, "-P", "-c", TOGETHER, str(stranger / "new"), true, cache="new", threads=2)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", LINE)


def test_every_kernel_is_found_by_its_name() -> None:
    """By other processes, also where a kernel is made on demand."""
    b = Builder()
    x = b.conv(b.input(1, 8, 12, 12), 8, pads=(1, 1, 1, 1))
    x = b.conv(x, 8, group=8, pads=(1, 1, 1, 1))
    x = b.node("Sigmoid", b.node("Mul", x, b.node("Sigmoid", x)))
    x = b.node("Sub", b.node("Max", x, b.conv(x, 8, 1)), b.node("Min", x, b.node("Tanh", x)))
    explainer = Explainer(b.model(b.gemm(b.flatten(x), 5)), cache=False)
    kernels = kernels_of(explainer._engine, None)
    names = {kernel.name for kernel in kernels}
    assert names > {"depthwise_3_fwd", "depthwise_3_bwd", "sigmoid_bwd", "swish_fwd", "sub_fwd", "gemm_fwd"}
    assert names > {"max_choice", "min_choice"}
    # Each process has its own kernels of the team.
    every = [kernel for kernel in every_kernel() if kernel.module != run_team.module]
    assert set(kernels) <= set(every)
    assert [kernel.name for kernel in every if found(kernel.module, kernel.name) is not kernel] == []


def test_a_process_survives_what_it_cannot_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers each line, and stops where nothing that it compiles can be kept."""
    asked = f"{_sum_blocks.module} nothing\n{_sum_blocks.module} {_sum_blocks.name}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    compiling.main()
    failed, seconds = capsys.readouterr().out.splitlines()
    assert failed == "AttributeError"
    assert float(seconds) >= 0
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    monkeypatch.setattr(compiling, "not_kept", ["No space left on device"])
    compiling.main()
    assert capsys.readouterr().out == "AttributeError\n"


class Silent:
    """A process that answers nothing until it is killed."""

    asked = io.StringIO()
    killed = threading.Event()

    def __init__(self, *_: object, **__: object) -> None:
        self.stdin, self.stdout = self.asked, self

    def readline(self) -> str:
        self.killed.wait()
        return ""

    def kill(self) -> None:
        self.killed.set()

    def communicate(self) -> None:
        pass


class Interrupted(threading.Thread):
    """A thread for which nobody waits, because of Ctrl-C."""

    made: ClassVar[list[threading.Thread]] = []

    def start(self) -> None:
        super().start()
        self.made.append(self)

    def join(self, timeout: float | None = None) -> None:
        while not Silent.asked.getvalue():
            pass
        raise KeyboardInterrupt


def test_after_ctrl_c_nothing_more_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for a kernel's callee ends; it does not talk to a process that was killed."""
    monkeypatch.setattr(subprocess, "Popen", Silent)
    monkeypatch.setattr(compiling, "Thread", Interrupted)
    monkeypatch.setattr(work, "with_callees", lambda: (_sum_blocks, work))
    with pytest.raises(KeyboardInterrupt):
        compiling._Queue([_sum_blocks, work]).run(2)
    for thread in Interrupted.made:
        threading.Thread.join(thread, 60)
    assert len(Interrupted.made) == 2
    assert Silent.asked.getvalue() == f"{_sum_blocks.module} {_sum_blocks.name}\n"


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
    explainer = Explainer(folder / "plain.onnx")
    explainer.warmup()
    with_kernels(folder / "built", *kernels_of(explainer._engine, None))
    done = python(folder, "-c", READ_ONLY, cache="built")
    assert (done.returncode, done.stderr) == (0, "")


NOWHERE = """
import pickle, subprocess, sys
from pathlib import Path
import numpy as np
from gbp import Explainer
from gbp.cli import compiling, main as cli
from gbp.kernels.codegen.jit import Native, compiled
from gbp.engine.warming import NotKeptError

codes = pickle.loads(Path(sys.argv[1]).read_bytes())  # compiled by another process, in the compiler's place
Native._compiled = lambda kernel: compiled.append((kernel.name, 0)) or codes[kernel.name]
compiling._FEW, subprocess.Popen = 1, None  # no process compiles what cannot be kept
explainer = Explainer("plain.onnx")
assert explainer.explain(np.ones((1, 3, 8, 8), np.float32)).map.any() and compiled
print("the library", file=sys.stderr)
assert cli.main(["explain", "larger.onnx", "cat.png", "--preprocess", "unit"]) == 0
print("explain", file=sys.stderr)
assert cli.main(["warmup", "plain.onnx"]) == 2
try:
    explainer.warmup()
except NotKeptError:
    sys.exit(0)
sys.exit("it was kept")
"""


@pytest.fixture(scope="module")
def codes(folder: Path) -> Path:
    """The machine code of the larger model's kernels by their names, pickled."""
    explainer = Explainer(folder / "larger.onnx")
    explainer.warmup()
    kernels = (*kernels_of(explainer._engine, None), *RUNNERS)
    (folder / "codes").write_bytes(pickle.dumps({each.name: each._file().load() for each in kernels}))
    return folder / "codes"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_cache_that_cannot_be_written(folder: Path, codes: Path, threads: int) -> None:
    """All is explained; the log and the command line say what is lost; a warmup would be for nothing."""
    cache = "cat.png"  # a file, where no folder can be
    done = python(folder, "-c", NOWHERE, str(codes), cache=cache, threads=threads)
    assert done.returncode == 0, done.stderr
    logged, explained, warmed = re.split("the library\n|explain\n", done.stderr)
    assert logged.startswith("kernels are not kept in ")
    assert logged.count("\n") == 1
    assert explained.startswith(LINE + "gbp: they cannot be kept in ")
    assert explained.count("\n") == 2
    assert warmed.startswith("gbp: error: kernels cannot be kept in ")
    assert warmed.count("\n") == 1


def test_a_size_fills_the_axis_that_is_open() -> None:
    """The height is fixed, so the width is the second number; a size of another height is refused."""
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", b.input(1, 3, 8, 9))), 4))
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "any"
    engine = Explainer(model)._engine
    _, sample = _noise(engine, (8, 5))
    assert sample.shape == (1, 3, 8, 5)
    for size, says in (
        ((9, 5), r"size is \(9, 5\), the network takes \(8, any\)"),
        ((8, 0), r"size is \(8, 0\)\. Supported: two whole"),
        (8, "size is 8"),
    ):
        with pytest.raises(InputError, match=says):
            Explainer(model).warmup(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["warmup", "gone.onnx"], "gone.onnx"),
        (["warmup", "plain.onnx", "cat.png"], "cat.png"),
        (["warmup", "open.onnx"], "leaves the image size open"),
        (["warmup", "open.onnx", "--size", "0"], "--size is 0x0. Supported: "),
        (["warmup", "plain.onnx", "--size", "50"], "--size is 50x50, the network takes 8x8."),
    ],
)
def test_warmup_refuses_on_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", b.input(1, 3, 8, 8))), 4))
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "any"
    (folder / "open.onnx").write_bytes(model.SerializeToString())
    Explainer(folder / "plain.onnx").warmup()  # so that it need not say that it compiles
    monkeypatch.chdir(folder)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("gbp: error: ")
    assert says in said
    assert said.count("\n") == 1


def test_a_picture_that_is_refused_is_refused_before_anything_is_compiled(folder: Path) -> None:
    """On a new machine, where all kernels of the model are compiled ahead."""
    done = python(folder, "-m", "gbp", "explain", "plain.onnx", "cat.png", cache="new", threads=2)
    assert done.returncode == 2
    assert "nothing says how this model wants its images" in done.stderr
    assert not list((folder / "new").rglob("*.nbc"))
