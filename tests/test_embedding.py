"""Within somebody else's process: signals, exceptions in the middle, forks, its end, its disk, its settings.

Each in a process of its own: after what went wrong the same Explainer gives the same bits, and no file is
left half written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import cached_property
from pathlib import Path

import pytest
from builder import Builder
from forked import Forked

from gbp.runtime import locks

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo.onnx"
BEGIN = f"""
import os, resource, signal, sys, threading, time
import numpy as np
from pathlib import Path
from gbp.runtime import locks
from gbp import Explainer, GbpError, InputError
explainer = Explainer({str(DEMO)!r}, preprocess="raw")
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

program.run = run  # between any two kernels, also of a run that is prepared
program._AT_ONCE, program._ELEMENTS_AT_ONCE = 1, -1
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
        whole, left[0] = left[0] > 0, 0
        assert same(), (prepared, at)
        if whole:  # there are fewer kernels than that
            break
    assert 10 < broken < 59, broken
"""

FORKS = """
from concurrent.futures import ThreadPoolExecutor

busy = [True]

def explain():
    while busy[0]:
        assert same()

threads = [threading.Thread(target=explain, daemon=True) for _ in range(2)]
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

HELD = """
# A child has one thread.  Locks that other threads held when it was forked nobody would ever free.
from gbp.kernels.codegen import jit
from gbp.kernels.parallel import threads

sessions = explainer._engine.sessions
(entry,) = {id(each): each for each in sessions._entries.values()}.values()

def child(check):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that waits for ever is killed
        code = 1
        try:
            code = 0 if check() else 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def works():
    fresh = Explainer(model, preprocess="raw")
    return same() and fresh.explain(x).map.tobytes() == expected and in_threads()

def in_threads():
    found = []
    both = [threading.Thread(target=lambda: found.append(same())) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return found == [True, True]

held = {
    "sessions": sessions.lock,
    "a session that is made": entry.lock,
    "memory": entry.session.pool.lock,
    "helpers": threads._team.free,
}
for name, lock in held.items():
    has, may_go = threading.Event(), threading.Event()

    def hold():
        with lock:
            has.set()
            may_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    has.wait()
    assert child(works) == 0, name
    may_go.set()
    thread.join()
    assert same()

for _ in range(2 * threads.available()):  # all explain
    threads._turns().get()
assert child(works) == 0, "turns"
for _ in range(2 * threads.available()):
    threads._turns().put(None)

# While a thread compiles, a fork waits.
has, done = threading.Event(), []

def compile():
    with jit._compiling:
        has.set()
        time.sleep(0.5)
        done.append(1)

thread = threading.Thread(target=compile)
thread.start()
has.wait()

def compiles():
    from gbp.kernels.codegen.jit import DENSE, INT, Kernel

    def one(x, parts, share):
        x[0] = 1

    values = np.zeros(1, np.float32)
    Kernel(one, (DENSE, INT))(values, 1)
    return done == [1] and values[0] == 1

assert child(compiles) == 0, "compiling"
thread.join()
assert compiles()
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
sys.dont_write_bytecode = True
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

SIZES = """
# Of an open size: each call has another one, or another batch; sometimes a plan is given up and made again.
def held():
    return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])

calls = int(os.environ.get("GBP_TEST_CALLS", "300"))
changing = Explainer(open_model)
rng = np.random.default_rng(0)
before = 0
for i in range(calls):
    n, h, w = rng.integers(1, 5), 16 + 4 * rng.integers(0, 4), 16 + 4 * rng.integers(0, 4)
    changing.explain(rng.standard_normal((n, 3, h, w)).astype(np.float32), rule=("vanilla", "guided")[i % 2])
    if i == calls // 3:
        before = held()
assert held() - before < 8000, held() - before
"""

SETTINGS = """
# What belongs to the whole process stays as it was: after the import, a compilation, and an explanation.
import locale, logging, random, warnings
import numba
import PIL.Image, PIL.ImageFile

def settings():
    return {
        "NumPy's errors": np.geterr(),
        "NumPy's printing": str(np.get_printoptions()),
        "NumPy's seed": np.random.get_state()[1].tobytes(),
        "Python's seed": random.getstate(),
        "Numba": {k: repr(v) for k, v in vars(numba.config).items() if k.isupper()},
        "Numba's threads": numba.get_num_threads(),
        "Pillow": [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, sorted(PIL.Image.OPEN)],
        "warnings": list(warnings.filters),
        "logging": [logging.root.level, list(logging.root.handlers), logging.getLogger("gbp").handlers],
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "the environment": dict(os.environ),
        "paths": [os.getcwd(), list(sys.path)],
        "the locale": locale.setlocale(locale.LC_ALL),
        "hooks": [sys.excepthook, threading.excepthook, sys.unraisablehook],
        "threads": threading.active_count(),
        "the mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_STACK)],
    }

"""
BARE = f"""
import os, resource, signal, sys, threading
import numpy as np
{SETTINGS}
PIL.Image.init()
before = settings()
files = sorted(os.listdir())
import gbp
assert not {{"gbp.explainer", "gbp.engine", "gbp.kernels", "onnx"}} & set(sys.modules)
explainer = gbp.Explainer(sys.argv[1], preprocess="raw")
result = explainer.explain(PIL.Image.new("RGB", (96, 96), "red"))
result[0].overlay()
after = settings()
# One filter, behind all that there are: a damaged picture could have Pillow warn of each of 65 535 tags.
assert after["warnings"].pop()[3].pattern.startswith("PIL")
for name, value in before.items():
    assert after[name] == value, (name, value, after[name])
assert sorted(os.listdir()) == files
"""

ENDING = "the interpreter ends while threads explain"
PROGRAMS = {
    "signals": SIGNALS,
    "exceptions in the middle": IN_THE_MIDDLE,
    "forks while threads explain": FORKS,
    "forks while threads hold locks": HELD,
    ENDING: ENDS,
    "the disk is full": FULL,
    "memory": GROWTH,
    "memory of calls of changing sizes": SIZES,
}


@pytest.mark.skipif(sys.platform != "linux", reason="signals, forks and limits as Linux has them")
@pytest.mark.parametrize("name", PROGRAMS)
def test_within_another_process(tmp_path: Path, name: str) -> None:
    files = f"\nmodel = {str(DEMO)!r}\nopen_model = {str(of_open_size(tmp_path))!r}\n"
    if name == ENDING:
        run_anew(tmp_path, BEGIN + files + PROGRAMS[name])
        return
    process = Forked(("-c", BEGIN + files + PROGRAMS[name]), tmp_path, environment())
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "GBP_NUM_THREADS": "2"}


def run_anew(folder: Path, program: str) -> None:
    """In a process that Python starts, and ends as it ends any."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(DEMO)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def of_open_size(folder: Path) -> Path:
    """The file of a small network whose height and width are open."""
    b = Builder()
    x = b.relu(b.conv(b.input(1, 3, 16, 16), 16))
    x = b.node("GlobalAveragePool", b.relu(b.conv(x, 24, strides=[2, 2])))
    proto = b.model(b.gemm(b.flatten(x), 10))
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    path = folder / "open.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="limits and masks as Linux has them")
def test_settings_of_the_process_stay(tmp_path: Path) -> None:
    run_anew(tmp_path, BARE)


def test_a_cache_on_a_full_disk(tmp_path: Path) -> None:
    """All is explained, and nothing half-written is left; with room again the kernels are kept."""
    program = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
from small import use, compiled, not_kept, was_compiled
use()
assert was_compiled() and len(compiled) == len(not_kept), not_kept
"""
    from test_cache import KERNEL, end, start, used, with_kernels

    (tmp_path / "small.py").write_text(KERNEL)
    before = {path.name: path.read_bytes() for path in with_kernels(tmp_path / "cache").rglob("*.nbc")}
    # Python itself would keep bytecode that is cut off there, and fail on it later.
    end(start(tmp_path, program, tmp_path / "cache", PYTHONDONTWRITEBYTECODE="1"))
    left = {path.name: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left == before | {"lock": b""}
    assert used(tmp_path, tmp_path / "cache") == (True, "")
    assert used(tmp_path, tmp_path / "cache") == (False, "")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="cached properties have no lock since Python 3.12")
def test_a_forked_child_finds_the_locks_of_cached_properties_free() -> None:
    """A thread that computes a value holds its property's lock, which the child's copy would never leave."""

    class Lazy:
        @cached_property
        def value(self) -> int:
            return 1

    held = vars(Lazy)["value"].lock
    thread = threading.Thread(target=held.acquire)
    thread.start()
    thread.join()
    assert not held.acquire(blocking=False)
    locks._free_properties(Lazy)
    assert Lazy().value == 1
