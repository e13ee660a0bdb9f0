"""Every array of every kernel call between pages that nobody may touch: `make guard`.

    python tests/guard.py                       all cases, frames and rules; three targets, both ends
    python tests/guard.py --every 20 --first 3  each twentieth case from the third on
    python tests/guard.py --target generic --end start
    python tests/guard.py --algorithm amx       convolutions alone, on AMX wherever it can compute them

Arrays are copied so that their last byte (or, at the other end, their first) is the last before a page
without access.  What a call reads or writes beyond is a segmentation fault, and the last line names the case.
Arrays of one call that overlap stay together, as views of one memory; bytes between their elements hold NaN
and must not change.  Scratch is cut to what the step asked for.  Maps and scores must be those of a run
that is recorded and repeated as in everyday use, with whole arenas between such pages.
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
PAGE = mmap.PAGESIZE
NO_ACCESS, READ_AND_WRITE = 0, 3
_PRIVATE_AND_ANONYMOUS = 0x22
FILL = 0xFF  # of float32 a NaN
ENDS = ("end", "start")
ALIGNMENT = 64
#: What this adds to the names of algorithms: AMX wherever it can compute, also where it does not pay.
AMX = "amx"

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
    """Memory between guard pages, as NumPy takes it over.  It is freed with the last array that has it."""

    def __init__(self, count: int, end: str) -> None:
        self.region = Region(count)
        start = (self.region.room - count) // ALIGNMENT * ALIGNMENT if end == "end" else 0
        self.__array_interface__ = {
            "shape": (count,), "typestr": "|u1", "data": (self.region.address + start, False), "version": 3
        }  # fmt: skip

    def __del__(self) -> None:
        self.region.free()


def between_pages(end: str) -> Callable[..., NDArray[Any]]:
    """`aligned`, in memory that ends at a guard page, up to its alignment, or begins behind one."""

    def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        whole: NDArray[Any] = np.asarray(_Between(count, end)).view(dtype).reshape(shape)
        return whole

    return aligned


@dataclass
class _Copy:
    """What arrays of one call that overlap look like between guards."""

    region: Region
    original: NDArray[np.uint8]
    mine: NDArray[np.uint8]
    owned: NDArray[np.bool_]
    is_written: bool

    def check(self, name: str) -> None:
        outside = (self.region.all == FILL).sum() - (self.mine == FILL).sum()
        if outside != self.region.room - self.mine.size:
            raise GuardError(f"{name} wrote outside of its arrays")
        if not (self.mine[~self.owned] == FILL).all():
            raise GuardError(f"{name} wrote between the elements of a view")

    def give_back(self) -> None:
        if self.is_written:
            self.original[self.owned] = self.mine[self.owned]


def guarded(name: str, call: Callable[..., None], args: Sequence[Any], end: str) -> None:
    """Call with copies of all arrays, also of those in tuples, then write back what may be written."""
    arrays = [
        a for arg in args for a in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(a, np.ndarray)
    ]
    groups: list[tuple[int, int, list[NDArray[Any]]]] = []
    for a in sorted((a for a in arrays if a.size), key=lambda a: byte_bounds(a)[0]):
        low, high = byte_bounds(a)
        if groups and low < groups[-1][1]:
            first, last, members = groups.pop()
            groups.append((first, max(last, high), [*members, a]))
        else:
            groups.append((low, high, [a]))
    copies, moved = [], {}
    for low, high, members in groups:
        copy = _copied(low, high, members, end)
        copies.append(copy)
        start = copy.mine.__array_interface__["data"][0]
        for a in members:
            at = start + a.__array_interface__["data"][0] - low
            moved[id(a)] = _like(a, at)
    nothing = Region(0)
    for a in arrays:
        if not a.size:
            moved[id(a)] = _like(a, nothing.address - (PAGE if end == "start" else -nothing.room))
    call(*(_replaced(arg, moved) for arg in args))
    for copy in copies:
        copy.check(name)
    for copy in copies:
        copy.give_back()
    for region in (nothing, *(copy.region for copy in copies)):
        region.free()


def _copied(low: int, high: int, members: Sequence[NDArray[Any]], end: str) -> _Copy:
    size = high - low
    region = Region(size)
    region.all.fill(FILL)
    start = region.room - size if end == "end" else 0
    mine, original, owned = region.all[start : start + size], _bytes(low, size), np.zeros(size, np.bool_)
    for a in members:
        at = a.__array_interface__["data"][0] - low
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
    """Has every kernel called so, while `on`, and every step given the scratch that it asked for."""

    def __init__(self, end: str) -> None:
        self.end, self.on, self.instructions = end, False, Counter[str]()
        from gbp.devices import cpu
        from gbp.kernels.codegen.jit import Kernel
        from gbp.kernels.parallel.program import Program
        from gbp.ops.conv.algorithms import Algorithm
        from gbp.ops.step import Step
        from gbp.runtime import tape

        call, submit = Kernel.__call__, Kernel.submit
        is_guarded = threading.local()

        def guarded_call(kernel: Any, *args: Any) -> None:
            if not self.on or not isinstance(args[0], np.ndarray):
                call(kernel, *args)
                return
            self.instructions[kernel.name] += 1
            is_guarded.now = True
            try:
                guarded(kernel.name, lambda *copies: call(kernel, *copies), args, self.end)
            finally:
                is_guarded.now = False

        def guarded_submit(kernel: Any, args: Sequence[Any]) -> None:
            if self.on and not getattr(is_guarded, "now", False):
                raise GuardError(f"{kernel.name} was not called through Kernel.__call__")
            submit(kernel, args)

        def repeater(_: Any) -> Callable[[Callable[[], None]], None]:
            # While guards are on, nothing is kept of where arrays were: each kernel is called anew.
            program = Program()
            return lambda work: work() if self.on else program(work)

        def forward(run: Any) -> None:
            step = run.instruction.step
            context = _cut(step, run.context, len(run.y))
            step.forward(run.x, run.r, run.y, run.instruction.clip, context)

        Kernel.__call__, Kernel.submit = guarded_call, guarded_submit
        tape._Run.forward = forward
        cpu.CpuDevice.repeater, cpu.aligned = repeater, between_pages(end)
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
WIDE = ("auto", AMX)


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
        "wide conv 1x1 strided": Case(conv(40, 1, strides=(3, 2)), (2, 64, 20, 17)),
        "wide conv to few channels": Case(conv(3, 7, pads=(3, 3, 3, 3)), (1, 64, 24, 26)),
    }


@contextmanager
def chosen(algorithm: str) -> Iterator[str]:
    """The name of this algorithm for an Explainer.  Inside, AMX costs nothing if that is what it names."""
    if algorithm != AMX:
        yield algorithm
        return
    from gbp.ops.conv.algorithms_amx import AmxLayer

    cost = AmxLayer.cost
    AmxLayer.cost = property(lambda _: 0.0)
    try:
        yield "auto"
    finally:
        AmxLayer.cost = cost


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


def run_case(case: Any, frame: str, algorithm: str, threads: int, guards: Guards) -> None:
    """The same bits without guards, when calls are recorded and when they are repeated, and with guards.

    The guarded run has the plan as another process finds it in the cache: its weights are read-only.
    """
    from agreement import as_kept
    from test_ops import FRAMES, build, noise

    from gbp import Explainer

    model = build(case, FRAMES[frame], 0)
    x = noise(case.shape, 0)
    with chosen(algorithm) as name:
        explainer = Explainer(model, output=model.graph.output[0].name, algorithm=name, threads=threads)
        results = [asked(explainer, x, frame), asked(explainer, x, frame)]
        for entry in as_kept(explainer)._engine.sessions._entries.values():
            entry.session.pool.clear()
        guards.on = True
        try:
            results.append(asked(explainer, x, frame))
        finally:
            guards.on = False
    if results[0] != results[1]:
        raise GuardError("the bits are others when the calls are repeated")
    if results[0] != results[2]:
        raise GuardError("the bits are others than without guards")


def one_run(end: str, first: int, every: int, frames: Sequence[str], only: str | None) -> int:
    from cases import CASES
    from test_ops import FRAMES

    from gbp.kernels.codegen import amx
    from gbp.ops.conv.conv import ALGORITHMS

    faulthandler.enable()
    guards, runs, failures = Guards(end), 0, 0
    cases, of_conv = CASES | wide_cases(), (*ALGORITHMS, *([AMX] if amx.is_usable() else ()))
    for number, name in list(enumerate(cases))[first::every]:
        for frame in frames or FRAMES:
            for algorithm in of_conv if "conv" in name else ("auto",):
                if only not in (None, algorithm) or (name.startswith("wide") and algorithm not in WIDE):
                    continue
                threads = 1 + number % 3
                title = f"{name} / {frame} / {algorithm} / {threads} threads"
                print(title, file=sys.stderr, flush=True)  # the last one is where it crashed
                try:
                    run_case(cases[name], frame, algorithm, threads, guards)
                except Exception as error:
                    failures += 1
                    print(f"{title}: {type(error).__name__}: {error}", flush=True)
                runs += 1
    kernels = ", ".join(f"{kernel} {count}" for kernel, count in sorted(guards.instructions.items()))
    print(f"{runs} runs, {failures} failures, {sum(guards.instructions.values())} guarded calls of {kernels}")
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
    parser.add_argument("--here", action="store_true", help="in this process; for one target and end")
    given = parser.parse_args()
    if given.here:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        return one_run(given.end[0], given.first, given.every, given.frame, given.algorithm)
    code = 0
    for target in given.target or known:
        for end in given.end or ENDS:
            command = [sys.executable, __file__, "--here", "--end", end]
            command += ["--first", str(given.first), "--every", str(given.every)]
            command += ["--algorithm", given.algorithm] if given.algorithm else []
            command += [part for frame in given.frame for part in ("--frame", frame)]
            done = subprocess.run(
                command, env=os.environ | known[target], capture_output=True, text=True, check=False
            )
            print(f"{target}, {end}: {done.stdout.strip()}", flush=True)
            if done.returncode:
                code = 1
                print(f"  exit code {done.returncode}; it ended with\n{done.stderr[-1500:]}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
