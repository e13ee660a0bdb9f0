"""An open batch that is moved or folded into other axes: each sample is computed alone, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gbp import Explainer, UnsupportedError
from gbp.importer.batch_place import MANY

Array = NDArray[Any]
Nodes = list[onnx.NodeProto]
N = helper.make_node
SHAPE = (4, 6, 5)
rng = np.random.default_rng(0)


def noise(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


X = noise(3, *SHAPE)
#: Sizes and indices that nodes read by these names.
STORED: dict[str, Any] = {
    "0": np.array([0]), "1": np.array([1]), "2": np.array([2]), "3": np.array([3]), "-1": np.array([-1]),
    "zero": np.array(0), "one": np.array(1), "endless": np.array([2**63 - 1]),
    "heads": np.array([30, -1, 2]),
    "qkv": np.array([30, -1, 3, 4]), "rows": np.array([-1, 4]), "six": np.array(6),
    "tokens": np.array([0, 0, -1]), "back": np.array([30, -1, 4]), "stack": np.array([4, -1, 6, 5]),
    "fives": np.array([-1, 5]), "stack3": np.array([4, -1, 6, 3]), "column": np.array([120, -1]),
    "images": np.array([-1, 6, 5]), "front": np.array([-1, 4, 6, 5]), "windows": np.array([-1, 2, 2, 6, 5]),
    "flat": np.array([-1]), "w5": noise(5), "w53": noise(5, 3), "w412": noise(4, 12), "w44": noise(4, 4),
    "w1203": noise(120, 3), "b3": noise(3), "c": noise(4, 1, 1, 5), "token": noise(2, 1, 6, 5),
    "folded": np.array([-1, 2, 6, 5]), "unfolded": np.array([-1, 4, 6, 5]), "kernel": noise(3, 2, 3, 3),
    "many": np.array([[1, 3], [0, 0]]), "points": np.array([[1], [3]]), "point": np.array([[2]]),
    "pads": np.array([1, 0, 0, 0, 0, 0, 2, 0]), "pads1": np.array([0, 1, 0, 0, 0, 0, 0, 0]),
    "times": np.array([2, 1, 1, 3]),
    "scales": np.array([1, 1, 2, 2], np.float32), "own": np.array([[3, 0, 119]]),
    "step": np.array(120), "wrong": np.array(119), "scale": np.float32(0.1), "offset": np.uint8(100),
    "w310": noise(3, 10), "w33": np.arange(9, dtype=np.int8).reshape(3, 3), "g6": noise(6),
    "coarse": np.float32(0.37), "even": np.arange(10) % 2 == 0, "half8": np.uint8(128),
    "w8": np.arange(90, 105, dtype=np.uint8).reshape(5, 3),
    "k8": np.arange(70, 134, dtype=np.uint8).reshape(4, 4, 2, 2),
    "queries": noise(5, 1, 4), "order": np.array([1, 3, 2, 0]),
}  # fmt: skip
#: The number of samples as a list, and as a number.
COUNTED = [
    N("Shape", ["x"], ["shape"]),
    N("Gather", ["shape", "0"], ["n"]),
    N("Squeeze", ["n", "0"], ["count"]),
]
QUANTIZED = ["scale", "offset"]
#: s: (4, n, 6, 5), which is computed with the batch behind an axis.
MOVED = [N("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]), N("Sin", ["t"], ["s"])]


def model(nodes: Nodes, opset: int = 21) -> onnx.ModelProto:
    graph = helper.make_graph(
        [*COUNTED, *nodes],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in STORED.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def branch(node: onnx.NodeProto) -> onnx.GraphProto:
    """A branch of an If."""
    made = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    return helper.make_graph([node], node.output[0], [], [made])


def sizes(to: str, *parts: str) -> onnx.NodeProto:
    return N("Concat", list(parts), [to], axis=0)


def to_front(*perm: int) -> onnx.NodeProto:
    return N("Transpose", ["r"], ["y"], perm=perm)


ATTENTION = [
    N("Reshape", ["x", "tokens"], ["flat x"]),
    N("Transpose", ["flat x"], ["t"], perm=[2, 0, 1]),
    N("MatMul", ["t", "w412"], ["p"]),
    N("Reshape", ["p", "qkv"], ["p4"]),
    N("Transpose", ["p4"], ["p5"], perm=[2, 0, 1, 3]),
    *(N("Gather", ["p5", at], [name]) for at, name in (("zero", "q"), ("one", "k"), ("two", "v"))),
    *(N("Reshape", [name, "heads"], [f"{name}h"]) for name in "qkv"),
    *(N("Transpose", [f"{name}h"], [f"{name}b"], perm=[1, 0, 2]) for name in "qv"),
    N("Transpose", ["kh"], ["kb"], perm=[1, 2, 0]),
    N("MatMul", ["qb", "kb"], ["a"]),
    N("Softmax", ["a"], ["b"], axis=-1),
    N("MatMul", ["b", "vb"], ["o"]),
    N("Transpose", ["o"], ["o2"], perm=[1, 0, 2]),
    N("Reshape", ["o2", "rows"], ["o3"]),
    N("Gemm", ["o3", "w44", "w4"], ["o4"]),
    N("Reshape", ["o4", "back"], ["o5"]),
    N("Add", ["t", "o5"], ["o6"]),
    N("LayerNormalization", ["o6", "w4", "w4"], ["o7"]),
    N("ReduceMean", ["o7", "0"], ["y"], keepdims=0),
]
STORED |= {"w4": noise(4), "two": np.array(2)}

#: Nodes from x, or from s, to y.
APART: dict[str, Nodes] = {
    "attention with positions in front": ATTENTION,
    "queries that the file stores": [
        N("Reshape", ["x", "tokens"], ["flat x"]),
        N("Transpose", ["flat x"], ["t"], perm=[2, 0, 1]),
        sizes("to", "five", "n", "1"),
        N("Expand", ["queries", "to"], ["q"]),
        N("MatMul", ["q", "w44"], ["q1"]),
        N("Transpose", ["q1"], ["q2"], perm=[1, 0, 2]),
        N("Transpose", ["t"], ["k"], perm=[1, 2, 0]),
        N("MatMul", ["q2", "k"], ["a"]),
        N("ReduceMax", ["a", "2"], ["m"], keepdims=0),
        N("Transpose", ["m"], ["m1"], perm=[1, 0]),
        N("Exp", ["m1"], ["m2"]),
        N("Transpose", ["m2"], ["y"], perm=[1, 0]),
    ],
    "windows, and picks as torch's as_strided": [
        N("Reshape", ["x", "windows"], ["w"]),
        N("Transpose", ["w"], ["w1"], perm=[0, 2, 1, 3, 4]),
        N("Reshape", ["w1", "folded"], ["w2"]),
        N("Conv", ["w2", "kernel"], ["w3"], pads=[1, 1, 1, 1]),
        N("Reshape", ["w3", "flat"], ["f"]),
        N("Range", ["zero", "count", "one"], ["each"]),
        N("Mul", ["each", "all"], ["starts"]),
        N("Unsqueeze", ["starts", "1"], ["column of starts"]),
        N("Add", ["column of starts", "own"], ["i"]),
        N("Gather", ["f", "i"], ["y"]),
    ],
    "a constant": [*MOVED, N("Add", ["s", "c"], ["r"]), to_front(1, 0, 2, 3)],
    "a choice": [
        *MOVED,
        N("Greater", ["s", "c"], ["g"]),
        N("Where", ["g", "s", "c"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "a softmax": [*MOVED, N("Softmax", ["s"], ["r"], axis=0), to_front(1, 2, 3, 0)],
    "matrices": [
        *MOVED,
        N("Transpose", ["s"], ["v"], perm=[0, 1, 3, 2]),
        N("MatMul", ["s", "v"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "rows of a matrix": [
        *MOVED,
        N("Transpose", ["s"], ["v"], perm=[0, 2, 1, 3]),
        N("MatMul", ["v", "w53"], ["r"]),
        to_front(2, 0, 1, 3),
    ],
    "rows of a dense layer": [
        *MOVED,
        N("Reshape", ["s", "fives"], ["v"]),
        N("Gemm", ["v", "w53", "b3"], ["g"]),
        N("Reshape", ["g", "stack3"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "columns of a dense layer": [
        N("Transpose", ["x"], ["t"], perm=[1, 2, 3, 0]),
        N("Reshape", ["t", "column"], ["v"]),
        N("Gemm", ["v", "w1203"], ["y"], transA=1),
    ],
    "images counted before samples": [
        *MOVED,
        N("Reshape", ["s", "images"], ["v"]),
        N("Softmax", ["v"], ["w"], axis=1),
        N("Reshape", ["w", "stack"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "a token for each sample": [
        *MOVED,
        sizes("to", "2", "n", "1", "1"),
        N("Expand", ["token", "to"], ["e"]),
        N("Concat", ["e", "s"], ["r"], axis=0),
        to_front(1, 0, 2, 3),
    ],
    "updates for each sample": [
        *MOVED,
        sizes("to", "2", "n", "1", "1"),
        N("Expand", ["token", "to"], ["e"]),
        N("ScatterND", ["s", "points", "e"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "picks": [
        *MOVED,
        N("GatherND", ["s", "points"], ["g"]),
        N("Gather", ["g", "many2"], ["r"], axis=3),
        to_front(1, 0, 2, 3, 4),
    ],
    "parts": [
        *MOVED,
        N("Slice", ["s", "two zeros", "ends", "two axes"], ["v"]),
        N("Split", ["v", "halves"], ["a", "b"], axis=0),
        N("Add", ["a", "b"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "padded, repeated": [
        *MOVED,
        N("Pad", ["s", "pads"], ["v"]),
        N("Tile", ["v", "times"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "sizes that count samples": [
        *MOVED,
        sizes("to", "2", "1", "n", "1", "1"),
        N("Expand", ["s", "to"], ["v"]),
        N("Unsqueeze", ["v", "0"], ["w"]),
        N("Squeeze", ["w", "0"], ["r"]),
        to_front(2, 0, 1, 3, 4),
    ],
    "an equation": [*MOVED, N("Einsum", ["s", "w53"], ["y"], equation="cnhw,wk->nhkc")],
    "resized by scales and to sizes": [
        *MOVED,
        N("Transpose", ["s"], ["a"], perm=[1, 0, 2, 3]),
        N("Reshape", ["a", "folded"], ["b"]),
        N("Resize", ["b", "", "scales"], ["d"], mode="linear"),
        N("Mul", ["n", "2"], ["2n"]),
        sizes("to", "2n", "2", "2", "3"),
        N("Resize", ["d", "", "", "to"], ["e"], mode="linear"),
        N("Reshape", ["e", "per sample"], ["y"]),
    ],
    "eight axes": [
        *MOVED,
        N("Reshape", ["s", "eight"], ["v"]),
        N("Sin", ["v"], ["w"]),
        N("Reshape", ["w", "stack"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "quantized": [
        *MOVED,
        N("QuantizeLinear", ["s", "scale", "offset"], ["q"]),
        N("DequantizeLinear", ["q", "scale", "offset"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "quantized by range": [
        *MOVED,
        N("DynamicQuantizeLinear", ["s"], ["q", "own scale", "own offset"]),
        N("MatMulInteger", ["q", "w8", "own offset"], ["p"]),
        N("Cast", ["p"], ["f"], to=1),
        N("Mul", ["f", "own scale"], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "a product of integers": [
        *MOVED,
        N("QuantizeLinear", ["s", "scale", "offset"], ["q"]),
        N("QLinearMatMul", ["q", *QUANTIZED, "w8", *QUANTIZED, "coarse", "offset"], ["p"]),
        N("DequantizeLinear", ["p", *QUANTIZED], ["r"]),
        to_front(1, 0, 2, 3),
    ],
    "a convolution of integers": [
        *MOVED,
        N("Transpose", ["s"], ["v"], perm=[1, 0, 2, 3]),
        N("QuantizeLinear", ["v", "scale", "offset"], ["q"]),
        N("QLinearConv", ["q", *QUANTIZED, "k8", *QUANTIZED, "coarse", "offset"], ["p"]),
        N("DequantizeLinear", ["p", *QUANTIZED], ["y"]),
    ],
    "a triangle": [*MOVED, N("Trilu", ["s"], ["r"], upper=0), to_front(1, 0, 2, 3)],
    "a branch": [
        *MOVED,
        N("Equal", ["six", "six"], ["always"]),
        N(
            "If",
            ["always"],
            ["r"],
            then_branch=branch(N("Cos", ["s"], ["then"])),
            else_branch=branch(N("Sin", ["s"], ["else"])),
        ),
        to_front(1, 0, 2, 3),
    ],
}
STORED |= {
    "five": np.array([5]),
    "all": np.array(180), "many2": np.array([[2, 0], [4, 4]]), "halves": np.array([1, 1]),
    "two zeros": np.array([1, 0]), "ends": np.array([3, 2**63 - 1]), "two axes": np.array([0, 1]),
    "per sample": np.array([-1, 24]), "eight": np.array([2, 2, -1, 1, 2, 3, 1, 5]),
    "sevens": np.array([4, -1, 7, 5]),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_each_sample_is_computed_alone(name: str) -> None:
    m = model(APART[name])
    alone = ReferenceEvaluator(m)
    expected = np.concatenate([alone.run(None, {"x": x[None]})[0].reshape(1, -1) for x in X])
    explainer = Explainer(m, output="y")
    np.testing.assert_allclose(explainer.predict(X).reshape(len(X), -1), expected, rtol=1e-4, atol=1e-5)
    one_by_one = [explainer.predict(x[None]) for x in X]
    np.testing.assert_array_equal(explainer.predict(X), np.concatenate(one_by_one))


@pytest.mark.parametrize("name", list(APART)[:3])
def test_the_map_is_the_slope_of_the_score(name: str) -> None:
    m = model(APART[name])
    found = Explainer(m).explain(X, rule="vanilla", target=1)
    u = np.float32(1e-2 / X[0].size ** 0.5) * noise(*X.shape)
    for i in range(len(X)):
        ahead, behind = (ReferenceEvaluator(m).run(None, {"x": x[i : i + 1]})[0] for x in (X + u, X - u))
        slope = (ahead - behind).reshape(-1)[1] / 2
        assert abs(np.vdot(found.map[i], u[i]) - slope) <= 2e-2 * abs(slope) + 2e-6


def test_attention_of_newer_opsets() -> None:
    front = N("Transpose", ["s"], ["q"], perm=[1, 0, 2, 3])
    m = model([*MOVED, front, N("Attention", ["q", "q", "q"], ["y"])], opset=23)
    expected = ReferenceEvaluator(m).run(None, {"x": X})[0].reshape(len(X), -1)
    np.testing.assert_allclose(Explainer(m).predict(X).reshape(len(X), -1), expected, rtol=1e-4, atol=1e-5)


def test_nodes_of_onnxruntime_keep_the_samples_apart() -> None:
    """The batch is behind an axis from s to r."""
    onnxruntime = pytest.importorskip("onnxruntime")
    where = {"domain": "com.microsoft"}
    m = model(
        [
            *MOVED,
            N("QuantizeLinear", ["s", *QUANTIZED], ["q"], **where),
            N("QLinearLeakyRelu", ["q", *QUANTIZED, *QUANTIZED], ["a"], **where),
            N("QLinearAdd", ["a", *QUANTIZED, "q", *QUANTIZED, *QUANTIZED], ["b"], **where),
            N("QLinearConcat", [*QUANTIZED, "a", *QUANTIZED, "b", *QUANTIZED], ["c2"], axis=3, **where),
            N("QLinearWhere", ["even", "c2", *QUANTIZED, "half8", *QUANTIZED, *QUANTIZED], ["c3"], **where),
            N("DequantizeLinear", ["c3", *QUANTIZED], ["d"], **where),
            N("Trilu", ["d"], ["t1"], **where),
            N("FusedMatMul", ["t1", "w310"], ["e"], transB=1, **where),
            N("Gelu", ["e"], ["f"], **where),
            N("BiasGelu", ["f", "b3"], ["g"], **where),
            N("DynamicQuantizeMatMul", ["g", "w33", "scale"], ["h"], **where),
            N("ReduceSum", ["h", "3"], ["i"], keepdims=0),
            N("SkipLayerNormalization", ["i", "i", "g6"], ["r"], **where),
            N("Transpose", ["r"], ["y"], perm=[1, 0, 2]),
        ]
    )
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    m.ir_version = 10
    session = onnxruntime.InferenceSession(m.SerializeToString())
    expected = np.concatenate([session.run(None, {"x": x[None]})[0].reshape(1, -1) for x in X])
    found = Explainer(m).predict(X).reshape(len(X), -1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_nodes_that_do_not_fit_one_sample_either() -> None:
    with pytest.raises(
        UnsupportedError, match=r"Nor with a batch of one: Reshape 'r': \[4, 1, 6, 5\] cannot become"
    ):
        Explainer(model([*MOVED, N("Reshape", ["s", "sevens"], ["r"]), to_front(1, 0, 2, 3)]))


def test_scales_may_be_a_row() -> None:
    nodes = [N("Transpose", ["s"], ["v"], perm=[1, 0, 2, 3]), N("Unsqueeze", ["scales", "0"], ["row"])]
    nodes += [N("Resize", ["v", "", "row"], ["y"], mode="linear")]
    assert Explainer(model([*MOVED, *nodes])).predict(X).size == 3 * 4 * 12 * 10


#: What mixes samples, or may: nodes from s to r or y, and what is said.
MIXED: list[tuple[Nodes, str]] = [
    ([N("Softmax", ["s"], ["v"], axis=1), N("Cos", ["v"], ["r"])], "Softmax 'v': it works along axis 1 of"),
    ([N("ReduceMean", ["s", "1"], ["r"])], "ReduceMean 'r': it works along axis 1"),
    ([N("Add", ["s", "x"], ["r"])], "hold the batch at different places"),
    ([N("Cast", ["each"], ["f"], to=1), N("Reshape", ["f", "along"], ["f4"]), N("Add", ["s", "f4"], ["r"])],
     "constant 1 of shape .* not the same values for each sample"),
    ([N("Reshape", ["s", "front"], ["r"])], "of each sample becomes"),
    ([N("Reshape", ["s", "flat"], ["v"]), N("Reshape", ["v", "front"], ["r"])], "of each sample becomes"),
    ([N("Concat", ["s", "s"], ["r"], axis=1)], "joins along axis 1"),
    ([N("Concat", ["s", "token"], ["r"], axis=0)], "not the same values"),
    ([N("Gather", ["s", "0"], ["r"], axis=1)], "picks along axis 1"),
    ([N("Min", ["n", "2"], ["i"]), N("Gather", ["s", "i"], ["r"], axis=0)],
     "picks .* by the number of samples"),
    ([N("Slice", ["s", "0", "1", "1"], ["r"])], "Slice 'r': it works along axis 1"),
    ([N("Min", ["n", "3"], ["e"]), N("Slice", ["s", "0", "e", "0"], ["r"])],
     "depends on the number of samples"),
    ([N("Pad", ["s", "pads1"], ["r"])], "Pad 'r': it works along axis 1"),
    ([N("GatherND", ["s", "pairs"], ["y"])], "GatherND 'y': it works along axis 1"),
    ([N("ScatterND", ["s", "pairs", "u"], ["r"])], "not the same values|along the axis that holds the batch"),
    ([N("Transpose", ["s"], ["v"], perm=[0, 2, 3, 1]), N("Transpose", ["s"], ["w"], perm=[0, 2, 1, 3]),
      N("MatMul", ["v", "w"], ["y"])], "different places"),
    ([N("Transpose", ["s"], ["v"], perm=[0, 2, 3, 1]), N("MatMul", ["w53t", "v"], ["y"])],
     "constant 0 of shape .* not the same"),
    ([N("Einsum", ["s", "w53"], ["y"], equation="cnhw,wk->hkc")], "sums over it"),
    ([N("Expand", ["s", "wide"], ["r"])], "expands to"),
    ([N("CumSum", ["s", "zero"], ["r"])], "is not known"),
    ([N("Mul", ["each", "wrong"], ["f"]), N("Unsqueeze", ["f", "1"], ["g"]), N("Add", ["g", "own"], ["i"]),
      N("Transpose", ["s"], ["b"], perm=[1, 0, 2, 3]), N("Reshape", ["b", "flat"], ["v"]),
      N("Gather", ["v", "i"], ["y"])], "picks along axis 0"),
    ([N("Greater", ["count", "one"], ["more"]),
      N("If", ["more"], ["r"],
        then_branch=branch(N("Cos", ["s"], ["then"])), else_branch=branch(N("Sin", ["s"], ["else"])))],
     "condition depends on the number of samples"),
    ([N("Resize", ["s", "", "", "eleven"], ["r"])], "it resizes along the axis that holds the"),
    ([N("Flatten", ["x"], ["f"]), N("Trilu", ["f"], ["y"])], "the batch is an axis of its triangle"),
    ([N("Cos", ["s"], ["y"])], "Transpose 't': perm .* moves the batch"),
]  # fmt: skip
STORED |= {
    "along": np.array([1, -1, 1, 1]), "pairs": np.array([[0, 0]]), "u": noise(1, 6, 5), "w53t": noise(3, 5),
    "wide": np.array([4, 7, 6, 5]), "eleven": np.array([4, MANY, 6, 5]),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "said"), MIXED)
def test_samples_that_may_mix_are_refused(nodes: Nodes, said: str) -> None:
    made = {name for node in nodes for name in node.output}
    each = [N("Range", ["zero", "count", "one"], ["each"])]
    end = [] if "y" in made else [to_front(1, 0, 2, 3)]
    with pytest.raises(UnsupportedError, match=said):
        Explainer(model([*MOVED, *each, *nodes, *end]))
