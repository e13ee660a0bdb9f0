"""Convolutions on Intel's AMX; skipped where the machine has none."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import ON_CARD, Guarded, check_epilogue, check_reverse, nchw, nhwc, noise, pads_of, taps_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_conv import GEOMETRIES, whole_tiles, window

from gbp.graph.geometry import Axis, Window
from gbp.kernels.amx_frame import Frame
from gbp.kernels.amx_shares import amx_scratch, band_of
from gbp.kernels.amx_sums import pack_amx
from gbp.kernels.codegen import amx
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.conv_amx import conv_amx_bwd, conv_amx_fwd
from gbp.kernels.taps import Taps
from gbp.ops.conv.algorithms_amx import NO_SCALES, AmxBackward, AmxForward, AmxLayer
from gbp.ops.conv.algorithms_strides import AmxMerged, AmxPhases
from gbp.ops.step import NO_TENSOR, UNCLIPPED, Clipped, Context, GradientSlot

pytestmark = pytest.mark.skipif(
    ON_CARD or not amx.is_usable(), reason="this machine has no AMX, or may not use it, or a card computes"
)

#: Channels in and out: one chunk and several, whole and in part; half a block of channels, a block, several.
CHANNELS = [(16, 16), (33, 70), (64, 17)]


def frame_of(size: Any, taps: Taps, pads: Any) -> Frame:
    top, left, bottom, right = pads
    return Frame(size[0] + top + bottom, size[1] + left + right, top, left)


def share(C: int, frame: Frame, taps: Taps, rows: int, threads: int) -> tuple[Any, ...]:
    """Scratch, geometry and a way to share the work: by channels, row by row, or in bands."""
    band = (0, 1, band_of(C, frame, taps))[(rows + threads) % 3]
    fixed, each = amx_scratch(C, frame, taps, band, threads)
    return aligned((fixed + rows * each,)), taps, frame, band, threads, threads


@pytest.mark.parametrize(("C", "O"), CHANNELS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_forward(name: str, C: int, O: int) -> None:
    size, geometry = GEOMETRIES[name]
    x, w, b = noise(3, *size, C), noise(O, C, *geometry["kernel"], seed=1), noise(O, seed=2)
    linear = nhwc(naive.conv_fwd(nchw(x), w, b, **window(geometry)))
    taps, packed, bias = taps_of(geometry), pack_amx(w), whole_tiles(b)
    frame = frame_of(size, taps, pads_of(geometry))

    def fused(samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int) -> None:
        end = share(C, frame, taps, len(y), threads)
        conv_amx_fwd(Guarded.of(x[samples]), packed, bias, r, y, mask, lo, hi, NO_SCALES, *end)

    check_epilogue(fused, linear)


@pytest.mark.parametrize(("C", "O"), CHANNELS)
@pytest.mark.parametrize("name", ["1x1", "3x3", "asymmetric", "dilated", "one pixel"])
def test_backward(name: str, C: int, O: int) -> None:
    size, geometry = GEOMETRIES[name]
    geometry = {**geometry, "stride": (1, 1)}
    taps, (top, left, bottom, right) = taps_of(geometry), pads_of(geometry)
    extent = (taps.rows - 1) * taps.dilation_h + 1, (taps.columns - 1) * taps.dilation_w + 1
    out = size[0] + top + bottom - extent[0] + 1, size[1] + left + right - extent[1] + 1
    w, gy = noise(O, C, *geometry["kernel"], seed=1), noise(6, *out, O)
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (6, C, *size), **window(geometry)))
    packed = pack_amx(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    frame = Frame(size[0] + extent[0] - 1, size[1] + extent[1] - 1, extent[0] - 1 - top, extent[1] - 1 - left)

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        end = share(O, frame, taps, len(gx), threads)
        conv_amx_bwd(gy, packed, mask, gate, gx, accumulate, *end)

    check_reverse(run, gy, expected, targets=3)


@settings(max_examples=25)
@given(st.data())
def test_strided_backward(data: st.DataObject) -> None:
    """The gradient by phases, each in place or all in one convolution, for any window without dilation."""

    def axis() -> Axis:
        kernel, stride = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
        begin, end = data.draw(st.integers(-1, 4)), data.draw(st.integers(-1, 4))
        return Axis(data.draw(st.integers(max(1, kernel - begin - end), 14)), kernel, stride, 1, begin, end)

    def pair(name: str) -> tuple[int, int]:
        return getattr(height, name), getattr(width, name)

    height, width = axis(), axis()
    C, O = data.draw(st.sampled_from([(3, 20), (16, 16), (33, 70)]))
    algorithm = data.draw(st.sampled_from([AmxPhases, AmxMerged]))
    pads = height.begin, width.begin, height.end, width.end
    w, gy = noise(O, C, *pair("kernel"), seed=1), noise(6, *pair("outputs"), O)
    size = pair("size")
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (6, C, *size), stride=pair("stride"), pads=pads))
    backward = algorithm(w, Window(height, width))

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        fixed, each = backward.scratch(threads)
        context = Context(threads, aligned((fixed + len(gx) * each,)))
        backward(gy, GradientSlot(gx, bool(accumulate), mask, gate), context)

    check_reverse(run, gy, expected, targets=3)


@settings(max_examples=25)
@given(st.data())
def test_pairs_of_taps(data: st.DataObject) -> None:
    """Few channels: a chunk holds two neighbours of a row, of any window, in both directions."""

    def axis() -> Axis:
        kernel, stride = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
        begin, end = data.draw(st.integers(-2, 4)), data.draw(st.integers(-2, 4))
        return Axis(data.draw(st.integers(max(1, kernel - begin - end), 40)), kernel, stride, 1, begin, end)

    height, width = axis(), axis()
    both = Window(height, width)
    C, O = data.draw(st.sampled_from([(1, 20), (3, 16), (13, 33), (16, 64)]))
    x, w, b = noise(2, height.size, width.size, C), noise(O, C, *both.kernel, seed=1), noise(O, seed=2)
    pads = height.begin, width.begin, height.end, width.end
    linear = nhwc(naive.conv_fwd(nchw(x), w, b, stride=(height.stride, width.stride), pads=pads))
    forward = AmxForward(w, b, both)
    assert forward.layer.frame.pairs == (width.kernel > 1)

    def fused(samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int) -> None:
        fixed, each = forward.scratch(threads)
        context = Context(threads, aligned((fixed + len(y) * each,)), mask=mask)
        forward(Guarded.of(x[samples]), r, y, Clipped(lo, hi), context)

    check_epilogue(fused, linear)
    if not both.is_unstrided:
        return
    w = w.transpose(1, 0, 2, 3)  # so that few channels come in backward
    gy = noise(6, *both.output, C)
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (6, O, *both.size), pads=pads))
    backward = AmxBackward(w, both)
    assert backward.layer.frame.pairs == (width.kernel > 1)

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        fixed, each = backward.scratch(threads)
        context = Context(threads, aligned((fixed + len(gx) * each,)))
        backward(gy, GradientSlot(gx, bool(accumulate), mask, gate), context)

    check_reverse(run, gy, expected, targets=3)


def test_bits_do_not_depend_on_the_batch() -> None:
    """Where one sample shares channels among threads, and three share rows."""
    x, w = noise(3, 7, 9, 130), noise(64, 130, 1, 1, seed=1)
    forward = AmxForward(w, noise(64, seed=2), Window.resolve((7, 9), (1, 1)))
    assert [forward.layer.arguments(n, Context(1, aligned((0,))))[3] > 0 for n in (1, 3)] == [False, True]

    def outputs(x: Any) -> Any:
        fixed, each = forward.scratch(1)
        y = np.empty((len(x), 7, 9, 64), np.float32)
        forward(x, NO_TENSOR, y, UNCLIPPED, Context(1, aligned((fixed + len(x) * each,))))
        return y

    np.testing.assert_array_equal(outputs(x), np.concatenate([outputs(x[n : n + 1]) for n in range(3)]))


def test_one_thread_computes_a_small_layer_alone() -> None:
    """It has one sample.  Its scratch is laid out as for all threads, because any of them may be the one."""
    layer = AmxLayer.forward(192, 48, Window.resolve((13, 13), (1, 1)))
    alone, together = layer.geometry(1, 2), layer.geometry(8, 2)
    assert (alone[-2:], together[-2:]) == ((2, 1), (2, 2))
    large = AmxLayer.forward(64, 16, Window.resolve((55, 55), (3, 3), pads=(1, 1, 1, 1)))
    assert large.geometry(1, 2)[-2:] == (2, 2)


def test_parts_are_the_whole() -> None:
    """The three parts of a weight add up to it, bit for bit."""
    w = noise(32, 32, 1, 1) * np.float32(10) ** noise(32, 32, 1, 1, seed=1)
    parts = pack_amx(w).view(np.uint16).reshape(amx.PARTS, 2, 16, 16, 2).astype(np.uint32) << 16
    total = np.add.reduce(parts.view(np.float32).astype(np.float64))
    pairs = w[:, :, 0, 0].reshape(2, 16, 2, 16)  # half, output, second of the pair, pair
    np.testing.assert_array_equal(total, pairs.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("large", ["pixels", "weights"])
def test_the_largest_numbers_are_none_too_large(large: str) -> None:
    """bfloat16 rounds what is next to float32's largest number to infinity."""
    most = np.finfo(np.float32).max
    sizes = np.array([1, -1, 0.998, -0.998, 0.5, 1e-20], np.float32)  # of bfloat16's largest it is 0.996
    C, O, P = len(sizes), 17, 33
    x, w = abs(noise(1, 1, P, C)), noise(O, C, 1, 1, seed=1)
    numbers, others = (x, w) if large == "pixels" else (w, x)
    numbers.reshape(-1, C)[:] = sizes * most
    others *= np.float32(0.02)
    taps, frame = Taps(1, 1, 1, 1, 1, 1), Frame(1, P, 0, 0)
    y, none = np.empty((1, 1, P, O), np.float32), np.empty((0, 0, 0, 0), np.float32)
    no_mask = np.empty((0, 0, 0, 0), np.uint8)
    end = share(C, frame, taps, 1, 1)
    conv_amx_fwd(x, pack_amx(w), whole_tiles(np.zeros(O)), none, y, no_mask, -np.inf, np.inf, NO_SCALES, *end)
    exact = x.astype(np.float64) @ w[:, :, 0, 0].T.astype(np.float64)
    assert np.abs(exact).max() < most
    assert np.linalg.norm(y / most - exact / most) < 4e-7 * np.linalg.norm(exact / most)


def test_long_sums_round_as_float32_does() -> None:
    """Products are as exact as those of float32, and a long sum rounds as little as in chains."""
    C, O, P = 2048, 32, 48
    x, w = abs(noise(1, 1, P, C)), noise(O, C, 1, 1, seed=1)
    taps, frame = Taps(1, 1, 1, 1, 1, 1), Frame(1, P, 0, 0)
    y, none = np.empty((1, 1, P, O), np.float32), np.empty((0, 0, 0, 0), np.float32)
    no_mask = np.empty((0, 0, 0, 0), np.uint8)
    end = share(C, frame, taps, 1, 1)
    conv_amx_fwd(x, pack_amx(w), whole_tiles(np.zeros(O)), none, y, no_mask, -np.inf, np.inf, NO_SCALES, *end)
    exact = x.astype(np.float64) @ w[:, :, 0, 0].T.astype(np.float64)
    assert np.linalg.norm(y - exact) < 4e-7 * np.linalg.norm(exact)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 9), (4, 40), (33, 2), (1, 16)])
def test_epilogue_beside_products(size: tuple[int, int], stride: int) -> None:
    """Where the rows of y, r and mask join, the epilogue is done beside products; the bits are the same."""
    C, O = 40, 70
    x, w, b = noise(2, *size, C), noise(O, C, 3, 3, seed=1), whole_tiles(noise(O, seed=2))
    taps, frame = Taps(3, 3, stride, stride, 1, 1), Frame(size[0] + 2, size[1] + 2, 1, 1)
    plane = (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1
    r = noise(2, *plane, O, seed=3)
    found = []
    for wider in (0, 3):  # columns beside the plane
        tensors = [
            np.full((2, plane[0], plane[1] + wider, channels), fill, dtype)[:, :, : plane[1]]
            for channels, fill, dtype in (
                (O, np.nan, np.float32),
                (O, np.nan, np.float32),
                (9, 255, np.uint8),
            )
        ]
        y, own_r, mask = tensors
        own_r[:] = r
        for rows in (1, 2, 3):
            end = share(C, frame, taps, 2, rows)
            conv_amx_fwd(x, pack_amx(w), b, own_r, y, mask, 0.0, 6.0, NO_SCALES, *end)
            found.append((y.copy(), mask.copy()))
    for y, mask in found[1:]:
        np.testing.assert_array_equal(y, found[0][0])
        np.testing.assert_array_equal(mask, found[0][1])
