"""Damaged model files, made by a seeded generator: each is refused with a `GbpError` or gives a finite map.

The attempts run in a process of their own with a limit on its memory, so that a crash, a hang or a bomb is a
failure here and not the end of the tests.  Each run begins with the seeds that once found a fault.  A longer
run, whose explained models are run by onnxruntime too:

    python tests/test_mutations.py FIRST COUNT [onnxruntime]
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from mutants import BESIDE, FIELDS, MODELS, beside, change_any, empty, mutated, valid

from gbp import Explainer, GbpError, ModelError
from gbp.ops import FACTS
from gbp.ops.affine import Affine
from gbp.passes.elementwise import of_numbers

COUNT = 2000
#: What earlier runs found: an attribute of 2⁶³ − 1, to which one was added; an empty list of axes; a constant
#: tiled by (100, 2⁶², 0, 2⁴⁰), on which NumPy crashes.
FOUND = (34647, 29465, 37307)
MEMORY = 6 * 2**30  # of address space: LLVM, OpenMP's stacks and the modules take one and a half
PATIENCE = 300  # of the clock: by then it hangs
#: What one attempt may take: MiB of the whole process, CPU time without that of compilers.
MAX_MEBIBYTES, MAX_CPU = 512, 10


# ------------------------------------------------------------------------------------------------ attempts


def attempt(data: bytes, rng: random.Random, path: Path) -> tuple[str, Any]:
    """Explain with a damaged model, as bytes or a file: what came of it, and the input where it is explained.

    Raises whatever is no GbpError.
    """
    from gbp import Explainer, GbpError, Top

    path.write_bytes(data)
    model = rng.choice((data, path, path))
    _other_calls(model, path, rng)
    try:
        explainer = Explainer(model)
        shape = tuple(n or (2 if i == 0 else 12) for i, n in enumerate(explainer.input_shape))
        if np.prod([float(n) for n in shape[1:]]) > 2**22:
            return "too large to try", None
        x = np.random.default_rng(0).normal(size=(min(shape[0], 3), *shape[1:])).astype(np.float32)
        a = explainer.explain(x, rule=rng.choice(("vanilla", "deconvnet", "guided")))
    except GbpError as error:
        refused = f"{type(error).__name__}: {error}"
    else:
        refused = ""
    assert refused.isprintable()
    if refused:
        return refused, None
    assert a.map.shape == x.shape
    assert np.isfinite(a.map).all()
    assert np.isfinite(a.scores).all()
    with suppress(GbpError):
        explainer.explain(x, target=rng.choice((Top(5), 0, [[0, 1]] * len(x))), batch_size=1)
    with suppress(GbpError):
        assert np.array_equal(explainer.predict(x), a.scores)
    return "explained", x


def _other_calls(model: Any, path: Path, rng: random.Random) -> None:
    """Now and then what else takes a model: each refuses with a GbpError, or exit code 2 and one line.

    `inspect` reads and plans a model as an Explainer does, so a quarter of the models do for the rest of it.
    """
    from gbp import GbpError
    from gbp.cli import main as cli
    from gbp.diagnostics.inspection import inspect
    from gbp.diagnostics.verify import verify

    match rng.randrange(40):
        case 0:
            sys.modules["onnxruntime"] = None  # type: ignore[assignment]  # which may crash on such models
            with suppress(GbpError):
                verify(model)
            del sys.modules["onnxruntime"]
        case 1 | 2:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.main(["inspect", str(path)])
            assert code in (0, 2)
            for line in (*out.getvalue().split("\n"), *err.getvalue().split("\n")):
                assert line.isprintable()
        case n if n >= 30:
            with suppress(GbpError):
                inspect(model)


# --------------------------------------------------------------------------------------- the other opinion


def _other(connection: Connection) -> None:
    """Run models by onnxruntime, in a process that may crash."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    while True:
        path, name, x = connection.recv()
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            feeds = {value.name: x for value in session.get_inputs()}
            connection.send(session.run([name], feeds)[0])
        except Exception:
            connection.send(None)


class Other:
    """onnxruntime at work elsewhere."""

    def __init__(self) -> None:
        self.crashes = 0
        self._start()

    def _start(self) -> None:
        self._here, there = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_other, args=(there,), daemon=True
        )
        self._process.start()
        there.close()

    def run(self, path: Path, name: str, x: Any) -> Any:
        """The tensor, or None where onnxruntime does not compute it."""
        self._here.send((str(path), name, x))
        try:
            if self._here.poll(60):
                return self._here.recv()
        except EOFError:
            pass
        self._process.kill()
        self.crashes += 1
        self._start()
        return None


def disagreement(path: Path, x: Any, other: Other) -> str:
    """What the output of the explained model says to onnxruntime, where both compute it."""
    from gbp import Explainer, GbpError

    outputs = [value.name for value in onnx.load(path, load_external_data=False).graph.output]
    for name in outputs:
        try:
            scores = Explainer(path, output=name).predict(x)
        except GbpError:
            continue
        expected = other.run(path, name, x)
        if expected is None or expected.size != scores.size or not np.isfinite(expected).all():
            return "not compared"
        found, true = (np.float64(values).reshape(-1) for values in (scores, expected))
        error = np.linalg.norm(found - true) / (np.linalg.norm(true) or 1)
        return "agrees" if error < 1e-3 else f"DISAGREES: {error:.1e}"
    return "not compared"


# --------------------------------------------------------------------------------------------------- a run


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """MiB; ru_maxrss would start with what the parent had."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024


def main(first: int, count: int, compare: bool = False) -> None:
    from gbp.kernels.codegen.jit import compiled

    other = Other() if compare else None
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    (path.parent / BESIDE).write_bytes(beside())
    for model in MODELS:
        path.write_bytes(valid(model))
        assert attempt(valid(model), random.Random(1), path)[0] == "explained" or model is MODELS[-1]
    gc.freeze()  # modules stay, so nobody looks through them for garbage
    outcomes: Counter[str] = Counter()
    most_memory, most_cpu = (0, 0), (0.0, 0)
    for seed in (*FOUND, *range(first, first + count)):
        print(seed, end=" ", flush=True)  # before the attempt: the last line names what crashed
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        _forget_peak()
        start, before = time.process_time(), sum(seconds for _, seconds in compiled)
        try:
            result, x = attempt(mutated(seed), random.Random(seed), path)
        except Exception:
            traceback.print_exc()
            sys.exit(f"seed {seed}: no GbpError")
        cpu = time.process_time() - start - sum(seconds for _, seconds in compiled) + before
        memory, took = _peak(), f"{cpu:.2f} s {_peak()} MiB"
        most_memory, most_cpu = max(most_memory, (memory, seed)), max(most_cpu, (cpu, seed))
        said = result
        if other is not None and x is not None:
            faulthandler.cancel_dump_traceback_later()
            said = f"explained, {disagreement(path, x, other)}"
        outcomes[said.partition(":")[0]] += 1
        print(f"{took}  {said}")
    faulthandler.cancel_dump_traceback_later()
    print("outcomes", dict(outcomes), "crashes of onnxruntime", other.crashes if other else "-")
    print(f"peak {most_memory[0]} MiB (seed {most_memory[1]}), {most_cpu[0]:.1f} s (seed {most_cpu[1]})")


def test_every_field_is_changed() -> None:
    rng, seen = random.Random(0), set()
    for i in range(3000):
        if i % 20 == 0:
            model = MODELS[i // 20 % len(MODELS)]()
        seen.add(change_any(model, rng))
    assert seen == set(FIELDS)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_damaged_file_is_refused_or_explained_but_never_crashes():
    done = subprocess.run(
        [sys.executable, __file__, "0", str(COUNT)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"GBP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1] if lines else ''}\n{done.stderr[-3000:]}"
    *attempts, _, peak = lines
    assert len(attempts) == len(FOUND) + COUNT
    assert sum(line.endswith("explained") for line in attempts) > COUNT // 20  # else they test one refusal
    assert sum("Error: " in line for line in attempts) > COUNT // 3
    assert int(peak.split()[1]) < MAX_MEBIBYTES
    assert float(peak.split()[5]) < MAX_CPU


ONE_BY_ONE = ("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Pow", "Where", "PRelu", "Greater")


@pytest.mark.parametrize("op", ONE_BY_ONE)
@pytest.mark.parametrize("shape", [(1, 3, 4, 1), (1, 1, 1, 1), (1, 3, 1, 4), (1, 1)], ids=str)
def test_an_empty_constant_is_refused(op: str, shape: tuple[int, ...]) -> None:
    for dims in ((0,), (0, 1), (1, 0), (3, 0, 1), (0, 1, 1, 1), (1, 3, 4, 0)):
        for is_first in (False, True)[: 1 if op == "PRelu" else 2]:
            b = Builder(17)
            y, c = b.relu(b.input(*shape)), b.constant(np.ones(dims))
            operands = (c, y) if is_first else (y, c)
            if op == "Where":
                operands = b.node("Greater", y, b.constant(0.5)), *operands
            model = b.foreign(op, shape, *operands)
            with pytest.raises(GbpError, match=r"holds no number|does not broadcast"):
                Explainer(b.model(model))


@pytest.mark.parametrize("op", sorted(op for op, fact in FACTS.items() if fact.averages))
def test_no_numbers_have_no_mean(op: str, recwarn: pytest.WarningsRecorder) -> None:
    """NumPy would warn of it on the standard error."""
    b = Builder(23)
    x, c, one = b.input(1, 3, 4, 4), b.constant(np.ones((1, 1, 0, 4))), b.constant(np.ones(1))
    operands = {
        "InstanceNormalization": (one, one),
        "GroupNormalization": (one, one),
        "RMSNormalization": (one,),
    }
    given = {"num_groups": 1} if op == "GroupNormalization" else {}
    y = b.add(x, b.foreign(op, (1, 1, 1, 1), c, *operands.get(op, ()), **given))
    with pytest.raises(ModelError, match=f"{op}.*holds no number"):
        Explainer(b.model(y))
    assert not recwarn.list


def test_an_op_of_no_channels_is_a_function_of_numbers() -> None:
    found = of_numbers(Affine(np.empty(0), np.empty(0), 1), 4)
    assert found is not None
    assert [c.shape for c in found.constants] == [(1, 0, 1, 1)] * 2


def test_an_empty_weight_is_refused_or_explained(tmp_path: Path) -> None:
    """Each tensor of each model in turn, with no index along one axis."""
    (tmp_path / BESIDE).write_bytes(beside())
    for make in MODELS:
        for i, tensor in enumerate(make().graph.initializer):
            for axis in range(len(tensor.dims)):
                model = make()
                empty(model.graph.initializer[i], axis)
                attempt(model.SerializeToString(), random.Random(3), tmp_path / "model.onnx")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(int(sys.argv[1]), int(sys.argv[2]), "onnxruntime" in sys.argv[3:])
