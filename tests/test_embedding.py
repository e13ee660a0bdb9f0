"""Within somebody else's process: signals, exceptions in the middle, forks, its end, a full disk.

Each in a process of its own: after what went wrong the same Explainer gives the same bits, and no file is
left half written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BEGIN = f"""
import os, resource, signal, sys, threading, time
import numpy as np
from pathlib import Path
from gbp import Explainer, GbpError, InputError
explainer = Explainer({str(ROOT / "models" / "demo.onnx")!r}, preprocess="raw")
x = np.random.default_rng(0).standard_normal((2, 3, 96, 96), np.float32)
expected = explainer.explain(x).map.tobytes()

def same():
    return explainer.explain(x).map.tobytes() == expected
"""

SIGNALS = """
class Interrupted(BaseException):  # as KeyboardInterrupt is: others may be taken for those of a decoder
    pass

def interrupt(*_):
    raise Interrupted

signal.signal(signal.SIGALRM, interrupt)
hits, times = 0, 0
end = time.monotonic() + 60
while hits < 150 and time.monotonic() < end:
    times += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + times % 97))
        fresh = Explainer(model, preprocess="raw") if times % 5 == 0 else explainer
        assert fresh.explain(x).map.tobytes() == expected
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert hits > 20, hits
assert same()
"""

IN_THE_MIDDLE = """
from gbp.kernels.parallel import program

class Broken(Exception):
    pass

real, left = program.run, [0]

def run(*given):
    left[0] -= 1
    if left[0] == 0:
        raise Broken
    return real(*given)

program.run, program._AT_ONCE = run, 1  # between any two kernels, also of a run that is prepared
for prepared in (False, True):
    broken = 0
    for at in range(1, 60):
        explainer = Explainer(model, preprocess="raw")
        assert not prepared or same()
        left[0] = at
        try:
            explainer.explain(x)
        except Broken:
            broken += 1
        left[0] = 0
        assert same(), (prepared, at)
    assert 10 < broken < 59, broken
"""

FORKS = """
from concurrent.futures import ThreadPoolExecutor

busy = [True]

def explain():
    while busy[0]:
        assert same()

threads = [threading.Thread(target=explain) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(8):
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        code = 1
        try:
            fresh = Explainer(model, preprocess="raw")
            code = 0 if fresh.explain(x).map.tobytes() == expected else 3
        except InputError as error:
            code = 0 if "fork" in str(error) else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
busy[0] = False
for thread in threads:
    thread.join()
"""

ENDS = """
def explain():
    while True:
        explainer.explain(x)

for _ in range(3):
    threading.Thread(target=explain, daemon=True).start()
time.sleep(0.3)
"""

FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
result = explainer.explain([__import__("PIL.Image").Image.new("RGB", (96, 96), c) for c in ("red", "blue")])
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
before = sorted(os.listdir())
for name in ("a.png", "a.jpg", "a.npz"):
    for was in (None, b"what was there"):
        if was:
            Path(name).write_bytes(was)
        try:
            (result if name == "a.npz" else result[1]).save(name)
        except InputError as error:
            assert "cannot write" in str(error)
        else:
            raise AssertionError(name)
        assert (Path(name).read_bytes() if was else None) == was
        Path(name).unlink(missing_ok=True)
assert sorted(os.listdir()) == before
"""

GROWTH = """
def held():
    return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])

for _ in range(50):
    explainer.explain(x)
before = held()
for i in range(400):
    explainer.explain(x, rule=("vanilla", "guided")[i % 2])
    try:
        explainer.explain(x, target=4711)
    except GbpError:
        pass
assert held() - before < 8000, held() - before
"""

PROGRAMS = {
    "signals": SIGNALS,
    "exceptions in the middle": IN_THE_MIDDLE,
    "forks while threads explain": FORKS,
    "the interpreter ends while threads explain": ENDS,
    "the disk is full": FULL,
    "memory": GROWTH,
}


@pytest.mark.skipif(sys.platform != "linux", reason="signals, forks and limits as Linux has them")
@pytest.mark.parametrize("name", PROGRAMS)
def test_within_another_process(tmp_path: Path, name: str) -> None:
    model = str(ROOT / "models" / "demo.onnx")
    done = subprocess.run(
        [sys.executable, "-c", f"{BEGIN}\nmodel = {model!r}\n{PROGRAMS[name]}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_cache_on_a_full_disk(tmp_path: Path) -> None:
    """All is explained, and nothing half-written is left; with room again the kernels are kept."""
    program = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
from small import use, compiled, not_kept, was_compiled
use()
assert was_compiled() and len(compiled) == len(not_kept), not_kept
"""
    from test_cache import KERNEL, end, start, used

    (tmp_path / "small.py").write_text(KERNEL)
    end(start(tmp_path, program, tmp_path / "cache"))
    left = {path.name: path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left == {"lock": 0}
    assert used(tmp_path, tmp_path / "cache") == (True, "")
    assert used(tmp_path, tmp_path / "cache") == (False, "")
