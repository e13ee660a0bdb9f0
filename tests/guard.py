"""The arrays of every kind of kernel call between pages that nobody may touch: `make guard`.

    python tests/guard.py                       all cases, frames and rules; three targets, both ends
    python tests/guard.py --every 20 --first 3  each twentieth case from the third on
    python tests/guard.py --target generic --end start
    python tests/guard.py --algorithm amx       convolutions alone, on AMX wherever it can compute them
    python tests/guard.py --algorithm digits    the same with digits, of values without signs

Before a kernel is called, it is called on copies of its arrays, which end with the last byte before a page
without access, and on copies that begin with the first byte behind one.  What a call reads or writes beyond
is a segmentation fault, and the last line names the case.  Arrays of one call that overlap stay together, as
views of one memory; bytes between their elements hold NaN and must not change.  Scratch is cut to what the
step asked for.  The call itself must leave the bytes that the copies hold.

Calls of one kernel are alike where all that can move an access is equal, but for the numbers in the arrays:
sizes, strides and overlaps of arrays, and the other arguments.  Of calls that are alike the first three are
guarded (`--alike 0`: all).  The calls themselves are recorded and repeated as in everyday use, in arenas
between such pages, and maps and scores must have the same bits each time.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import mmap
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
PAGE = mmap.PAGESIZE
NO_ACCESS, READ_AND_WRITE = 0, 3
_PRIVATE_AND_ANONYMOUS = 0x22
FILL = 0xFF  # of float32 a NaN
ENDS = ("end", "start")
ALIGNMENT = 64
#: What this adds to the names of algorithms: AMX wherever it can compute, also where it does not pay.
AMX, DIGITS = "amx", "digits"

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class GuardError(AssertionError):
    """A kernel wrote what is not its own, where it may."""


def _bytes(address: int, count: int) -> NDArray[np.uint8]:
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), np.uint8)


class Region:
    """Pages for so many bytes, with one before and one behind that nobody may touch."""

    def __init__(self, count: int) -> None:
        self.room = PAGE * max(1, -(-count // PAGE))
        base = libc.mmap(None, self.room + 2 * PAGE, NO_ACCESS, _PRIVATE_AND_ANONYMOUS, -1, 0)
        assert base not in (None, ctypes.c_void_p(-1).value)
        self.address = base + PAGE
        assert libc.mprotect(self.address, self.room, READ_AND_WRITE) == 0
        self.all = _bytes(self.address, self.room)

    def free(self) -> None:
        assert libc.munmap(self.address - PAGE, self.room + 2 * PAGE) == 0


class _Between:
    """Memory between guard pages, as NumPy takes it over.  It is freed with the last array that has it.

    It ends at a page, up to its alignment.  The bytes before it and behind it must not change.
    """

    all: ClassVar[weakref.WeakSet[_Between]] = weakref.WeakSet()

    def __init__(self, count: int) -> None:
        self.region = Region(count)
        start = (self.region.room - count) // ALIGNMENT * ALIGNMENT
        self._beside = self.region.all[:start], self.region.all[start + count :]
        for beside in self._beside:
            beside.fill(FILL)
        self.__array_interface__ = {
            "shape": (count,), "typestr": "|u1", "data": (self.region.address + start, False), "version": 3
        }  # fmt: skip
        self.all.add(self)

    def check(self) -> None:
        if not all((beside == FILL).all() for beside in self._beside):
            raise GuardError("what is beside an arena was written to")

    def __del__(self) -> None:
        self.region.free()


def between_pages(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """`aligned`, in memory between guard pages."""
    count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    whole: NDArray[Any] = np.asarray(_Between(count)).view(dtype).reshape(shape)
    return whole


@dataclass
class _Copy:
    """What arrays of one call that overlap look like between guards."""

    region: Region
    original: NDArray[np.uint8]
    mine: NDArray[np.uint8]
    owned: NDArray[np.bool_]
    is_written: bool

    def check(self, name: str) -> None:
        outside = np.count_nonzero(self.region.all == FILL) - np.count_nonzero(self.mine == FILL)
        if outside != self.region.room - self.mine.size:
            raise GuardError(f"{name} wrote outside of its arrays")
        if not (self.mine[~self.owned] == FILL).all():
            raise GuardError(f"{name} wrote between the elements of a view")

    def give_back(self) -> None:
        if self.is_written:
            self.original[self.owned] = self.mine[self.owned]


#: Arrays of one call that overlap: the first byte, that behind the last, the arrays.
_Group: TypeAlias = tuple[int, int, list[NDArray[Any]]]


def _arrays_of(args: Sequence[Any]) -> list[NDArray[Any]]:
    """All arrays, also those in tuples."""
    parts = (part for arg in args for part in (arg if isinstance(arg, tuple) else (arg,)))
    return [part for part in parts if isinstance(part, np.ndarray)]


def _start(a: NDArray[Any]) -> int:
    return int(a.__array_interface__["data"][0])


def _bounds(a: NDArray[Any]) -> tuple[int, int]:
    """The address of the first byte, and of that behind the last."""
    low = high = _start(a)
    for n, stride in zip(a.shape, a.strides, strict=True):
        if stride < 0:
            low += (n - 1) * stride
        else:
            high += (n - 1) * stride
    return low, high + a.itemsize


def _groups_of(arrays: Sequence[NDArray[Any]]) -> list[_Group]:
    groups: list[_Group] = []
    spans = [(*_bounds(a), i) for i, a in enumerate(arrays) if a.size]
    for low, high, i in sorted(spans):
        if groups and low < groups[-1][1]:
            first, last, members = groups.pop()
            groups.append((first, max(last, high), [*members, arrays[i]]))
        else:
            groups.append((low, high, [arrays[i]]))
    return groups


def _shape_of(args: Sequence[Any]) -> Hashable:
    """All that accesses depend on, but for the numbers in the arrays: equal for calls that are alike."""
    arrays = _arrays_of(args)
    place = {id(a): i for i, a in enumerate(arrays)}
    overlaps = tuple(
        tuple((place[id(a)], _start(a) - low) for a in members)
        for low, _, members in _groups_of(arrays)
        if len(members) > 1
    )

    def kind(arg: Any) -> Hashable:
        if isinstance(arg, np.ndarray):
            return arg.shape, arg.strides, arg.dtype.str
        if isinstance(arg, tuple):
            return tuple(map(kind, arg))
        return type(arg), arg

    return tuple(map(kind, args)), overlaps


@dataclass
class _Try:
    """A call on copies: its arguments then, and the memory of its arrays."""

    args: Sequence[Any]
    copies: Sequence[_Copy]

    def free(self) -> None:
        for copy in self.copies:
            copy.region.free()


def tried(name: str, call: Callable[..., None], args: Sequence[Any], end: str) -> _Try:
    """Call with copies of all arrays, also of those in tuples.  The copies are the caller's to free."""
    arrays = _arrays_of(args)
    copies, moved = [], {}
    for low, high, members in _groups_of(arrays):
        copy = _copied(low, high, members, end)
        copies.append(copy)
        start = _start(copy.mine)
        for a in members:
            moved[id(a)] = _like(a, start + _start(a) - low)
    nothing = Region(0)
    for a in arrays:
        if not a.size:
            moved[id(a)] = _like(a, nothing.address - (PAGE if end == "start" else -nothing.room))
    given = [_replaced(arg, moved) for arg in args]
    call(*given)
    for copy in copies:
        copy.check(name)
    nothing.free()
    return _Try(given, copies)


def guarded(name: str, call: Callable[..., None], args: Sequence[Any], end: str) -> None:
    """Call with copies of all arrays, then write back what may be written."""
    found = tried(name, call, args, end)
    for copy in found.copies:
        copy.give_back()
    found.free()


def _copied(low: int, high: int, members: Sequence[NDArray[Any]], end: str) -> _Copy:
    size = high - low
    region = Region(size)
    region.all.fill(FILL)
    start = region.room - size if end == "end" else 0
    mine, original, owned = region.all[start : start + size], _bytes(low, size), np.zeros(size, np.bool_)
    for a in members:
        at = _start(a) - low
        np.lib.stride_tricks.as_strided(owned[at:], (*a.shape, a.itemsize), (*a.strides, 1))[...] = True
    mine[owned] = original[owned]
    return _Copy(region, original, mine, owned, any(a.flags.writeable for a in members))


def _like(a: NDArray[Any], address: int) -> NDArray[Any]:
    last = sum((n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)) if a.size else 0
    memory = (ctypes.c_uint8 * (last + a.itemsize if a.size else 0)).from_address(address)
    like: NDArray[Any] = np.ndarray(a.shape, a.dtype, memory, 0, a.strides)
    like.flags.writeable = a.flags.writeable
    return like


def _replaced(arg: Any, moved: dict[int, NDArray[Any]]) -> Any:
    if isinstance(arg, tuple):
        parts = [moved.get(id(a), a) for a in arg]
        return type(arg)(*parts) if hasattr(arg, "_fields") else tuple(parts)
    return moved.get(id(arg), arg)


# ------------------------------------------------------------------------------------- within gbp


class Guards:
    """Has each kernel called on guarded copies before it is called, and scratch cut to what a step asked for.

    Parameters
    ----------
    ends
        At which ends of copies the pages are that nobody may touch.
    alike
        How many calls that are alike are guarded; 0 for all.
    """

    def __init__(self, ends: Sequence[str], alike: int) -> None:
        self.calls, self.guarded = 0, Counter[str]()
        self._ends, self._alike = ends, alike
        self._seen: Counter[Hashable] = Counter()
        self._is_called = threading.local()
        self._guard_kernels()
        _guard_memory()
        _cut_scratch()

    def _guard_kernels(self) -> None:
        """Have kernels called through `_guarded_call`, and in no other way."""
        from gbp.kernels.codegen.jit import Kernel

        self._call, submit = Kernel.__call__, Kernel.submit

        def guarded_submit(kernel: Any, args: Sequence[Any]) -> None:
            if not getattr(self._is_called, "now", False):
                raise GuardError(f"{kernel.name} was not called through Kernel.__call__")
            submit(kernel, args)

        Kernel.__call__ = lambda kernel, *args: self._guarded_call(kernel, args)
        Kernel.submit = guarded_submit

    def _guarded_call(self, kernel: Any, args: Sequence[Any]) -> None:
        """Call a kernel on guarded copies, if few calls like it were; then on the arguments themselves."""
        self._is_called.now = True
        try:
            tries: list[_Try] = []
            if isinstance(args[0], np.ndarray) and self._is_new(kernel, args):
                self.guarded[kernel.name] += 1
                tries += (tried(kernel.name, self._unrecorded(kernel), args, end) for end in self._ends)
            self._call(kernel, *args)
            for found in tries:
                # Threads leave what they like in scratch, which is not among these.
                if any(args[i].tobytes() != found.args[i].tobytes() for i in kernel._sized):
                    raise GuardError(f"{kernel.name} left other bits than between guards")
                found.free()
        finally:
            self._is_called.now = False

    def _is_new(self, kernel: Any, args: Sequence[Any]) -> bool:
        """Whether the call takes place, and few like it have been guarded."""
        from gbp.kernels.parallel import program

        recording = program._recording
        where = recording.where
        if recording.named is not None or (where is not None and where.word[0] != where.value):
            return False
        self.calls += 1
        shape = kernel.name, _shape_of(args)
        self._seen[shape] += 1
        return self._alike == 0 or self._seen[shape] <= self._alike

    def _unrecorded(self, kernel: Any) -> Callable[..., None]:
        """The call, cut into the same parts, and recorded by nobody."""
        from gbp.kernels.parallel import program

        recording = program._recording

        def call(*copies: Any) -> None:
            before = recording.program
            recording.program = None if before is None else program.Program()
            try:
                self._call(kernel, *copies)
            finally:
                recording.program = before

        return call


def _guard_memory() -> None:
    """Put arenas between pages that nobody may touch, and take weights as another process finds them."""
    from agreement import from_cache

    from gbp.devices import cpu
    from gbp.packed.plans import Plans

    cpu.aligned = between_pages
    # Plans are those that another process finds in the cache: their weights are read-only.
    plan_of = Plans.of
    Plans.of = lambda plans, facts, build: from_cache(plan_of(plans, facts, build))


def _cut_scratch() -> None:
    """Give each step, and each algorithm of a convolution, the scratch that it asked for."""
    from gbp.ops.conv.algorithms import Algorithm
    from gbp.ops.step import Step
    from gbp.runtime.bound import BoundInstruction

    def forward(bound: Any) -> None:
        step = bound.instruction.step
        context = _cut(step, bound.context, len(bound.y))
        step.forward(bound.x, bound.r, bound.y, bound.instruction.clip, context)

    BoundInstruction.forward = forward
    for step in _subclasses(Step):
        if "vjp" in vars(step):
            step.vjp = _with_cut(step.vjp)
    # One algorithm may need less than its step.  AMX wants whole rows of 64 bytes, which it asks for.
    for algorithm in _subclasses(Algorithm):
        if "__call__" in vars(algorithm):
            algorithm.__call__ = _with_own(algorithm.__call__)


def _subclasses(cls: type) -> list[Any]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_subclasses(sub))]


def _cut(step: Any, context: Any, n: int) -> Any:
    fixed, each = step.scratch(context.threads)
    assert fixed + n * each <= context.scratch.size, step
    return context.with_scratch(context.scratch[: fixed + n * each])


def _with_own(call: Callable[..., None]) -> Callable[..., None]:
    def own(algorithm: Any, x: Any, *args: Any) -> None:
        context = args[-1]
        call(algorithm, x, *args[:-1], _cut(algorithm, context, len(x)))

    return own


def _with_cut(vjp: Callable[..., None]) -> Callable[..., None]:
    def cut(step: Any, gy: Any, gx: Any, context: Any) -> None:
        wanted = sum(np.multiply(step.scratch(context.threads), (1, len(gy))))
        vjp(step, gy, gx, context if context.scratch.size == wanted else _cut(step, context, len(gy)))

    return cut


#: The algorithms that wide cases run with: what is chosen where nothing is asked for, and AMX.
WIDE = ("auto", AMX, DIGITS)


def wide_cases() -> dict[str, Any]:
    """Convolutions that AMX cuts in every way: bands of rows, turns of weights, shares of channels."""
    from cases.case import Case, conv

    return {
        "wide conv in bands": Case(conv(20, pads=(1, 1, 1, 1)), (2, 70, 45, 43)),
        "wide conv in bands, strided": Case(conv(17, 5, strides=(2, 3), pads=(2, 1, 0, 2)), (1, 90, 61, 64)),
        "wide conv in bands, dilated": Case(conv(33, dilations=(3, 2), pads=(3, 2, 3, 2)), (1, 66, 50, 40)),
        "wide conv of many weights": Case(conv(100, pads=(1, 1, 1, 1)), (1, 200, 21, 23)),
        "wide conv that shares channels": Case(conv(200, pads=(1, 1, 1, 1)), (2, 65, 6, 5)),
        "wide conv that shares channels, strided": Case(conv(230, 3, strides=(2, 2)), (3, 40, 9, 7)),
        "wide conv in groups": Case(conv(400, (3, 2), group=2, pads=(0, 1, 2, 0)), (1, 130, 7, 6)),
        "wide conv 1x1": Case(conv(150, 1), (2, 300, 19, 11)),
        "wide conv 1x1 padded": Case(conv(150, 1, pads=(1, 1, 1, 1)), (2, 300, 19, 11)),
        "wide conv 1x1 strided": Case(conv(40, 1, strides=(3, 2)), (2, 64, 20, 17)),
        "wide conv to few channels": Case(conv(3, 7, pads=(3, 3, 3, 3)), (1, 64, 24, 26)),
    }


@contextmanager
def chosen(algorithm: str) -> Iterator[str]:
    """The name of this algorithm for an Explainer.  Inside, AMX costs nothing if that is what it names."""
    if algorithm not in (AMX, DIGITS):
        yield algorithm
        return
    from gbp.ops.conv.algorithms_amx import AmxLayer
    from gbp.ops.conv.algorithms_digits import DigitsLayer

    layer = AmxLayer if algorithm == AMX else DigitsLayer
    cost = layer.cost
    layer.cost = property(lambda _: 0.0)
    try:
        yield "auto"
    finally:
        layer.cost = cost


def asked(explainer: Any, x: NDArray[np.float32], frame: str) -> list[bytes]:
    """All rules that the network has, with one target and several; and gradients between kept tensors."""
    from gbp import RULES, InputError, ModelError
    from gbp.rules import OTHER_RULES

    found = []
    for rule in (*RULES, *(OTHER_RULES if frame == MORE_ASKED else ())):
        try:
            one = explainer.explain(x, rule=rule)
        except (InputError, ModelError) as error:
            if rule in OTHER_RULES or "no rectifier" in str(error):
                continue
            raise
        classes = np.tile(np.arange(min(3, one.scores.shape[1])), (len(x), 1))
        several = explainer.explain(x, rule=rule, target=classes)
        found += [one.map.tobytes(), one.scores.tobytes(), several.map.tobytes()]
    if frame == MORE_ASKED:
        names = [tensor.name for tensor in explainer.tensors]
        kept = names[:: max(1, len(names) - 1)]
        with explainer.run(x, keep=kept) as run:
            for name in kept:
                value = run.value(name)
                seed = value.reshape(len(x), -1) if name == run.scores_name else value
                found += [value.tobytes(), run.vjp(seed, of=name).tobytes()]
    return found


#: The frame in which rules that are no gates, and kept tensors, are asked about as well.
MORE_ASKED = "between rectifiers"


def run_case(case: Any, frame: str, algorithm: str, threads: int) -> None:
    """Its calls, recorded and then repeated, which must give the same bits."""
    from test_ops import FRAMES, build, noise

    from gbp import Explainer

    model = build(case, FRAMES[frame], 0)
    x = noise(case.shape, 0)
    if algorithm == DIGITS:  # which other values are left out of
        x = abs(x)
    with chosen(algorithm) as name:
        explainer = Explainer(model, output=model.graph.output[0].name, algorithm=name, threads=threads)
        results = [asked(explainer, x, frame), asked(explainer, x, frame)]
        for memory in tuple(_Between.all):
            memory.check()
    if results[0] != results[1]:
        raise GuardError("the bits are others when the calls are repeated")


def one_run(
    ends: Sequence[str], first: int, every: int, frames: Sequence[str], only: str | None, alike: int
) -> int:
    from cases import CASES
    from test_ops import FRAMES

    from gbp.graph.op import ALGORITHMS
    from gbp.kernels.codegen import amx

    faulthandler.enable()
    guards, runs, failures = Guards(ends, alike), 0, 0
    cases = CASES | wide_cases()
    of_conv = (*ALGORITHMS, *([AMX] * amx.is_usable()), *([DIGITS] * amx.has_bytes()))
    for number, name in list(enumerate(cases))[first::every]:
        for frame in frames or FRAMES:
            for algorithm in of_conv if "conv" in name else ("auto",):
                if only not in (None, algorithm) or (name.startswith("wide") and algorithm not in WIDE):
                    continue
                threads = 1 + number % 3
                title = f"{name} / {frame} / {algorithm} / {threads} threads"
                print(title, file=sys.stderr, flush=True)  # the last one is where it crashed
                try:
                    run_case(cases[name], frame, algorithm, threads)
                except Exception as error:
                    failures += 1
                    print(f"{title}: {type(error).__name__}: {error}", flush=True)
                runs += 1
    kernels = ", ".join(f"{kernel} {count}" for kernel, count in sorted(guards.guarded.items()))
    print(
        f"{runs} runs, {failures} failures, {guards.calls} calls, guarded at the {' and '.join(ends)}: "
        f"{sum(guards.guarded.values())} of {kernels}"
    )
    return min(failures, 1)


def targets() -> dict[str, dict[str, str]]:
    """What kernels are compiled for, by what Numba is told: this processor, AVX2, the least of its kind."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    found: dict[str, dict[str, str]] = {"host": {}}
    if features.get("avx512f") and features.get("avx2"):
        left = ("avx512", "avx10", "amx")
        kept = [f"+{name}" for name, has in features.items() if has and not name.startswith(left)]
        found["avx2"] = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ",".join(kept)}
    found["generic"] = {"NUMBA_CPU_NAME": "generic"}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = targets()
    parser.add_argument("--target", choices=known, action="append", help="default: all of them")
    parser.add_argument("--end", choices=ENDS, action="append", help="default: both")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--frame", action="append", default=[], help="default: all")
    parser.add_argument("--algorithm", help="this algorithm alone; default: all, each on convolutions")
    parser.add_argument("--alike", type=int, default=3, help="how many calls that are alike are guarded")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many targets at once")
    parser.add_argument("--here", action="store_true", help="in this process, which is one of a target")
    given = parser.parse_args()
    ends = given.end or ENDS
    if given.here:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        return one_run(ends, given.first, given.every, given.frame, given.algorithm, given.alike)

    def run(target: str) -> int:
        command = [sys.executable, __file__, "--here", *sys.argv[1:]]
        done = subprocess.run(
            command, env=os.environ | known[target], capture_output=True, text=True, check=False
        )
        print(f"{target}: {done.stdout.strip()}", flush=True)
        if done.returncode:
            print(f"  exit code {done.returncode}; it ended with\n{done.stderr[-1500:]}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(given.processes) as pool:
        return int(any(pool.map(run, given.target or known)))


if __name__ == "__main__":
    sys.exit(main())
