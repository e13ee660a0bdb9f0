"""Pictures of maps: the laws of their colours, and the canvas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gbp.errors import InputError
from gbp.pictures import palettes
from gbp.pictures import render as picture

floats = st.floats(-(2.0**120), 2.0**120, width=32)
maps = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=floats)
LUMA = np.array([0.2126, 0.7152, 0.0722])


def levels(pixels: np.ndarray) -> np.ndarray:
    """Undo the diverging palette: colours back to -127 … 127."""
    table = [tuple(colour) for colour in palettes.DIVERGING.tolist()]
    assert len(set(table)) == 255, "every level has its own colour"
    return np.array([[table.index(tuple(colour)) - 127 for colour in row] for row in pixels.tolist()])


@settings(max_examples=50, deadline=None)
@given(maps)
def test_diverging_of_minus_m_is_the_mirror(m):
    assert (levels(picture.diverging(-m)) == -levels(picture.diverging(m))).all()


@settings(max_examples=50, deadline=None)
@given(maps, st.sampled_from([2.0**-20, 0.5, 4.0]))
def test_scale_does_not_matter(m, factor):
    m = np.where(np.abs(m) < 1e-20, 0, m).astype(np.float32) / 16  # so that scaling is exact
    for draw in (picture.gray, picture.diverging):
        assert (draw(m) == draw((m * np.float32(factor)).astype(np.float32))).all()


@settings(max_examples=50, deadline=None)
@given(maps)
def test_shapes_dtypes_and_ranges(m):
    base = np.full((*m.shape, 3), 200, np.uint8)
    assert picture.gray(m).shape == m.shape
    for pixels in (picture.diverging(m), picture.overlay(m, base), picture.rgb(np.stack([m] * 3))):
        assert pixels.shape == (*m.shape, 3)
        assert pixels.dtype == np.uint8
    assert picture.robust_limit(m) > 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_zero_is_neutral(dtype):
    zero = np.zeros((5, 4), dtype)
    base = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    assert (picture.gray(zero) == 0).all()
    assert (picture.diverging(zero) == 255).all()
    assert (picture.rgb(np.zeros((3, 5, 4), dtype)) == 128).all()
    hidden = picture.overlay(np.ones((5, 4)), base, alpha=0)
    assert (picture.overlay(zero, base) == hidden).all(), "nothing but the dimmed image"


def test_limit_is_robust_and_survives_sparsity():
    m = np.ones(1000)
    m[0] = 1e6
    assert picture.robust_limit(m) == 1
    m[1:] = 0
    assert picture.robust_limit(m) == 1e6
    assert picture.robust_limit(np.array([5e-324])) == 5e-324


@pytest.mark.parametrize("m", [np.array([[np.nan]]), np.array([[np.inf, 0]]), np.zeros((0, 3))])
def test_what_cannot_be_drawn(m):
    for limit in (None, 1.0):
        with pytest.raises(InputError, match="NaN"):
            picture.gray(m, limit=limit)


def test_shared_limit():
    weak, strong = np.full((2, 2), 1.0), np.full((2, 2), -4.0)
    assert (picture.gray(weak, limit=4) == 64).all()
    assert (picture.gray(strong, limit=4) == 255).all()
    assert (picture.gray(strong, limit=1) == 255).all(), "beyond the limit is clipped"
    assert (picture.rgb(np.full((1, 2, 2), 2.0), limit=4) == 191).all()


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_limits_that_make_no_sense(limit):
    with pytest.raises(InputError, match="limit"):
        picture.gray(np.ones((2, 2)), limit=limit)


def test_lightness_is_monotone():
    """Both palettes must still read when printed in grey."""
    heat = palettes.palette("heat", 32) @ LUMA
    assert (np.diff(heat) > 0).all()
    arms = palettes.DIVERGING @ LUMA
    assert (np.diff(arms[:128]) > 0).all()
    assert (np.diff(arms[127:]) < 0).all()
    assert np.abs(arms - arms[::-1]).max() < 10, "no sign looks stronger"


def test_diverging_signs():
    negative, zero, positive = picture.diverging(np.array([[-1.0, 0.0, 1.0]]))[0].astype(int)
    assert negative[2] > negative[0]
    assert positive[0] > positive[2]
    assert (zero == 255).all()


def test_overlay_does_not_tint_white_ground():
    """A gradient has small values nearly everywhere."""
    m = np.array([[0.0, 0.1, 1.0]])
    none, little, most = picture.overlay(m, np.full((1, 3, 3), 255, np.uint8), limit=1.0)[0].astype(int)
    assert np.ptp(little) <= 4, "no colour that one sees"
    assert abs(little - none).max() <= 4
    assert np.ptp(most) > 40


def test_overlay_keeps_the_image_where_relevance_is_low():
    base = np.zeros((1, 2, 3), np.uint8)
    base[:] = 240, 120, 60
    low, high = picture.overlay(np.array([[0.0, 1.0]]), base, alpha=0.95)[0].astype(int)
    assert low[0] > low[1] > low[2], "the image's own hue"
    assert np.abs(high - palettes.HEAT[-1]).max() < 12
    with pytest.raises(InputError, match="fit"):
        picture.overlay(np.zeros((2, 2)), base)
    with pytest.raises(InputError, match="alpha"):
        picture.overlay(np.zeros((1, 2)), base, alpha=1.5)


def test_rgb_channels():
    m = np.zeros((3, 1, 1))
    m[0], m[2] = 1, -1
    assert picture.rgb(m).tolist() == [[[255, 128, 0]]]
    with pytest.raises(InputError, match="colours"):
        picture.rgb(np.zeros((4, 2, 2)))
    with pytest.raises(InputError, match="colours"):
        picture.rgb(np.zeros((3, 2)))
