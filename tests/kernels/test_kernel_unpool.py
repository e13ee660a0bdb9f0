"""Positions of maxima, and unpooling to them, against plain loops."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from harness import Guarded, assert_same_bits, check_forward, noise

from gbp.kernels.unpool import maxpool_indices, unpool_bwd, unpool_fwd

K = 3
#: Kernel, stride, dilation and begin of depth, height and width; the size of x, and of y.
WINDOWS: dict[str, tuple[tuple[tuple[int, int, int, int], ...], tuple[int, ...], tuple[int, ...]]] = {
    "plane": (((1, 1, 1, 0), (2, 2, 1, 0), (2, 2, 1, 0)), (1, 4, 6), (1, 2, 3)),
    "overlapping, padded": (((1, 1, 1, 0), (3, 2, 1, 1), (3, 1, 1, 1)), (1, 5, 4), (1, 3, 4)),
    "volume, dilated": (((2, 1, 1, 0), (2, 1, 2, 1), (3, 2, 1, 2)), (3, 4, 5), (2, 4, 4)),
}


def first_maxima(x: Any, axes: Any, outputs: Any, by_columns: int) -> Any:
    """Positions (N, OD, OH, OW, C), a window at a time."""
    sizes = x.shape[1:4]
    y = np.zeros((len(x), *outputs, x.shape[4]), np.float32)
    for n, c, o in product(range(len(x)), range(x.shape[4]), np.ndindex(*outputs)):
        pixels = [
            [o_ * stride + k * dilation - begin for k in range(kernel)]
            for o_, (kernel, stride, dilation, begin) in zip(o, axes, strict=True)
        ]
        seen = [p for p in product(*pixels) if all(0 <= i < size for i, size in zip(p, sizes, strict=True))]
        first = max(seen, key=lambda p: x[(n, *p, c)])  # of equals the first
        y[(n, *o, c)] = np.ravel_multi_index(first, sizes, order="F" if by_columns else "C")
    return y


@pytest.mark.parametrize("by_columns", [0, 1])
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("C", [1, 7, 17])
def test_positions_of_maxima(C: int, windows: str, by_columns: int) -> None:
    """Of few whole numbers, so that there are ties."""
    axes, sizes, outputs = WINDOWS[windows]
    x = np.random.default_rng(C).integers(-2, 3, (2, *sizes, C)).astype(np.float32)

    def run(samples: slice, threads: int) -> Any:
        y = Guarded((samples.stop - samples.start, *outputs, C))
        maxpool_indices(Guarded.of(x[samples]), y.view, axes, by_columns, threads)
        return (y.result(),)

    (y,) = check_forward(run, len(x))
    np.testing.assert_array_equal(y, first_maxima(x, axes, outputs, by_columns))


@pytest.mark.parametrize("rows", [1, 2], ids=["constant", "computed"])
@pytest.mark.parametrize("C", [1, 7, 17])
def test_unpool(C: int, rows: int) -> None:
    """Positions coincide: the last is written, and alone has the gradient."""
    N, S, Q = 2, 9, 12
    x, gy = noise(N, S, C), noise(N * K, Q, C, seed=1)
    positions = np.random.default_rng(0).integers(0, Q, (rows, S, C)).astype(np.float32)
    expected, owner = np.zeros((N, Q, C), np.float32), np.zeros((N, Q, C), np.uint32)
    for n, s, c in np.ndindex(N, S, C):
        q = int(positions[n % rows, s, c])
        expected[n, q, c], owner[n, q, c] = x[n, s, c], s + 1

    def run(samples: slice, threads: int) -> Any:
        shape = samples.stop - samples.start, Q, C
        y, owners = Guarded(shape), Guarded(shape, np.uint32)
        y.view[...], owners.view[...] = 0, 0
        given = positions[samples] if rows > 1 else positions
        unpool_fwd(Guarded.of(x[samples]), Guarded.of(given), y.view, owners.view, threads)
        return y.result(), owners.result()

    y, owners = check_forward(run, N)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(owners, owner)

    started = noise(N * K, S, C, seed=2)
    expected = started.copy()
    for m, q, c in np.argwhere(np.repeat(owner, K, axis=0)):
        expected[m, int(owner[m // K, q, c]) - 1, c] += gy[m, q, c]
    for threads in (1, 2):
        gx = Guarded(started.shape)
        gx.view[...] = started
        unpool_bwd(Guarded.of(gy), Guarded.of(owners), gx.view, threads)
        assert_same_bits(gx.result(), expected)


def test_positions_beyond_the_plane_are_left_out() -> None:
    x, positions = noise(1, 3, 1), np.float32([-1, 1, 4]).reshape(1, 3, 1)
    y, owners = Guarded((1, 4, 1)), Guarded((1, 4, 1), np.uint32)
    y.view[...], owners.view[...] = 0, 0
    unpool_fwd(x, positions, y.view, owners.view, 1)
    np.testing.assert_array_equal(y.result().ravel(), [0, x[0, 1, 0], 0, 0])
    np.testing.assert_array_equal(owners.result().ravel(), [0, 2, 0, 0])
