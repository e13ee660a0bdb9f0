"""Convolutions: direct, by columns, depthwise."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import (
    CHANNELS,
    NO_CHANNELS,
    NO_MASK,
    ON_CARD,
    Guarded,
    assert_same_bits,
    cells,
    check_epilogue,
    check_reverse,
    nchw,
    nhwc,
    noise,
    pads_of,
    taps_of,
)

from gbp.kernels.codegen.emit import TILE_ROWS
from gbp.kernels.codegen.gate import OPEN
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.columns import col2im
from gbp.kernels.conv_direct import CACHED, TILE_CHANNELS, TILE_FLOATS, conv_bwd, conv_fwd, pack, pad
from gbp.kernels.conv_lists import (
    conv_lists_bwd,
    list_plane,
    listing_of,
    lists_floats,
    pack_lists,
    sums_floats,
)
from gbp.kernels.conv_pointwise import conv_pointwise_bwd, pointwise_scratch
from gbp.kernels.conv_winograd import conv_winograd_bwd, conv_winograd_fwd, winograd_scratch
from gbp.kernels.depthwise import depthwise_bwd, depthwise_fwd
from gbp.kernels.depthwise_dense import WIDTHS, dense_kernels
from gbp.kernels.taps import Taps
from gbp.kernels.winograd import pack_winograd

cpu_only = pytest.mark.skipif(ON_CARD, reason="a card has a way of its own, from weights packed otherwise")

GEOMETRIES = {
    "1x1": ((3, 4), {"kernel": (1, 1)}),
    "1x1/2": ((5, 4), {"kernel": (1, 1), "stride": (2, 2)}),
    "3x3": ((6, 17), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}),
    "3x3/2": ((7, 16), {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1)}),
    "asymmetric": ((6, 7), {"kernel": (2, 3), "stride": (1, 2), "pads": (0, 1, 1, 2)}),
    "dilated": ((7, 15), {"kernel": (3, 3), "pads": (2, 2, 2, 2), "dilation": (2, 2)}),
    "dilated strided": (
        (9, 23),
        {"kernel": (3, 3), "stride": (2, 2), "pads": (2, 3, 3, 1), "dilation": (2, 3)},
    ),
    "7x7/2": ((9, 11), {"kernel": (7, 7), "stride": (2, 2), "pads": (3, 3, 3, 3)}),
    "stride leaves gaps": ((7, 30), {"kernel": (2, 2), "stride": (3, 3)}),
    "one pixel": ((1, 1), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}),
    "1x1 padded": ((4, 6), {"kernel": (1, 1), "pads": (1, 1, 1, 1)}),
    "one column padded": ((7, 9), {"kernel": (3, 1), "pads": (1, 1, 1, 1)}),
}


def cases(all_channels: str, otherwise: tuple[int, ...]) -> list[Any]:
    return [
        pytest.param(size, geometry, C, id=f"{name} C={C}")
        for name, (size, geometry) in GEOMETRIES.items()
        for C in (CHANNELS if name == all_channels else otherwise)
    ]


def window(geometry: dict[str, Any]) -> dict[str, Any]:
    """What the oracle wants to know; it sees the kernel in the weights."""
    return {name: value for name, value in geometry.items() if name != "kernel"}


def padded(x: Any, top: int, left: int, bottom: int, right: int, threads: int = 2) -> Any:
    N, H, W, C = x.shape
    y = aligned((N, H + top + bottom, W + left + right, C))
    pad(x, y, Taps(1, 1, top=top, left=left), threads)
    return y


def whole_tiles(b: Any) -> Any:
    whole = aligned((-(-len(b) // TILE_CHANNELS) * TILE_CHANNELS,))
    whole.fill(0)
    whole[: len(b)] = b
    return whole


def scratch(threads: int) -> Any:
    return aligned((threads * TILE_FLOATS,))


@cpu_only
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(("size", "geometry", "C"), cases("3x3", (5,)))
def test_conv_forward(size: Any, geometry: dict[str, Any], C: int, group: int) -> None:
    M = C + 2  # of each group
    x, w, b = (
        noise(2, *size, group * C),
        noise(group * M, C, *geometry["kernel"], seed=1),
        noise(group * M, seed=2),
    )
    linear = nhwc(naive.conv_fwd(nchw(x), w, b, group=group, **window(geometry)))
    taps, pads = taps_of(geometry), pads_of(geometry)
    for g in range(group):
        ins, outs = slice(g * C, (g + 1) * C), slice(g * M, (g + 1) * M)
        packed, bias = pack(w[outs]), whole_tiles(b[outs])

        def fused(
            samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int, ins: slice = ins,
            packed: Any = packed, bias: Any = bias,
        ) -> None:  # fmt: skip
            lying = padded(x[samples], *pads)[..., ins]
            conv_fwd(
                lying, packed, bias, r, y, mask, scratch(threads), taps, lo, hi, by_rows(y, threads), threads
            )

        check_epilogue(fused, linear[..., outs])


def by_rows(out: Any, threads: int) -> int:
    """Either way of sharing the work, for one thread and for two: the bits have to be the same."""
    return (len(out) + threads) % 2


@cpu_only
@pytest.mark.parametrize(("size", "geometry", "C"), cases("3x3", (5,)))
def test_conv_reverse_of_stride_1(size: Any, geometry: dict[str, Any], C: int) -> None:
    geometry = {**geometry, "stride": (1, 1)}
    (KH, KW), (dh, dw) = geometry["kernel"], geometry.get("dilation", (1, 1))
    (top, left, bottom, right), M = pads_of(geometry), 4
    w = noise(M, C, KH, KW, seed=1)
    OH, OW = size[0] + top + bottom - (KH - 1) * dh, size[1] + left + right - (KW - 1) * dw
    gy = noise(6, OH, OW, M)
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (6, C, *size), **window(geometry)))
    packed = pack(np.ascontiguousarray(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)))
    around = ((KH - 1) * dh - top, (KW - 1) * dw - left, (KH - 1) * dh - bottom, (KW - 1) * dw - right)

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        lying = padded(gy, *around)
        conv_bwd(
            lying,
            packed,
            mask,
            gate,
            gx,
            accumulate,
            scratch(threads),
            taps_of(geometry),
            by_rows(gx, threads),
            threads,
        )

    check_reverse(run, gy, expected, targets=3)


@cpu_only
def test_more_weights_than_go_together() -> None:
    """Of blocks of weights that fill a cache, some pass together, and others after them."""
    C, M = CACHED // (3 * 4 * TILE_CHANNELS), 5 * TILE_CHANNELS - 1
    x, w, b = noise(6, 2, TILE_ROWS + 1, C), noise(M, C), noise(M, seed=2)
    taps, packed, bias = taps_of(GEOMETRIES["1x1"][1]), pack(w[:, :, None, None]), whole_tiles(b)
    linear = x.astype(np.float64) @ w.T.astype(np.float64)

    def fused(samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int) -> None:
        share = by_rows(y, threads), threads
        conv_fwd(Guarded.of(x[samples]), packed, bias, r, y, mask, scratch(threads), taps, lo, hi, *share)

    check_epilogue(fused, linear + b)

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        share = taps, by_rows(gx, threads), threads
        conv_bwd(gy, packed, mask, gate, gx, accumulate, scratch(threads), *share)

    check_reverse(run, x, linear, targets=3)


@cpu_only
@pytest.mark.parametrize("most", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("O", "C"), [(5, 1), (17, 3), (8, 33), (64, 100), (65, 130), (130, 300)])
def test_pointwise_reverse(O: int, C: int, most: float) -> None:
    """By lists, by tiles, and by whichever suits each tile: the very same bits."""
    P = 31
    w, gy = noise(O, C), noise(6, 1, P, O, seed=1)
    gy *= np.random.default_rng(2).random(gy.shape) < np.linspace(0, 1, P)[:, None]
    expected = gy.astype(np.float64) @ w
    packed = pack(np.ascontiguousarray(w.T)[:, :, None, None])

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        memory = aligned((pointwise_scratch(threads),))
        conv_pointwise_bwd(gy, packed, mask, gate, gx, accumulate, memory, most, threads)

    check_reverse(run, gy, expected, targets=3)

    def plain(most: float) -> Any:
        gx = np.empty((6, 1, P, C), np.float32)
        run_most = aligned((pointwise_scratch(2),))
        conv_pointwise_bwd(gy, packed, NO_MASK, OPEN, gx, 0, run_most, most, 2)
        return gx

    assert_same_bits(plain(most), plain(0.0))


#: Squares of y that are whole, cut off below and at the right, alone; patches over every border.
WINOGRAD = [((8, 12), 1), ((6, 17), 1), ((7, 6), 0), ((5, 4), 2), ((1, 1), 1), ((3, 3), 0)]


@cpu_only
@pytest.mark.parametrize("C", CHANNELS)
@pytest.mark.parametrize(("size", "pad"), WINOGRAD)
def test_winograd_forward(size: Any, pad: int, C: int) -> None:
    M = 2 * C + 1
    x, w, b = noise(2, *size, C), noise(M, C, 3, 3, seed=1), noise(M, seed=2)
    linear = nhwc(naive.conv_fwd(nchw(x), w, b, pads=(pad,) * 4))
    u, bias, window = pack_winograd(w), whole_tiles(b), Taps(3, 3, top=pad, left=pad)

    def fused(samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int) -> None:
        by_squares = by_rows(y, threads)
        memory = aligned((winograd_scratch(3, 2, C, bool(by_squares), threads),))
        share = 3, 2, by_squares, threads
        conv_winograd_fwd(Guarded.of(x[samples]), u, bias, r, y, mask, memory, window, lo, hi, *share)

    check_epilogue(fused, linear)


@cpu_only
@pytest.mark.parametrize("C", CHANNELS)
@pytest.mark.parametrize(("size", "pad"), WINOGRAD)
def test_winograd_reverse(size: Any, pad: int, C: int) -> None:
    C, M = 2 * C + 1, C + 2
    w = noise(M, C, 3, 3, seed=1)
    gy = noise(6, size[0] + 2 * pad - 2, size[1] + 2 * pad - 2, M)
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (6, C, *size), pads=(pad,) * 4))
    u = pack_winograd(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    window = Taps(3, 3, top=2 - pad, left=2 - pad)

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        by_squares = by_rows(gx, threads)
        memory = aligned((winograd_scratch(3, 2, M, bool(by_squares), threads),))
        share = window, 3, 2, by_squares, threads
        conv_winograd_bwd(gy, u, mask, gate, gx, accumulate, memory, *share)

    check_reverse(run, gy, expected, targets=3)


@cpu_only
@pytest.mark.parametrize(("O", "C"), [(5, 3), (17, 33), (70, 64), (130, 100)])
@pytest.mark.parametrize(("size", "pad"), [*WINOGRAD, ((3, 150), 1), ((40, 5), 1)])
def test_lists_reverse(size: Any, pad: int, O: int, C: int) -> None:
    """Rows of pixels that are listed full, sparsely and not at all."""
    w = noise(O, C, 3, 3, seed=1)
    OH, OW = size[0] + 2 * pad - 2, size[1] + 2 * pad - 2
    gy = noise(3, OH, OW, O, seed=2)
    gy *= np.random.default_rng(3).random(gy.shape) < np.linspace(0, 1, OH)[:, None, None]
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (3, C, *size), pads=(pad,) * 4))
    packed, listing = pack_lists(w), listing_of(OH, OW, O, 1.0)
    window = Taps(3, 3, top=pad, left=pad)

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        lists, sums = aligned((lists_floats(listing),)), aligned((sums_floats(threads),))
        counts = np.empty(OH, np.int64)
        for n in range(len(gy)):
            list_plane(gy[n : n + 1], lists, listing, counts, float(gy.size), threads)
            np.testing.assert_array_equal(counts, np.count_nonzero(gy[n], axis=(1, 2)))
            target = mask[:1], gate, gx[n : n + 1], accumulate, sums
            conv_lists_bwd(lists, listing, packed, *target, window, threads)

    check_reverse(run, gy, expected, targets=3)


@cpu_only
def test_rows_are_listed_up_to_one_that_does_not_fit_and_to_the_most_values() -> None:
    gy = np.ones((1, 3, 20, 40), np.float32)
    gy[0, 1] = 0
    listing, counts = listing_of(3, 20, 40, 0.1), np.empty(3, np.int64)
    list_plane(gy, aligned((lists_floats(listing),)), listing, counts, float(gy.size), 1)
    assert counts.tolist() == [-1, -1, -1]
    gy[0, 0, :, 3:] = 0
    list_plane(gy, aligned((lists_floats(listing),)), listing, counts, float(gy.size), 1)
    assert counts.tolist() == [60, 0, -1]
    list_plane(gy, aligned((lists_floats(listing),)), listing, counts, 59.0, 1)
    assert counts.tolist() == [60, -1, -1]


@cpu_only
@pytest.mark.parametrize(("size", "geometry", "C"), cases("7x7/2", (3, 19)))
def test_col2im(size: Any, geometry: dict[str, Any], C: int) -> None:
    M = 4
    w = noise(M, C, *geometry["kernel"], seed=1)
    OH, OW = naive.conv_fwd(np.zeros((1, C, *size)), w, **window(geometry)).shape[2:]
    gy = noise(6, OH, OW, M)
    columns = np.einsum("nhwo,ocij->nhwijc", gy, w).reshape(6, OH, OW, -1)
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (6, C, *size), **window(geometry)))
    taps = taps_of(geometry)

    def run(
        columns: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int
    ) -> None:
        col2im(columns, mask, gate, gx, accumulate, taps, threads)

    check_reverse(run, columns, expected, targets=3)

    dense = np.empty((6, *size, C), np.float32)  # whole rows in one line, where C is small

    def run_dense(columns: Any, samples: slice, mask: Any, gate: Any, gx: Any, *rest: int) -> None:
        accumulate, threads = rest
        part = dense[: len(gx)]
        part[...] = gx
        col2im(columns, mask, gate, part, accumulate, taps, threads)
        gx[...] = part

    check_reverse(run_dense, columns, expected, targets=3)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("size", "geometry", "C"), cases("3x3/2", (19,)))
def test_depthwise_forward(size: Any, geometry: dict[str, Any], C: int, biased: bool) -> None:
    x, w = noise(2, *size, C), noise(*geometry["kernel"], C, seed=1)
    b = noise(C, seed=2) if biased else NO_CHANNELS
    grouped = w.transpose(2, 0, 1)[:, None]
    linear = nhwc(naive.conv_fwd(nchw(x), grouped, b if biased else None, group=C, **window(geometry)))
    taps = taps_of(geometry)

    def fused(samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int) -> None:
        depthwise_fwd(Guarded.of(x[samples]), w.ravel(), b, r, y, mask, taps, lo, hi, threads)

    check_epilogue(fused, linear)


@pytest.mark.parametrize("C", [4, 8, 12])
def test_depthwise_of_whole_fours(C: int) -> None:
    """Rows that lie on whole 16 bytes may be read by fours; the bits are those of any rows."""
    x, w, b = noise(2, 6, 7, C), noise(3, 3, C, seed=1), noise(C, seed=2)
    taps = taps_of({"kernel": (3, 3), "pads": (1, 1, 1, 1)})

    def run(x: Any, y: Any) -> tuple[Any, Any]:
        mask = np.zeros((2, 6, 7, cells(C)), np.uint8)
        depthwise_fwd(x, w.ravel(), b, x, y, mask, taps, 0.0, 1.0, 2)
        return y, mask

    for dense, guarded in zip(
        run(x, aligned(x.shape)), run(Guarded.of(x), Guarded(x.shape).view), strict=True
    ):
        assert_same_bits(dense, guarded)


@pytest.mark.parametrize(("size", "geometry", "C"), cases("3x3/2", (19,)))
def test_depthwise_reverse(size: Any, geometry: dict[str, Any], C: int) -> None:
    w = noise(*geometry["kernel"], C, seed=1)
    grouped = w.transpose(2, 0, 1)[:, None]
    OH, OW = naive.conv_fwd(np.zeros((1, C, *size)), grouped, group=C, **window(geometry)).shape[2:]
    gy = noise(6, OH, OW, C)
    expected = nhwc(naive.conv_bwd(nchw(gy), grouped, (6, C, *size), group=C, **window(geometry)))
    taps = taps_of(geometry)

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        depthwise_bwd(gy, w.ravel(), mask, gate, gx, accumulate, taps, threads)

    check_reverse(run, gy, expected, targets=3)


#: Size, kernel and pads of windows of stride 1: planes of odd sizes, borders within a group of neighbours,
#: windows larger than the plane, crops, and rows without a pixel.
DENSE = (
    ((6, 9), 3, (1, 1, 1, 1)),
    ((5, 8), 1, (0, 2, 0, 0)),
    ((3, 4), 7, (3, 3, 3, 3)),
    ((7, 18), 5, (0, 6, 2, -1)),
    ((1, 1), 3, (1, 7, 4, 7)),
    ((4, 13), 2, (-1, -2, 3, 4)),
)


@cpu_only
@pytest.mark.parametrize("C", [3, 16, 35])
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize(("size", "rows", "pads"), DENSE)
def test_dense_depthwise_has_the_bits_of_any(size: Any, rows: int, pads: Any, columns: int, C: int) -> None:
    x, w, b = noise(2, *size, C), noise(rows, columns, C, seed=1), noise(C, seed=2)
    geometry = {"kernel": (rows, columns), "pads": pads}
    taps, grouped, (fwd, bwd) = taps_of(geometry), w.transpose(2, 0, 1)[:, None], dense_kernels(columns)
    top, left, bottom, right = pads
    OH, OW = size[0] + top + bottom - rows + 1, size[1] + left + right - columns + 1
    if OH < 1 or OW < 1:
        return
    padded = naive.pad_fwd(nchw(x), (0, 0, top, left, 0, 0, bottom, right))
    linear = nhwc(naive.conv_fwd(padded, grouped, b, group=C))

    def fused(samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int) -> None:
        rest = b, r, y, mask, taps, lo, hi, threads
        fwd(Guarded.of(x[samples]), w.ravel(), *rest)
        values, units = y.copy(), mask.copy()
        depthwise_fwd(Guarded.of(x[samples]), w.ravel(), *rest)
        assert_same_bits(values, y)
        assert_same_bits(units, mask)

    check_epilogue(fused, linear)
    gy = noise(6, OH, OW, C)
    whole = naive.conv_bwd(nchw(gy), grouped, (6, *padded.shape[1:]), group=C)
    expected = nhwc(naive.pad_bwd(whole, (0, 0, top, left, 0, 0, bottom, right), (6, C, *size)))

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        before = gx.copy()
        depthwise_bwd(gy, w.ravel(), mask, gate, gx, accumulate, taps, threads)
        found = gx.copy()
        gx[...] = before
        bwd(gy, w.ravel(), mask, gate, gx, accumulate, taps, threads)
        assert_same_bits(found, gx)

    check_reverse(run, gy, expected, targets=3)


@cpu_only
@pytest.mark.parametrize("C", CHANNELS)
@pytest.mark.parametrize(
    "pads", [(0, 0, 0, 0), (1, 2, 3, 0), (-1, -2, 1, 1), (2, 1, -2, -1), (-1, -1, -1, -1)]
)
def test_pad(C: int, pads: tuple[int, int, int, int]) -> None:
    x = noise(2, 4, 5, C)
    top, left, bottom, right = pads
    expected = nhwc(naive.pad_fwd(nchw(x), (0, 0, top, left, 0, 0, bottom, right)))
    for source in (x, Guarded.of(x)):
        for threads in (1, 2):
            np.testing.assert_array_equal(padded(source, *pads, threads=threads), expected)
