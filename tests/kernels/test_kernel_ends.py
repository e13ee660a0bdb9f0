"""The two ends of a run on the CPU: samples that come in, and maps that leave."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ON_CARD, Array, Guarded, noise

from gbp.devices.base import Blend, GeneratedSamples
from gbp.devices.cpu_ends import CpuEntry, address_of
from gbp.kernels.ends import blend, bring_in, take_out

pytestmark = pytest.mark.skipif(ON_CARD, reason="a card has other ends")

#: Channels, and widths below, at and above the vectors of all hosts.
CHANNELS, WIDTHS = (1, 3, 4, 17), (1, 5, 16, 37, 64)


def brought(x: Array, channels_last: bool, threads: int = 1) -> tuple[Array, Array]:
    """What `bring_in` makes of samples (N, C, H, W), in that order, and their marks."""
    N, C, H, W = x.shape
    to, marks = Guarded((N, H, W, C) if channels_last else x.shape), np.zeros(N, np.float32)
    source = np.array([address_of(x)])
    bring_in(source, to.view.transpose(0, 3, 1, 2) if channels_last else to.view, marks, threads)
    return to.result().transpose(0, 3, 1, 2) if channels_last else to.result(), marks


@pytest.mark.parametrize("C", CHANNELS)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_samples_are_put_in_order(C: int, W: int, channels_last: bool) -> None:
    x = noise(2, C, 3, W)
    for threads in (1, 2):
        y, marks = brought(x, channels_last, threads)
        np.testing.assert_array_equal(y, x)
        assert not marks.any()


def test_dense_planes_of_three_colours_are_put_in_order() -> None:
    x = noise(2, 3, 5, 70)
    to, marks = np.empty((2, 5, 70, 3), np.float32), np.zeros(2, np.float32)
    bring_in(np.array([address_of(x)]), to.transpose(0, 3, 1, 2), marks, 2)
    np.testing.assert_array_equal(to.transpose(0, 3, 1, 2), x)


@pytest.mark.parametrize("C", CHANNELS)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_each_sample_that_is_not_finite_is_marked(C: int, W: int, channels_last: bool) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        for c in {0, C // 2, C - 1}:
            for w in {0, W // 2, W - 1}:
                x = noise(3, C, 2, W)
                x[1, c, 1, w] = bad
                _, marks = brought(x, channels_last)
                assert marks.tolist() == [0, 1, 0]
    largest = np.full((1, C, 2, W), np.finfo(np.float32).max)
    assert brought(largest, channels_last)[1].tolist() == [0]  # though no float32 holds their sum


@pytest.mark.parametrize("shape", [(3, 40), (3, 5, 6), (3, 2, 4, 5), (3, 2, 3, 4, 5)])
@pytest.mark.parametrize("dense", [True, False])
def test_an_entry_marks_samples_of_any_shape(shape: tuple[int, ...], dense: bool) -> None:
    x, marks = np.empty(shape, np.float32), np.full(len(shape) and shape[0], 7, np.float32)
    entry = CpuEntry(x, tuple(range(len(shape))), marks, 1)
    values = noise(*shape)
    values = values if dense else np.asfortranarray(values)
    entry.write(values)
    entry.settle()
    np.testing.assert_array_equal(x, values)
    assert marks.tolist() == [0, 0, 0]
    values[(2, *(n - 1 for n in shape[1:]))] = np.nan
    entry.write(values)
    entry.settle()
    assert marks.tolist() == [0, 0, 1]


@pytest.mark.parametrize("size", [1, 15, 16, 37])
def test_samples_are_blended_with_the_bits_of_a_product_and_a_sum(size: int) -> None:
    base, terms, factor = noise(3, size), noise(2, 3, size), np.float32([0.3])
    for threads in (1, 2):
        to = Guarded((2, 3, size))
        blend(np.array([address_of(terms), address_of(base)]), factor, to.view, threads)
        np.testing.assert_array_equal(to.result(), terms * factor + base)


@pytest.mark.parametrize("stored", [(0, 2, 3, 1), (0, 1, 2, 3)])
def test_an_entry_blends_samples_of_its_order_when_it_settles_and_writes_others(
    stored: tuple[int, ...],
) -> None:
    terms, base = noise(5, 3, 4, 7), noise(1, 3, 4, 7)
    terms, base = (x.transpose(stored).copy().transpose(np.argsort(stored)) for x in (terms, base))
    x, marks = np.zeros((2, 4, 7, 3), np.float32), np.ones(2, np.float32)
    entry = CpuEntry(x, (0, 3, 1, 2), marks, 1)
    values = GeneratedSamples(terms.shape, Blend(base[0], terms, np.float32(0.3)))[2:4]
    assert entry.finds(values) == (stored != (0, 1, 2, 3))
    entry.write(values)
    assert x.any() != entry.finds(values)
    entry.settle()
    np.testing.assert_array_equal(x.transpose(0, 3, 1, 2), np.asarray(values))
    assert not marks.any()
    entry.write(np.ascontiguousarray(terms[:2]))
    entry.settle()
    np.testing.assert_array_equal(x.transpose(0, 3, 1, 2), terms[:2])


def test_a_map_is_copied_and_looked_at() -> None:
    for size in (1, 15, 16, 1001):
        x, odd = noise(size), np.zeros(1, np.int64)
        to = Guarded((size,))
        take_out(x, np.array([address_of(to.view)]), odd, 2)
        np.testing.assert_array_equal(to.result(), x)
        assert not odd
        x[-1] = np.nan
        take_out(x, np.array([address_of(to.view)]), odd, 2)
        assert odd
