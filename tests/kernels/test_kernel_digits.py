"""Convolutions on Intel's AMX with digits of whole numbers; skipped where the machine multiplies no bytes."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import ON_CARD, check_epilogue, check_reverse, nchw, nhwc, noise, pads_of, taps_of
from test_kernel_conv import GEOMETRIES, window

from gbp.devices.base import LoweringTarget
from gbp.devices.cpu import CPU
from gbp.graph.geometry import Axis, Window
from gbp.graph.shapes import innermost
from gbp.kernels.amx_balance import balance_of
from gbp.kernels.amx_digits import MOST_TERMS, pack_digits
from gbp.kernels.codegen import amx, emit
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.parallel.program import Program
from gbp.kernels.parallel.threads import parallel
from gbp.ops.conv.algorithms import WinogradBackward
from gbp.ops.conv.algorithms_amx import AmxBackward, AmxForward, AmxLayer
from gbp.ops.conv.algorithms_digits import DigitsBackward, DigitsForward, DigitsLayer, suits_digits
from gbp.ops.conv.algorithms_lists import ListsBackward
from gbp.ops.conv.conv import Conv
from gbp.ops.step import NO_TENSOR, UNCLIPPED, Clipped, Context, GradientSlot

pytestmark = pytest.mark.skipif(
    ON_CARD or not amx.has_bytes(), reason="this machine's AMX multiplies no bytes, or a card computes"
)

#: Channels in and out: one chunk and several, whole and in part; half a block of channels, a block, several.
CHANNELS = [(16, 16), (65, 70), (128, 17)]
PADDED = Window.resolve((9, 11), (3, 3), pads=(1, 1, 1, 1))


def window_of(size: tuple[int, int], geometry: dict[str, Any]) -> Window:
    taps, (top, left, bottom, right) = taps_of(geometry), pads_of(geometry)
    height = Axis(size[0], taps.rows, taps.stride_h, taps.dilation_h, top, bottom)
    return Window(height, Axis(size[1], taps.columns, taps.stride_w, taps.dilation_w, left, right))


def outputs(forward: Any, x: Any, threads: int = 1) -> tuple[Any, Any]:
    """Plain outputs of a layer, and the scales of the samples."""
    fixed, each = forward.scratch(threads)
    context = Context(threads, aligned((fixed + len(x) * each,)))
    y = aligned((len(x), *forward.layer.size, forward.layer.O))
    y[:] = np.nan
    forward(x, NO_TENSOR, y, UNCLIPPED, context)
    return y, context.scratch[: len(x)].copy()


def gradients(backward: Any, gy: Any, parts: int = 1) -> tuple[Any, Any]:
    """Plain gradients of a layer, and the scales of the samples."""
    fixed, each = backward.scratch(1)
    context = Context(1, aligned((fixed + len(gy) * each,)), parts=parts)
    gx = aligned((len(gy), *backward.layer.size, backward.layer.O))
    backward(gy, GradientSlot(gx, False), context)
    return gx, context.scratch[: len(gy)].copy()


def off(y: Any, exact: Any) -> float:
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(("C", "O"), CHANNELS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_forward(name: str, C: int, O: int) -> None:
    size, geometry = GEOMETRIES[name]
    x, w, b = abs(noise(3, *size, C)), noise(O, C, *geometry["kernel"], seed=1), noise(O, seed=2)
    x[1] *= 1e-6  # each sample has a scale of its own
    x[2].reshape(-1)[0] = -1  # and this one has none
    linear = nhwc(naive.conv_fwd(nchw(x), w, b, **window(geometry)))
    forward = DigitsForward(w, b, window_of(size, geometry))

    def fused(samples: slice, r: Any, y: Any, mask: Any, lo: float, hi: float, threads: int) -> None:
        fixed, each = forward.scratch(threads)
        context = Context(threads, aligned((fixed + len(y) * each,)), mask=mask)
        forward(x[samples], r, y, Clipped(lo, hi), context)

    check_epilogue(fused, linear)


@pytest.mark.parametrize(("C", "O"), CHANNELS)
@pytest.mark.parametrize("name", ["1x1", "3x3", "asymmetric", "dilated", "one pixel"])
def test_backward(name: str, C: int, O: int) -> None:
    size, geometry = GEOMETRIES[name]
    geometry = {**geometry, "stride": (1, 1)}
    own = window_of(size, geometry)
    w, gy = noise(O, C, *geometry["kernel"], seed=1), abs(noise(6, *own.output, O))
    gy[1] *= 1e-6
    gy[2].reshape(-1)[0] = -1  # the other algorithm computes this one
    gy[4] = 0
    expected = nhwc(naive.conv_bwd(nchw(gy), w, (6, C, *size), **window(geometry)))
    backward = DigitsBackward(w, own, AmxBackward(w, own))

    def run(gy: Any, samples: slice, mask: Any, gate: Any, gx: Any, accumulate: int, threads: int) -> None:
        fixed, each = backward.scratch(threads)
        context = Context(threads, aligned((fixed + len(gx) * each,)))
        backward(gy, GradientSlot(gx, bool(accumulate), mask, gate), context)

    check_reverse(run, gy, expected, targets=3)


@pytest.mark.parametrize("threads", [1, 2])
def test_each_row_chooses_its_way_when_a_recorded_pass_is_repeated(threads: int) -> None:
    """Lists, digits or Winograd: for all rows or some, and other ones than when the pass was recorded."""
    O, C, n = 70, 80, 5
    w = noise(O, C, 3, 3)
    other = WinogradBackward(w.astype(np.float64), PADDED)
    digits = DigitsBackward(w, PADDED, other)
    step = ListsBackward(w, PADDED, digits, 0.2)
    fixed, each = step.scratch(threads)
    context = Context(threads, aligned((fixed + n * each,)))
    gy, gx, one = (aligned((rows, 9, 11, channels)) for rows, channels in ((n, O), (n, C), (1, C)))
    again = Program()
    for ways in ("ddddd", "wwwww", "lllll", "ldwdl", "wdddw", "dllll", "lllwl", "ddddd"):
        for row, way in enumerate(ways):
            gy[row] = abs(noise(9, 11, O, seed=row))
            if way == "w":
                gy[row, 3, 4, 5] = -1
            elif way == "l":
                gy[row] *= noise(9, 11, O, seed=row + n) > 1.5
        gx[:] = 1
        with parallel():
            again(lambda: step(gy, GradientSlot(gx, True), context))
        for row, way in enumerate(ways):
            one[:] = 1
            alone = Context(1, aligned((fixed + each,)))
            step(gy[row : row + 1], GradientSlot(one, True), alone)
            np.testing.assert_array_equal(gx[row], one[0])
            if way != "l":
                one[:] = 1
                (digits if way == "d" else other)(gy[row : row + 1], GradientSlot(one, True), alone)
                np.testing.assert_array_equal(gx[row], one[0])
            exact = 1 + nhwc(naive.conv_bwd(nchw(gy[row : row + 1]), w, (1, C, 9, 11), pads=(1, 1, 1, 1)))
            assert off(one, exact) < 2e-6


def test_gradients_by_digits_are_exact() -> None:
    """Gradients behind a gate are mostly 0 and of very different sizes; Winograd is less exact."""
    O, C = 192, 64
    w = noise(O, C, 3, 3, seed=1)
    gy = abs(noise(2, 9, 11, O)) * np.float32(2) ** noise(2, 9, 11, O, seed=3)
    gy *= noise(2, 9, 11, O, seed=4) > 1
    backward = DigitsBackward(w, PADDED, WinogradBackward(w.astype(np.float64), PADDED))
    exact = nhwc(naive.conv_bwd(nchw(gy), w, (2, C, 9, 11), pads=(1, 1, 1, 1)))
    errors = []
    for algorithm in (backward, backward.other):
        fixed, each = algorithm.scratch(1)
        gx = aligned((2, 9, 11, C))
        algorithm(gy, GradientSlot(gx, False), Context(1, aligned((fixed + 2 * each,))))
        errors.append(off(gx, exact))
    assert errors[0] < min(5e-7, errors[1])


def test_a_sample_goes_by_digits_where_they_suit() -> None:
    """A few large values need a fourth level; what digits do not suit goes by bfloat16 parts, bit for bit."""
    C, O = 100, 40
    w, b = noise(O, C, 3, 3, seed=1), np.zeros(O)
    plain = abs(noise(1, 9, 11, C))
    samples = np.repeat(plain, 10, axis=0)
    samples[1, 3, 4, 5] = 40.0
    samples[2, 3, 4, 5] = 1000.0
    samples[3, 3, 4, 5] = np.nan
    samples[4, 3, 4, 5] = np.inf
    samples[5, 3, 4, 5] = -1e-3
    samples[6] *= np.float32(1e30)
    samples[7] *= np.float32(1e-42)
    samples[8] = 0
    samples[9, 3, 4, 5] = -0.0
    forward, parts = DigitsForward(w, b, PADDED), AmxForward(w, b, PADDED)
    y, scales = outputs(forward, samples)
    assert list(np.sign(scales)) == [1, -1, 0, 0, 0, 0, 0, 0, 1, 1]
    by_parts, _ = outputs(parts, samples)
    for n in (2, 3, 4, 5, 6, 7):
        np.testing.assert_array_equal(y[n], by_parts[n])
    for n in (0, 1, 9):
        exact = nhwc(naive.conv_fwd(nchw(samples[n : n + 1]), w, b, pads=(1, 1, 1, 1)))
        assert off(y[n : n + 1], exact) < 1e-6
    assert not y[8].any()


@pytest.mark.parametrize("dim", [1e-1, 1e-2, 1e-4])
@pytest.mark.parametrize("area", ["rows", "columns"])
def test_a_dim_area_is_as_exact_as_a_bright_one(area: str, dim: float) -> None:
    """The scale comes from the largest value, so where an area is far below it, parts are used."""
    C, O, size = 70, 40, (12, 40)
    x, w = abs(noise(1, *size, C)), noise(O, C, 3, 3, seed=1)
    where = np.s_[:, 6:] if area == "rows" else np.s_[:, :, 20:]
    x[where] *= np.float32(dim)
    forward = DigitsForward(w, np.zeros(O), Window.resolve(size, (3, 3), pads=(1, 1, 1, 1)))
    y, scales = outputs(forward, x)
    assert scales[0] != 0 or dim < 0.1
    inner = np.s_[:, 8:] if area == "rows" else np.s_[:, :, 22:]  # windows of dim pixels alone
    exact = nhwc(naive.conv_fwd(nchw(x), w, np.zeros(O), pads=(1, 1, 1, 1)))
    assert off(y[inner], exact[inner]) < 1e-6


def test_parts_of_a_sample_have_no_scales_of_their_own() -> None:
    """Planes of a volume: equal windows of two planes give equal bits, whatever else the planes hold."""
    C, O = 70, 40
    x = np.repeat(abs(noise(1, 9, 11, C)), 2, axis=0)
    x[1, :, -1] *= 3
    forward = DigitsForward(noise(O, C, 3, 3, seed=1), np.zeros(O), PADDED)
    fixed, each = forward.scratch(1)
    y = aligned((2, *forward.layer.size, O))
    forward(x, NO_TENSOR, y, UNCLIPPED, Context(1, aligned((fixed + 2 * each,)), parts=2))
    np.testing.assert_array_equal(y[0, :, :-2], y[1, :, :-2])
    w, gy = noise(C, O, 3, 3, seed=1), x
    gx, _ = gradients(DigitsBackward(w, PADDED, AmxBackward(w, PADDED)), gy, parts=2)
    np.testing.assert_array_equal(gx[0, :, :-2], gx[1, :, :-2])


def test_values_of_many_sizes_and_zeros() -> None:
    """Most values are 0 and the rest of very different sizes, as behind a rectifier."""
    C, O = 192, 64
    x = abs(noise(4, 9, 11, C)) * np.float32(2) ** noise(4, 9, 11, C, seed=3)
    x *= noise(4, 9, 11, C, seed=4) > 1
    w, b = noise(O, C, 3, 3, seed=1), np.zeros(O)
    y, scales = outputs(DigitsForward(w, b, PADDED), x)
    assert (scales < 0).all()
    assert off(y, nhwc(naive.conv_fwd(nchw(x), w, b, pads=(1, 1, 1, 1)))) < 1e-6


def test_bits_do_not_depend_on_the_batch_and_the_threads() -> None:
    """Where few samples share channels among threads, and many share rows."""
    x, w, b = abs(noise(3, 9, 11, 130)), noise(128, 130, 3, 3, seed=1), noise(128, seed=2)
    x[1, 0, 0, 0] = 40.0
    x[2, 0, 0, 0] = -1.0
    forward = DigitsForward(w, b, PADDED)
    alone = np.concatenate([outputs(forward, x[n : n + 1])[0] for n in range(3)])
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(outputs(forward, x, threads)[0], alone)


def test_equal_windows_give_equal_bits() -> None:
    """A plane of two kinds of pixels; the same windows, wherever they lie."""
    rng = np.random.default_rng(0)
    kinds = np.kron(rng.integers(0, 2, (5, 6)), np.ones((5, 5), np.int64))
    x = abs(noise(2, 70))[kinds][None]
    forward = DigitsForward(noise(33, 70, 3, 3, seed=1), np.zeros(33), Window.resolve(kinds.shape, (3, 3)))
    y, scales = outputs(forward, x)
    assert scales[0] != 0
    seen = np.lib.stride_tricks.sliding_window_view(kinds, (3, 3)).reshape(-1, 9)
    rows = np.ascontiguousarray(y.reshape(len(seen), -1)).view(np.int32)
    distinct = len(np.unique(seen, axis=0))
    assert distinct < len(seen)
    assert len(np.unique(np.concatenate([seen, rows], axis=1), axis=0)) == distinct


def test_digits_are_the_whole() -> None:
    """The digits of a weight add up to it, to half of a whole number."""
    w = noise(40, 70, 2, 3)
    w[5] = 0
    blocks, size = 3, 3 * 2 * 2 * 3 * amx.PARTS * amx.TILE_BYTES
    packed = pack_digits(w, balance_of(w).divisors).view(np.uint8)
    numbers = packed[size:].view(np.float32)
    worth = numbers[:40]
    assert np.all(numbers[16 * blocks :] == 1)  # noise is balanced
    # block, chunk, KH, KW, digit, k, o, i
    digits = packed[:size].view(np.int8).reshape(blocks, 2, 2, 3, 3, 16, 16, 4).astype(np.float64)
    whole = np.einsum("bcyxdkoi,d->bocikyx", digits, 2.0 ** np.array([16, 8, 0])).reshape(48, 128, 2, 3)
    assert not whole[40:].any()
    assert not whole[:, 70:].any()
    assert abs(whole[:40, :70] - w / worth[:, None, None, None].astype(np.float64)).max() <= 0.5
    assert abs(digits).max() <= 128


#: Values of these sizes in the channels, and weights of the inverse sizes: the same function.
SIZES = np.logspace(0, -6, 70).astype(np.float32)


def test_channels_of_small_values_count_as_their_weights_do() -> None:
    """Networks that scale channels, and the next weights back, lose no accuracy."""
    x, w = abs(noise(2, 9, 11, 70)) * SIZES, noise(40, 70, 3, 3, seed=1) / SIZES[:, None, None]
    forward = DigitsForward(w, np.zeros(40), PADDED)
    y, scales = outputs(forward, x)
    assert np.all(scales > 0)
    assert off(y, nhwc(naive.conv_fwd(nchw(x), w, np.zeros(40), pads=(1, 1, 1, 1)))) < 5e-7
    gy, w = x, np.ascontiguousarray(w.swapaxes(0, 1))
    backward = DigitsBackward(w, PADDED, AmxBackward(w, PADDED))
    gx, scales = gradients(backward, gy)
    assert np.all(scales > 0)
    assert off(gx, nhwc(naive.conv_bwd(nchw(gy), w, (2, 40, 9, 11), pads=(1, 1, 1, 1)))) < 5e-7


def test_large_weights_of_a_dead_channel_hide_no_others() -> None:
    x, w = abs(noise(1, 9, 11, 70)), noise(40, 70, 3, 3, seed=1)
    x[..., 5] = 0
    w[:, 5] *= 200
    y, scales = outputs(DigitsForward(w, np.zeros(40), PADDED), x)
    assert scales[0] != 0
    assert off(y, nhwc(naive.conv_fwd(nchw(x), w, np.zeros(40), pads=(1, 1, 1, 1)))) < 5e-7


def test_a_loud_output_channel_hides_no_others() -> None:
    w = noise(40, 70, 3, 3)
    w[:, 3] *= np.float32(0.03)
    w[7] *= np.float32(1000)
    quiet = np.delete(w, 7, axis=0)
    assert balance_of(w).spread == pytest.approx(balance_of(quiet).spread, rel=0.05)


def test_values_whose_squares_are_too_small_are_no_zeros() -> None:
    x, w = abs(noise(2, 9, 40, 70)) * np.float32(1e-13), noise(40, 70, 3, 3, seed=1)
    x[0, :, 20:] *= np.float32(1e-12)
    x[1, :, 20:] = 0
    window = Window.resolve((9, 40), (3, 3), pads=(1, 1, 1, 1))
    y, scales = outputs(DigitsForward(w, np.zeros(40), window), x)
    assert scales[0] == 0 < scales[1]
    assert y[0, :, 22:].all()


def test_which_weights_suit() -> None:
    w = noise(40, 70, 3, 3)
    assert suits_digits(balance_of(w))
    assert 3 < balance_of(w).spread < 6
    for value in (1000.0, np.inf, np.nan, 1e30):
        other = w.copy()
        other[3, 4, 1, 1] = value
        assert not suits_digits(balance_of(other))
    other = w.copy()
    other[5] *= np.float32(1e-6)
    other[5, 7, 1, 1] = 1  # and input channel 7 may be 0
    assert not suits_digits(balance_of(other))
    assert not suits_digits(balance_of(np.zeros_like(w)))
    assert not suits_digits(balance_of(w * np.float32(1e-30)))


def test_which_layers_go_by_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones whose weights suit, on a machine that multiplies bytes."""

    def step_of(C: int, size: int, largest: float) -> Any:
        w = noise(C, C, 3, 3)
        w[:, 0, 0, 0] *= largest  # forward, and backward
        w[0, :, 0, 0] *= largest
        window = Window.resolve((size, size), (3, 3), pads=(1, 1, 1, 1))
        op = Conv(w, np.zeros(C), window, 1)
        return op.lower(((1, C, size, size),), (1, C, size, size), innermost(1, 4), LoweringTarget(CPU))

    def algorithm(C: int, size: int, largest: float = 1.0) -> str:
        return str(step_of(C, size, largest).algorithm).split()[1]

    def backward(C: int, size: int, largest: float = 1.0) -> Any:
        return step_of(C, size, largest).bwd[0].dense

    assert algorithm(128, 64) == "digits"
    assert isinstance(backward(256, 14), DigitsBackward)
    assert not isinstance(backward(256, 14, largest=1e4), DigitsBackward)
    assert algorithm(128, 64, largest=1e4) == "amx"
    assert algorithm(64, 14) == "amx"
    monkeypatch.setattr(emit, "HAS_AMX_BYTES", False)
    assert algorithm(128, 64) == "amx"


def test_the_longest_sums_fit() -> None:
    """The largest values and weights: the third level comes close to the largest int32."""
    window = Window.resolve((1, 3), (1, 1))
    assert DigitsLayer.forward(64, MOST_TERMS + 1, window).cost == np.inf
    C = MOST_TERMS // 64 * 64
    x, w = np.full((1, 1, 3, C), 255.5, np.float32), np.full((64, C, 1, 1), 127.5, np.float32)
    w[::2] *= -1
    y, scales = outputs(DigitsForward(w, np.zeros(64), window), x)
    assert scales[0] > 0
    assert off(y, x.astype(np.float64) @ w[:, :, 0, 0].T.astype(np.float64)) < 1e-6


@pytest.mark.parametrize(
    ("O", "C", "side", "kernel", "digits"),
    [
        (1024, 256, 14, 1, True),
        (256, 1024, 14, 1, True),
        (256, 64, 13, 3, True),
        (64, 16, 55, 3, False),
        (64, 512, 13, 1, False),
    ],
)
def test_layers_with_enough_work_go_by_digits(O: int, C: int, side: int, kernel: int, digits: bool) -> None:
    """Layers of ResNet-50 and SqueezeNet, as they were measured."""
    pad = kernel // 2
    window = Window.resolve((side, side), (kernel, kernel), pads=(pad, pad, pad, pad))
    by_digits, by_parts = DigitsLayer.forward(O, C, window), AmxLayer.forward(O, C, window)
    assert (by_digits.cost < by_parts.cost) == digits
