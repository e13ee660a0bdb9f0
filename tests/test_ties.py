"""Equal windows give equal outputs, wherever they lie.

Where an image is flat each window of a max-pool is a tie that its first pixel must win, and rounding that
differs from place to place would break it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from numpy.typing import NDArray

from gbp import Explainer
from gbp.kernels.codegen import amx
from gbp.ops.conv.algorithms_digits import DigitsLayer

#: Those that promise it.
EXACT = ("auto", "direct", "lists")

Ints = NDArray[np.int64]


def mosaic(rng: np.random.Generator, size: Sequence[int]) -> Ints:
    """A plane, row or volume of a few kinds of pixels: flat areas, stripes, and noise of two kinds."""
    flat = np.zeros(size, np.int64)
    for kind in (1, 2):  # boxes
        corners = [sorted(rng.integers(0, n + 1, 2)) for n in size]
        flat[tuple(slice(a, b) for a, b in corners)] = kind
    stripes = np.broadcast_to(np.arange(size[-1]) // 2 % 2, size)
    noise = rng.integers(0, 2, size)
    where = rng.integers(0, size[-1] + 1)
    mixed = np.where(rng.random() < 0.5, stripes, noise)
    return np.where(np.arange(size[-1]) < where, flat, mixed)


def windows(kinds: Ints, kernel: Sequence[int], **attributes: Any) -> Ints:
    """The kinds that each window sees, (windows, taps); -1 beyond the border."""
    rank = kinds.ndim
    pads = attributes.get("pads", (0,) * 2 * rank)
    strides, dilations = (attributes.get(name, (1,) * rank) for name in ("strides", "dilations"))
    padded = np.pad(kinds, list(zip(pads[:rank], pads[rank:], strict=True)), constant_values=-1)
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(padded, extents)
    seen = seen[(*(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    return seen.reshape(-1, int(np.prod(kernel)))


def distinct(rows: NDArray[Any]) -> int:
    return len(np.unique(rows, axis=0))


def assert_equal_windows_agree(
    model: onnx.ModelProto, x: NDArray[np.float32], seen: Ints, **how: Any
) -> None:
    """Each window that sees the same as another, wherever it lies, gives the same bits."""
    channels_first = Explainer(model, **how).predict(x).reshape(len(x), -1, len(seen))
    for y in channels_first:
        rows = np.ascontiguousarray(y.T).view(np.int32)
        assert distinct(np.concatenate([seen, rows], axis=1)) == distinct(seen)
    assert distinct(seen) < len(seen), "no two windows are equal: the test tests nothing"


def image(rng: np.random.Generator, kinds: Ints, channels: int) -> NDArray[np.float32]:
    """A sample whose pixels of one kind are equal; those of kind 0 are 0, as padding is."""
    table = rng.standard_normal((3, channels)).astype(np.float32)
    table[0] = 0
    return np.moveaxis(table[kinds], -1, 0)[None]


#: Name: size, channels in, channels out, kernel, attributes.  Rows shorter and longer than tiles, with half
#: of one left over; blocks of channels that are full, half, and neither; sums of more than one chain.
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, int, tuple[int, ...], dict[str, Any]]] = {
    "3×3": ((23, 31), 64, 64, (3, 3), {"pads": (1, 1, 1, 1)}),
    "3×3 of a small plane": ((7, 7), 130, 70, (3, 3), {"pads": (1, 1, 1, 1)}),
    "3×3 of few channels": ((40, 45), 3, 20, (3, 3), {"pads": (1, 1, 1, 1)}),
    "3×3 without pads": ((17, 30), 16, 33, (3, 3), {}),
    "3×3 of stride 2": ((33, 29), 24, 40, (3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "3×3 dilated": ((30, 33), 20, 17, (3, 3), {"dilations": (2, 2), "pads": (2, 2, 2, 2)}),
    "3×3 in groups": ((21, 22), 32, 48, (3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
    "7×7 of stride 2": ((41, 44), 3, 64, (7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}),
    "5×2": ((20, 37), 9, 12, (5, 2), {"pads": (2, 0, 2, 1)}),
    "1×1": ((19, 23), 150, 50, (1, 1), {}),
    "1×1 of stride 2": ((19, 23), 20, 90, (1, 1), {"strides": (2, 2)}),
    "pixels a page apart": ((12, 16), 1024, 8, (1, 1), {}),
    "depthwise": ((22, 35), 40, 40, (3, 3), {"group": 40, "pads": (1, 1, 1, 1)}),
    "depthwise of stride 2": ((22, 35), 7, 7, (5, 5), {"group": 7, "strides": (2, 2), "pads": (2, 2, 2, 2)}),
    "a row": ((70,), 12, 40, (3,), {"pads": (1, 1)}),
    "a volume": ((9, 10, 11), 6, 10, (3, 3, 3), {"pads": (1,) * 6}),
    "a volume of stride 2": ((9, 10, 11), 6, 10, (3, 3, 3), {"pads": (1,) * 6, "strides": (2,) * 3}),
}


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, algorithm: str) -> None:
    size, C, O, kernel, attributes = CONVOLUTIONS[name]
    for seed in range(3):
        rng, b = np.random.default_rng(seed), Builder(seed=seed)
        kinds = mosaic(rng, size)
        model = b.model(b.conv(b.input(1, C, *size), O, kernel, **attributes))
        taps = {key: value for key, value in attributes.items() if key != "group"}
        seen = windows(kinds, kernel, **taps)
        # Padding is pixels of 0.
        assert_equal_windows_agree(model, image(rng, kinds, C), np.maximum(seen, 0), algorithm=algorithm)


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    if not amx.has_bytes():
        pytest.skip("this machine's AMX multiplies no bytes")
    monkeypatch.setattr(DigitsLayer, "cost", property(lambda _: 0.0))


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_by_digits(name: str) -> None:
    size, C, O, kernel, attributes = CONVOLUTIONS[name]
    rng, b = np.random.default_rng(0), Builder()
    kinds = mosaic(rng, size)
    model = b.model(b.conv(b.input(1, C, *size), O, kernel, **attributes))
    taps = {key: value for key, value in attributes.items() if key != "group"}
    seen = np.maximum(windows(kinds, kernel, **taps), 0)
    assert_equal_windows_agree(model, abs(image(rng, kinds, C)), seen)


@pytest.mark.usefixtures("digits")
def test_frames_by_digits() -> None:
    """Two frames of a sample differ at one edge and so in their largest values; equal windows stay equal."""
    b, C, O, size = Builder(), 70, 40, (9, 11)
    frames = b.reshape(b.input(1, 2, C, *size), 2, C, *size)
    y = b.reshape(b.relu(b.conv(frames, O, (3, 3), pads=(1, 1, 1, 1))), 1, 2, O, *size)
    x = np.repeat(abs(np.random.default_rng(0).standard_normal((1, 1, C, *size))), 2, axis=1)
    x[:, 1, ..., -1] *= 3
    first, second = Explainer(b.model(y)).predict(x.astype(np.float32)).reshape(2, O, *size)
    np.testing.assert_array_equal(first[..., :-2], second[..., :-2])
    assert (first[..., -1] != second[..., -1]).any()


@pytest.mark.parametrize("usable", [True, False])
def test_vectors_are_used_where_amx_may_not_be(usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then "auto" goes forward as "direct" does, bit for bit; with AMX it differs by rounding."""
    if not usable:
        monkeypatch.setattr(amx, "is_usable", lambda: False)
    b = Builder()
    model = b.model(b.conv(b.input(1, 64, 20, 21), 64, (3, 3), pads=(1, 1, 1, 1)))
    x = np.random.default_rng(0).standard_normal((1, 64, 20, 21)).astype(np.float32)
    auto, direct = (Explainer(model, algorithm=name).predict(x) for name in ("auto", "direct"))
    assert np.linalg.norm(auto - direct) < 1e-6 * np.linalg.norm(direct)
    assert (auto.tobytes() == direct.tobytes()) == (not amx.is_usable())


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolutions(stride: int, group: int) -> None:
    rng, b = np.random.default_rng(stride), Builder()
    kinds, C = mosaic(rng, (11, 14)), 16
    model = b.model(
        b.conv_transpose(b.input(1, C, *kinds.shape), 24, (4, 3), strides=(stride, stride), group=group)
    )
    spread = np.zeros([(n - 1) * stride + 1 for n in kinds.shape], np.int64)
    spread[::stride, ::stride] = kinds
    seen = windows(np.pad(spread, ((3, 3), (2, 2))), (4, 3))
    assert_equal_windows_agree(model, image(rng, kinds, C), seen)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("op", ["AveragePool", "LpPool"])
@pytest.mark.parametrize("size", [(30,), (17, 22), (8, 9, 10)])
def test_pools(size: tuple[int, ...], op: str, include: int) -> None:
    if op == "LpPool" and include:
        pytest.skip("LpPool has no count")
    rng, b, rank = np.random.default_rng(0), Builder(), len(size)
    kinds = mosaic(rng, size)
    window = {"pads": (1,) * 2 * rank, "strides": (2,) * rank}
    count = {"count_include_pad": 1} if include else {}
    x = b.node(op, b.input(1, 20, *size), kernel_shape=(3,) * rank, **window, **count)
    seen = windows(kinds, (3,) * rank, **window)
    assert_equal_windows_agree(b.model(x), image(rng, kinds, 20), np.maximum(seen, 0) if include else seen)


#: What maps pixels one by one, whatever lies around them.
POINTWISE: dict[str, Callable[[Builder, str], str]] = {
    "LRN": lambda b, x: b.node("LRN", x, size=5, alpha=0.1),
    "Softmax": lambda b, x: b.node("Softmax", x, axis=1),
    "InstanceNormalization": lambda b, x: b.node(
        "InstanceNormalization", x, b.constant(np.ones(20)), b.constant(np.ones(20))
    ),
    "BatchNormalization": lambda b, x: b.batchnorm(b.node("MaxPool", x, kernel_shape=(1, 1))),
    "LpNormalization": lambda b, x: b.node("LpNormalization", x, axis=1),
    "Sigmoid": lambda b, x: b.node("Sigmoid", x),
    "Gelu": lambda b, x: b.node("Gelu", x),
    "MatMul": lambda b, x: b.node("MatMul", b.transpose(x, 0, 2, 3, 1), b.constant(b.noise(20, 24))),
    "a product of two": lambda b, x: b.node(
        "MatMul",
        b.reshape(b.transpose(x, 0, 2, 3, 1), 1, -1, 20),
        b.reshape(b.transpose(x, 0, 2, 3, 1), 1, 20, -1),
    ),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_what_is_computed_pixel_by_pixel(name: str) -> None:
    rng, b, C = np.random.default_rng(1), Builder(), 20
    kinds = mosaic(rng, (13, 19))
    y = POINTWISE[name](b, b.input(1, C, *kinds.shape))
    if b.shapes[y][1] != C or name == "MatMul":  # channels last
        y = b.transpose(b.reshape(y, 1, kinds.size, -1), 0, 2, 1)
    assert_equal_windows_agree(b.model(y), image(rng, kinds, C), kinds.reshape(-1, 1))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scale", [2.0, 3.0, 1.7, 0.6])
def test_what_is_flat_stays_flat_when_it_is_resized(scale: float, mode: str) -> None:
    b = Builder()
    x = b.node(
        "Resize", b.input(1, 20, 17, 23), "", b.constant([1.0, 1.0, scale, scale]), mode=mode,
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    kinds = np.ones((17, 23), np.int64)
    pixel = image(np.random.default_rng(0), kinds, 20)
    y = Explainer(b.model(x)).predict(pixel).reshape(20, -1)
    assert np.all(y == y[:, :1])


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("computed", [False, True])
def test_what_is_flat_stays_flat_where_it_is_sampled(padding: str, computed: bool) -> None:
    b = Builder()
    grid = np.random.default_rng(1).uniform(-1, 1, (1, 9, 11, 2)).astype(np.float32)
    grid *= 0.8 if padding == "zeros" else 2  # taps inside; or many beyond
    grid[0, 0, 0] = 3
    x = b.input(1, 20, 17, 23)
    to = b.constant(grid)
    if computed:
        few = b.mul(b.gemm(b.flatten(b.node("GlobalAveragePool", x)), grid.size), b.constant(1e-3))
        to = b.add(b.reshape(few, 0, *grid.shape[1:]), to)
    model = b.model(b.node("GridSample", x, to, padding_mode=padding))
    pixel = image(np.random.default_rng(0), np.ones((17, 23), np.int64), 20)
    y = Explainer(model).predict(pixel).reshape(20, -1)
    assert np.all(y[:, 1:] == y[:, -1:])
