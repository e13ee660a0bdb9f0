"""Damaged model files, made by a seeded generator: each is refused with a `GbpError` or gives a finite map.

The attempts run in a process of their own with a limit on its memory, so that a crash, a hang or a bomb is a
failure here and not the end of the tests.  A longer run:  python tests/test_mutations.py FIRST COUNT
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mutants import MODELS, mutated

COUNT = 2000
MEMORY = 6 * 2**30  # of address space: LLVM, OpenMP's stacks and the modules take one and a half
SECONDS = 30  # of its own computing: a busy machine takes longer
PATIENCE = 300  # of the clock: by then it hangs
# ------------------------------------------------------------------------------------------------ attempts


def attempt(data: bytes, rng: random.Random, path: Path) -> str:
    """Explain with a damaged model, as bytes or a file: what came of it.  Raises whatever is no GbpError."""
    from gbp import Explainer, GbpError
    from gbp.diagnostics.inspection import inspect

    path.write_bytes(data)
    model = rng.choice((data, path))
    with suppress(GbpError):
        inspect(model)
    try:
        explainer = Explainer(model)
        shape = tuple(n or (2 if i == 0 else 12) for i, n in enumerate(explainer.input_shape))
        if np.prod([float(n) for n in shape[1:]]) > 2**22:
            return "too large to try"
        x = np.random.default_rng(0).normal(size=(min(shape[0], 3), *shape[1:])).astype(np.float32)
        a = explainer.explain(x, rule=rng.choice(("vanilla", "deconvnet", "guided")))
    except GbpError as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    assert a.map.shape == x.shape
    assert np.isfinite(a.map).all()
    assert np.isfinite(a.scores).all()
    return "explained"


def main(first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    for model in MODELS:
        assert attempt(model().SerializeToString(), random.Random(0), path) == "explained"
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)  # before the attempt: the last line names what crashed
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        start = time.process_time()
        try:
            result = attempt(mutated(seed), random.Random(seed), path)
        except Exception:
            traceback.print_exc()
            sys.exit(f"seed {seed}: no GbpError")
        seconds = time.process_time() - start
        print(f"{seconds:.2f} s  {result}")
        if seconds > SECONDS:
            sys.exit(f"seed {seed} takes {seconds:.0f} s")
    faulthandler.cancel_dump_traceback_later()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would start with what the parent had
    print("peak", int(status.partition("VmHWM:")[2].split()[0]) // 1024, "MiB")


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_damaged_file_is_refused_or_explained_but_never_crashes():
    done = subprocess.run(
        [sys.executable, __file__, "0", str(COUNT)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"NUMBA_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1] if lines else ''}\n{done.stderr[-3000:]}"
    *attempts, peak = lines
    assert len(attempts) == COUNT
    assert sum(line.endswith("explained") for line in attempts) > COUNT // 20  # else they test one refusal
    assert sum("Error: " in line for line in attempts) > COUNT // 2
    assert int(peak.split()[1]) < 2048


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(int(sys.argv[1]), int(sys.argv[2]))
