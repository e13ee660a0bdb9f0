"""Every operator, forward and backward, slow and obvious: the oracle that all kernels are compared with.

Written from the ONNX operator specification (https://onnx.ai/onnx/operators/) and from the papers, not from
the package: it imports NumPy and nothing of gbp. Where an index decides the result (convolution, pooling,
local response normalization) a loop spells the index out; where a NumPy expression *is* the definition (Relu,
Add), it stands alone. Convolutions and pools loop over the taps of the kernel only, and one expression covers
all windows: whole networks run through here, for which a second loop would be too slow.

Conventions
    Images are (N, C, H, W), as in ONNX. Any float dtype comes in, float64 is computed and returned.
    x, w, b are inputs, y outputs; gx, gy are the gradients of one scalar with respect to x and y.
    ``pads`` of a convolution or pooling is (top, left, bottom, right): ONNX's order for two axes.
    ``<op>_bwd`` returns Jᵀ·gy, with J = ∂y/∂x at the point where the forward was run. The geometry keywords
    of ``<op>_fwd`` and ``<op>_bwd`` are the same, so that one dict serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Switches = npt.NDArray[np.int64]
Shape = Sequence[int]
Pair = Sequence[int]
Pads = Sequence[int]
Cells = tuple[slice, slice]


def f64(x: npt.ArrayLike) -> Array:
    """Return x in float64; an array that already is float64 is not copied."""
    return np.asarray(x, dtype=np.float64)


# --- Geometry: which input cell meets which kernel cell -----------------------------------------------------


def resolve_pads(
    auto_pad: str, in_size: int, kernel: int, stride: int = 1, dilation: int = 1
) -> tuple[int, int]:
    """Turn ``auto_pad`` into (begin, end) along one axis.

    SAME asks for out = ⌈in / stride⌉ windows. They span (out − 1)·stride + extent cells, where a window's
    extent is (kernel − 1)·dilation + 1. What the input lacks is split between both ends; an odd cell goes to
    the end for SAME_UPPER, to the beginning for SAME_LOWER. Windows that end before the input does lack
    nothing. VALID pads nothing.

    Source: ONNX Conv and MaxPool, attributes ``auto_pad`` and ``pads`` ("greater than or equal to 0").
    """
    if auto_pad == "VALID":
        return 0, 0
    out_size = math.ceil(in_size / stride)
    extent = (kernel - 1) * dilation + 1
    lacking = max(0, (out_size - 1) * stride + extent - in_size)
    smaller, larger = lacking // 2, lacking - lacking // 2
    return {"SAME_UPPER": (smaller, larger), "SAME_LOWER": (larger, smaller)}[auto_pad]


def pool_output_size(
    in_size: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    pad_begin: int = 0,
    pad_end: int = 0,
    ceil_mode: bool = False,
) -> int:
    """Count the windows along one axis; a convolution's count is the same with ``ceil_mode=False``.

        out = round((in + pad_begin + pad_end − extent) / stride) + 1,    extent = (kernel − 1)·dilation + 1

    ``round`` is the floor, or the ceiling in ``ceil_mode``. A window that the ceiling adds does not exist if
    it starts in the padding at the end, or beyond it.

    Source: ONNX MaxPool, "Sliding windows that would start in the right padded region are ignored."
    """
    room = in_size + pad_begin + pad_end - ((kernel - 1) * dilation + 1)
    if not ceil_mode:
        return room // stride + 1
    out_size = math.ceil(room / stride) + 1
    while (out_size - 1) * stride >= pad_begin + in_size:
        out_size -= 1
    return out_size


class Geometry(NamedTuple):
    """What a convolution or pooling does along (H, W); pads are (top, left, bottom, right)."""

    kernel: Pair
    stride: Pair
    pads: Pads
    dilation: Pair


def output_hw(in_hw: Pair, geometry: Geometry, *, ceil_mode: bool = False) -> list[int]:
    """Count the windows along H and along W: [OH, OW]."""
    kernel, stride, pads, dilation = geometry
    return [
        pool_output_size(
            in_hw[axis],
            kernel[axis],
            stride[axis],
            dilation[axis],
            pad_begin=pads[axis],
            pad_end=pads[axis + 2],
            ceil_mode=ceil_mode,
        )
        for axis in (0, 1)
    ]


def axis_cells(k: int, in_size: int, out_size: int, geometry: Geometry, axis: int) -> tuple[slice, slice]:
    """Select, along one axis, the windows whose tap k lies on the input, and the input cells where it lies.

    Tap k of window o lies on cell i = o·stride − begin + k·dilation. The input has 0 ≤ i < in_size.
    """
    _, stride, begin, dilation = (field[axis] for field in geometry)
    pairs = [(o, o * stride - begin + k * dilation) for o in range(out_size)]
    pairs = [(o, i) for o, i in pairs if 0 <= i < in_size]
    if not pairs:
        return slice(0), slice(0)
    (first_o, first_i), (last_o, last_i) = pairs[0], pairs[-1]
    return slice(first_o, last_o + 1), slice(first_i, last_i + 1, stride)


def taps(in_hw: Pair, out_hw: Pair, geometry: Geometry) -> Iterator[tuple[Pair, Cells, Cells]]:
    """Walk the taps in row-major order: ((kh, kw), windows, cells).

    For y[:, :, *windows] and x[:, :, *cells], which have one shape, the tap (kh, kw) of a window lies on the
    cell at the same place. Windows whose tap lies on the padding are left out.
    """
    rows, columns = (
        [axis_cells(k, in_hw[axis], out_hw[axis], geometry, axis) for k in range(geometry.kernel[axis])]
        for axis in (0, 1)
    )
    for kh, (oh, ih) in enumerate(rows):
        for kw, (ow, iw) in enumerate(columns):
            yield (kh, kw), (oh, ow), (ih, iw)


# --- Conv ---------------------------------------------------------------------------------------------------


def by_group(x: Array, axis: int, group: int) -> Array:
    """Return a view of x whose ``axis``, the channels, is split in two: groups, channels of a group."""
    return x.reshape(*x.shape[:axis], group, x.shape[axis] // group, *x.shape[axis + 1 :])


def mix_channels(w: Array, x: Array) -> Array:
    """Multiply the channels of every cell by their group's matrix: w (G, M, C), x (N, G, C, …).

    y[n, g, m, …] = Σ_c w[g, m, c] · x[n, g, c, …]
    """
    y = w @ x.reshape(*x.shape[:3], -1)
    return y.reshape(*y.shape[:3], *x.shape[3:])


def conv_fwd(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    b: npt.ArrayLike | None = None,
    *,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    group: int = 1,
) -> Array:
    """Convolve (cross-correlate): x (N, C, H, W), w (M, C/group, KH, KW), b (M,) → y (N, M, OH, OW).

        y[n, m, oh, ow] = b[m] + Σ_{c, kh, kw} x[n, c, ih, iw] · w[m, c, kh, kw]
        ih = oh·stride − top + kh·dilation,  iw likewise;  x is 0 outside

    c runs over the input channels of m's group. The loop walks the taps (kh, kw), and puts the cells of each
    into columns[n, group, c, kh, kw, oh, ow]; one product of matrices is the sum over c, kh and kw.

    Source: ONNX Conv.
    """
    x, w = f64(x), f64(w)
    (N, C, *in_hw), (M, group_C, *kernel) = x.shape, w.shape
    assert group * group_C == C
    geometry = Geometry(kernel, stride, pads, dilation)
    out_hw = output_hw(in_hw, geometry)
    xg = by_group(x, 1, group)
    columns = np.zeros((*xg.shape[:3], *kernel, *out_hw))
    for tap, windows, cells in taps(in_hw, out_hw, geometry):
        columns[..., *tap, *windows] = xg[..., *cells]
    rows = w.reshape(group, M // group, -1)
    y = mix_channels(rows, columns.reshape(N, group, rows.shape[2], *out_hw)).reshape(N, M, *out_hw)
    return y if b is None else y + f64(b)[:, None, None]


def conv_bwd(
    gy: npt.ArrayLike,
    w: npt.ArrayLike,
    x_shape: Shape,
    *,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    group: int = 1,
) -> Array:
    """Transpose ``conv_fwd``: gy (N, M, OH, OW), w (M, C/group, KH, KW) → gx of ``x_shape`` (N, C, H, W).

        gx[n, c, ih, iw] = Σ_{m, oh, ow, kh, kw} gy[n, m, oh, ow] · w[m, c, kh, kw]

    The sum runs over every product that x[n, c, ih, iw] took part in: the forward's loop, with the roles of
    x and y exchanged.
    """
    gy, w = f64(gy), f64(w)
    (_, C, *in_hw), (_, group_C, *kernel) = x_shape, w.shape
    assert group * group_C == C
    geometry = Geometry(kernel, stride, pads, dilation)
    gx = np.zeros(x_shape)
    gxg, gyg = by_group(gx, 1, group), by_group(gy, 1, group)
    rows = w.reshape(group, len(w) // group, -1).swapaxes(1, 2)
    columns = mix_channels(rows, gyg).reshape(*gxg.shape[:3], *kernel, *gy.shape[2:])
    for tap, windows, cells in taps(in_hw, gy.shape[2:], geometry):
        gxg[..., *cells] += columns[..., *tap, *windows]
    return gx


# --- Pooling ------------------------------------------------------------------------------------------------


def maxpool_fwd(
    x: npt.ArrayLike,
    *,
    kernel: Pair,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Array, Switches]:
    """Take the maximum of each window: x (N, C, H, W) → y, switches, both (N, C, OH, OW).

        y[n, c, oh, ow] = max_{kh, kw} x[n, c, oh·stride − top + kh·dilation, …]
        switches[n, c, oh, ow] = kh·KW + kw of the first maximum in row-major order

    Padding never wins, not even over −∞. A window that holds nothing but padding has no maximum: ValueError.

    Source: ONNX MaxPool, "maximum number of elements exclude pad". Switches: Zeiler & Fergus, "Visualizing
    and Understanding Convolutional Networks", 2013, arXiv:1311.2901, section 2.1.
    """
    x = f64(x)
    N, C, *in_hw = x.shape
    geometry = Geometry(kernel, stride, pads, dilation)
    y = np.zeros((N, C, *output_hw(in_hw, geometry, ceil_mode=ceil_mode)))
    switches = np.full(y.shape, -1)  # none so far
    for (kh, kw), windows, cells in taps(in_hw, y.shape[2:], geometry):
        best, switch, cell = y[:, :, *windows], switches[:, :, *windows], x[:, :, *cells]
        wins = (switch < 0) | (cell > best)
        best[wins], switch[wins] = cell[wins], kh * kernel[1] + kw
    refuse_padding(switches[0, 0] >= 0)
    return y, switches


def refuse_padding(counts: Array) -> None:
    """Raise ValueError if a window counts no cell, counts (OH, OW)."""
    for oh, ow in np.argwhere(counts == 0)[:1]:
        raise ValueError(f"window ({oh}, {ow}) holds only padding")


def maxpool_bwd(
    gy: npt.ArrayLike,
    switches: Switches,
    x_shape: Shape,
    *,
    kernel: Pair,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Array:
    """Unpool: send each gy to the cell that its switch names, gy (N, C, OH, OW) → gx of ``x_shape``.

    A cell that wins several overlapping windows receives their sum. ``ceil_mode`` is here because the forward
    has it; the shape of gy already tells.

    Source: Zeiler & Fergus 2013, section 2.1, "Unpooling".
    """
    gy = f64(gy)
    gx = np.zeros(x_shape)
    n, c, oh, ow = np.indices(gy.shape)
    kh, kw = np.divmod(switches, kernel[1])
    ih = oh * stride[0] - pads[0] + kh * dilation[0]
    iw = ow * stride[1] - pads[1] + kw * dilation[1]
    np.add.at(gx, (n, c, ih, iw), gy)
    return gx


def averagepool_divisors(in_hw: Pair, out_hw: Pair, geometry: Geometry, *, count_include_pad: bool) -> Array:
    """Count the cells that each window averages: (OH, OW).

    Cells of the input count; with ``count_include_pad`` cells of the padding count too. What ``ceil_mode``
    lets hang out beyond the padding never counts. So the count with padding is the count without it over an
    input that has grown by its pads.
    """
    if count_include_pad:
        (H, W), (top, left, bottom, right) = in_hw, geometry.pads
        in_hw, geometry = (top + H + bottom, left + W + right), geometry._replace(pads=(0, 0, 0, 0))
    divisors = np.zeros(out_hw)
    for _, windows, _ in taps(in_hw, out_hw, geometry):
        divisors[windows] += 1
    refuse_padding(divisors)
    return divisors


def averagepool_fwd(
    x: npt.ArrayLike,
    *,
    kernel: Pair,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> Array:
    """Average each window: x (N, C, H, W) → y (N, C, OH, OW).

        y[n, c, oh, ow] = Σ_{kh, kw} x[n, c, oh·stride − top + kh·dilation, …] / divisor[oh, ow]

    See ``averagepool_divisors`` for what is counted. A window with nothing to count raises ValueError.

    Source: ONNX AveragePool.
    """
    x = f64(x)
    N, C, *in_hw = x.shape
    geometry = Geometry(kernel, stride, pads, dilation)
    y = np.zeros((N, C, *output_hw(in_hw, geometry, ceil_mode=ceil_mode)))
    for _, windows, cells in taps(in_hw, y.shape[2:], geometry):
        y[:, :, *windows] += x[:, :, *cells]
    return y / averagepool_divisors(in_hw, y.shape[2:], geometry, count_include_pad=count_include_pad)


def averagepool_bwd(
    gy: npt.ArrayLike,
    x_shape: Shape,
    *,
    kernel: Pair,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> Array:
    """Transpose ``averagepool_fwd``: gy (N, C, OH, OW) → gx of ``x_shape`` (N, C, H, W).

    Every cell of a window receives gy / divisor. ``ceil_mode`` is here because the forward has it; the shape
    of gy already tells.
    """
    gy = f64(gy)
    in_hw, out_hw = x_shape[2:], gy.shape[2:]
    geometry = Geometry(kernel, stride, pads, dilation)
    share = gy / averagepool_divisors(in_hw, out_hw, geometry, count_include_pad=count_include_pad)
    gx = np.zeros(x_shape)
    for _, windows, cells in taps(in_hw, out_hw, geometry):
        gx[:, :, *cells] += share[:, :, *windows]
    return gx


def global_averagepool_fwd(x: npt.ArrayLike) -> Array:
    """Average each channel: x (N, C, H, W) → y (N, C, 1, 1). Source: ONNX GlobalAveragePool."""
    return f64(x).mean(axis=(2, 3), keepdims=True)


def global_averagepool_bwd(gy: npt.ArrayLike, x_shape: Shape) -> Array:
    """Share each gy equally among the H·W cells of its channel: gy (N, C, 1, 1) → gx of ``x_shape``."""
    H, W = x_shape[2:]
    return np.broadcast_to(f64(gy) / (H * W), x_shape).copy()


def global_maxpool_fwd(x: npt.ArrayLike) -> tuple[Array, Switches]:
    """Take the maximum of each channel: x (N, C, H, W) → y, switches, both (N, C, 1, 1).

    One window as large as the image, so a switch is h·W + w of the first maximum. Source: ONNX GlobalMaxPool.
    """
    return maxpool_fwd(x, kernel=np.shape(x)[2:])


def global_maxpool_bwd(gy: npt.ArrayLike, switches: Switches, x_shape: Shape) -> Array:
    """Unpool: send each gy to the cell its switch names, gy (N, C, 1, 1) → gx of ``x_shape``."""
    return maxpool_bwd(gy, switches, x_shape, kernel=x_shape[2:])


# --- Rectifiers, and the rules that act on them -------------------------------------------------------------


# What each rule multiplies the gradient g by at a rectifier with input x, as (forward_gate, gradient_gate).
RULES: dict[str, tuple[bool, bool]] = {
    # 1[x > 0], the gradient itself. Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks:
    # Visualising Image Classification Models and Saliency Maps", 2013, arXiv:1312.6034, sections 3 and 4.
    "vanilla": (True, False),
    # 1[g > 0], g goes through the rectifier like a signal. Zeiler & Fergus, "Visualizing and Understanding
    # Convolutional Networks", 2013, arXiv:1311.2901, section 2.1, "Rectification".
    "deconvnet": (False, True),
    # 1[x > 0] · 1[g > 0], both at once. Springenberg, Dosovitskiy, Brox & Riedmiller, "Striving for
    # Simplicity: The All Convolutional Net", 2014, arXiv:1412.6806, figure 1.
    "guided": (True, True),
}


def relu_fwd(x: npt.ArrayLike) -> Array:
    """Rectify, any shape: y = max(x, 0). Source: ONNX Relu."""
    return np.maximum(f64(x), 0.0)


def clip_fwd(x: npt.ArrayLike, lo: float = -math.inf, hi: float = math.inf) -> Array:
    """Limit to an interval, any shape: y = min(hi, max(lo, x)); hi wins where lo > hi. Source: ONNX Clip."""
    return np.minimum(hi, np.maximum(lo, f64(x)))


def rectifier_bwd(
    gy: npt.ArrayLike,
    x: npt.ArrayLike,
    *,
    lo: float = 0.0,
    hi: float = math.inf,
    forward_gate: bool,
    gradient_gate: bool,
) -> Array:
    """Send gy back through y = clip(x, lo, hi) under a rule; gy, x and gx have one shape.

        gx = gy  where (lo < x < hi, if forward_gate) and (gy > 0, if gradient_gate),  else 0

    Relu is lo = 0, hi = ∞. At a kink, where x equals lo or hi, the forward gate is shut. ``RULES`` has the
    published pairs of gates.
    """
    gy, x = f64(gy), f64(x)
    passes = np.ones(gy.shape, bool)
    if forward_gate:
        passes &= (lo < x) & (x < hi)
    if gradient_gate:
        passes &= gy > 0
    return np.where(passes, gy, 0.0)


# --- Normalization ------------------------------------------------------------------------------------------


def per_channel(v: npt.ArrayLike, ndim: int) -> Array:
    """Reshape (C,) to (C, 1, …, 1), so that it broadcasts along axis 1 of an array with ``ndim`` axes."""
    return f64(v).reshape(-1, *[1] * (ndim - 2))


def batchnorm_fwd(
    x: npt.ArrayLike,
    scale: npt.ArrayLike,
    bias: npt.ArrayLike,
    mean: npt.ArrayLike,
    var: npt.ArrayLike,
    *,
    epsilon: float = 1e-5,
) -> Array:
    """Normalize with stored statistics: x (N, C, …), the others (C,) → y (N, C, …).

        y[n, c] = scale[c] · (x[n, c] − mean[c]) / √(var[c] + ε) + bias[c]

    Source: ONNX BatchNormalization, ``training_mode=0``; Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2.
    """
    x = f64(x)
    scale, bias, mean, var = (per_channel(v, x.ndim) for v in (scale, bias, mean, var))
    return scale * (x - mean) / np.sqrt(var + epsilon) + bias


def batchnorm_bwd(
    gy: npt.ArrayLike, scale: npt.ArrayLike, var: npt.ArrayLike, *, epsilon: float = 1e-5
) -> Array:
    """Transpose ``batchnorm_fwd``: gx[n, c] = gy[n, c] · scale[c] / √(var[c] + ε), gy and gx (N, C, …)."""
    gy = f64(gy)
    return gy * per_channel(scale, gy.ndim) / np.sqrt(per_channel(var, gy.ndim) + epsilon)


def lrn_region(c: int, C: int, size: int) -> range:
    """List the channels that normalize channel c: max(0, c − ⌊(size−1)/2⌋) … min(C−1, c + ⌈(size−1)/2⌉)."""
    first = max(0, c - math.floor((size - 1) / 2))
    last = min(C - 1, c + math.ceil((size - 1) / 2))
    return range(first, last + 1)


def lrn_denominator(x: Array, *, size: int, alpha: float, bias: float) -> Array:
    """Compute d[n, c] = bias + α/size · Σ_{i ∈ region(c)} x[n, i]², of the shape of x."""
    C = x.shape[1]
    square_sum = np.zeros(x.shape)
    for c in range(C):
        for i in lrn_region(c, C, size):
            square_sum[:, c] += x[:, i] ** 2
    return bias + alpha / size * square_sum


def lrn_fwd(
    x: npt.ArrayLike, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """Normalize across neighbouring channels: x, y (N, C, …).

        y[n, c] = x[n, c] · d[n, c]^−β,    d[n, c] = bias + α/size · Σ_{i ∈ region(c)} x[n, i]²

    Source: ONNX LRN; Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", 2012, section 3.3, where α is not divided by the size.
    """
    x = f64(x)
    return x * lrn_denominator(x, size=size, alpha=alpha, bias=bias) ** -beta


def lrn_bwd(
    gy: npt.ArrayLike,
    x: npt.ArrayLike,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
) -> Array:
    """Differentiate ``lrn_fwd`` exactly: gy, x, gx (N, C, …).

        ∂y[c] / ∂x[i] = [i = c] · d[c]^−β  −  [i ∈ region(c)] · x[c] · β · d[c]^(−β−1) · 2α/size · x[i]

    The sum for gx[i] runs over the c whose region holds i. For an even size that is not region(i), which
    reaches one channel further up than down. Scattering from c to i is right without a thought.
    """
    gy, x = f64(gy), f64(x)
    C = x.shape[1]
    d = lrn_denominator(x, size=size, alpha=alpha, bias=bias)
    gx = gy * d**-beta
    for c in range(C):
        for i in lrn_region(c, C, size):
            gx[:, i] -= gy[:, c] * x[:, c] * beta * d[:, c] ** (-beta - 1) * 2 * alpha / size * x[:, i]
    return gx


# --- Matrix products ----------------------------------------------------------------------------------------


def gemm_fwd(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    c: npt.ArrayLike | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: bool = False,
    trans_b: bool = False,
) -> Array:
    """Compute y = α·A·B + β·c: A (M, K) is a or aᵀ, B (K, N) is b or bᵀ, c broadcasts to y (M, N).

    Source: ONNX Gemm.
    """
    A = f64(a).T if trans_a else f64(a)
    B = f64(b).T if trans_b else f64(b)
    y = alpha * (A @ B)
    return y if c is None else y + beta * f64(c)


def gemm_bwd(
    gy: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    alpha: float = 1.0,
    trans_a: bool = False,
    trans_b: bool = False,
) -> Array:
    """Return ``gemm_fwd``'s gradient with respect to a: gA = α·gy·Bᵀ, gy (M, N) → ga of the shape of a."""
    B = f64(b).T if trans_b else f64(b)
    gA = alpha * (f64(gy) @ B.T)
    return gA.T if trans_a else gA


def matmul_fwd(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Multiply matrices, leading axes broadcast: a (…, M, K), b (…, K, N) → y (…, M, N).

    A 1-D a is a row and a 1-D b a column, whose axis of length one y lacks. Source: ONNX MatMul, which is
    numpy.matmul.
    """
    return np.matmul(f64(a), f64(b))


def matmul_bwd(gy: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the gradients of ``matmul_fwd`` with respect to a and b, each of its operand's shape.

    ga = gy·bᵀ and gb = aᵀ·gy, with broadcast leading axes summed back.
    """
    gy, a, b = f64(gy), f64(a), f64(b)
    if b.ndim == 1:
        gy = gy[..., None]
    if a.ndim == 1:
        gy = gy[..., None, :]
    A = a[None, :] if a.ndim == 1 else a
    B = b[:, None] if b.ndim == 1 else b
    ga = unbroadcast(gy @ B.swapaxes(-1, -2), A.shape).reshape(a.shape)
    gb = unbroadcast(A.swapaxes(-1, -2) @ gy, B.shape).reshape(b.shape)
    return ga, gb


# --- Elementwise, with broadcasting -------------------------------------------------------------------------


def unbroadcast(g: npt.ArrayLike, shape: Shape) -> Array:
    """Sum g back to ``shape``, from which it was broadcast: the transpose of numpy.broadcast_to."""
    added = tuple(range(np.ndim(g) - len(shape)))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return f64(g).sum(axis=added).sum(axis=stretched, keepdims=True)


def add_fwd(*xs: npt.ArrayLike) -> Array:
    """Add: y = x₁ + x₂ + …, broadcast. Source: ONNX Add (two operands) and Sum (any number)."""
    return sum((f64(x) for x in xs[1:]), start=f64(xs[0]))


def add_bwd(gy: npt.ArrayLike, *shapes: Shape) -> list[Array]:
    """Return the gradient of ``add_fwd`` for each operand, given their shapes: gy, summed back."""
    return [unbroadcast(gy, shape) for shape in shapes]


def mul_fwd(*xs: npt.ArrayLike) -> Array:
    """Multiply: y = x₁ · x₂ · …, broadcast. Source: ONNX Mul (two operands)."""
    return math.prod((f64(x) for x in xs[1:]), start=f64(xs[0]))


def mul_bwd(gy: npt.ArrayLike, *xs: npt.ArrayLike) -> list[Array]:
    """Return the gradient of ``mul_fwd`` for each operand: gy times all the others, summed back."""
    return [unbroadcast(mul_fwd(gy, *xs[:i], *xs[i + 1 :]), np.shape(x)) for i, x in enumerate(xs)]


# --- Moving cells about -------------------------------------------------------------------------------------


def concat_fwd(*xs: npt.ArrayLike, axis: int) -> Array:
    """Put the operands one after the other along ``axis``. Source: ONNX Concat."""
    return np.concatenate([f64(x) for x in xs], axis=axis)


def concat_bwd(gy: npt.ArrayLike, *, sizes: Sequence[int], axis: int) -> list[Array]:
    """Return each operand's gradient, given their sizes along ``axis``: its piece of gy."""
    return split_fwd(gy, sizes=sizes, axis=axis)


def split_fwd(x: npt.ArrayLike, *, sizes: Sequence[int], axis: int) -> list[Array]:
    """Cut x into pieces of the given sizes along ``axis``. Source: ONNX Split."""
    stops = np.cumsum(sizes)
    return [
        np.take(f64(x), range(stop - size, stop), axis=axis) for size, stop in zip(sizes, stops, strict=True)
    ]


def split_bwd(*gys: npt.ArrayLike, axis: int) -> Array:
    """Return the gradient of the x that was split: its pieces' gradients, one after the other."""
    return concat_fwd(*gys, axis=axis)


def pad_cells(x_shape: Shape, pads: Sequence[int]) -> Iterator[tuple[Shape, Shape]]:
    """Pair each cell of x with its cell in the padded y, leaving out what negative pads remove.

    pads = (begin of axis 0, begin of axis 1, …, end of axis 0, end of axis 1, …).
    """
    begins, y_shape = pads[: len(x_shape)], padded_shape(x_shape, pads)
    for i in np.ndindex(*x_shape):
        o = tuple(index + begin for index, begin in zip(i, begins, strict=True))
        if all(0 <= index < size for index, size in zip(o, y_shape, strict=True)):
            yield i, o


def padded_shape(x_shape: Shape, pads: Sequence[int]) -> Shape:
    """Return the shape of x with ``pads`` (all begins, then all ends) added."""
    begins, ends = pads[: len(x_shape)], pads[len(x_shape) :]
    return tuple(begin + size + end for begin, size, end in zip(begins, x_shape, ends, strict=True))


def pad_fwd(x: npt.ArrayLike, pads: Sequence[int], value: float = 0.0) -> Array:
    """Surround x with ``value``: y[i + begin] = x[i]; a negative pad removes cells instead.

    Source: ONNX Pad, ``mode="constant"``, over all axes.
    """
    x = f64(x)
    y = np.full(padded_shape(x.shape, pads), value, dtype=np.float64)
    for i, o in pad_cells(x.shape, pads):
        y[o] = x[i]
    return y


def pad_bwd(gy: npt.ArrayLike, pads: Sequence[int], x_shape: Shape) -> Array:
    """Transpose ``pad_fwd``: gx[i] = gy[i + begin], or 0 where the forward removed the cell."""
    gy = f64(gy)
    gx = np.zeros(x_shape)
    for i, o in pad_cells(x_shape, pads):
        gx[i] = gy[o]
    return gx


# --- Softmax ------------------------------------------------------------------------------------------------


def softmax_fwd(x: npt.ArrayLike, axis: int = -1) -> Array:
    """Compute y = exp(x) / Σ exp(x) along one axis. Source: ONNX Softmax, opset 13 and later."""
    return np.exp(logsoftmax_fwd(x, axis))


def softmax_bwd(gy: npt.ArrayLike, y: npt.ArrayLike, axis: int = -1) -> Array:
    """Differentiate ``softmax_fwd``, given its output y.

    gx = y·(gy − Σ gy·y), since ∂yⱼ/∂xᵢ = yⱼ·([i=j] − yᵢ).
    """
    gy, y = f64(gy), f64(y)
    return y * (gy - (gy * y).sum(axis=axis, keepdims=True))


def logsoftmax_fwd(x: npt.ArrayLike, axis: int = -1) -> Array:
    """Compute y = x − log Σ exp(x) along one axis, x shifted by its maximum so that nothing overflows.

    Source: ONNX LogSoftmax, opset 13 and later.
    """
    x = f64(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def logsoftmax_bwd(gy: npt.ArrayLike, y: npt.ArrayLike, axis: int = -1) -> Array:
    """Differentiate ``logsoftmax_fwd``, given its output y.

    gx = gy − exp(y)·Σ gy, since ∂yⱼ/∂xᵢ = [i=j] − exp(yᵢ).
    """
    gy, y = f64(gy), f64(y)
    return gy - np.exp(y) * gy.sum(axis=axis, keepdims=True)


# --- Judging a gradient -------------------------------------------------------------------------------------


def directional_derivative(
    f: Callable[[Array], Array], x: npt.ArrayLike, v: npt.ArrayLike, eps: float = 1e-6
) -> Array:
    """Approximate J·v = (f(x + εv) − f(x − εv)) / 2ε, the derivative of f at x along v; the error is O(ε²).

    A right backward satisfies ⟨gy, J·v⟩ = ⟨Jᵀ·gy, v⟩ for every gy and v: one random pair tests the whole
    Jacobian at once. Keep x further than ε·max|v| from every kink.
    """
    x, v = f64(x), f64(v)
    return (f64(f(x + eps * v)) - f64(f(x - eps * v))) / (2 * eps)
