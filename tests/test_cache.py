"""Kernels that processes compiled apart, in different orders, work together when they come from the cache.

Numba names machine code by a function's qualified name and a number that counts functions within the process.
Of two functions with one name, made by a factory, the linker takes either.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import Forked
from numba.core.config import reload_config

from gbp.kernels.codegen import jit, numba_compiler
from gbp.kernels.codegen.cache import CACHE_DIRECTORY, _cache_directory, untrusted
from gbp.kernels.codegen.interrupts import uninterrupted
from gbp.kernels.codegen.jit import Native
from gbp.kernels.parallel import team

APART = """
from gbp.kernels.codegen.jit import DENSE, INT, compiled, kernel, one_of_many

def made(number):
    def part(x):
{lines}
    return one_of_many("part")(part)

one_part, other_part = made(1), made(2)

@kernel(DENSE, INT)
def one(x, parts, share):
    one_part(x)
    one_part(x)

@kernel(DENSE, INT)
def other(x, parts, share):
    other_part(x)
    other_part(x)
""".format(lines="\n".join(f"        x[{i}] = x[{i}] * {i % 7 + 1} + number" for i in range(60)))

BOTH = """
import numpy as np
from apart import compiled, one, other

x = np.zeros((2, 60), np.float32)
for kernel, row in ((one, x[0]), (other, x[1])):
    kernel.compile()
for kernel, row in ((one, x[0]), (other, x[1])):
    kernel(row, 1)
assert not {"one", "other"} & {name for name, _ in compiled}
factor = np.arange(60) % 7 + 1
np.testing.assert_array_equal(x, np.outer((1, 2), factor + 1))
"""


def test_kernels_of_different_processes(tmp_path: Path) -> None:
    """Each was compiled first in its process, so a function of theirs has one symbol, and other code."""
    (tmp_path / "apart.py").write_text(APART)
    cache = with_kernels(tmp_path / "cache")
    for kernel in ("one", "other"):
        end(start(tmp_path, f"from apart import {kernel}\n{kernel}.compile()", cache))
    symbols = [set(re.findall(rb"_ZN\w*part\w+", file.read_bytes())) for file in cache.rglob("apart_*.nbc")]
    assert len(symbols) == 2
    assert symbols[0] & symbols[1]
    end(start(tmp_path, BOTH, cache))


#: What runs kernels: every process needs it.
RUNNERS = tuple(each for each in vars(team).values() if isinstance(each, Native))


def with_kernels(cache: Path, *kernels: Native) -> Path:
    """A cache that has what runs kernels, and these, compiled once for all tests."""
    folder = cache / Path(CACHE_DIRECTORY).name
    folder.mkdir(mode=0o700, parents=True)
    for kernel in dict.fromkeys((*RUNNERS, *kernels)):
        kernel.compile()
        shutil.copy(kernel._file().path, folder)
    return cache


# ----------------------------------------------------------------------- whose folder, and what is in it

KERNEL = """
import numpy as np
from gbp.kernels.codegen.jit import DENSE, INT, Kernel, compiled, not_kept

def one(x, parts, share):
    x[0] = 1

one = Kernel(one, (DENSE, INT))

def use():
    x = np.zeros(1, np.float32)
    one(x, 1)
    assert x[0] == 1

def was_compiled():
    # Whether this process compiled the kernel; what runs kernels is compiled as they are.
    return "one" in [name for name, _ in compiled]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module that has one small kernel."""
    (tmp_path / "small.py").write_text(KERNEL)
    return tmp_path


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a cache that has what runs kernels and the small kernel: a copy of one that a process filled."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "small.py").write_text(KERNEL)
    assert used(folder, with_kernels(folder / "cache")) == (True, "")
    assert used(folder, Path(shutil.copytree(folder / "cache", folder / "copy"))) == (False, "")
    return lambda cache: Path(shutil.copytree(folder / "cache", cache))


def environment(folder: Path, cache: Path | None, **others: str) -> dict[str, str]:
    """That of a process which imports modules of this folder.  `cache`: None for the usual place."""
    paths = os.pathsep.join((str(folder), str(Path(__file__).parent.parent)))
    known = {k: v for k, v in os.environ.items() if k not in ("GBP_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    where = {} if cache is None else {"GBP_CACHE_DIR": str(cache)}
    return known | where | others | {"PYTHONPATH": paths}


def start(folder: Path, code: str, cache: Path | None, **others: str) -> Forked:
    return Forked(("-c", code), folder, environment(folder, cache, **others))


def end(process: Forked) -> tuple[str, str]:
    """What a process that must end well has written."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return out, err


def used(
    folder: Path, cache: Path | None, before: str = "", use: str = "use()", **others: str
) -> tuple[bool, str]:
    """Whether a process had to compile the kernel, and what it said."""
    code = f"{before}\nfrom small import one, use, was_compiled\n{use}\nprint(was_compiled())"
    out, err = end(start(folder, code, cache, **others))
    assert out in ("True\n", "False\n")
    return out == "True\n", err


def test_a_folder_of_ones_own_is_made_and_used(folder: Path) -> None:
    cache = folder / "not there" / "cache"
    assert used(folder, cache, use="one.compile()") == (True, "")
    assert used(folder, cache, use="one.compile()") == (False, "")
    made = [path for path in (cache, *cache.rglob("*")) if path.is_dir()]
    assert len(made) == 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in made)


@pytest.mark.parametrize("which", ["cache", "version", "above"])
def test_a_folder_that_others_may_write_to_is_not_used(
    folder: Path, filled: Callable[[Path], Path], which: str
) -> None:
    above = folder / "above"
    cache = filled(above / "cache")
    (version,) = cache.iterdir()
    before = set(version.iterdir())
    assert untrusted(str(version)) is None
    for mode in (0o702, 0o720, 0o770):
        {"above": above, "cache": cache, "version": version}[which].chmod(mode)
        assert "others may write to" in (untrusted(str(version)) or ""), oct(mode)
    compiled, err = used(folder, cache, use="one.compile()")
    assert compiled
    assert err.count("\n") == 1
    assert "kernels are not kept in" in err
    assert "others may write to" in err
    assert set(version.iterdir()) == before


def test_a_sticky_folder_may_be_above_but_not_hold_kernels(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert untrusted(str(tmp_path / "cache")) is None
    assert untrusted(str(tmp_path)) is not None


@pytest.mark.parametrize("which", [".", "above"])
def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    cache = tmp_path / "above" / "cache"
    cache.mkdir(parents=True)
    assert untrusted(str(cache)) is None
    if os.geteuid() == 0:
        os.chown(cache.parent if which == "above" else cache, 4712, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4712)
    assert "belongs to another user" in (untrusted(str(cache)) or "")


NO_HOME = "import pwd\ndef unknown(_):\n    raise KeyError\npwd.getpwuid = unknown"


def test_settings_of_numba_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """They change the machine code."""
    found = [_cache_directory()]
    for name, value in (("BOUNDSCHECK", "1"), ("OPT", "0"), ("SLP_VECTORIZE", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(f"NUMBA_{name}", value)
            reload_config()
            found.append(_cache_directory())
    reload_config()
    assert len(set(found)) == len(found)
    assert _cache_directory() == found[0] == CACHE_DIRECTORY


def test_without_a_home_nothing_is_kept_where_the_process_stands(folder: Path) -> None:
    for _ in range(2):
        compiled, err = used(folder, None, NO_HOME, use="one.compile()")
        assert compiled
        assert err.count("\n") == 1
        assert "no home folder. GBP_CACHE_DIR may name" in err
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["small.py"]


def test_in_a_folder_that_is_gone_a_relative_folder_is_none(folder: Path) -> None:
    gone = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
    code = gone + "import small; small.one.compile()"
    _, err = end(start(folder, code, Path("caches")))
    assert "the current folder is gone. GBP_CACHE_DIR may name" in err


def test_a_relative_folder_of_caches_is_ignored(folder: Path) -> None:
    where = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": "caches"}
    assert used(folder, None, use="one.compile()", **where) == (True, "")
    assert not (folder / "caches").exists()
    assert any((folder / "home" / ".cache" / "gbp").iterdir())


def kept(cache: Path) -> Path:
    (file,) = cache.rglob("*small_one*.nbc")
    return file


DAMAGE = """
from gbp.kernels.codegen import cache
from small import use, was_compiled

found = []
load = cache.CodeFile.load

def tried(self):
    path = str(self.path)
    if found or "small_one" not in path:  # once: it is looked for again when nobody else compiles it
        return load(self)
    good = open(path, "rb").read()
    for at in range(len(good)):
        for bad in (good[:at], good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :]):
            with open(path, "wb") as file:
                file.write(bad)
            found.append(load(self))
    return load(self)

cache.CodeFile.load = tried
use()
assert found == [None] * len(found) and len(found) > 1000
assert was_compiled()
"""


def test_a_damaged_file_is_compiled_anew(folder: Path, filled: Callable[[Path], Path]) -> None:
    """No byte of it is taken for code: the last damage is a bit of the last byte."""
    cache = filled(folder / "cache")
    good = kept(cache).read_bytes()
    end(start(folder, DAMAGE, cache))
    assert used(folder, cache) == (False, "")
    assert len(kept(cache).read_bytes()) == pytest.approx(len(good), rel=0.01)
    kept(cache).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert used(folder, cache) == (True, "")


def test_a_file_of_another_kernel_is_not_taken(folder: Path, filled: Callable[[Path], Path]) -> None:
    cache = filled(folder / "cache")
    first = kept(cache)
    other = folder / "other.py"
    other.write_text(KERNEL.replace("x[0] = 1", "x[0] = 2").replace("x[0] == 1", "x[0] == 2"))
    code = "from other import use, was_compiled\nuse()\nassert was_compiled()"
    end(start(folder, code, cache))
    (second,) = cache.rglob("*other_one*.nbc")
    first.write_bytes(second.read_bytes())
    assert used(folder, cache) == (True, "")


def test_two_processes_fill_one_cache(folder: Path) -> None:
    cache = with_kernels(folder / "cache")
    for name in ("alone", "spin"):
        (file,) = cache.rglob(f"*{name}.*.nbc")
        file.unlink()
    code = "from small import use\nuse()"
    both = [start(folder, code, cache) for _ in range(2)]
    for process in both:
        end(process)
    assert used(folder, cache) == (False, "")


FULL = """
import errno, small
from gbp.kernels.codegen import cache
from gbp.kernels.parallel import team

def full(*given, **named):
    raise OSError(errno.ENOSPC, "No space left on device")

cache.tempfile.mkstemp = full
small.one.compile()
team.spin.compile()
assert len(small.compiled) == 2
assert set(small.not_kept) == {"No space left on device"}
assert len(small.not_kept) == len(small.compiled)
"""


def test_a_disk_that_is_full(folder: Path) -> None:
    """Nothing is left there, and one warning says why, and what would help."""
    _, err = end(start(folder, FULL, folder / "cache"))
    assert not list((folder / "cache").rglob("*.nbc"))
    assert err.count("\n") == 1
    assert "No space left on device. GBP_CACHE_DIR may name" in err


# ---------------------------------------------------------------------------------------------------- signals

INTERRUPTED = """
import os, signal, sys
import numpy as np
import llvmlite.binding as llvm
from gbp.kernels.codegen import jit, numba_compiler
from small import one, use

class Alarm(Exception):
    pass

def raises(*_):
    raise Alarm

number = signal.Signals[sys.argv[1]]
if number == signal.SIGINT:  # it is ignored where the tests run in the background
    signal.signal(number, signal.default_int_handler)
else:
    signal.signal(number, raises)
expected = KeyboardInterrupt if number == signal.SIGINT else Alarm
before = {n: signal.getsignal(n) for n in signal.valid_signals()}

def interrupted(home, name):
    real, ended = getattr(home, name), []

    def hook(*given):
        if not ended:
            os.kill(os.getpid(), number)
        result = real(*given)
        ended.append(name)
        return result

    one._file().path.unlink()  # and forgotten, so the small kernel is all that is compiled
    one._address = 0
    setattr(home, name, hook)
    try:
        use()
    except expected:
        print("interrupted")
    assert ended
    setattr(home, name, real)
    use()
    assert {n: signal.getsignal(n) for n in signal.valid_signals()} == before
    print("usable")

interrupted(numba_compiler, "compiled_with")
interrupted(llvm.TargetMachine, "emit_object")
interrupted(jit, "_linked")
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGALRM"])
def test_an_interrupt_while_a_kernel_is_compiled_and_linked_waits(
    folder: Path, filled: Callable[[Path], Path], number: str
) -> None:
    arguments = f"import sys\nsys.argv = ['', {number!r}]\n"
    out, err = end(start(folder, arguments + INTERRUPTED, filled(folder / "cache")))
    assert out == "interrupted\nusable\n" * 3
    assert err == ""


def test_a_fork_waits_while_a_kernel_s_symbols_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM's own lock is held then, which a child could not free."""
    holds: list[bool] = []
    names = SimpleNamespace(
        add_symbol=lambda *_: holds.append(jit._compiling._is_owned())  # type: ignore[attr-defined]
    )
    monkeypatch.setattr(jit, "llvm", names)
    monkeypatch.setattr(jit.Native, "_loaded", lambda self: 1)
    native = jit.Native(lambda: None, ())
    native._calls = [SimpleNamespace(name="callee", address=1)]
    native.compile()
    assert holds == [True]


def test_signals_in_other_threads_and_within_each_other() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGUSR1)
            assert not seen
        assert seen == [signal.SIGUSR1]
        thread = threading.Thread(target=uninterrupted().__enter__)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_of_garbage_pauses_while_a_kernel_is_compiled(
    was_enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fail(*_: object) -> None:
        seen.append(gc.isenabled())
        raise RuntimeError

    monkeypatch.setattr(numba_compiler, "machine_code", fail)
    before = gc.isenabled()
    (gc.enable if was_enabled else gc.disable)()
    try:
        with pytest.raises(RuntimeError):
            Native(lambda: None, ())._compiled()
        assert (seen, gc.isenabled()) == ([False], was_enabled)
    finally:
        (gc.enable if before else gc.disable)()
