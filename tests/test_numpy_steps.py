"""Steps that compute through NumPy keep intermediate results in the scratch that the plan gives them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gbp.ops.affine import ScaleStep
from gbp.ops.matmul import ConstantMatMulStep, MatMulStep
from gbp.ops.quantize import DequantizeStep, QuantizeStep
from gbp.ops.step import Context, Floats, GradientSlot, NumpyStep, Step

_ROW = (2**7, 2**11)
_rng = np.random.default_rng(0)
_SCALE, _ZERO = _rng.uniform(0.1, 2, (2, 1, 1, _ROW[1])).astype(np.float32)
_RIGHT, _LEFT = _rng.normal(0, 1, (2, 1, 2**7, 2**7)).astype(np.float32)


def _quantized(x: list[Floats], gy: Floats) -> list[NDArray[np.float32]]:
    whole = np.rint(np.repeat(x[0], 2, axis=0) / _SCALE) + _ZERO
    return [gy / _SCALE * ((whole >= -4) & (whole <= 3))]


def _of_two(x: list[Floats], gy: Floats) -> list[NDArray[np.float32]]:
    a, b = (np.repeat(each, 2, axis=0) for each in x)
    return [gy @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ gy]


#: Name → the step, the shapes of its inputs' rows, and its vjp for two targets a sample.
_STEPS: dict[str, tuple[Step, list[tuple[int, ...]], Callable[[list[Floats], Floats], list[Floats]]]] = {
    "quantize": (QuantizeStep(_SCALE, _ZERO, -4, 3, _ROW), [_ROW], _quantized),
    "dequantize": (DequantizeStep(_SCALE, _ZERO, 2**18), [_ROW], lambda x, gy: [gy * _SCALE]),
    "scale": (ScaleStep(_SCALE, _ZERO, 2**18), [_ROW], lambda x, gy: [gy * _SCALE]),
    "matmul": (MatMulStep(((2, 2**7, 2**11), (2, 2**11, 2**7))), [_ROW, _ROW[::-1]], _of_two),
    "constant on the left": (
        ConstantMatMulStep(_LEFT[0], True, (2, *_ROW)),
        [_ROW],
        lambda x, gy: [_LEFT.swapaxes(-1, -2) @ gy],
    ),
    "constant on the right": (
        ConstantMatMulStep(_RIGHT[0], False, (2, *_ROW[::-1])),
        [_ROW[::-1]],
        lambda x, gy: [gy @ _RIGHT.swapaxes(-1, -2)],
    ),
}


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", _STEPS)
def test_vjp_allocates_nothing_and_adds_or_writes(name: str, accumulate: bool) -> None:
    step, rows, vjp = _STEPS[name]
    x = [_rng.normal(0, 3, (2, *row)).astype(np.float32) for row in rows]
    fixed, each = step.scratch(1)
    context = Context(1, np.full(fixed + 4 * each, np.nan, np.float32), x=tuple(x))
    shape = (2**7, 2**7) if name == "matmul" else rows[0]
    gy = _rng.normal(0, 1, (4, *shape)).astype(np.float32)
    before = [_rng.normal(0, 1, (4, *row)).astype(np.float32) for row in rows]
    slots = tuple(GradientSlot(each.copy(), accumulate) for each in before)
    tracemalloc.start()
    step.vjp(gy, slots, context)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18  # a row takes 2**20 bytes; NumPy converts types in small pieces
    for slot, start, g in zip(slots, before, vjp(x, gy), strict=True):
        np.testing.assert_array_equal(slot.array, start + g if accumulate else g)


def test_temporaries_lie_side_by_side_in_the_scratch() -> None:
    class Two(NumpyStep):
        forward = vjp = None  # type: ignore[assignment]

    step = Two((2, 3), (), (4,))
    assert step.scratch(1) == (11, 0)
    assert step.needs_host
    context = Context(1, np.arange(12, dtype=np.float32))
    a, b, c = step.temporaries(context)
    assert (a.tolist(), b.tolist(), c.tolist()) == ([[0, 1, 2], [3, 4, 5]], 6, [7, 8, 9, 10])
    assert all(np.shares_memory(each, context.scratch) for each in (a, b, c))
