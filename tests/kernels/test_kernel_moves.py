"""Kernels of the CPU alone: copies between memory orders, and the choice by density."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ON_CARD, Guarded, check_forward, noise

from gbp.kernels.density import choose_sparse
from gbp.kernels.moves import reorder

pytestmark = pytest.mark.skipif(ON_CARD, reason="cards have other copies, and no such choice")


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 3, 1), (0, 1, 3, 2)])
@pytest.mark.parametrize("accumulate", [0, 1])
def test_reorder(order: tuple[int, ...], accumulate: int) -> None:
    x = noise(3, 4, 5, 19)
    moved = x.transpose(order)
    before = noise(*moved.shape, seed=1)

    def run(samples: slice, threads: int) -> tuple[np.ndarray, ...]:
        y = Guarded(before[samples].shape)
        y.view[...] = before[samples]
        reorder(Guarded.of(x[samples]).transpose(order), y.view, accumulate, threads)
        return (y.result(),)

    (y,) = check_forward(run, len(x))
    np.testing.assert_array_equal(y, moved + before if accumulate else moved)


def test_each_row_is_sparse_by_itself() -> None:
    gy = np.zeros((4, 5, 5, 40), np.float32)
    gy[1] = 1
    gy[2, ..., 7] = 1  # one channel of forty, at every pixel
    gy[3, ..., :5] = 1
    chosen = np.full(4, -1)
    for threads in (1, 2):
        choose_sparse(Guarded.of(gy), chosen, 0.1, threads)
        assert chosen.tolist() == [1, 0, 1, 0]
    alone = np.full(1, -1)
    choose_sparse(gy[2:3], alone, 0.1, 1)
    assert alone.tolist() == [1]
