"""Files whose first axis is no batch, or not that alone: squeezed, merged with another, left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import NEWEST, Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from gbp import Explainer, GbpError, InputError, UnsupportedError
from gbp.diagnostics.inspection import inspect
from gbp.diagnostics.verify import verify
from gbp.importer import load

Nodes = Sequence[onnx.NodeProto]
N = helper.make_node


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(**values: Any) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


CONV = [N("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), N("Relu", ["c"], ["r"])]
POOLED = [*CONV, N("GlobalAveragePool", ["r"], ["p"])]
LOGITS = [*POOLED, N("Flatten", ["p"], ["f"]), N("MatMul", ["f", "W"], ["z"])]
BEHIND_U = [
    N("Conv", ["u", "w"], ["c"]),
    N("Relu", ["c"], ["r"]),
    *LOGITS[2:4],
    N("MatMul", ["f", "W"], ["y"]),
]
WEIGHTS = {
    "w": noise(8, 3, 3, 3) / 3,
    "W": noise(8, 5, seed=1),
    "V": noise(8, 5, seed=2),
    "zero": np.array([0]),
    "first": np.array(0),
    "second": np.array(1),
    "all": np.array([-1]),
}


def model(
    nodes: Nodes, shape: Sequence[int | str], opset: int = 17, kind: int = TensorProto.FLOAT, **values: Any
) -> onnx.ModelProto:
    """x → y, with `WEIGHTS` and `values` stored."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        stored(**WEIGHTS | values),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def expected(net: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    (y,) = ReferenceEvaluator(net).run(None, {"x": x})
    return np.asarray(y, np.float32)


def check(net: onnx.ModelProto, x: NDArray[np.float32], **options: Any) -> Explainer:
    """Scores as onnx computes them, the map the gradient, targets and samples each for themselves."""
    explainer = Explainer(net, **options)
    scores = explainer.predict(x)
    if not options:
        np.testing.assert_allclose(scores.reshape(-1), expected(net, x).reshape(-1), rtol=1e-4, atol=1e-5)
    found = verify(net, x, **options)
    # Winograd breaks ties, which `verify` says.
    ties = [text for text in found.mismatches if "equal windows" in text]
    assert list(found.mismatches) == (ties if options.get("algorithm") == "winograd" else [])
    chosen = [0, scores.shape[1] - 1]
    several = explainer.explain(x, target=[chosen]).map
    for k, target in enumerate(chosen):
        alone = explainer.explain(x, target=target).map
        assert np.array_equal(several[:, k], alone)
    other = noise(*several.shape[:1], *several.shape[2:], seed=9)
    together = explainer.explain(np.concatenate([other, x.reshape(other.shape)]), target=[chosen, chosen]).map
    assert np.array_equal(together[1:], several)
    return explainer


# ------------------------------------------------------------------------------ what files do to a batch of 1


TOKENS = [
    *CONV,
    N("Reshape", ["r", "tokens"], ["t"]),
    N("Transpose", ["t"], ["u"], perm=[2, 0, 1]),
    *(N("MatMul", ["u", f"W{name}"], [name]) for name in "qkv"),
    *(N("Reshape", [name, "heads"], [f"{name}1"]) for name in "qkv"),
    N("Transpose", ["q1"], ["q2"], perm=[1, 0, 2]),
    N("Transpose", ["k1"], ["k2"], perm=[1, 2, 0]),
    N("Transpose", ["v1"], ["v2"], perm=[1, 0, 2]),
    N("MatMul", ["q2", "k2"], ["scores"]),
    N("Softmax", ["scores"], ["attention"], axis=-1),
    N("MatMul", ["attention", "v2"], ["o"]),
    N("Transpose", ["o"], ["o1"], perm=[1, 0, 2]),
    N("Reshape", ["o1", "joined"], ["o2"]),
    N("ReduceMean", ["o2"], ["m"], axes=[0], keepdims=0),
    N("MatMul", ["m", "W"], ["y"]),
]
HEADS: dict[str, Any] = {
    **{f"W{name}": noise(8, 8, seed=i) / 3 for i, name in enumerate("qkv", 5)},
    "tokens": np.array([1, 8, 36]),
    "heads": np.array([36, 2, 4]),
    "joined": np.array([36, 1, 8]),
}
OF_ONE: dict[str, tuple[Nodes, dict[str, Any]]] = {
    "squeezed": ([*POOLED, N("Squeeze", ["p"], ["s"]), N("MatMul", ["s", "W"], ["y"])], {}),
    "squeezed by axes, and back": (
        [
            *POOLED,
            N("Squeeze", ["p", "axes"], ["s"]),
            N("Unsqueeze", ["s", "zero"], ["u"]),
            N("Gemm", ["u", "W"], ["y"]),
        ],
        {"axes": np.array([0, 2, 3])},
    ),
    "flattened to (C,)": (
        [*POOLED, N("Reshape", ["p", "all"], ["s"]), N("MatMul", ["M", "s"], ["y"])],
        {"M": noise(5, 8)},
    ),
    "the first of the batch": ([*LOGITS, N("Gather", ["z", "first"], ["y"], axis=0)], {}),
    "a slice of the batch": (
        [*LOGITS, N("Slice", ["z", "zero", "one", "zero"], ["y"])],
        {"one": np.array([1])},
    ),
    "heads stacked in front": (
        [
            *LOGITS,
            N("MatMul", ["f", "V"], ["z2"]),
            N("Unsqueeze", ["z", "zero"], ["u1"]),
            N("Unsqueeze", ["z2", "zero"], ["u2"]),
            N("Concat", ["u1", "u2"], ["y"], axis=0),
        ],
        {},
    ),
    "softmax over rows, some constant": (
        [
            *LOGITS,
            N("Concat", ["z", "K"], ["q"], axis=0),
            N("Softmax", ["q"], ["s"], axis=0),
            N("Relu", ["s"], ["y"]),
        ],
        {"K": noise(3, 5)},
    ),
    "anchors in front of a head": (
        [
            *CONV,
            N("Reshape", ["r", "to"], ["t"]),
            N("Mul", ["t", "t"], ["q"]),
            N("Transpose", ["q"], ["y"], perm=[2, 3, 0, 1]),
        ],
        {"to": np.array([2, 4, 6, 6])},
    ),
    "attention, batch second": (TOKENS, HEADS),
    "Gemm over the first axis": (
        [*CONV, N("Reshape", ["r", "to"], ["t"]), N("Gemm", ["t", "K", "b"], ["y"], transA=1, alpha=0.5)],
        {"to": np.array([8, 36]), "K": noise(8, 3), "b": noise(3)},
    ),
    "wider constants": (
        [*LOGITS, N("Sub", ["K", "z"], ["d"]), N("Div", ["d", "K2"], ["e"]), N("Tanh", ["e"], ["y"])],
        {"K": noise(3, 5), "K2": 1 + np.abs(noise(2, 1, 1))},
    ),
    "a Gram matrix": (
        [
            *CONV,
            N("Reshape", ["r", "to"], ["t"]),
            N("Transpose", ["t"], ["u"], perm=[1, 0]),
            N("MatMul", ["t", "u"], ["y"]),
        ],
        {"to": np.array([8, 36])},
    ),
    "all reduced, a scalar goes on": (
        [
            *CONV,
            N("ReduceMean", ["r"], ["q"], keepdims=0),
            N("Mul", ["q", "three"], ["t"]),
            N("Tanh", ["t"], ["u"]),
            N("Unsqueeze", ["u", "zero"], ["v"]),
            N("Expand", ["v", "wide"], ["y"]),
        ],
        {"three": np.float32(3), "wide": np.array([4, 3])},
    ),
    "padded, repeated, summed up": (
        [
            *POOLED,
            N("Squeeze", ["p"], ["s"]),
            N("Pad", ["s", "pads"], ["q"]),
            N("Tile", ["q", "twice"], ["t"]),
            N("CumSum", ["t", "first"], ["m"]),
            N("LayerNormalization", ["m", "scale"], ["y"], axis=0),
        ],
        {"pads": np.array([1, 2]), "twice": np.array([2]), "scale": noise(22)},
    ),
    "torch's as_strided pool": (
        [
            *CONV,
            N("ReduceMean", ["r"], ["m"], axes=[-1, -2]),
            N("Reshape", ["m", "all"], ["s"]),
            N("Gather", ["s", "index"], ["g"], axis=0),
            N("Flatten", ["g"], ["y"]),
        ],
        {"index": np.arange(8).reshape(1, 8, 1, 1)},
    ),
}


@pytest.mark.parametrize("case", OF_ONE)
def test_a_batch_of_one_is_an_axis_like_others(case: str) -> None:
    nodes, values = OF_ONE[case]
    check(model(nodes, (1, 3, 6, 6), **values), noise(1, 3, 6, 6))


@pytest.mark.parametrize(
    "case", ["the first of the batch", "a slice of the batch", "attention, batch second", "a Gram matrix"]
)
def test_an_open_batch_is_refused_and_the_tensor_before_is_named(case: str) -> None:
    nodes, values = OF_ONE[case]
    if case == "a slice of the batch":
        nodes = [*LOGITS, N("ReduceSum", ["z", "zero"], ["y"])]
    net = model(nodes, ("N", 3, 6, 6), **values)
    with pytest.raises(UnsupportedError, match=r"say output='.*fix the batch at 1") as caught:
        Explainer(net)
    before = str(caught.value).partition("output='")[2].partition("'")[0]
    assert Explainer(net, output=before).explain(noise(2, 3, 6, 6)).map.any()


FIRST_OF_AN_OPEN_BATCH: dict[str, tuple[Nodes, dict[str, Any]]] = {
    "a Slice": ([*LOGITS, N("Slice", ["z", "zero", "one", "zero"], ["y"])], {"one": np.array([1])}),
    "a Slice, added": (
        [*LOGITS, N("Slice", ["z", "zero", "one"], ["s"]), N("Add", ["z", "s"], ["y"])],
        {"one": np.array([1])},
    ),
}


@pytest.mark.parametrize("case", FIRST_OF_AN_OPEN_BATCH)
def test_the_first_sample_of_an_open_batch_is_not_taken_for_each(case: str) -> None:
    """With several samples, the file's scores are those of the first, or add them to all."""
    nodes, values = FIRST_OF_AN_OPEN_BATCH[case]
    with pytest.raises(UnsupportedError, match=r"with 11 samples.*Fix the batch at 1") as caught:
        Explainer(model(nodes, ("N", 3, 6, 6), **values))
    assert str(caught.value).count("the batch at 1") == 1
    check(model(nodes, (1, 3, 6, 6), **values), noise(1, 3, 6, 6))


@pytest.mark.parametrize("batch", [2, "N"])
def test_squeeze_keeps_a_batch(batch: int | str) -> None:
    net = model(OF_ONE["squeezed"][0], (batch, 3, 6, 6))
    x = noise(2, 3, 6, 6)
    np.testing.assert_allclose(Explainer(net).predict(x), expected(net, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_a_pool_that_picks_from_all_samples_is_one_of_each(batch: int | str) -> None:
    """As torch writes adaptive_avg_pool2d of a channels-last tensor, for any batch by its shape."""
    samples = batch if isinstance(batch, int) else 2
    nodes, values = OF_ONE["torch's as_strided pool"]
    if batch == "N":
        made = [
            N("Shape", ["m"], ["shape"]),
            N("Gather", ["shape", "zero"], ["n"]),
            N("Mul", ["n", "eight"], ["count"]),
            N("Squeeze", ["count"], ["stop"]),
            N("Range", ["first", "stop", "second"], ["range"]),
            N("Reshape", ["range", "to"], ["index"]),
        ]
        nodes, values = (
            [*nodes[:3], *made, *nodes[3:]],
            {"eight": np.array([8]), "to": np.array([-1, 8, 1, 1])},
        )
    else:
        values = {"index": np.arange(8 * samples).reshape(samples, 8, 1, 1)}
    net, x = model(nodes, (batch, 3, 6, 6), **values), noise(samples, 3, 6, 6)
    np.testing.assert_allclose(Explainer(net).predict(x), expected(net, x), rtol=1e-4, atol=1e-6)


def test_a_pool_that_picks_nothing_is_refused() -> None:
    """A Range over the samples whose step is negative is empty."""
    nodes, _ = OF_ONE["torch's as_strided pool"]
    made = [
        N("Shape", ["m"], ["shape"]),
        N("Gather", ["shape", "zero"], ["n"]),
        N("Squeeze", ["n"], ["stop"]),
        N("Range", ["first", "stop", "back"], ["index"]),
    ]
    net = model([*nodes[:3], *made, *nodes[3:]], ("N", 3, 6, 6), back=np.array(-2))
    with pytest.raises(GbpError, match="Gather"):
        Explainer(net)


def test_a_pool_that_mixes_two_samples_is_one_sample() -> None:
    nodes, _ = OF_ONE["torch's as_strided pool"]
    mixed = model(nodes, (2, 3, 6, 6), index=np.arange(16)[::-1].reshape(2, 8, 1, 1).copy())
    assert Explainer(mixed).input_shape == (1, 2, 3, 6, 6)
    check(mixed, noise(2, 3, 6, 6))


# ------------------------------------------------------------------------------------ several rows a sample


FRAMES = [
    N("Reshape", ["x", "frames"], ["x2"]),
    N("Conv", ["x2", "w"], ["c"], pads=[1, 1, 1, 1]),
    N("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
    N("Relu", ["n"], ["r"]),
    N("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
    N("Conv", ["m", "w2"], ["c2"], pads=[1, 1, 1, 1]),
    N("Add", ["c2", "m"], ["a"]),
    N("PRelu", ["a", "slopes"], ["r2"]),
    N("InstanceNormalization", ["r2", "scale", "shift"], ["g"]),
    N("GlobalMaxPool", ["g"], ["p"]),
    N("Reshape", ["p", "rows"], ["f"]),
    N("Gemm", ["f", "W", "b"], ["v"]),
    N("Reshape", ["v", "parted"], ["t"]),
    N("ReduceMean", ["t", "second1"], ["y"], keepdims=0),
]
OF_FRAMES: dict[str, Any] = {
    "w2": noise(8, 8, 3, 3) / 8,
    "b": noise(5),
    "slopes": noise(8, 1, 1),
    **{name: noise(8, seed=i) for i, name in enumerate(("scale", "shift", "mean"), 20)},
    "var": np.abs(noise(8)) + 0.5,
    "frames": np.array([-1, 3, 6, 6]),
    "rows": np.array([-1, 8]),
    "parted": np.array([-1, 2, 5]),
    "second1": np.array([1]),
}


@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_frames_merged_with_the_batch_and_parted_again(batch: int | str) -> None:
    net = model(FRAMES, (batch, 2, 3, 6, 6), opset=21, **OF_FRAMES)
    x = noise(3 if batch == 3 else 1, 2, 3, 6, 6)
    explainer = Explainer(net)
    assert explainer.input_shape[1:] == (2, 3, 6, 6)
    if batch == 3:
        np.testing.assert_allclose(explainer.predict(x), expected(net, x), rtol=1e-4, atol=1e-5)
        assert verify(net, x[:1]).verified
    else:
        check(net, x)
        check(net, x, activations="clamp")


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_how_convolutions_of_frames_are_computed_can_be_forced(algorithm: str) -> None:
    net = model(FRAMES, (1, 2, 3, 6, 6), opset=21, **OF_FRAMES)
    plans = [layer.plan for layer in inspect(net, algorithm=algorithm).layers if layer.op == "Conv"]
    assert len(plans) == 2
    assert all(algorithm in plan for plan in plans)
    check(net, noise(1, 2, 3, 6, 6), algorithm=algorithm)


def test_frames_are_shown_where_they_were_parted_by_the_shape_of_the_input() -> None:
    """TimeDistributed, as tf2onnx writes it."""
    nodes = [
        N("Shape", ["x"], ["shape"]),
        N("Slice", ["shape", "zero", "two"], ["n"]),
        N("Reshape", ["x", "frames"], ["x2"]),
        N("Transpose", ["x2"], ["x3"], perm=[0, 3, 1, 2]),
        N("Conv", ["x3", "w"], ["c"]),
        N("Relu", ["c"], ["r"]),
        N("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        N("MatMul", ["m", "W"], ["v"]),
        N("Concat", ["n", "five"], ["to"], axis=0),
        N("Reshape", ["v", "to"], ["t"]),
        N("ReduceMax", ["t"], ["y"], axes=[1], keepdims=0),
    ]
    values = {"two": np.array([2]), "frames": np.array([-1, 6, 7, 3]), "five": np.array([5])}
    net, x = model(nodes, ("N", "T", 6, 7, 3), **values), noise(2, 4, 6, 7, 3)
    np.testing.assert_allclose(Explainer(net).predict(x), expected(net, x), rtol=1e-4, atol=1e-6)
    check(net, x[:1])


def test_what_frames_of_an_open_batch_may_not_do() -> None:
    nodes = [*FRAMES[:12], N("Softmax", ["v"], ["s"], axis=0), N("Relu", ["s"], ["y"])]
    with pytest.raises(UnsupportedError, match="Softmax 's': it works along axis 0, which holds the batch"):
        Explainer(model(nodes, ("N", 2, 3, 6, 6), opset=21, **OF_FRAMES))
    check(model(nodes, (1, 2, 3, 6, 6), opset=21, **OF_FRAMES), noise(1, 2, 3, 6, 6))


# ------------------------------------------------------------------------------------ inputs without a batch


CHW: dict[str, tuple[Nodes, tuple[int | str, ...], tuple[int, ...], dict[str, Any]]] = {
    "(C, H, W)": ([N("Unsqueeze", ["x", "zero"], ["u"])], (3, 6, 7), (3, 6, 7), {}),
    "(C, H, W) of open size": ([N("Unsqueeze", ["x", "zero"], ["u"])], (3, "H", "W"), (3, 6, 7), {}),
    "all open": (
        [N("Unsqueeze", ["x", "front"], ["u"])],
        ("C", "H", "W"),
        (3, 6, 7),
        {"front": np.array([-4])},
    ),
    "scaled first": (
        [N("Mul", ["x", "k"], ["v"]), N("Unsqueeze", ["v", "zero"], ["u"])],
        (3, 6, 7),
        (3, 6, 7),
        {"k": noise(3, 1, 1)},
    ),
    "(H, W, C)": (
        [N("Transpose", ["x"], ["t"], perm=[2, 0, 1]), N("Unsqueeze", ["t", "zero"], ["u"])],
        ("H", "W", 3),
        (6, 7, 3),
        {},
    ),
    "(H, W, C), unsqueezed first": (
        [N("Unsqueeze", ["x", "zero"], ["t"]), N("Transpose", ["t"], ["u"], perm=[0, 3, 1, 2])],
        (6, 7, 3),
        (6, 7, 3),
        {},
    ),
    "(H, W, C) in another order of colours": (
        [
            N("Gather", ["x", "bgr"], ["b"], axis=2),
            N("Transpose", ["b"], ["t"], perm=[2, 0, 1]),
            N("Reshape", ["t", "to"], ["u"]),
        ],
        (6, 7, 3),
        (6, 7, 3),
        {"bgr": np.array([2, 1, 0]), "to": np.array([1, 3, 6, 7])},
    ),
    "(H, W, C), resized": (
        [
            N("Resize", ["x", "", "scales"], ["b"], mode="linear"),
            N("Transpose", ["b"], ["t"], perm=[2, 0, 1]),
            N("Unsqueeze", ["t", "zero"], ["u"]),
        ],
        (6, 7, 3),
        (6, 7, 3),
        {"scales": np.float32([2, 2, 1])},
    ),
    "one row of all": ([N("Reshape", ["x", "to"], ["u"])], (126,), (126,), {"to": np.array([1, 3, 6, 7])}),
}


@pytest.mark.parametrize("case", CHW)
def test_an_input_without_a_batch_is_one_sample(case: str) -> None:
    nodes, declared, shape, values = CHW[case]
    net, x = model([*nodes, *BEHIND_U], declared, **values), noise(*shape)
    explainer = check(net, x)
    assert explainer.input_shape[0] == 1
    assert len(explainer.input_shape) == len(shape) + 1
    found = explainer.explain(x)
    assert found.map.shape == (1, *shape)
    assert "no batch axis" in found.notes[0]
    two = explainer.predict(np.stack([x, 2 * x]))
    assert np.array_equal(two[:1], explainer.predict(x))
    with pytest.raises(InputError, match="shape"):
        explainer.predict(x[None, None])


@pytest.mark.parametrize("last", [False, True])
def test_pictures_for_an_input_without_a_batch(last: bool) -> None:
    pictures = [Image.fromarray(np.full((9, 8, 3), value, np.uint8)) for value in (30, 200)]
    before = [N("Transpose", ["x"], ["t"], perm=[2, 0, 1])] if last else [N("Identity", ["x"], ["t"])]
    nodes = [*before, N("Unsqueeze", ["t", "zero"], ["u"]), *BEHIND_U]
    net = model(nodes, (9, 8, 3) if last else (3, 9, 8))
    found = Explainer(net, preprocess="unit").explain(pictures)
    assert found.layout == ("NHWC" if last else "NCHW")
    assert found.reduce().shape == (2, 9, 8)
    inspected = inspect(net)
    assert "no batch axis" in inspected.notes[0]
    assert not inspected.unsupported


def test_a_sample_may_be_one_number() -> None:
    nodes = [
        N("Sigmoid", ["x"], ["s"]),
        N("Mul", ["s", "two"], ["t"]),
        N("Unsqueeze", ["t", "behind"], ["u"]),
        N("MatMul", ["u", "K"], ["y"]),
    ]
    for batch in ("N", 4):
        net = model(nodes, (batch,), two=np.float32(2), behind=np.array([-1]), K=noise(1, 5))
        explainer = Explainer(net)
        x = noise(4)
        np.testing.assert_allclose(explainer.predict(x), expected(net, x), rtol=1e-5, atol=1e-6)
        found = explainer.explain(x, rule="vanilla", target=2)
        s = 1 / (1 + np.exp(-x))
        np.testing.assert_allclose(found.map, 2 * noise(1, 5)[0, 2] * s * (1 - s), rtol=1e-5)
        assert verify(net, x[:1]).verified or batch == 4


def test_one_tensor_joined_along_the_batch_is_itself() -> None:
    nodes = [*CONV, N("Concat", ["r"], ["q"], axis=0), N("GlobalAveragePool", ["q"], ["y"])]
    net, x = model(nodes, ("N", 3, 6, 6)), noise(2, 3, 6, 6)
    np.testing.assert_allclose(
        Explainer(net).predict(x), expected(net, x).reshape(2, -1), rtol=1e-4, atol=1e-6
    )


# --------------------------------------------------------------------------------------------------- any ops


def _reshaped(b: Builder, draw: Any, x: str) -> str:
    size, sizes = math.prod(b.shapes[x]), []
    for _ in range(draw(st.integers(0, 3))):
        sizes.append(draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])))
        size //= sizes[-1]
    return b.reshape(x, *sizes, size)


def _axis(b: Builder, draw: Any, x: str) -> int:
    rank = len(b.shapes[x])
    return int(draw(st.integers(-rank, rank - 1)))


def _sliced(b: Builder, draw: Any, x: str) -> str:
    axis = _axis(b, draw, x)
    size = b.shapes[x][axis]
    start = draw(st.integers(0, size - 1))
    cut = [[start], [draw(st.integers(start + 1, size))], [axis]]
    return b.node("Slice", x, *map(b.constant, cut))


def _gathered(b: Builder, draw: Any, x: str) -> str:
    axis = _axis(b, draw, x)
    index = st.integers(0, b.shapes[x][axis] - 1)
    indices = draw(st.one_of(index, st.lists(index, min_size=1, max_size=3)))
    return b.node("Gather", x, b.constant(indices), axis=axis)


def _joined(b: Builder, draw: Any, x: str) -> str:
    axis = _axis(b, draw, x)
    shape = list(b.shapes[x])
    shape[axis] = draw(st.integers(1, 2))
    return b.concat(x, draw(st.sampled_from([x, b.constant(b.noise(*shape))])), axis=axis)


def _matmul(b: Builder, draw: Any, x: str) -> str:
    shape = b.shapes[x]
    if draw(st.booleans()):
        return b.node("MatMul", x, b.constant(b.noise(shape[-1], 3)))
    return b.node("MatMul", b.constant(b.noise(2, shape[max(0, len(shape) - 2)])), x)


def _by_planes(b: Builder, draw: Any, x: str) -> str:
    """An op that takes axis 0 for the batch, however long it is."""
    rank = len(b.shapes[x])
    if rank == 2:
        return b.gemm(x, 3)
    if rank == 4:
        return draw(
            st.sampled_from([lambda x: b.conv(x, 3, 1), lambda x: b.node("GlobalMaxPool", x), b.batchnorm])
        )(x)
    return b.relu(x)


STEPS: tuple[Callable[[Builder, Any, str], str], ...] = (
    _reshaped,
    _sliced,
    _gathered,
    _joined,
    _matmul,
    _by_planes,
    lambda b, draw, x: b.transpose(x, *draw(st.permutations(range(len(b.shapes[x]))))),
    lambda b, draw, x: b.unsqueeze(x, draw(st.integers(0, len(b.shapes[x])))),
    lambda b, draw, x: b.node("Squeeze", x),
    lambda b, draw, x: b.reduce_mean(x, [_axis(b, draw, x)], draw(st.integers(0, 1))),
    lambda b, draw, x: b.node("Softmax", x, axis=_axis(b, draw, x)),
    lambda b, draw, x: b.relu(x),
    lambda b, draw, x: b.mul(x, b.node("Tanh", x)),
    lambda b, draw, x: b.add(x, b.constant(b.noise(b.shapes[x][-1]))),
    lambda b, draw, x: b.node(
        "Add", b.node("Unsqueeze", x, b.constant([0])), b.constant(b.noise(2, *b.shapes[x]))
    ),
)


@st.composite
def networks(draw: Any) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Up to six ops that care for no batch, on an image or on a convolution of it."""
    b = Builder(opset=draw(st.sampled_from([15, 17, NEWEST])), seed=draw(st.integers(0, 99)))
    shape = (1, draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(2, 4)))
    x = b.input(*shape)
    x = draw(st.sampled_from([b.relu, lambda x: b.conv(x, 4, 1)]))(x)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=6)):
        if 0 < len(b.shapes[x]) < 6 and math.prod(b.shapes[x]) < 500:
            x = step(b, draw, x)
    net = b.model(x)
    net.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return net, b.noise(*shape)


@given(networks())
@settings(max_examples=60)
def test_any_ops_on_one_sample(network: tuple[onnx.ModelProto, NDArray[np.float32]]) -> None:
    net, x = network
    output = net.graph.output[0].name
    np.testing.assert_allclose(
        Explainer(net, output=output).predict(x).reshape(-1),
        expected(net, x).reshape(-1),
        rtol=1e-3,
        atol=1e-4,
    )
    found = Explainer(net, output=output).explain(x, rule="vanilla")
    nothing = np.abs(found.map).max() < 1e-5  # as where a softmax is summed up again
    assert nothing or not verify(net, x, output=output).mismatches


# ------------------------------------------------------------------------ scores that depend on the others

SIZES = N("Shape", ["x"], ["s"])
CHOSEN = [
    SIZES,
    N("Gather", ["s", "0"], ["n"]),
    N("Cast", ["n"], ["f"], to=1),
    N("Where", ["is", "f", "one"], ["g"]),
    N("Mul", ["x", "g"], ["r"]),
]
COUNTS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "Size": ([N("Size", ["x"], ["n"]), N("Cast", ["n"], ["f"], to=1), N("Mul", ["x", "f"], ["r"])], {}),
    "the batch in a sum of sizes": (
        [
            SIZES,
            N("Cast", ["s"], ["f"], to=1),
            N("ReduceMax", ["f"], ["g"], keepdims=0),
            N("Mul", ["x", "g"], ["r"]),
        ],
        {},
    ),
    "a branch": (
        [
            SIZES,
            N("Gather", ["s", "0"], ["n"]),
            N("Equal", ["n", "1"], ["t"]),
            N("Where", ["t", "half", "one"], ["f"]),
            N("Mul", ["x", "f"], ["r"]),
        ],
        {"0": np.array(0), "1": np.array(1), "half": np.float32(0.5), "one": np.float32(1)},
    ),
    "rows of all samples": (
        [
            N("Reshape", ["x", "to"], ["a"]),
            N("ReduceMax", ["a"], ["b"], axes=[1], keepdims=0),
            N("Reshape", ["b", "back"], ["r"]),
        ],
        {"to": np.array([3, -1]), "back": np.array([-1, 3, 1, 1])},
    ),
    "what a stored bool chooses": (CHOSEN, {"0": np.array(0), "is": np.array(True), "one": np.float32(1)}),
    "a range over samples": (
        [
            SIZES,
            N("Gather", ["s", "0"], ["n"]),
            N("Range", ["0", "n", "1"], ["k"]),
            N("Cast", ["k"], ["f"], to=1),
            N("Reshape", ["f", "to"], ["g"]),
            N("Add", ["x", "g"], ["r"]),
        ],
        {"0": np.array(0), "1": np.array(1), "to": np.array([-1, 1, 1, 1])},
    ),
    "ranges over samples, read by two nodes": (
        [
            N("Shape", ["x"], ["n"], end=1),
            N("Squeeze", ["n"], ["m"]),
            N("Range", ["0", "m", "1"], ["k"]),
            N("Cast", ["k"], ["f"], to=1),
            N("Reshape", ["f", "to"], ["g"]),
            N("Mul", ["x", "g"], ["a"]),
            N("Add", ["x", "g"], ["b"]),
            N("Add", ["a", "b"], ["r"]),
        ],
        {"0": np.array(0), "1": np.array(1), "to": np.array([-1, 1, 1, 1])},
    ),
    "rows where another axis is in front": (
        [
            N("Sigmoid", ["x"], ["a"]),
            N("Unsqueeze", ["a", "0"], ["b"]),
            N("Transpose", ["b"], ["c"], perm=[0, 2, 1, 3, 4]),
            N("Reshape", ["c", "to"], ["r"]),
        ],
        {"0": np.array([0]), "to": np.array([-1, 108])},
    ),
    "larger planes": (
        [
            N("Resize", ["x", "", "scales"], ["u"]),
            N("Size", ["u"], ["n"]),
            N("Cast", ["n"], ["f"], to=1),
            N("Mul", ["u", "f"], ["r"]),
        ],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
}


def with_weights_outside(net: onnx.ModelProto, folder: Path) -> Path:
    """The path of the same model, with each of its tensors in a second file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(net)  # `save_model` takes the tensors out of what it is given
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save_model(copy, folder / "net.onnx", **options)
    return folder / "net.onnx"


@pytest.mark.parametrize("case", COUNTS)
def test_an_open_batch_whose_samples_are_counted_or_mixed_is_refused(case: str, tmp_path: Path) -> None:
    nodes, values = COUNTS[case]
    nodes = [*nodes, N("Flatten", ["r"], ["y"])]
    net = model(nodes, ("N", 3, 6, 6), **values)
    for file in (net, with_weights_outside(net, tmp_path)):
        with pytest.raises(UnsupportedError, match=r"batch.*[Ff]ix the batch at 1"):
            Explainer(file)
    x = noise(2, 3, 6, 6)
    fixed = model(nodes, (1, 3, 6, 6), **values)
    alone = [expected(fixed, x[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(Explainer(fixed).predict(x), np.concatenate(alone), rtol=1e-5)


FOR_ANY: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "a constant that is repeated for each sample": (
        [
            SIZES,
            N("Gather", ["s", "0"], ["n"]),
            N("Concat", ["n", "to"], ["e"], axis=0),
            N("Expand", ["row", "e"], ["a"]),
            N("Concat", ["a", "x"], ["r"], axis=1),
        ],
        {"0": np.array([0]), "to": np.array([1, 6, 6]), "row": np.ones((1, 1, 1, 6), np.float32)},
    ),
    "ones like x": (
        [SIZES, N("ConstantOfShape", ["s"], ["a"]), N("Concat", ["a", "x"], ["r"], axis=1)],
        {},
    ),
    "a mean by the number of samples and pixels": (
        [
            N("Size", ["x"], ["n"]),
            SIZES,
            N("Gather", ["s", "0"], ["N"]),
            N("Div", ["n", "N"], ["m"]),
            N("Cast", ["m"], ["f"], to=1),
            N("Div", ["x", "f"], ["r"]),
        ],
        {"0": np.array(0)},
    ),
    "a number that a stored bool does not choose": (
        CHOSEN,
        {"0": np.array(0), "is": np.array(False), "one": np.float32(1)},
    ),
    "a number that is multiplied by 0": (
        [
            N("Size", ["x"], ["n"]),
            N("Cast", ["n"], ["f"], to=1),
            N("Mul", ["f", "none"], ["g"]),
            N("Add", ["x", "g"], ["r"]),
        ],
        {"none": np.float32(0)},
    ),
    "all sizes in one": ([N("Flatten", ["x"], ["r"], axis=0)], {}),
}


@pytest.mark.parametrize("case", FOR_ANY)
def test_an_open_batch_whose_size_is_used_but_changes_no_sample(case: str, tmp_path: Path) -> None:
    nodes, values = FOR_ANY[case]
    net = model([*nodes, N("Flatten", ["r"], ["y"])], ("N", 3, 6, 6), **values)
    x = noise(2, 3, 6, 6)
    for file in (net, with_weights_outside(net, tmp_path)):
        explainer = Explainer(file)
        for one in x:
            np.testing.assert_allclose(explainer.predict(one[None]), expected(net, one[None]), rtol=1e-5)


def test_rows_of_constant_size_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as Keras writes it is built once."""
    built: list[int] = []
    graph = load.Builder.graph
    monkeypatch.setattr(load.Builder, "graph", lambda builder: built.append(1) or graph(builder))
    nodes = [N("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), N("Relu", ["t"], ["r"])]
    net = model([*nodes, N("Reshape", ["r", "to"], ["y"])], ("N", 6, 6, 3), to=np.array([-1, 108]))
    x = noise(2, 6, 6, 3)
    np.testing.assert_array_equal(Explainer(net).predict(x), expected(net, x))
    assert len(built) == 1


def test_a_reshape_of_one_image_keeps_an_open_batch() -> None:
    """As a file that was traced with one image says it, for each sample alone."""
    net = model([N("Reshape", ["x", "to"], ["y"])], ("N", 3, 6, 6), to=np.array([1, -1]))
    x = noise(2, 3, 6, 6)
    np.testing.assert_array_equal(Explainer(net).predict(x), x.reshape(2, -1))


OF_MORE_AXES = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Sum", "Mean", "Where", "Less", "PRelu")


@pytest.mark.parametrize("op", OF_MORE_AXES)
@pytest.mark.parametrize("last", [3, 1])
def test_a_constant_of_more_axes_than_x(op: str, last: int) -> None:
    """It makes an axis in front: right where the file takes one sample, refused where that is the batch's."""
    c = np.abs(noise(1, 1, 1, 1, last)) + 0.5
    nodes = [N("Exp", ["x"], ["e"])]
    if op == "Where":
        nodes += [N("Greater", ["x", "c"], ["g"]), N("Where", ["g", "e", "c"], ["r"])]
    elif op == "Less":
        nodes += [N("Less", ["x", "c"], ["g"]), N("Where", ["g", "e", "x"], ["r"])]
    else:
        nodes += [N(op, ["e", "c", "x"] if op in ("Sum", "Max", "Mean") else ["e", "c"], ["r"])]
    nodes += [N("ReduceSum", ["r", "axes"], ["y"], keepdims=0)]
    values = {"c": c, "axes": np.array([3, 4])}
    x = noise(1, 2, 4, 3, seed=3)
    if op != "PRelu":  # whose slopes may not have more axes
        e = np.exp(x)
        wanted = {
            "Add": e + c, "Sub": e - c, "Mul": e * c, "Div": e / c, "Pow": e**c,
            "Max": np.maximum(np.maximum(e, c), x), "Sum": e + c + x, "Mean": (e + c + x) / 3,
            "Where": np.where(x > c, e, c), "Less": np.where(x < c, e, x[None]),
        }[op]  # fmt: skip
        scores = Explainer(model(nodes, [1, 2, 4, 3], **values)).predict(x)
        np.testing.assert_allclose(scores.reshape(-1), wanted.sum((3, 4)).reshape(-1), rtol=1e-4)
    with pytest.raises(GbpError, match=r"axes in front of the batch|is outside"):
        Explainer(model(nodes, ["N", 2, 4, 3], **values))


def test_several_tensors_and_a_constant_that_widens_them_are_refused() -> None:
    nodes = [N("Exp", ["x"], ["e"]), N("Sum", ["e", "c", "x"], ["r"])]
    nodes += [N("ReduceSum", ["r", "axes"], ["y"], keepdims=0)]
    file = model(nodes, [1, 2, 4, 3], c=noise(5, 1, 1, 1, 1), axes=np.array([3, 4]))
    with pytest.raises(UnsupportedError, match="Sum 'r': a constant of shape"):
        Explainer(file)
