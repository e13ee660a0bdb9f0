"""Max-pools with their switches, and average pools."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import (
    CHANNELS,
    NO_MASK,
    ON_CARD,
    Guarded,
    assert_close,
    check_forward,
    check_reverse,
    nchw,
    nhwc,
    noise,
    taps_of,
)

from gbp.kernels.average_pool import averagepool_bwd, averagepool_fwd
from gbp.kernels.codegen.gate import OPEN
from gbp.kernels.pool import maxpool_bwd_u8, maxpool_bwd_u32, maxpool_fwd_u8, maxpool_fwd_u32

GEOMETRIES = {
    "2x2/2": ((4, 6), {"kernel": (2, 2), "stride": (2, 2)}),
    "3x3/2 overlap": ((7, 8), {"kernel": (3, 3), "stride": (2, 2)}),
    "caffe2": ((6, 6), {"kernel": (3, 3), "stride": (2, 2), "pads": (0, 0, 1, 1)}),
    "same": ((5, 4), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}),
    "asymmetric": ((5, 7), {"kernel": (3, 2), "stride": (1, 2), "pads": (2, 0, 1, 1)}),
    "dilated": ((7, 9), {"kernel": (2, 3), "stride": (2, 1), "pads": (1, 2, 1, 2), "dilation": (3, 2)}),
    "dilation and stride share a factor": ((9, 9), {"kernel": (3, 3), "stride": (2, 4), "dilation": (4, 2)}),
    "stride leaves gaps": ((7, 7), {"kernel": (2, 2), "stride": (3, 3)}),
    "ceil": ((6, 7), {"kernel": (3, 3), "stride": (2, 3), "pads": (1, 1, 0, 0), "ceil_mode": True}),
    "one pixel": ((1, 1), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}),
    "global": ((5, 6), {"kernel": (5, 6)}),
}
#: Several vectors of a processor and a rest.  19 channels are already several strands of a card.
SEVERAL = () if ON_CARD else (65, 130)
CASES = [
    pytest.param(size, geometry, C, id=f"{name} C={C}")
    for name, (size, geometry) in GEOMETRIES.items()
    for C in (CHANNELS if name == "caffe2" else (19, *SEVERAL) if name == "ceil" else (19,))
]
MAXPOOL = {np.uint8: (maxpool_fwd_u8, maxpool_bwd_u8), np.uint32: (maxpool_fwd_u32, maxpool_bwd_u32)}


def with_ties(*shape: int) -> Any:
    return np.round(noise(*shape))


@pytest.mark.parametrize("width", MAXPOOL)
@pytest.mark.parametrize(("size", "geometry", "C"), CASES)
def test_maxpool(size: Any, geometry: dict[str, Any], C: int, width: Any) -> None:
    forward, reverse = MAXPOOL[width]
    taps = taps_of(geometry)
    x = with_ties(2, *size, C)
    y, switches = (nhwc(a) for a in naive.maxpool_fwd(nchw(x), **geometry))

    def run(samples: slice, threads: int) -> Any:
        shape = (samples.stop - samples.start, *y.shape[1:])
        out, where = Guarded(shape), Guarded(shape, width)
        forward(Guarded.of(x[samples]), out.view, where.view, taps, threads)
        return out.result(), where.result()

    out, where = check_forward(run, len(x))
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(where, switches)

    gy = noise(6, *y.shape[1:])
    expected = nhwc(
        naive.maxpool_bwd(nchw(gy), np.repeat(nchw(switches), 3, axis=0), (6, C, *size), **geometry)
    )
    check_reverse(
        lambda gy, samples, mask, gate, gx, accumulate, threads: reverse(
            gy, Guarded.of(where[samples]), mask, gate, gx, accumulate, taps, threads
        ),
        gy,
        expected,
        targets=3,
    )


def test_first_nan_wins() -> None:
    x = np.array([1, np.nan, 3, np.nan], np.float32).reshape(1, 2, 2, 1)
    y, switches, gx = np.zeros((1, 1, 1, 1), np.float32), np.zeros((1, 1, 1, 1), np.uint8), np.zeros_like(x)
    taps = taps_of({"kernel": (2, 2)})
    maxpool_fwd_u8(x, y, switches, taps, 1)
    assert np.isnan(y).all()
    assert switches.item() == 1
    maxpool_bwd_u8(y, switches, NO_MASK, OPEN, gx, 0, taps, 1)
    np.testing.assert_array_equal(np.isnan(gx).ravel(), [False, True, False, False])


def test_first_nan_of_a_large_window_wins() -> None:
    x = noise(1, 6, 7, 3)
    x.reshape(42, 3)[[20, 11, 35], [0, 1, 1]] = np.nan
    y, switches = np.zeros((1, 1, 1, 3), np.float32), np.zeros((1, 1, 1, 3), np.uint8)
    maxpool_fwd_u8(x, y, switches, taps_of({"kernel": (6, 7)}), 1)
    np.testing.assert_array_equal(np.isnan(y).ravel(), [True, True, False])
    np.testing.assert_array_equal(switches.ravel(), [20, 11, x[..., 2].argmax()])


def test_padding_never_wins() -> None:
    x = np.full((1, 2, 2, 3), -np.inf, np.float32)
    y, switches = np.zeros((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2, 3), np.uint8)
    maxpool_fwd_u8(x, y, switches, taps_of({"kernel": (3, 3), "pads": (1, 1, 1, 1)}), 1)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(switches[0, :, :, 0], [[4, 3], [1, 0]])


def test_switches_of_a_large_plane() -> None:
    x = noise(1, 20, 30, 5)
    y, switches = np.zeros((1, 1, 1, 5), np.float32), np.zeros((1, 1, 1, 5), np.uint32)
    maxpool_fwd_u32(x, y, switches, taps_of({"kernel": (20, 30)}), 2)
    np.testing.assert_array_equal(switches.ravel(), x.reshape(600, 5).argmax(axis=0))


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize(("size", "geometry", "C"), CASES)
def test_averagepool(size: Any, geometry: dict[str, Any], C: int, include_pad: bool) -> None:
    taps = taps_of(geometry)
    options = {**geometry, "count_include_pad": include_pad}
    x = noise(2, *size, C)
    y = nhwc(naive.averagepool_fwd(nchw(x), **options))

    def run(samples: slice, threads: int) -> Any:
        out = Guarded((samples.stop - samples.start, *y.shape[1:]))
        averagepool_fwd(Guarded.of(x[samples]), out.view, taps, int(include_pad), threads)
        return (out.result(),)

    assert_close(*check_forward(run, len(x)), y)

    gy = noise(6, *y.shape[1:])
    expected = nhwc(naive.averagepool_bwd(nchw(gy), (6, C, *size), **options))
    check_reverse(
        lambda gy, samples, mask, gate, gx, accumulate, threads: averagepool_bwd(
            gy, mask, gate, gx, accumulate, taps, int(include_pad), threads
        ),
        gy,
        expected,
        targets=3,
    )


def test_the_average_of_a_channel_has_the_same_bits_among_any_others() -> None:
    x, taps = noise(1, 13, 13, 130), taps_of({"kernel": (13, 13)})

    def averages(x: Any) -> Any:
        y = np.empty((1, 1, 1, x.shape[3]), np.float32)
        averagepool_fwd(x, y, taps, 0, 1)
        return y

    alone = [averages(np.ascontiguousarray(x[..., c : c + 1])) for c in range(130)]
    np.testing.assert_array_equal(averages(x), np.concatenate(alone, axis=3))
