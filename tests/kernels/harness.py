"""What the tests of all kernels share: guarded memory, and the promises that every kernel makes.

The promises: the result is the oracle's up to float32 rounding; nothing is written outside the given view,
and what lies around an input has no influence; 1 and 2 threads, a batch and each of its samples alone give
the same bits; a reverse kernel accumulates, then gates by the rectifier of its own output; K targets a
sample share what was saved of the sample.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
from numpy.typing import DTypeLike, NDArray

from gbp.kernels.codegen.gate import OPEN, Gate
from gbp.kernels.taps import Taps

Array = NDArray[Any]

#: Whether the kernels' twins for cards run in their place (see conftest.py); slowly, so with fewer cases.
ON_CARD = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

#: Numbers of threads that give the same bits.  No card's kernel is given any, so there a second run would
#: repeat the first.
THREADS = (1,) if ON_CARD else (1, 2)

BOUND = 1e-5  # relative L2, against float64
CHANNELS = (1, 3, 7, 8, 17, 33)  # below, at and above the vectors of all hosts, whole bytes of mask or not
INF = float("inf")

NO_ACTIVATION = np.zeros((0, 0, 0, 0), np.float32)
NO_MASK = np.zeros((0, 0, 0, 0), np.uint8)
NO_CHANNELS = np.zeros(0, np.float32)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nchw(a: Array) -> Array:
    return a.transpose(0, 3, 1, 2)


def nhwc(a: Array) -> Array:
    return a.transpose(0, 2, 3, 1)


def cells(C: int) -> int:
    """Bytes that the mask of C channels takes."""
    return -(-C // 8)


def bits_of(units: Array) -> Array:
    """The mask (N, H, W, ⌈C/8⌉) of booleans (N, H, W, C)."""
    return np.packbits(units, axis=-1, bitorder="little")


class Guarded:
    """A view into the middle of a larger array, whose rim must survive."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
        rim = 99 if np.dtype(dtype).kind == "u" else np.nan
        self._whole = np.full([size + 2 for size in shape[:-1]] + [shape[-1] + 5], rim, dtype)
        self.view = self._whole[(slice(1, -1),) * (len(shape) - 1) + (slice(2, -3),)]
        self._rim = np.ones(self._whole.shape, bool)
        self._rim[(slice(1, -1),) * (len(shape) - 1) + (slice(2, -3),)] = False
        self._before = self._whole[self._rim].tobytes()

    @classmethod
    def of(cls, values: Array) -> Array:
        """A copy of the values with a rim of NaN, which would show where it had an influence."""
        if not values.size:
            return values
        guarded = cls(values.shape, values.dtype)
        guarded.view[...] = values
        return guarded.view

    def result(self) -> Array:
        assert self._whole[self._rim].tobytes() == self._before, "wrote outside its view"
        return self.view.copy()


def assert_close(result: Array, expected: Array, bound: float = BOUND) -> None:
    scale = np.linalg.norm(expected)
    assert result.shape == expected.shape
    assert np.linalg.norm(result - expected) <= bound * (scale if scale else 1)


def assert_same_bits(a: Array, b: Array) -> None:
    assert a.tobytes() == b.tobytes()


def taps_of(geometry: dict[str, Any]) -> Taps:
    sides = pads_of(geometry)
    return Taps(
        *geometry["kernel"], *geometry.get("stride", (1, 1)), *geometry.get("dilation", (1, 1)), *sides
    )


def pads_of(geometry: dict[str, Any]) -> tuple[int, int, int, int]:
    return geometry.get("pads", (0, 0, 0, 0))


#: run(samples, threads) → outputs of a forward kernel on those samples.
Forward = Callable[[slice, int], tuple[Array, ...]]


def check_forward(run: Forward, samples: int) -> tuple[Array, ...]:
    """Check that neither threads nor the batch change a bit; return the outputs."""
    outputs, *others = (run(slice(0, samples), threads) for threads in THREADS)
    for other in others:
        for one, two in zip(outputs, other, strict=True):
            assert_same_bits(one, two)
    for inside, alone in zip(outputs, run(slice(samples - 1, samples), 2), strict=True):
        assert_same_bits(inside[-1:], alone)
    return outputs


def check_epilogue(fused: Callable[..., None], linear: Array) -> None:
    """Check `fused(samples, r, y, mask, lo, hi, threads)`: y = clip(linear + r, lo, hi), bit lo < · < hi.

    linear is what the oracle says, (N, H, W, C).
    """
    N, H, W, C = linear.shape
    spread = float(np.std(linear)) + 1e-3
    residual = noise(*linear.shape, seed=9) * np.float32(spread)
    for r, lo, hi in ((NO_ACTIVATION, -INF, INF), (residual, 0.0, INF), (residual, 0.0, spread)):
        before = linear + r if r.size else linear

        def run(samples: slice, threads: int, r: Array = r, lo: float = lo, hi: float = hi) -> Any:
            n = samples.stop - samples.start
            y, mask = Guarded((n, H, W, C)), Guarded((n, H, W, cells(C)), np.uint8)
            fused(samples, Guarded.of(r[samples]), y.view, mask.view, lo, hi, threads)
            units = np.unpackbits(mask.result(), axis=-1, bitorder="little", count=C)
            return y.result(), units

        y, units = check_forward(run, N)
        assert_close(y, naive.clip_fwd(before, lo, hi))
        clear = np.minimum(abs(before - lo), abs(before - hi)) > 1e-4 * spread
        np.testing.assert_array_equal(units[clear], ((lo < before) & (before < hi))[clear])

    y = Guarded(linear.shape)
    fused(slice(0, N), NO_ACTIVATION, y.view, NO_MASK, -INF, INF, 2)
    assert_close(y.result(), linear)


#: run(gy, samples, mask, gate, gx, accumulate, threads): a reverse kernel, on what was saved of `samples`.
Reverse = Callable[[Array, slice, Array, Gate, Array, int, int], None]


def check_reverse(run: Reverse, gy: Array, expected: Array, targets: int) -> None:
    """Check a reverse kernel under every gate; `expected` is the oracle's gradient, ungated."""
    rows = len(expected)
    samples = rows // targets
    before = noise(samples, *expected.shape[1:], seed=7)
    started = noise(*expected.shape, seed=8)
    for gate in (OPEN, Gate(1, 0), Gate(0, 1), Gate(1, 1)):
        for accumulate in (0, 1) if gate == Gate(1, 1) else (gate.forward,):

            def gradient(which: slice, threads: int, gate: Gate = gate, accumulate: int = accumulate) -> Any:
                saved = slice(which.start // targets, (which.stop - 1) // targets + 1)
                mask = Guarded.of(bits_of(before > 0)[saved]) if gate.forward else NO_MASK
                gx = Guarded((which.stop - which.start, *expected.shape[1:]))
                if accumulate:
                    gx.view[...] = started[which]
                run(Guarded.of(gy[which]), saved, mask, gate, gx.view, accumulate, threads)
                return (gx.result(),)

            (gx,) = check_forward(gradient, rows)
            flowing = expected + accumulate * started.astype(np.float64)
            passes = np.repeat(before, targets, axis=0)
            gated = naive.rectifier_bwd(
                flowing, passes, forward_gate=bool(gate.forward), gradient_gate=bool(gate.gradient)
            )
            assert_close(gx, gated)
