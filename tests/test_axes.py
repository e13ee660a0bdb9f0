"""What ops along axes become, and models that the builder's newest dialect cannot say."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import oracle
import pytest
from agreement import assert_agree
from builder import Builder
from onnx import AttributeProto, TensorProto, helper

from gbp import Explainer, ModelError
from gbp.ops import PARSERS
from gbp.ops.concat import AxisSlice
from gbp.ops.node import Node
from gbp.ops.resample import Resample
from gbp.ops.shape import Reshape

SHAPE = (2, 6, 4, 5)


def parsed(op: str, *constants: Any, opset: int = 18, **attributes: Any) -> Any:
    """What the op makes of x (SHAPE) and constants; None leaves one out."""
    names = ["x", *(f"c{i}" for i in range(len(constants)))]
    arrays = [None if c is None else np.asarray(c) for c in constants]
    return PARSERS[op](Node(helper.make_node(op, names, ["y"], **attributes), opset, [SHAPE, *arrays]))


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("Slice", ([0], [2**62], [1]), {}),
        ("Gather", ([0, 1, -2, 3],), {"axis": 2}),
        ("Tile", ([1, 1, 1, 1],), {}),
        ("Expand", ([6, 1, 5],), {}),
        ("Resize", (None, np.float32([1, 1, 1, 1])), {"mode": "cubic"}),
        ("Pad", ([0] * 8,), {"mode": "edge"}),
    ],
)
def test_what_changes_nothing_is_a_view(op: str, constants: tuple[Any, ...], attributes: Any) -> None:
    assert parsed(op, *constants, **attributes) == (Reshape(SHAPE),)


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("Slice", ([2], [4], [1]), {}),
        ("Gather", ([2, 3],), {"axis": 1}),
        ("Pad", ([0, -2, 0, 0, 0, -2, 0, 0],), {}),
    ],
)
def test_a_run_of_neighbours_can_stay_where_it_lies(
    op: str, constants: tuple[Any, ...], attributes: Any
) -> None:
    assert parsed(op, *constants, **attributes) == (AxisSlice(1, 2, 4),)


def test_upsample_of_opset_1() -> None:
    scales = {"height_scale": 2.0, "width_scale": 3.0}
    rows, columns = parsed("Upsample", opset=1, mode="bilinear", **scales)
    assert isinstance(rows, Resample)
    assert columns.shape(rows.shape(SHAPE)) == (2, 6, 8, 15)


def test_tile_of_opset_1() -> None:
    (tile,) = parsed("Tile", np.float32([3]), np.float32([2]), opset=1)
    assert tile.shape(SHAPE) == (2, 6, 12, 5)


@pytest.mark.parametrize("rule", ["vanilla", "guided"])
def test_group_normalization_of_opset_18_scales_groups(rule: str) -> None:
    """The checker takes it for deprecated, and files still hold it."""
    b = Builder(opset=21)
    x = b.input(*SHAPE)
    scale, bias = b.noise(3).repeat(2), b.noise(3).repeat(2)
    y = b.node("GroupNormalization", x, b.constant(scale), b.constant(bias), num_groups=3)
    model = b.model(b.head(b.relu(y)))
    run = oracle.Run(model, np.random.default_rng(1).standard_normal(SHAPE))
    for stored in model.graph.initializer:
        if stored.name in model.graph.node[0].input:
            values = np.frombuffer(stored.raw_data, np.float32)[::2]
            stored.dims[:], stored.raw_data = [3], values.tobytes()
    model.opset_import[0].version = 18
    assert_agree(Explainer(model, output=run.output), run, rule, output=run.output)


def test_a_constant_is_resized_at_load() -> None:
    """As an embedding of positions is, to the size of the image."""
    b = Builder()
    positions = b.constant(b.noise(1, 6, 2, 2))
    enlarged = b.node("Resize", positions, "", "", b.constant((1, 6, 4, 5)), mode="cubic")
    model = b.model(b.head(b.relu(b.add(b.input(*SHAPE), enlarged))))
    run = oracle.Run(model, np.random.default_rng(1).standard_normal(SHAPE))
    assert_agree(Explainer(model, output=run.output), run, "guided", output=run.output)


def test_the_oracles_noise_keeps_shapes() -> None:
    """Also the shape of a tensor without axes; and all but zeros are disturbed."""
    b = Builder()
    x = b.input(*SHAPE)
    model = b.model(b.mul(b.relu(x), b.node("ReduceSum", x, keepdims=0)))
    sample = np.random.default_rng(1).standard_normal(SHAPE)
    exact, noisy = oracle.Run(model, sample), oracle.Run(model, sample, noise=1e-3)
    assert () in {values.shape for values in exact.values.values()}
    for name in (name for node, _ in exact.steps for name in node.outputs):
        values = exact.values[name]
        assert noisy.values[name].shape == values.shape
        assert np.array_equal(noisy.values[name] != values, values != 0)


@pytest.mark.parametrize(
    ("size", "scale", "outputs"),
    [(10, 0.7, 7), (20, 1.4, 28), (20, 0.9, 18), (10, 2.3, 23), (30, 1.3, 39), (10, 1.25, 12), (31, 0.3, 9)],
)
@pytest.mark.parametrize("dialect", ["Resize-19", "Resize-11", "Resize-10", "Upsample-9", "Upsample-7", ""])
@pytest.mark.parametrize("constant", [False, True])
def test_sizes_by_scales_are_those_of_runtimes(
    size: int, scale: float, outputs: int, dialect: str, constant: bool
) -> None:
    """A float32 times a size is rounded before it is floored.  Shape inference does otherwise."""
    op, _, version = dialect.partition("-")
    b = Builder(opset=int(version or 19))
    x, kernel = b.input(2, 3, 2, outputs if constant else size), b.noise(1, 3, 2, size)
    no_roi = b.constant(np.zeros(0, np.float32))
    given = b.constant(kernel) if constant else x
    scales = [1.0, 1.0, 1.0, scale]
    if dialect == "Upsample-7":
        y = b.node(op, given, scales=scales, mode="linear")
    elif dialect in ("Upsample-9", "Resize-10"):
        y = b.node(op, given, b.constant(scales), mode="linear")
    else:
        of_one = {} if dialect else {"axes": [3]}
        factors = b.constant(scales[3:] if of_one else scales)
        y = b.node("Resize", given, no_roi, factors, mode="linear", **of_one)
    b._know(y, helper.make_tensor_type_proto(TensorProto.FLOAT, (1 if constant else 2, 3, 2, outputs)))
    model = b.model(b.relu(b.mul(x, y) if constant else y))
    run = oracle.Run(model, np.random.default_rng(1).standard_normal(b.shapes[x]))
    assert run.values[y].shape[-1] == outputs
    for rule in ("vanilla", "guided"):
        assert_agree(Explainer(model), run, rule)


@pytest.mark.parametrize(("size", "scale"), [(10, 1.25), (3, 1.5), (31, 0.3), (10, 0.7)])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("opset", [11, 13, 19])
def test_corners_are_aligned_whatever_the_scale(size: int, scale: float, mode: str, opset: int) -> None:
    """The last output is the last pixel."""
    how = {"mode": mode, "coordinate_transformation_mode": "align_corners"}
    b = Builder(opset=opset)
    no_roi = b.constant(np.zeros(0, np.float32))
    y = b.node("Resize", b.input(1, 2, 3, size), no_roi, b.constant([1.0, 1.0, 1.0, scale]), **how)
    x = np.random.default_rng(1).standard_normal((1, 2, 3, size)).astype(np.float32)
    scores = Explainer(b.model(y)).predict(x).reshape(1, 2, 3, -1)
    np.testing.assert_allclose(scores[..., 0], x[..., 0], rtol=1e-6)
    np.testing.assert_allclose(scores[..., -1], x[..., -1], rtol=1e-6)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel", "align_corners"])
def test_a_coordinate_between_two_pixels_goes_where_the_mode_says(coordinates: str, up: bool) -> None:
    """Fractions decide it: float32 has 3.4999998 for output 1 of 7 pixels made 2."""
    half, mode = Fraction(1, 2), f"round_prefer_{'ceil' if up else 'floor'}"
    for size, outputs in product(range(1, 24), range(1, 24)):
        attributes: dict[str, Any] = {"mode": "nearest", "nearest_mode": mode, "axes": [3]}
        attributes["coordinate_transformation_mode"] = coordinates
        resize = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
        (op,) = PARSERS["Resize"](Node(resize, 18, [(1, 1, 1, size), None, None, np.array([outputs])]))
        shift = half * (coordinates == "half_pixel")
        step = Fraction(size, outputs)
        if coordinates == "align_corners":
            step = Fraction(size - 1, max(1, outputs - 1))
        s = [(o + shift) * step - shift for o in range(outputs)]
        nearest = [math.floor(v + half) if up else math.ceil(v - half) for v in s]
        taps = op.table.taps if isinstance(op, Resample) else np.arange(size)
        np.testing.assert_array_equal(taps, np.clip(nearest, 0, size - 1), f"{size} to {outputs}")


def test_a_resize_of_no_axes() -> None:
    axes = helper.make_attribute("axes", [], attr_type=AttributeProto.INTS)
    proto = helper.make_node("Resize", ["x", "", "", "s"], ["y"], keep_aspect_ratio_policy="not_larger")
    proto.attribute.append(axes)
    with pytest.raises(ModelError, match="sizes for 0 axes, where it resizes 0"):
        PARSERS["Resize"](Node(proto, 18, [(1, 3, 8, 8), None, None, np.zeros(0, np.int64)]))
