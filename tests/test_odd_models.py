"""Odd but valid models are explained, deep ones in seconds; what would fill the machine is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from broken import (
    CLASSES,
    Change,
    Model,
    all_of,
    constant,
    image,
    input_dims,
    inputs,
    made_by,
    node,
    put,
    store,
    stored,
    tensor,
    valid,
    with_,
)
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from gbp import Explainer, UnsupportedError


def names_that_gbp_makes_up(m: Model) -> None:
    """Sum(r, r, bias) becomes a sum s/0 and a shift s; the file has tensors of such names."""
    store(m, "bias", np.ones((8, 1, 1), np.float32))
    nodes = [
        helper.make_node("Sum", ["r", "r", "bias"], ["s"], name="s"),
        helper.make_node("Identity", ["n"], ["s/0"], name="s/0"),
        helper.make_node("Transpose", ["s/0"], ["s/0'"], name="t", perm=[0, 1, 3, 2]),
        helper.make_node("Add", ["s/0'", "s"], ["s in order (1, 2, 3)"], name="a"),
        helper.make_node("Relu", ["s in order (1, 2, 3)"], ["s in order (2, 3, 1)"], name="b"),
    ]
    for at, new in enumerate(nodes, start=3):
        m.graph.node.insert(at, new)
    node(m, "pool").input[0] = "s in order (2, 3, 1)"


FINE: dict[str, Change] = {
    "nodes out of order": lambda m: m.graph.node.reverse(),
    "names that gbp makes up": names_that_gbp_makes_up,
    "batch of 2⁶³": input_dims(2**63 - 1, 3, 8, 8),
    "Constant weights": lambda m: constant(value=tensor(m, "w"))(m),
    "float64 constant, cast": all_of(stored("b", np.ones(8)), made_by("Cast", "conv", 2, np.ones(8), to=1)),
    "weights made from shapes": made_by("ConstantOfShape", "conv", 1, [8, 3, 3, 3]),
    "Size of the image": all_of(
        lambda m: m.graph.node.insert(0, helper.make_node("Size", ["x"], ["size"], name="size")),
        made_by("Cast", "fc", 2, 5, to=1),
    ),
    "MatMul of two constants": made_by(
        "MatMul", "fc", 1, np.ones((CLASSES, 300), np.float32), np.ones((300, 128), np.float32)
    ),
    "seldom used operand left out": inputs("conv", "x", "w", ""),
    "kernel far beyond the plane, padded": with_(
        "pool", kernel_shape=[8, 8], strides=[9, 9], pads=[0, 0, 1, 1]
    ),
    "unused nonsense": lambda m: m.graph.node.add(op_type="Nonsense", input=["x"], output=["unused"]),
    "infinitely open batch": input_dims("N", 3, "H", "W"),
}


@pytest.mark.parametrize("case", FINE)
def test_odd_but_valid_models_are_explained(case: str) -> None:
    model = valid(opset=15)  # before, the reference takes BatchNormalization for training
    FINE[case](model)
    if case.startswith("kernel far"):
        store(model, "fc_w", np.ones((CLASSES, 8), np.float32))
    explainer = Explainer(model, output=model.graph.output[0].name)
    assert np.isfinite(explainer.explain(image(), target=0).map).all()
    if case not in {"nodes out of order", "unused nonsense"}:  # which the reference does not take
        (expected,) = ReferenceEvaluator(model).run(None, {"x": image()})
        np.testing.assert_allclose(explainer.predict(image()), expected, rtol=1e-4, atol=1e-6)


def test_an_output_of_one_axis_is_one_score() -> None:
    model = valid()
    store(model, "fc_w", np.ones((1, 128), np.float32))
    store(model, "fc_b", np.ones(1, np.float32))
    put(model, "softmax", "Squeeze", store(model, "axes", np.array([1])))
    explainer = Explainer(model, output="new")
    assert explainer.predict(image(2, 3, 8, 8)).shape == (2, 1)
    assert explainer.explain(image(2, 3, 8, 8)).map.shape == (2, 3, 8, 8)


# -------------------------------------------------------------------------------------- deep and wide graphs


def deep(ops: Sequence[str], count: int) -> Model:
    model = valid()
    del model.graph.node[:]
    eye = store(model, "eye", np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1))
    for name in ("scale", "shift", "mean", "var"):
        store(model, name, np.ones(3, np.float32))
    operands = {"Conv": [eye], "BatchNormalization": ["scale", "shift", "mean", "var"]}
    last = "x"
    for i in range(count):
        for op in ops:
            model.graph.node.append(helper.make_node(op, [last, *operands.get(op, [])], [f"{op}{i}"]))
            last = f"{op}{i}"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize(
    ("ops", "count"),
    [
        (("Identity",), 5000),
        (("Relu",), 5000),
        (("BatchNormalization", "Conv"), 2000),
        (("Conv", "BatchNormalization"), 2000),
        (("Flatten", "Identity"), 2500),
    ],
)
def test_a_deep_chain_takes_seconds(ops: tuple[str, ...], count: int) -> None:
    start = time.thread_time()  # of this thread: whatever else the machine does
    explainer = Explainer(deep(ops, count))
    x = np.abs(image())
    assert explainer.explain(x, rule="vanilla", target=5).map.sum() == pytest.approx(1, abs=1e-2)
    assert time.thread_time() - start < 15


def test_more_nodes_than_any_network_has() -> None:
    with pytest.raises(UnsupportedError, match="40000 nodes"):
        Explainer(deep(("Relu",), 40_000))


def test_many_copies_of_one_weight_are_counted() -> None:
    """A hundred bytes of ConstantOfShape, read by many layers, each of which packs its own."""
    model = valid()
    store(model, "sizes", np.array([2048, 2048, 1, 1]))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["sizes"], ["big"]))
    input_dims("N", 2048, 1, 1)(model)
    del model.graph.node[1:]
    last = "x"
    for i in range(200):
        model.graph.node.append(helper.make_node("Conv", [last, "big"], [f"c{i}"], name=f"c{i}"))
        last = f"c{i}"
    model.graph.output[0].name = last
    with pytest.raises(UnsupportedError, match=r"Conv 'c\d+': with its weights"):
        Explainer(model)


# ------------------------------------------------------------------------------------------- long messages


def test_a_hundred_unsupported_nodes_are_listed_briefly() -> None:
    model = valid()
    for i in range(100):
        put(model, "relu", f"Odd{i}", output=f"o{i}")
        model.graph.node[-1 - 5].name = f"odd{i}"
    with pytest.raises(UnsupportedError, match=r"100 node.*; and 50 more") as caught:
        Explainer(model)
    assert len(str(caught.value)) < 8500


def test_names_in_a_file_do_not_reach_the_terminal_raw() -> None:
    model = valid()
    node(model, "relu").op_type = "Relu\x1b[2J\x07"
    with pytest.raises(UnsupportedError, match="Relu") as caught:
        Explainer(model)
    assert "\x1b" not in str(caught.value)
    node(model, "relu").op_type = "Long" * 100_000
    with pytest.raises(UnsupportedError) as caught:
        Explainer(model)
    assert len(str(caught.value)) < 10_000
