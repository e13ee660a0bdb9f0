"""What is read in other nodes' place: branches, functions, tensors whose batch is moved; and infinity."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gbp import PROBABILITY, Explainer, InputError, ModelError, UnsupportedError
from gbp.diagnostics.inspection import inspect
from gbp.diagnostics.verify import verify
from gbp.importer.functions import inlined

Array = NDArray[Any]
Nodes = Sequence[onnx.NodeProto]
SHAPE = (1, 4, 6, 5)
node = helper.make_node
rng = np.random.default_rng(0)
X = rng.standard_normal(SHAPE).astype(np.float32)
ONE = np.array([1])


def model(
    nodes: Nodes, stored: dict[str, Any], shape: Sequence[int | str] = SHAPE, opset: int = 17, **options: Any
) -> onnx.ModelProto:
    """From x to y, both float; the shape of y is open."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.asarray(value), name)
            if not isinstance(value, onnx.TensorProto)
            else value
            for name, value in stored.items()
        ],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, **options)


def as_onnx(m: onnx.ModelProto, x: Array = X) -> Array:
    y: Array = ReferenceEvaluator(m).run(None, {"x": x})[0]
    return y.reshape(len(x), -1)


def check(m: onnx.ModelProto, x: Array = X, step: float = 1e-2) -> None:
    """Scores are onnx's, and the map is the slope of the best of them."""
    found = Explainer(m).explain(x, rule="vanilla")
    np.testing.assert_allclose(found.scores, as_onnx(m, x), rtol=1e-4, atol=1e-5)
    u = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    u *= step / np.linalg.norm(u)
    ahead, behind = as_onnx(m, x + u), as_onnx(m, x - u)
    slope = (ahead - behind)[range(len(x)), found.target].sum() / 2
    assert abs(np.vdot(found.map, u) - slope) <= 2e-2 * abs(slope) + 1e-4


# ---------------------------------------------------------------------------------------------- branches


def branch(name: str, nodes: Nodes, *outputs: str, stored: dict[str, Any] | None = None) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (stored or {}).items()]
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    return helper.make_graph(nodes, name, [], values, tensors)


def by_shape(then: onnx.GraphProto, other: onnx.GraphProto, size: int = 1) -> list[onnx.NodeProto]:
    """An If whose condition is that the last axis of x has this size."""
    return [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "last"], ["n"]),
        node("Equal", ["n", "size"], ["is"]),
        node("If", ["is"], ["z"], name="choice", then_branch=then, else_branch=other),
        node("ReduceMean", ["z"], ["y"], axes=[2, 3], keepdims=0),
    ]


def sizes(size: int) -> dict[str, Any]:
    return {"last": np.array(-1), "size": np.array(size)}


@pytest.mark.parametrize("size", [5, 1])
def test_a_branch_is_taken_by_the_shape(size: int) -> None:
    then = branch("then", [node("Mul", ["x", "two"], ["t"])], "t", stored={"two": np.float32(2)})
    other = branch("else", [node("Sin", ["x"], ["t"]), node("Relu", ["t"], ["two"])], "two")
    m = model(by_shape(then, other), sizes(size))
    check(m)
    assert verify(m, X).verified
    assert len({row.name for row in inspect(m).layers}) == len(inspect(m).layers)


def test_what_is_not_taken_may_be_anything() -> None:
    other = branch("else", [node("NonZero", ["x"], ["t"]), node("Cast", ["t"], ["u"], to=1)], "u")
    then = branch("then", [node("Neg", ["x"], ["t"])], "t")
    check(model(by_shape(then, other), sizes(5)))
    with pytest.raises(UnsupportedError, match="NonZero"):
        Explainer(model(by_shape(then, other), sizes(1)))


def test_a_branch_may_hand_on_what_lies_around() -> None:
    then = branch("then", [], "x")
    check(model(by_shape(then, then), sizes(5)))


def test_a_branch_may_read_a_moved_batch() -> None:
    """x[:, order] as torch writes it, of which the middle is in an If."""
    order = {"order": np.array([[2], [0], [1]])}
    then, other = branch("then", [node("GatherND", ["moved", "order"], ["t"])], "t"), branch("e", [], "moved")
    nodes = [
        node("Transpose", ["x"], ["moved"], perm=[1, 0, 2, 3]),
        *by_shape(then, other),
    ]
    nodes[-1:] = [node("Transpose", ["z"], ["back"], perm=[1, 0, 2, 3]), node("Relu", ["back"], ["y"])]
    check(model(nodes, sizes(5) | order))


def test_branches_within_branches_read_what_lies_around() -> None:
    inner = node(
        "If",
        ["is"],
        ["v"],
        then_branch=branch("inner", [node("Add", ["t", "x"], ["w"])], "w"),
        else_branch=branch("other", [node("Identity", ["x"], ["w"])], "w"),
    )
    then = branch("then", [node("Mul", ["x", "x"], ["t"]), inner], "v")
    check(model(by_shape(then, branch("else", [node("Neg", ["x"], ["w"])], "w")), sizes(5)))


def test_a_branch_of_constants_folds() -> None:
    then = branch("then", [node("Sin", ["size_f"], ["t"])], "t")
    nodes = by_shape(then, branch("else", [node("Cos", ["size_f"], ["t"])], "t"))
    nodes[-1] = node("Mul", ["x", "z"], ["m"])
    nodes.append(node("ReduceMean", ["m"], ["y"], axes=[2, 3], keepdims=0))
    check(model(nodes, {**sizes(5), "size_f": np.float32(3)}))


def test_a_condition_on_the_image_is_refused() -> None:
    then = branch("then", [node("Neg", ["x"], ["t"])], "t")
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["is"]),
        *by_shape(then, then)[3:],
    ]
    with pytest.raises(UnsupportedError, match="If 'choice'"):
        Explainer(model(nodes, {"zero": np.float32(0)}))


def test_a_branch_with_tensors_in_another_file_is_refused(tmp_path: Path) -> None:
    then = branch("then", [node("Mul", ["x", "k"], ["t"])], "t", stored={"k": np.float32(2)})
    then.initializer[0].ClearField("raw_data")
    then.initializer[0].data_location = TensorProto.EXTERNAL
    then.initializer[0].external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(UnsupportedError, match="is stored in another file"):
        Explainer(model(by_shape(then, then), sizes(5)))


def test_a_branch_that_lacks_an_output_is_damaged() -> None:
    then = branch("then", [node("Neg", ["x"], ["t"])], "t")
    nodes = by_shape(then, then)
    nodes[3].output.append("more")
    with pytest.raises(ModelError, match="does not make its outputs"):
        Explainer(model(nodes, sizes(5)))


# --------------------------------------------------------------------------------------------- functions


def function(name: str, nodes: Nodes, *attributes: str, opset: int = 17, inputs: str = "a") -> Any:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, [*inputs], ["b"], nodes, imports, [*attributes])


def call(name: str, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return node(name, [x], [y], domain="own", **attributes)


MEAN = node("ReduceMean", ["r"], ["y"], axes=[2, 3], keepdims=0)


def test_functions_are_written_out_with_their_attributes() -> None:
    leaky = node("LeakyRelu", ["s"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    act = function("Act", [node("Neg", ["a"], ["s"]), leaky], "slope")
    twice = function("Twice", [call("Act", "a", "m", slope=0.25), call("Act", "m", "b", slope=0.5)])
    nodes = [call("Twice", "x", "r"), MEAN]
    scores = np.where(X < 0, -X, -0.25 * X)
    scores = np.where(scores < 0, -scores, -0.5 * scores).mean((2, 3))
    found = Explainer(model(nodes, {}, functions=[act, twice])).predict(X)
    np.testing.assert_allclose(found, scores, rtol=1e-4)
    assert inspect(model(nodes, {}, functions=[act, twice])).unsupported == ()


@pytest.mark.parametrize("given", [{}, {"slope": 0.5}])
def test_an_attribute_that_a_call_leaves_out_has_the_functions_default(given: dict[str, float]) -> None:
    """In calls of the graph, of functions and of branches."""
    leaky = node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    act = function("Act", [leaky])
    act.attribute_proto.append(helper.make_attribute("slope", 0.25))
    slope = given.get("slope", 0.25)
    scores = np.where(X < 0, slope * X, X).mean((2, 3))
    through = function("Through", [call("Act", "a", "b", **given)])
    then = branch("then", [call("Act", "x", "t", **given)], "t")
    ways: dict[str, tuple[Nodes, dict[str, Any]]] = {
        "graph": ([call("Act", "x", "r", **given), MEAN], {}),
        "function": ([call("Through", "x", "r"), MEAN], {}),
        "branch": (
            [node("If", ["true"], ["r"], then_branch=then, else_branch=then), MEAN],
            {"true": np.array(True)},
        ),
    }
    for nodes, stored in ways.values():
        found = Explainer(model(nodes, stored, functions=[act, through])).predict(X)
        np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)


def test_an_attribute_that_no_caller_gives_has_the_default_of_the_function_that_reads_it() -> None:
    """Through calls that pass on what they were not given."""
    leaky = node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    act = function("Act", [leaky])
    act.attribute_proto.append(helper.make_attribute("slope", 0.25))
    inner = call("Act", "a", "b")
    inner.attribute.add(name="slope", ref_attr_name="steep", type=onnx.AttributeProto.FLOAT)
    functions = [act, function("Through", [inner], "steep")]
    for given, slope in (({}, 0.25), ({"steep": 0.5}, 0.5)):
        nodes = [call("Through", "x", "r", **given), MEAN]
        found = Explainer(model(nodes, {}, functions=functions)).predict(X)
        scores = np.where(X < 0, slope * X, X).mean((2, 3))
        np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)


def test_names_of_a_function_and_of_its_caller_are_apart() -> None:
    """A branch in the body makes a tensor of the name that the caller gives; calls repeat all names."""
    then = branch("then", [node("Neg", ["a"], ["t"]), node("Mul", ["t", "a"], ["u"])], "u")
    body = [node("Constant", [], ["is"], value_ints=[1]), node("Cast", ["is"], ["yes"], to=9)]
    body += [node("If", ["yes"], ["b"], then_branch=then, else_branch=then)]
    nodes = [node("Abs", ["x"], ["t"]), call("Act", "t", "b__1"), call("Act", "b__1", "r"), MEAN]
    found = Explainer(model(nodes, {}, functions=[function("Act", body)])).predict(X)
    np.testing.assert_allclose(found, (-(X**4)).mean((2, 3)), rtol=1e-4)


def test_a_function_may_pass_on_its_input_and_lack_some() -> None:
    clip = function("Clamp", [node("Clip", ["a", "c", "d"], ["m"])], inputs="acd")
    del clip.output[:]
    clip.output.extend(["a", "m", "m"])
    nodes = [
        node("Clamp", ["x", "", "top"], ["same", "", "low"], domain="own"),
        node("Mul", ["same", "low"], ["r"]),
        MEAN,
    ]
    found = Explainer(model(nodes, {"top": np.float32(0.5)}, functions=[clip])).predict(X)
    np.testing.assert_allclose(found, (X * np.minimum(X, 0.5)).mean((2, 3)), rtol=1e-4)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ([node("Neg", ["x"], ["b"])], "reads 'x'"),
        ([node("Neg", ["a"], ["b"]), node("Abs", ["a"], ["b"])], "makes a tensor twice"),
        ([node("Neg", ["a"], ["a"])], "makes a tensor twice"),
        ([node("Neg", ["a"], ["c"])], "reads 'b'|made by no node"),
    ],
)
def test_a_damaged_function(body: Nodes, found: str) -> None:
    with pytest.raises(ModelError, match=found):
        Explainer(model([call("Act", "x", "r"), MEAN], {}, functions=[function("Act", body)]))


def test_a_call_with_more_inputs_than_its_function() -> None:
    nodes = [node("Act", ["x", "x"], ["r"], domain="own"), MEAN]
    with pytest.raises(ModelError, match="more inputs or outputs"):
        Explainer(model(nodes, {}, functions=[function("Act", [node("Neg", ["a"], ["b"])])]))


def test_functions_are_verified() -> None:
    m = model([call("Act", "x", "r"), MEAN], {}, functions=[function("Act", [node("Exp", ["a"], ["b"])])])
    assert verify(m, X).verified


@pytest.mark.parametrize("opset", [13, 16])
def test_a_function_of_another_opset_whose_ops_mean_the_same(opset: int) -> None:
    m = model(
        [call("Act", "x", "r"), MEAN],
        {},
        functions=[function("Act", [node("Exp", ["a"], ["b"])], opset=opset)],
    )
    np.testing.assert_allclose(Explainer(m).predict(X), np.exp(X).mean((2, 3)), rtol=1e-5)


def test_a_function_of_another_opset_whose_ops_changed_is_refused() -> None:
    mean = node("ReduceMean", ["a"], ["b"], axes=[2, 3])
    m = model([call("Act", "x", "r"), MEAN], {}, opset=18, functions=[function("Act", [mean])])
    m.graph.node[1].CopyFrom(node("Flatten", ["r"], ["y"]))
    with pytest.raises(
        UnsupportedError, match=r"own\.Act 'r': .*for opset 17, and the model for opset 18.*Mean"
    ):
        Explainer(m)


def test_functions_in_circles() -> None:
    functions = [function("A", [call("B", "a", "b")]), function("B", [call("A", "a", "b")])]
    with pytest.raises(ModelError, match="in circles"):
        Explainer(model([call("A", "x", "r"), MEAN], {}, functions=functions))


def test_functions_that_call_each_other_deeply() -> None:
    """Also where no call alone goes deep into functions that have not been called before."""
    functions = [function("F0", [node("Neg", ["a"], ["b"])])]
    for i in range(90):
        functions.append(function(f"F{i + 1}", [call(f"F{i}", "a", "b")]))
    assert len(inlined(model([call("F90", "x", "r"), MEAN], {}, functions=functions)).graph.node) == 2
    for i in range(90, 1500):
        functions.append(function(f"F{i + 1}", [call(f"F{i}", "a", "b")]))
    steps = [call(f"F{i + 90}", f"t{i}" if i else "x", f"t{i + 90}") for i in range(0, 1400, 90)]
    with pytest.raises(UnsupportedError, match=r"too deeply.* up to 100 calls"):
        Explainer(model([*steps, node("Flatten", ["t1440"], ["y"])], {}, functions=functions))


def test_a_function_that_is_there_twice() -> None:
    functions = [function("F", [node(op, ["a"], ["b"])]) for op in ("Neg", "Exp")]
    with pytest.raises(ModelError, match="defines a function twice"):
        Explainer(model([call("F", "x", "r"), MEAN], {}, functions=functions))


def test_functions_that_double_and_double() -> None:
    """A kilobyte would make 2³⁰ nodes."""
    functions = [function("F0", [node("Neg", ["a"], ["b"])])]
    for i in range(30):
        functions.append(function(f"F{i + 1}", [call(f"F{i}", "a", "m"), call(f"F{i}", "m", "b")]))
    with pytest.raises(UnsupportedError, match=r"written out.* nodes"):
        Explainer(model([call("F30", "x", "r"), MEAN], {}, functions=functions))


def test_functions_of_nothing_that_double_and_double() -> None:
    """They would make no node, and call for years."""
    functions = [function("F0", [])]
    functions[0].output[:] = ["a"]
    for i in range(30):
        functions.append(function(f"F{i + 1}", [call(f"F{i}", "a", "m"), call(f"F{i}", "m", "b")]))
    with pytest.raises(UnsupportedError, match=r"written out.* nodes"):
        Explainer(model([call("F30", "x", "r"), MEAN], {}, functions=functions))


def test_functions_that_repeat_a_large_attribute_or_many_names() -> None:
    large = function("F0", [node("Constant", [], ["b"], value=numpy_helper.from_array(np.zeros(2**18)))])
    wide = function("F0", [node("Sum", ["a"] * 2**12, ["b"])])
    for first in (large, wide):
        functions = [first]
        for i in range(8):
            functions.append(function(f"F{i + 1}", [call(f"F{i}", "a", "m"), call(f"F{i}", "m", "b")]))
        with pytest.raises(UnsupportedError, match="too large, written out"):
            Explainer(model([call("F8", "x", "r"), MEAN], {}, functions=functions))


def test_a_caller_keeps_its_model() -> None:
    m = model([call("Act", "x", "r"), MEAN], {}, functions=[function("Act", [node("Exp", ["a"], ["b"])])])
    before = m.SerializeToString()
    assert not inlined(m).functions
    assert m.SerializeToString() == before


# ------------------------------------------------------------------------ tensors whose batch is moved


def moved(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [*nodes, node("ReduceMean", ["r"], ["y"], axes=[2, 3], keepdims=0)]


CHANNELS = np.array([3, 1, 0, 2, 2])
ROWS, COLUMNS = np.array([[0, 5], [2, -1], [3, 3]]), np.array([[1, 0], [4, -2], [0, 0]])
PIXELS = np.stack([ROWS, COLUMNS], axis=-1)
MOVED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "x[:, perm]": (
        moved(
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]),
            node("GatherND", ["t", "i"], ["u"]),
            node("Transpose", ["u"], ["r"], perm=[1, 0, 2, 3]),
        ),
        {"i": CHANNELS[:, None]},
    ),
    "x[:, :, i, j], as adaptive pooling": (
        [
            node("Transpose", ["x"], ["t"], perm=[2, 3, 0, 1]),
            node("GatherND", ["t", "i"], ["u"]),
            node("Transpose", ["u"], ["r"], perm=[2, 3, 0, 1]),
            node("ReduceMean", ["r"], ["y"], axes=[3], keepdims=0),
        ],
        {"i": PIXELS},
    ),
    "planes picked by Gather": (
        moved(
            node("Transpose", ["x"], ["t"], perm=[2, 1, 3, 0]),
            node("Gather", ["t", "i"], ["u"], axis=1),
            node("Transpose", ["u"], ["r"], perm=[3, 1, 2, 0]),
        ),
        {"i": np.array([2, 0, -1])},
    ),
    "Gather with indices of two axes": (
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]),
            node("Gather", ["t", "i"], ["u"], axis=2),
            node("Transpose", ["u"], ["r"], perm=[1, 3, 2, 0, 4]),
            node("ReduceMean", ["r"], ["y"], axes=[1, 2, 4], keepdims=0),
        ],
        {"i": np.array([[2, 0], [-1, 3]])},
    ),
    "two Transposes in a row": (
        moved(
            node("Transpose", ["x"], ["t"], perm=[3, 0, 1, 2]),
            node("Transpose", ["t"], ["r"], perm=[1, 3, 2, 0]),
        ),
        {},
    ),
    "x[:, 1:3] = v": (
        moved(
            node("Slice", ["x", "from", "to", "one"], ["s"]),
            node("Sin", ["s"], ["v"]),
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]),
            node("Transpose", ["v"], ["w"], perm=[1, 0, 2, 3]),
            node("ScatterND", ["t", "i", "w"], ["u"]),
            node("Transpose", ["u"], ["r"], perm=[1, 0, 2, 3]),
        ),
        {"i": np.array([[1], [2]]), "from": np.array([0]), "to": np.array([2]), "one": np.array([1])},
    ),
    "one of the rows in front, as attention's queries": (
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 3, 2]),
            node("Gather", ["t", "i"], ["r"], axis=0),
            node("ReduceMean", ["r"], ["y"], axes=[2], keepdims=0),
        ],
        {"i": np.array(2)},
    ),
    "one pixel, by GatherND": (
        [
            node("Transpose", ["x"], ["t"], perm=[2, 3, 0, 1]),
            node("GatherND", ["t", "i"], ["y"]),
        ],
        {"i": np.array([4, -2])},
    ),
    "unbind": (
        [
            node("Transpose", ["x"], ["t"], perm=[1, 2, 0, 3]),
            node("Split", ["t", "sizes"], ["a", "b"], axis=0),
            node("Squeeze", ["a", "zero"], ["s"]),
            node("Transpose", ["s"], ["v"], perm=[1, 2, 0]),
            node("Transpose", ["b"], ["w"], perm=[2, 3, 1, 0]),
            node("MatMul", ["v", "m"], ["p"]),
            node("ReduceMean", ["w"], ["q"], axes=[3], keepdims=0),
            node("Add", ["p", "q"], ["r"]),
            node("ReduceMean", ["r"], ["y"], axes=[1], keepdims=0),
        ],
        {
            "sizes": np.array([1, 3]),
            "zero": np.array([0]),
            "m": rng.standard_normal((6, 6)).astype(np.float32),
        },
    ),
    "frames one by one, stacked in front": (
        moved(
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]),
            node("Slice", ["t", "last", "first", "zero", "step"], ["u"]),
            node("Slice", ["u", "zero", "one", "zero"], ["a"]),
            node("Gather", ["u", "one"], ["b"]),
            node("Squeeze", ["a", "zero"], ["a1"]),
            node("Squeeze", ["b", "zero"], ["b1"]),
            node("Sin", ["a1"], ["a2"]),
            node("Relu", ["b1"], ["b2"]),
            node("Unsqueeze", ["a2", "zero"], ["a3"]),
            node("Unsqueeze", ["b2", "zero"], ["b3"]),
            node("Concat", ["a3", "b3", "u"], ["s"], axis=0),
            node("Transpose", ["s"], ["r"], perm=[1, 0, 2, 3]),
        ),
        {
            "last": np.array([-1]),
            "first": np.array([-9]),
            "step": np.array([-2]),
            "zero": np.array([0]),
            "one": np.array([1]),
        },
    ),
    "views stacked in front, of which the largest and the sum count": (
        [
            node("Sin", ["x"], ["v"]),
            node("Unsqueeze", ["x", "zero"], ["a"]),
            node("Unsqueeze", ["v", "zero"], ["b"]),
            node("Concat", ["a", "b"], ["s"], axis=0),
            node("ReduceMax", ["s"], ["p"], axes=[0], keepdims=0),
            node("ReduceSum", ["s", "ends"], ["q"]),
            node("Squeeze", ["q", "ends"], ["q1"]),
            node("ReduceMean", ["q1"], ["q2"], axes=[1], keepdims=0),
            node("ReduceMean", ["p"], ["p1"], axes=[2, 3], keepdims=0),
            node("Concat", ["p1", "q2"], ["y"], axis=1),
        ],
        {"zero": np.array([0]), "ends": np.array([0, -1])},
    ),
    "axes in front that are stored in other orders": (
        moved(
            node("Transpose", ["x"], ["t"], perm=[3, 0, 2, 1]),
            node("Transpose", ["x"], ["u"], perm=[2, 1, 0, 3]),
            node("Transpose", ["u"], ["v"], perm=[3, 2, 0, 1]),
            node("Concat", ["t", "v"], ["c"], axis=-1),
            node("Unsqueeze", ["c", "axes"], ["d"]),
            node("Squeeze", ["d", "axes"], ["e"]),
            node("Transpose", ["e"], ["r"], perm=[1, 3, 2, 0]),
        ),
        {"axes": np.array([0, -1])},
    ),
    "x[:, :, i, j] += constants": (
        moved(
            node("Transpose", ["x"], ["t"], perm=[2, 3, 0, 1]),
            node("ScatterND", ["t", "i", "w"], ["u"], reduction="add"),
            node("Transpose", ["u"], ["r"], perm=[2, 3, 0, 1]),
        ),
        {"i": PIXELS, "w": rng.standard_normal((3, 2, 1, 4)).astype(np.float32)},
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_batch_that_is_moved_and_comes_back(name: str) -> None:
    nodes, stored = MOVED[name]
    m = model(nodes, stored)
    check(m)
    report = verify(m, X)
    assert report.verified, report.verdict


@pytest.mark.parametrize("batch", ["n", 3])
@pytest.mark.parametrize("name", [name for name in MOVED if "constants" not in name])
def test_more_samples_than_the_file_has(name: str, batch: int | str) -> None:
    nodes, stored = MOVED[name]
    m = model(nodes, stored, (batch, *SHAPE[1:]))
    explainer = Explainer(m)
    x = rng.standard_normal((3, *SHAPE[1:])).astype(np.float32)
    one_by_one = np.concatenate([explainer.explain(x[i : i + 1], rule="vanilla").map for i in range(3)])
    np.testing.assert_array_equal(explainer.explain(x, rule="vanilla").map, one_by_one)
    check(m, x)


def test_constants_that_are_put_into_each_sample_of_a_fixed_batch() -> None:
    nodes, stored = MOVED["x[:, :, i, j] += constants"]
    x = rng.standard_normal((3, *SHAPE[1:])).astype(np.float32)
    check(model(nodes, stored | {"w": np.repeat(stored["w"], 3, axis=2)}, x.shape), x)


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (node("Sin", ["t"], ["y"]), r"Transpose.*perm \[1, 0, 2, 3\] moves the batch"),
        (node("GatherND", ["t", "i"], ["y"]), "works along axis 1"),
        (node("Identity", ["t"], ["y"]), "moves the batch"),
        (node("Gather", ["t", "i"], ["y"], axis=1), "picks along axis 1"),
        (node("Slice", ["t", "j", "k", "j"], ["y"]), "works along axis 1"),
        (node("Split", ["t"], ["y"], axis=1), "works along axis 1"),
        (node("Squeeze", ["t", "j"], ["y"]), "works along axis 1"),
        (node("Squeeze", ["t"], ["y"]), "of each sample becomes"),
        (node("ReduceMax", ["t"], ["y"], axes=[0, 1]), "works along axis 1"),
        (node("ReduceMax", ["t"], ["y"]), "works along axis 1"),
        (node("Concat", ["t", "t"], ["y"], axis=1), "joins along axis 1"),
        (node("Concat", ["t", "x"], ["y"], axis=0), "moves the batch"),
    ],
)
def test_a_batch_that_does_not_come_back_is_refused(reader: onnx.NodeProto, said: str) -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]), reader]
    with pytest.raises(UnsupportedError, match=said):
        Explainer(model(nodes, {"i": np.array([[1, 0]]), "j": ONE, "k": 2 * ONE}, ("n", *SHAPE[1:])))


def test_a_batch_behind_a_new_axis_is_one_where_the_scores_have_it() -> None:
    """Where no name says so, a first axis that is added stands for a batch that the file lacks."""
    nodes = [node("Unsqueeze", ["x", "j"], ["t"]), node("Squeeze", ["t", "j"], ["r"])]
    m = model(moved(*nodes), {"j": 0 * ONE}, ("n", *SHAPE[1:]))
    m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
    x = rng.standard_normal((3, *SHAPE[1:])).astype(np.float32)
    check(m, x)
    notes = Explainer(m).explain(x, rule="vanilla").notes
    assert any("of 'x' and of the scores 'n': it is the batch" in note for note in notes)


@pytest.mark.parametrize("sides", [("h", "w"), ("c", "h", "w"), ("h", 8)])
def test_sides_of_a_picture_are_no_batch_where_the_scores_are_a_picture(sides: tuple[Any, ...]) -> None:
    """One picture, without an axis of samples: what it is made into has the same names."""
    channels, front = (1, [0, 1]) if len(sides) == 2 else (3, [0])
    nodes = [
        node("Unsqueeze", ["x", "front"], ["t"]),
        node("Conv", ["t", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Squeeze", ["c", "front"], ["y"]),
    ]
    w = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    m = model(nodes, {"front": np.array(front), "w": w}, sides)
    m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, sides))
    x = rng.standard_normal((channels, 8, 8)[-len(sides) :]).astype(np.float32)
    expected = ReferenceEvaluator(m).run(None, {"x": x})[0]
    found = Explainer(m).predict(x[None])
    np.testing.assert_allclose(np.reshape(found, expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_an_axis_before_the_batch_is_refused() -> None:
    nodes = [node("Sin", ["x"], ["s"]), node("Unsqueeze", ["s", "j"], ["t"]), node("Sin", ["t"], ["y"])]
    with pytest.raises(UnsupportedError, match=r"Unsqueeze.*it moves the batch"):
        Explainer(model(nodes, {"j": 0 * ONE}, ("n", *SHAPE[1:])))


# --------------------------------------------------------------------------------------- picks, refused


@pytest.mark.parametrize(
    ("reader", "indices", "said"),
    [
        (node("GatherND", ["x", "i"], ["y"]), [[[0, 4]]], "not all inside"),
        (node("GatherElements", ["x", "i"], ["y"], axis=1), [[[[4]]]], "not all inside"),
        (node("GatherElements", ["x", "i"], ["y"], axis=1), [[[1]]], "indices of shape"),
        (node("ScatterND", ["x", "i", "u"], ["y"]), [[0, 1]], "do not fit"),
    ],
)
def test_indices_that_do_not_fit(reader: onnx.NodeProto, indices: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Explainer(model([reader], {"i": np.array(indices), "u": np.zeros((1, 2), np.float32)}))


def test_samples_that_an_index_repeats() -> None:
    m = model([node("GatherND", ["x", "i"], ["y"])], {"i": np.array([[0], [0]])}, ("n", *SHAPE[1:]))
    with pytest.raises(UnsupportedError, match="batch as the first axis"):
        Explainer(m)


ONE_SAMPLE: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "rows of a sample": (
        [node("Squeeze", ["x", "zero"], ["s"]), node("GatherND", ["s", "i"], ["y"])],
        {"zero": np.array([0]), "i": np.array([[3], [1], [1]])},
    ),
    "elements of a sample": (
        [node("Reshape", ["x", "all"], ["s"]), node("GatherElements", ["s", "i"], ["y"])],
        {"all": np.array([4, 30]), "i": rng.integers(0, 4, (4, 30))},
    ),
    "put into a sample": (
        [node("Squeeze", ["x"], ["s"]), node("ScatterND", ["s", "i", "u"], ["y"])],
        {"i": np.array([[3], [1]]), "u": rng.standard_normal((2, 6, 5)).astype(np.float32)},
    ),
    "Einsum without batch": (
        [node("Squeeze", ["x", "zero"], ["s"]), node("Einsum", ["s", "w"], ["y"], equation="chw,wk->kc")],
        {"zero": np.array([0]), "w": rng.standard_normal((5, 3)).astype(np.float32)},
    ),
    "Einsum of two without batch": (
        [node("Squeeze", ["x", "zero"], ["s"]), node("Einsum", ["s", "s"], ["y"], equation="chw,dhw->cd")],
        {"zero": np.array([0])},
    ),
    "Einsum that moves the batch": (
        [node("Einsum", ["x"], ["y"], equation="nchw->hnc")],
        {},
    ),
}


@pytest.mark.parametrize("name", ONE_SAMPLE)
def test_a_file_for_one_sample_does_with_axis_0_what_it_likes(name: str) -> None:
    nodes, stored = ONE_SAMPLE[name]
    m = model(nodes, stored)
    found = Explainer(m).predict(X)
    np.testing.assert_allclose(
        found.reshape(-1), ReferenceEvaluator(m).run(None, {"x": X})[0].reshape(-1), rtol=1e-4, atol=1e-5
    )
    assert verify(m, X).verified


# ---------------------------------------------------------------------------------------------- infinity

MASK = np.where(rng.random((1, 1, 6, 5)) < 0.4, -np.inf, 0).astype(np.float32)
MASK[..., 0] = 0
INFINITE: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int]] = {
    "padding of a maximum": (
        [node("Pad", ["x", "p", "k"], ["q"]), node("MaxPool", ["q"], ["r"], kernel_shape=[3, 3])],
        {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "k": np.float32(-np.inf)},
        17,
    ),
    "padding, an attribute": (
        [
            node("Pad", ["x"], ["q"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=-np.inf),
            node("MaxPool", ["q"], ["r"], kernel_shape=[3, 3]),
        ],
        {},
        10,
    ),
    "upper bound": (
        [node("Clip", ["x", "z", "k"], ["r"])],
        {"z": np.float32(0), "k": np.float32(np.inf)},
        17,
    ),
    "bounds that are attributes": ([node("Clip", ["x"], ["r"], min=-np.inf, max=0.5)], {}, 10),
    "neutral element of Max": ([node("Max", ["x", "k"], ["r"])], {"k": np.float32(-np.inf)}, 17),
    "neutral elements of Min, many": (
        [node("Min", ["x", "k", "x"], ["r"])],
        {"k": np.where(MASK < 0, np.inf, 0.25).astype(np.float32)},
        17,
    ),
    "mask that is added": (
        [node("Add", ["x", "k"], ["m"]), node("Softmax", ["m"], ["r"], axis=-1)],
        {"k": MASK},
        17,
    ),
    "mask that is subtracted": (
        [node("Sub", ["x", "k"], ["m"]), node("Softmax", ["m"], ["r"], axis=-1)],
        {"k": -MASK},
        17,
    ),
    "mask that is chosen": (
        [node("Where", ["b", "k", "x"], ["m"]), node("Softmax", ["m"], ["r"], axis=-1)],
        {"b": MASK < 0, "k": np.float32(-np.inf)},
        17,
    ),
    "mask that is made of shapes": (
        [
            node("Shape", ["x"], ["s"]),
            node(
                "ConstantOfShape",
                ["s"],
                ["f"],
                value=numpy_helper.from_array(np.array([-np.inf], np.float32)),
            ),
            node("Trilu", ["f", "one"], ["tri"]),
            node("IsInf", ["tri"], ["b"]),
            node("Where", ["b", "f", "x"], ["m"]),
            node("Softmax", ["m"], ["r"], axis=-1),
        ],
        {"one": np.array(1)},
        20,
    ),
    "divisor": (
        [node("Div", ["x", "k"], ["r"])],
        {"k": np.where(MASK < 0, np.inf, 2).astype(np.float32)},
        17,
    ),
    "in float16": (
        [node("Cast", ["h"], ["k"], to=1), node("Add", ["x", "k"], ["m"]), node("Softmax", ["m"], ["r"])],
        {"h": MASK.astype(np.float16)},
        17,
    ),
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinity_where_it_has_a_meaning(name: str) -> None:
    nodes, stored, opset = INFINITE[name]
    end = node("GlobalAveragePool", ["r"], ["g"]), node("Flatten", ["g"], ["y"])
    m = model([*nodes, *end], stored, opset=opset)
    if "Softmax" in {each.op_type for each in nodes}:  # whose mean is a constant
        m.graph.node[-2].CopyFrom(
            node("ReduceMax", ["r"], ["g"], **({} if opset >= 18 else {"axes": [2, 3]}))
        )
        if opset >= 18:
            m.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
            m.graph.node[-2].input.append("axes")
    if opset == 10:  # older than onnx's reference implementation of some
        m2 = model([*INFINITE_NOW[name][0], *end], INFINITE_NOW[name][1])
        np.testing.assert_allclose(Explainer(m).predict(X), as_onnx(m2), rtol=1e-5)
        return
    check(m, step=1e-3)
    report = verify(m, X)
    assert not report.mismatches, report.verdict


def test_what_is_not_finite_may_choose() -> None:
    """As TensorFlow asks of the maximum in a Softmax over several axes.  Nothing flows back through it."""
    chosen = {
        "nan": node("IsNaN", ["log"], ["nan"]),
        "inf": node("IsInf", ["logr"], ["inf"]),
        "below": node("IsInf", ["logr"], ["below"], detect_positive=0),
        "above": node("IsInf", ["negr"], ["above"], detect_negative=0),
        "not above": node("IsInf", ["logr"], ["not above"], detect_negative=0),
        "none": node("IsInf", ["logr"], ["none"], detect_negative=0, detect_positive=0),
    }
    nodes = [node("Log", ["x"], ["log"]), node("Relu", ["x"], ["relu"]), node("Log", ["relu"], ["logr"])]
    nodes += [node("Neg", ["logr"], ["negr"]), *chosen.values()]
    for i, name in enumerate(chosen):
        nodes += [node("Mul", ["x", f"k{i}"], [f"x{i}"]), node("Where", [name, f"x{i}", "x"], [f"y{i}"])]
    nodes += [node("Sum", [f"y{i}" for i in range(len(chosen))], ["r"]), MEAN]
    with np.errstate(divide="ignore", invalid="ignore"):
        check(model(nodes, {f"k{i}": np.float32(i + 2) for i in range(len(chosen))}), step=1e-4)


INFINITE_NOW = {
    "padding, an attribute": INFINITE["padding of a maximum"],
    "bounds that are attributes": ([node("Clip", ["x", "", "k"], ["r"])], {"k": np.float32(0.5)}),
}


@pytest.mark.parametrize(
    ("nodes", "k"),
    [
        ([node("Mul", ["x", "k"], ["r"])], np.float32(np.inf)),
        ([node("Conv", ["x", "k"], ["r"])], np.full((4, 4, 1, 1), np.inf, np.float32)),
        ([node("Pow", ["x", "k"], ["r"])], np.float32(np.inf)),
    ],
)
def test_infinity_elsewhere_is_refused_by_name(nodes: Nodes, k: Array) -> None:
    with pytest.raises(UnsupportedError, match=r"'k'\) holds infinity"):
        Explainer(model([*nodes, MEAN], {"k": k}))


def test_nan_is_refused_everywhere() -> None:
    for kind in (np.float16, np.float32, np.float64):
        nodes = [node("Cast", ["k"], ["c"], to=1), node("Add", ["x", "c"], ["r"]), MEAN]
        with pytest.raises(ModelError, match="'k' holds NaN"):
            Explainer(model(nodes, {"k": np.full((1, 4, 1, 1), np.nan, kind)}))


def test_a_given_mask_may_hold_infinity() -> None:
    m = model(
        [node("Add", ["x", "m"], ["a"]), node("Softmax", ["a"], ["r"]), node("Flatten", ["r"], ["y"])], {}
    )
    m.graph.input.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [1, 1, 6, 5]))
    found = Explainer(m, input="x", given={"m": MASK}, output="r").predict(X)
    true = np.exp(X + MASK) / np.exp(X + MASK).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, true.reshape(1, -1), rtol=1e-5)


# -------------------------------------------------------------------------------- files of other kinds


@pytest.mark.parametrize("version", [1, 2])
def test_old_files_say_no_opset(version: int) -> None:
    w = rng.standard_normal((3, 4, 3, 3)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["y"]),
    ]
    m = model(nodes, {"w": w})
    same = Explainer(m).explain(X)
    del m.opset_import[:]
    m.ir_version = version
    np.testing.assert_array_equal(Explainer(m).explain(X).map, same.map)
    m.ir_version = 3
    with pytest.raises(ModelError, match="imports no version"):
        Explainer(m)


KINDS = ("BFLOAT16", "BOOL", "INT16", "UINT16", "UINT32", "UINT64", "FLOAT16", "DOUBLE", "INT8", "INT64")


@pytest.mark.parametrize("kind", KINDS)
def test_types_in_a_file_beside_the_model(kind: str, tmp_path: Path) -> None:
    number = TensorProto.DataType.Value(kind)
    values = np.array([1.5, 0, 3, 2]).astype(helper.tensor_dtype_to_np_dtype(number))
    stored = numpy_helper.from_array(values.reshape(4, 1, 1), "k")
    nodes = [node("Cast", ["k"], ["c"], to=1), node("Mul", ["x", "c"], ["r"]), MEAN]
    inside = model(nodes, {"k": stored})
    outside = model(nodes, {"k": stored})
    (tmp_path / "weights").write_bytes(b"....." + stored.raw_data)
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "5")):
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "m.onnx"
    path.write_bytes(outside.SerializeToString())
    expected = (X * values.astype(np.float32).reshape(4, 1, 1)).mean((2, 3))
    for m in (inside, path):
        np.testing.assert_allclose(Explainer(m).predict(X), expected, rtol=1e-5)


@pytest.mark.parametrize("to", [TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_casts_of_a_constant_round_it(to: int) -> None:
    nodes = [
        node("Cast", ["k"], ["h"], to=to),
        node("Cast", ["h"], ["c"], to=1),
        node("Mul", ["x", "c"], ["r"]),
        MEAN,
    ]
    k = rng.standard_normal((4, 1, 1)).astype(np.float32)
    rounded = k.astype(helper.tensor_dtype_to_np_dtype(to)).astype(np.float32)
    np.testing.assert_allclose(
        Explainer(model(nodes, {"k": k})).predict(X), (X * rounded).mean((2, 3)), rtol=1e-5, atol=1e-7
    )


def test_a_casted_image_is_as_it_was() -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        node("Cast", ["h"], ["r"], to=1),
        MEAN,
    ]
    np.testing.assert_allclose(Explainer(model(nodes, {})).predict(X), X.mean((2, 3)), rtol=1e-5)


def test_probability_needs_a_head_that_makes_one() -> None:
    m = model([MEAN], {})
    m.graph.node[0].input[0] = "x"
    with pytest.raises(InputError, match="Softmax or Sigmoid"):
        Explainer(m, output=PROBABILITY)


# -------------------------------------------------------------------------------------- several in one


def fused_conv(activation: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return node("FusedConv", inputs, ["r"], activation=activation, **attributes)


PARAMETERS = {"LeakyRelu": [0.25], "Clip": [0.0, 6.0], "HardSigmoid": [0.25, 0.5]}
FUSED: dict[str, onnx.NodeProto] = {
    **{name: fused_conv(name, "x", "w", "b", pads=[1] * 4) for name in ("Relu", "Tanh", "Sigmoid")},
    **{name: fused_conv(name, "x", "w", activation_params=each) for name, each in PARAMETERS.items()},
    "with a sum": fused_conv("Relu", "x", "v", "", "x"),
    "matmul": node("FusedMatMul", ["x", "m"], ["r"], alpha=0.5, transB=1),
    "older matmul": node("TransposeMatMul", ["x", "m"], ["r"], alpha=0.5, transB=1),
    "triangle": node("Trilu", ["x", "last"], ["r"], upper=0),
    "grid": node("GridSample", ["x", "grid"], ["r"], padding_mode="reflection"),
    "turned heads": node(
        "RotaryEmbedding", ["x", "at", "cos", "sin"], ["r"], num_heads=4, rotary_embedding_dim=4
    ),
    "quick gelu": node("QuickGelu", ["x"], ["r"]),
    "gelu": node("Gelu", ["x"], ["r"]),
    "fast gelu": node("FastGelu", ["x"], ["r"]),
    "bias gelu": node("BiasGelu", ["x", "g"], ["r"]),
}
#: Those of three axes.
FUSED_ROWS: dict[str, onnx.NodeProto] = {
    "norm of a sum": node("SkipLayerNormalization", ["x3", "x3", "h", "h"], ["r3"], epsilon=1e-3),
    "root mean square": node("SimplifiedLayerNormalization", ["x3", "h"], ["r3"], epsilon=1e-3),
    "root mean square of a sum": node("SkipSimplifiedLayerNormalization", ["x3", "x3", "h", "h"], ["r3"]),
    "turned": node("RotaryEmbedding", ["x3", "first", "cos30", "sin30"], ["r3"]),
    "turned pairs": node(
        "RotaryEmbedding",
        ["x3", "first", "cos", "sin"],
        ["r3"],
        num_heads=5,
        rotary_embedding_dim=4,
        interleaved=1,
    ),
    "attention": node("Attention", ["x3", "qkv", "t"], ["r3"], num_heads=3),
    "attention of the past": node("Attention", ["x3", "qkv", "t"], ["r3"], num_heads=6, unidirectional=1),
    "attention of sizes": node(
        "Attention", ["x3", "wide", "u"], ["r3"], num_heads=2, qkv_hidden_sizes=[8, 8, 30], scale=0.5
    ),
    **{
        f"matmul of {bits} bits": node(
            "MatMulNBits",
            ["x3", f"b{bits}", "bs", f"bz{bits}"],
            ["r3"],
            K=30,
            N=30,
            bits=bits,
            block_size=16,
        )
        for bits in (4, 8)
    },
    "matmul of 4 bits around 8": node(
        "MatMulNBits", ["x3", "b4", "bs", "", "", "h"], ["r3"], K=30, N=30, bits=4, block_size=16
    ),
    "heads": node("MultiHeadAttention", ["x3", "x3", "x3"], ["r3"], num_heads=5),
    "heads with biases": node(
        "MultiHeadAttention", ["x3", "x3", "x3", "t", "", "m4"], ["r3"], num_heads=2, scale=0.3
    ),
}
STORED = {
    "w": rng.standard_normal((3, 4, 3, 3)).astype(np.float32),
    "v": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
    "b": rng.standard_normal(3).astype(np.float32),
    "m": rng.standard_normal((3, 5)).astype(np.float32),
    "g": rng.standard_normal(5).astype(np.float32),
    "h": rng.standard_normal(30).astype(np.float32),
    "qkv": rng.standard_normal((30, 90)).astype(np.float32) / 4,
    "wide": rng.standard_normal((30, 46)).astype(np.float32) / 4,
    "t": rng.standard_normal(90).astype(np.float32),
    "u": rng.standard_normal(46).astype(np.float32),
    "m4": rng.standard_normal((1, 2, 4, 4)).astype(np.float32),
    "b4": rng.integers(0, 256, (30, 2, 8), np.uint8),
    "b8": rng.integers(0, 256, (30, 2, 16), np.uint8),
    "bs": rng.uniform(0.01, 0.02, 60).astype(np.float32),
    "bz4": rng.integers(0, 256, 30, np.uint8),
    "bz8": rng.integers(100, 150, 60, np.uint8),
    "last": np.array(1),
    "grid": rng.uniform(-1.2, 1.2, (1, 3, 2, 2)).astype(np.float32),
    **{"at": np.array([[3, 0, 2, 5, 1, 4]]), "first": np.array([2])},
    **{
        "cos": rng.uniform(-1, 1, (7, 2)).astype(np.float32),
        "sin": rng.uniform(-1, 1, (7, 2)).astype(np.float32),
    },
    "cos30": rng.uniform(-1, 1, (7, 15)).astype(np.float32),
    "sin30": rng.uniform(-1, 1, (7, 15)).astype(np.float32),
    "to3": np.array([0, 4, 30]),
    "to4": np.array([0, 4, 6, 5]),
}


@pytest.mark.parametrize("name", [*FUSED, *FUSED_ROWS])
def test_fused_ops_are_those_of_onnxruntime(name: str) -> None:
    """Also by opset 12, though ONNX has LayerNormalization and Gelu later."""
    onnxruntime = pytest.importorskip("onnxruntime")
    fused = {**FUSED, **FUSED_ROWS}[name]
    fused.domain = "" if name == "root mean square" else "com.microsoft"
    nodes = [fused, MEAN]
    if name in FUSED_ROWS:
        to3, to4 = node("Reshape", ["x", "to3"], ["x3"]), node("Reshape", ["r3", "to4"], ["r"])
        nodes = [to3, fused, to4, MEAN]
    for opset in (12, 17):
        used = {each for one in nodes for each in one.input}
        m = model(nodes, {k: v for k, v in STORED.items() if k in used}, opset=opset, ir_version=8)
        m.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        (y,) = onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": X})
        np.testing.assert_allclose(Explainer(m).predict(X), y.reshape(1, -1), rtol=1e-4, atol=1e-5)
        assert verify(m, X).verified


#: Operands of ops on integers: x, of 8 bits, stands for itself with its scale and zero point, y for these of
#: the result, h for x in two axes.
INTEGERS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "QLinearConv": (["x", "W", "Ws", "Wz", "y", "B"], {"pads": [1] * 4, "strides": [1, 2]}),
    "QLinearMatMul": (["x", "M", "Ms", "Mz", "y"], {}),
    "QGemm": (["h", "G", "Gs", "Gz", "C", "y"], {"alpha": 0.5}),
    "QLinearAdd": (["x", "V", "s", "Mz", "y"], {}),
    "QLinearMul": (["x", "x", "y"], {}),
    "QLinearConcat": (["y", "x", "x"], {"axis": 1}),
    "QLinearWhere": (["chosen", "x", "V", "ps", "Mz", "y"], {}),
    "QLinearAdd, to zero": (["x", "V", "s", "Mz", "ys"], {}),
    "QLinearLeakyRelu, from zero": (["q", "s", "", "y"], {}),
    "QLinearLeakyRelu, to zero": (["x", "ys", ""], {}),
    "QLinearAveragePool": (["x", "y"], {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]}),
    "QLinearGlobalAveragePool": (["x", "y"], {}),
    "QLinearLeakyRelu": (["x", "y"], {"alpha": 0.25}),
    "QLinearSigmoid": (["x", "y"], {}),
    "QLinearSoftmax": (["h", "p"], {"axis": 1, "opset": 13}),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_ops_on_integers_are_those_of_onnxruntime(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    names, attributes = INTEGERS[name]
    means = {"x": ["q", "s", "z"], "h": ["qh", "s", "z"], "y": ["ys", "yz"], "p": ["ps", "pz"]}
    operands = [each for name in names for each in means.get(name, [name])]
    where = {} if name in ("QLinearConv", "QLinearMatMul") else {"domain": "com.microsoft"}
    zero = "no" if "to zero" in name else "yz"
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("Flatten", ["q"], ["qh"]),
        node(name.partition(",")[0], operands, ["r"], **attributes, **where),
        node("DequantizeLinear", ["r", *(["ps", "pz"] if "p" in names else ["ys", zero])], ["d"]),
        node("Flatten", ["d"], ["y"]),
    ]
    own = np.random.default_rng(1)
    stored = {
        **{
            "no": np.uint8(0),
            "s": np.float32(0.03),
            "z": np.uint8(120),
            "ys": np.float32(0.05),
            "yz": np.uint8(90),
        },
        **{"ps": np.float32(1 / 2048), "pz": np.uint8(0)},
        **{"W": own.integers(-9, 9, (3, 4, 3, 3), np.int8), "B": own.integers(-999, 999, 3, np.int32)},
        **{"Ws": np.array([0.02, 0.03, 0.01], np.float32), "Wz": np.zeros(3, np.int8)},
        **{"M": own.integers(99, 140, (5, 2), np.uint8), "Ms": np.float32(0.01), "Mz": np.uint8(110)},
        **{"G": own.integers(-9, 9, (120, 2), np.int8), "C": own.integers(-99, 99, 2, np.int32)},
        **{"Gs": np.array([0.02, 0.03], np.float32), "Gz": np.zeros(2, np.int8)},
        **{"V": own.integers(0, 255, (6, 1), np.uint8), "chosen": np.arange(5) % 2 == 0},
    }
    used = {each for one in nodes for each in one.input}
    m = model(nodes, {k: v for k, v in stored.items() if k in used}, opset=13, ir_version=8)
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (y,) = onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": X})
    assert np.abs(Explainer(m).explain(X, rule="vanilla").map).max() > 0
    scores = Explainer(m, output="y").predict(X)
    assert np.unique(y).size > 1
    # Float32 may round a number that lies between two integers to the other one.
    steps = np.rint(np.abs(scores - y) / stored["ps" if "p" in names else "ys"])
    assert steps.max() <= 1
    assert steps.mean() < 0.05
    assert verify(m, X).verified


def by_range(x: str, *products: onnx.NodeProto, by: str = "Ws") -> list[onnx.NodeProto]:
    """x as integers q, with s and z; products that end in p; the product times the scales, r."""
    return [
        node("DynamicQuantizeLinear", [x], ["q", "s", "z"]),
        *products,
        node("Cast", ["p"], ["f"], to=1),
        node("Mul", ["s", by], ["factor"]),
        node("Mul", ["f", "factor"], ["r"]),
    ]


#: As quantize_dynamic and onnxruntime's optimizer write it, and as they might: from x to r.
BY_RANGE: dict[str, list[onnx.NodeProto]] = {
    "convolution": by_range(
        "x", node("ConvInteger", ["q", "W", "z", "Wz"], ["p"], pads=[1] * 4, strides=[1, 2])
    ),
    "columns": by_range("x", node("MatMulInteger", ["q", "M", "z", "Mz"], ["p"]), by="Ms"),
    "no zero point of the weights": by_range("x", node("MatMulInteger", ["q", "M", "z"], ["p"])),
    "moved integers": by_range(
        "x",
        node("Transpose", ["q"], ["qt"], perm=[0, 1, 3, 2]),
        node("ConvInteger", ["qt", "W", "z"], ["p"], group=1),
    ),
    "two factors": [
        node("Transpose", ["x"], ["xt"], perm=[0, 1, 3, 2]),
        node("DynamicQuantizeLinear", ["xt"], ["qt", "st", "zt"]),
        *by_range("x", node("MatMulInteger", ["q", "qt", "z", "zt"], ["p"]), by="st"),
    ],
    "numbers of one sign": [
        node("Abs", ["x"], ["a"]),
        node("DynamicQuantizeLinear", ["a"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["r"]),
    ],
    "fused": [node("DynamicQuantizeMatMul", ["x", "M", "Ms", "Mz", "b"], ["r"], domain="com.microsoft")],
    "fused in part": [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulIntegerToFloat", ["q", "M", "s", "Ms", "z", "Mz", "b"], ["r"], domain="com.microsoft"),
    ],
    "attention": [
        node("Reshape", ["x", "to3"], ["x3"]),
        node("DynamicQuantizeLinear", ["x3"], ["q", "s", "z"]),
        node(
            "QAttention",
            ["q", "A", "Ab", "s", "As", "", "z", "Az"],
            ["r3"],
            num_heads=3,
            domain="com.microsoft",
        ),
        node("Reshape", ["r3", "to4"], ["r"]),
    ],
    "of constant scales": [
        node("QuantizeLinear", ["x", "Ws", "Mz0"], ["q"]),
        node("MatMulIntegerToFloat", ["q", "M", "Ws", "Ws", "Mz0"], ["r"], domain="com.microsoft"),
    ],
    "a scale with an axis": [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "M", "z"], ["p"]),
        node("Cast", ["p"], ["f"], to=1),
        node("Unsqueeze", ["s", "front"], ["s1"]),
        node("Mul", ["f", "s1"], ["r"]),
    ],
    "in a branch": [
        node("Constant", [], ["is"], value=numpy_helper.from_array(np.array(True))),
        node(
            "If",
            ["is"],
            ["r"],
            then_branch=branch(
                "then",
                [
                    node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
                    node("DequantizeLinear", ["q", "s", "z"], ["t"]),
                ],
                "t",
            ),
            else_branch=branch("else", [node("Neg", ["x"], ["t"])], "t"),
        ),
    ],
    "nothing but zeros": [
        node("Sub", ["x", "x"], ["none"]),
        node("DynamicQuantizeLinear", ["none"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["rest"]),
        node("Add", ["rest", "x"], ["r"]),
    ],
}


def quantized_by_range(nodes: Nodes, batch: int | str = "N") -> onnx.ModelProto:
    own = np.random.default_rng(1)
    stored = {
        **{"W": own.integers(-99, 99, (3, 4, 3, 3), np.int8), "Wz": np.int8(2)},
        **{"Ws": np.float32(0.02), "M": own.integers(0, 255, (5, 2), np.uint8), "Mz0": np.uint8(120)},
        **{"Ms": np.array([0.01, 0.03], np.float32), "Mz": np.array([120, 90], np.uint8)},
        "b": np.array([0.5, -1], np.float32),
        **{"A": own.integers(-99, 99, (30, 90), np.int8), "Ab": own.standard_normal(90).astype(np.float32)},
        **{"As": np.float32(0.002), "Az": np.int8(4), "to3": STORED["to3"], "to4": STORED["to4"]},
        **{"front": np.array([0]), "zero32": np.int32(0)},
    }
    used = {each for one in nodes for each in one.input}
    stored = {name: value for name, value in stored.items() if name in used}
    m = model([*nodes, MEAN], stored, (batch, *SHAPE[1:]), opset=13, ir_version=8)
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return m


@pytest.mark.parametrize("name", BY_RANGE)
def test_quantization_by_range_is_that_of_onnxruntime_for_each_sample_alone(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    m = quantized_by_range(BY_RANGE[name])
    session = onnxruntime.InferenceSession(m.SerializeToString())
    x = X * np.array([1, 0.1, 3], np.float32).reshape(3, 1, 1, 1)
    y = np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])
    explainer = Explainer(m)
    np.testing.assert_allclose(explainer.predict(x), y, rtol=1e-5, atol=1e-5)
    found = explainer.explain(x, rule="vanilla", target=0)
    for i, one in enumerate(x):
        alone = explainer.explain(one[None], rule="vanilla", target=0)
        np.testing.assert_array_equal(alone.map[0], found.map[i])
    if name != "in a branch":  # onnx's evaluator has DequantizeLinear there from opset 19 on only
        assert verify(m, X).verified


#: From x to r, behind its integers; and what reads these, or their scale, in an unknown way.
MISREAD: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "by no scale": (
        [node("MatMulInteger", ["q", "M", "z"], ["p"]), node("Cast", ["p"], ["r"], to=1)],
        "Reduce",
    ),
    "by the scale twice": (
        [
            node("DequantizeLinear", ["q", "s", "z"], ["real"]),
            node("Mul", ["real", "s"], ["r"]),
        ],
        "ReduceMean",
    ),
    "a zero point of the file": (
        [node("DequantizeLinear", ["q", "s", "Mz0"], ["r"])],
        "DequantizeLinear",
    ),
    "no zero point": ([node("DequantizeLinear", ["q", "s"], ["r"])], "DequantizeLinear"),
    "integers as they are": ([node("Cast", ["q"], ["f"], to=1), node("Mul", ["f", "s"], ["r"])], "Cast"),
    "a sum before the scale": (
        [
            node("MatMulInteger", ["q", "M", "z"], ["p"]),
            node("Cast", ["p"], ["f"], to=1),
            node("Add", ["f", "Ms"], ["g"]),
            node("Mul", ["g", "s"], ["r"]),
        ],
        "Add",
    ),
    "a zero point as a number": (
        [node("Cast", ["z"], ["f"], to=1), node("Mul", ["x", "f"], ["r"])],
        "Cast",
    ),
    "the scale cut to an integer": (
        [
            node("MatMulInteger", ["q", "M", "z"], ["p"]),
            node("Cast", ["p"], ["f"], to=1),
            node("Cast", ["s"], ["whole"], to=6),
            node("Cast", ["whole"], ["cut"], to=1),
            node("Mul", ["f", "cut"], ["r"]),
        ],
        "Cast 'whole'",
    ),
    "whether a product is 0": (
        [
            node("MatMulInteger", ["q", "M", "z"], ["p"]),
            node("Cast", ["p"], ["truth"], to=9),
            node("Cast", ["truth"], ["f"], to=1),
            node("Mul", ["f", "s"], ["r"]),
        ],
        "Cast 'truth'",
    ),
    "a zero point of a product": (
        [
            node("MatMulInteger", ["q", "M", "z"], ["p"]),
            node("DequantizeLinear", ["p", "s", "zero32"], ["r"]),
        ],
        "DequantizeLinear",
    ),
    "within a branch": (
        [
            node("Constant", [], ["is"], value=numpy_helper.from_array(np.array(True))),
            node(
                "If",
                ["is"],
                ["r"],
                then_branch=branch("then", [node("Mul", ["x", "s"], ["t"])], "t"),
                else_branch=branch("else", [node("Neg", ["x"], ["t"])], "t"),
            ),
        ],
        "If",
    ),
}


def test_integers_of_a_node_without_a_zero_point() -> None:
    """ONNX wants all outputs; without a name for one, no op can take it off."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", ""]),
        *by_range("x", node("MatMulInteger", ["q", "M"], ["p"]))[1:],
    ]
    with pytest.raises(UnsupportedError, match=r"DynamicQuantizeLinear 'q': .* are read by MatMulInteger"):
        Explainer(quantized_by_range(nodes))


@pytest.mark.parametrize("name", MISREAD)
def test_integers_by_whose_scale_nothing_is_multiplied(name: str) -> None:
    nodes, reader = MISREAD[name]
    first = node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    with pytest.raises(UnsupportedError, match=f"DynamicQuantizeLinear 'q': .* are read by {reader}"):
        Explainer(quantized_by_range([first, *nodes]))


def test_integers_are_no_scores() -> None:
    m = quantized_by_range(BY_RANGE["columns"])
    for name in ("q", "p", "f", "factor"):
        with pytest.raises(UnsupportedError, match=r"integers of a DynamicQuantizeLinear|is a constant"):
            Explainer(m, output=name).predict(X)
    assert {tensor.name for tensor in Explainer(m).tensors} == {"r", "y"}


def test_angles_are_taken_for_one_sample_alone() -> None:
    """Positions and angles of few bytes make a table of many."""
    many = {"at": np.zeros((2000, 1), np.int64), "cos": np.ones((1, 2000), np.float32)}
    turned = node("RotaryEmbedding", ["x3", "at", "cos", "cos"], ["r3"], domain="com.microsoft")
    nodes = [node("Reshape", ["x", "to3"], ["x3"]), turned, node("Reshape", ["r3", "to4"], ["r"]), MEAN]
    m = model(nodes, many | {"to3": STORED["to3"], "to4": STORED["to4"]})
    tracemalloc.start()
    with pytest.raises(UnsupportedError, match=r"its positions have shape \[2000, 1\]. Supported: 4 numbers"):
        Explainer(m).predict(X)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def test_a_softmax_on_integers_of_an_old_opset_runs_along_the_last_axis() -> None:
    """Without `axis`.  Softmax itself has 1 there, and all axes behind it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("QLinearSoftmax", ["q", "s", "z", "p", "z"], ["r"], domain="com.microsoft", opset=12),
        node("DequantizeLinear", ["r", "p", "z"], ["y"]),
    ]
    m = model(
        nodes, {"s": np.float32(0.03), "p": np.float32(1 / 256), "z": np.uint8(0)}, opset=12, ir_version=8
    )
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (y,) = onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": X})
    np.testing.assert_allclose(Explainer(m, output="y").predict(X), y.reshape(1, -1), atol=1.01 / 256)
    m.graph.node[1].attribute[0].i = 13
    with pytest.raises(UnsupportedError, match="QLinearSoftmax"):
        Explainer(m, output="y")


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax"])
def test_the_scores_before_a_head_on_integers_are_explained(op: str) -> None:
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        node("QuantizeLinear", ["m", "s", "z"], ["q"]),
        node(f"QLinear{op}", ["q", "s", "z", "p", "z"], ["r"], domain="com.microsoft", name="head"),
        node("DequantizeLinear", ["r", "p", "z"], ["y"]),
    ]
    s = model(nodes, {"s": np.float32(0.01), "p": np.float32(1 / 256), "z": np.uint8(0)})
    found = Explainer(s).explain(np.abs(X), rule="vanilla")
    assert found.scores.sum() == pytest.approx(np.abs(X).mean((2, 3)).sum(), abs=0.03)
    assert Explainer(s, output=PROBABILITY).predict(np.abs(X)).max() < 1


@pytest.mark.parametrize(
    ("fused", "said"),
    [
        (node("Attention", ["x3", "qkv", "t"], ["r3"], num_heads=4), "4 heads do not part 30 features"),
        (node("Attention", ["x3", "h30", ""], ["r3"], num_heads=3), "are no .29, 29, 29"),
        (node("Attention", ["x3", "wide"], ["r3"], num_heads=2), "of 46 columns"),
        (node("Attention", ["x3", "m"], ["r3"], num_heads=2), "weights have shape"),
        (
            node("Attention", ["x3", "qkv", "t", "", "h"], ["r3"], num_heads=3),
            "a cache, positions, or a mask",
        ),
        (node("MultiHeadAttention", ["x3"], ["r3"], num_heads=3), "one tensor, or apart by heads"),
        (node("MultiHeadAttention", ["x3", "x3", "x3", "h"], ["r3"], num_heads=3), "bias does not fit"),
        (
            node("MultiHeadAttention", ["x3", "x3", "x3", "", "", "h"], ["r3"], num_heads=3),
            "attention_bias has shape",
        ),
        (
            node("QLinearLeakyRelu", ["x3", "s", "", "s"], ["r3"]),
            "neither its operand nor its result has a zero",
        ),
        (node("QLinearAdd", ["x3", "s", "z", "", "s", "z", "s"], ["r3"]), "input 3 is missing"),
        (node("QLinearAdd", ["x3", "s", "z"], ["r3"]), "has not 7 to 8 inputs"),
        (
            node("QLinearGlobalAveragePool", ["x3", "s", "z", "s", "z"], ["r3"], channels_last=1),
            "channels_last is 1",
        ),
        (
            node(
                "QLinearAveragePool",
                ["x3", "s", "z", "s", "z"],
                ["r3"],
                **{"kernel_shape": [3], "ceil_mode": 1, "count_include_pad": 1},
            ),
            "ceil_mode and count_include_pad are 1",
        ),
        (node("MatMulNBits", ["x3", "b4", "bs"], ["r3"], K=30, N=30, bits=3, block_size=16), "3 bits"),
        (
            node("MatMulNBits", ["x3", "b4", "bs"], ["r3"], K=33, N=30, block_size=16),
            "no 30 rows of 3 blocks",
        ),
        (
            node("MatMulNBits", ["x3", "b4", "bs", "bz8"], ["r3"], K=30, N=30, block_size=16),
            "60 zero points, expected 30",
        ),
        (
            node("MatMulNBits", ["x3", "half", "halves"], ["r3"], K=8, N=3, block_size=1),
            "no 3 rows of 8 blocks",
        ),
        (node("QLinearReduceMean", ["x3"], ["r3"]), "quantize statically"),
        (node("RotaryEmbedding", ["x3", "first", "cos", "sin30"], ["r3"]), "2 cosines, 15 sines and 0 heads"),
        (node("RotaryEmbedding", ["x3", "to3", "cos", "sin"], ["r3"]), "positions 0 to 30"),
        (node("RotaryEmbedding", ["x3", "below", "cos30", "sin30"], ["r3"]), "positions -1 to 2"),
        (node("RotaryEmbedding", ["x3", "first", "empty", "empty"], ["r3"]), r"angles have shape \[7, 0\]"),
        (node("RotaryEmbedding", ["x3", "first", "cos", "sin"], ["r3"], scale=2.0), "scale is set"),
        (node("QAttention", ["x3", "q8", "t", "g", "g"], ["r3"], num_heads=3), "do not fit the weights"),
    ],
)
def test_fused_ops_are_refused_with_the_reason(fused: onnx.NodeProto, said: str) -> None:
    fused.domain = "com.microsoft"
    nodes = [node("Reshape", ["x", "to3"], ["x3"]), fused, node("Reshape", ["r3", "to4"], ["r"]), MEAN]
    stored = {**STORED, "h30": STORED["qkv"][:, :89], "s": np.float32(0.5), "z": np.uint8(3)}
    stored |= {
        "q8": np.zeros((30, 90), np.int8),
        "half": np.zeros(12, np.uint8),
        "halves": np.ones(24, np.float32),
        **{"below": np.array([-1]), "empty": np.zeros((7, 0), np.float32)},
    }
    used = {each for one in nodes for each in one.input}
    with pytest.raises((ModelError, UnsupportedError), match=said):
        Explainer(model(nodes, {k: v for k, v in stored.items() if k in used})).predict(X)


@pytest.mark.parametrize(
    "attributes",
    [
        {"offset_group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1]},
        {"group": 2, "dilations": [2, 1], "kernel_shape": [2, 2], "strides": [3, 2]},
    ],
)
def test_a_deformed_convolution(attributes: dict[str, Any]) -> None:
    parts, (top, left, bottom, right) = attributes.get("offset_group", 1), attributes.get("pads", [0] * 4)
    s, d = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    plane = [(6 + top + bottom - d[0] - 1) // s[0] + 1, (5 + left + right - d[1] - 1) // s[1] + 1]
    taps = 4 * parts
    own = np.random.default_rng(2)
    nodes = [
        node("Flatten", ["x"], ["flat"]),
        node("MatMul", ["flat", "wo"], ["o2"]),
        node("Reshape", ["o2", "so"], ["o"]),
        node("MatMul", ["flat", "wm"], ["m2"]),
        node("Reshape", ["m2", "sm"], ["mask"]),
        node("DeformConv", ["x", "w", "o", "b", "mask"], ["r"], **attributes),
        node("Flatten", ["r"], ["y"]),
    ]
    stored = {
        "wo": own.standard_normal((120, 2 * taps * plane[0] * plane[1])).astype(np.float32) / 20,
        "wm": own.standard_normal((120, taps * plane[0] * plane[1])).astype(np.float32) / 11,
        "so": np.array([1, 2 * taps, *plane]),
        "sm": np.array([1, taps, *plane]),
        "w": own.standard_normal((6, 4 // attributes.get("group", 1), 2, 2)).astype(np.float32),
        "b": STORED["b"][[0, 1, 2, 2, 1, 0]],
    }
    check(model(nodes, stored, opset=19), step=1e-3)


@pytest.mark.parametrize(
    ("op", "operands", "said"),
    [
        ("Col2Im", ["x3", "four", "two"], "do not part 4 columns|has windows at"),
        ("Col2Im", ["x3", "four", "four"], "do not part"),
        ("AffineGrid", ["x3", "size"], "makes no grid"),
        ("DeformConv", ["x", "w", "x"], "do not fit 4 channels"),
        ("DeformConv", ["x", "w", "row"], "do not fit 4 channels"),
    ],
)
def test_what_does_not_fit_is_refused(op: str, operands: list[str], said: str) -> None:
    nodes = [
        node("Reshape", ["x", "to3"], ["x3"]),
        node(op, operands, ["r"]),
        node("Flatten", ["r"], ["y"]),
    ]
    stored = {
        **{"to3": np.array([0, 4, 30]), "four": np.array([4, 4]), "two": np.array([2, 2])},
        **{"row": np.zeros(8, np.float32)},
        **{"size": np.array([1, 1, 4, 4]), "w": STORED["w"]},
    }
    with pytest.raises((ModelError, UnsupportedError), match=said):
        Explainer(model(nodes, stored, opset=20)).predict(X)


def test_onnxruntime_writes_layer_norms_at_any_opset() -> None:
    """Its optimizer does, whatever opset the file has."""
    onnxruntime = pytest.importorskip("onnxruntime")
    nodes = [node("LayerNormalization", ["x", "k"], ["r"], epsilon=1e-3), MEAN]
    m = model(nodes, {"k": np.arange(5, dtype=np.float32)}, opset=12, ir_version=8)
    (y,) = onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": X})
    np.testing.assert_allclose(Explainer(m).predict(X), y.reshape(1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_verified(approximate: str) -> None:
    """onnx's reference evaluator rounds it to float32, which differences would see."""
    nodes = [node("Gelu", ["x"], ["r"], approximate=approximate), node("ReduceMean", ["r", "hw"], ["y"])]
    assert verify(model(nodes, {"hw": np.array([2, 3])}, opset=20), X).verified


@pytest.mark.parametrize(
    ("equation", "said"),
    [
        ("nchh->nch", "differ in size"),
        ("nchw,cw->nh", "differ in size"),
        ("nch->n", "does not fit"),
        ("nchw,ij", "does not fit"),
        ("nchw->nq", "does not fit"),
        ("nchw->nn", "does not fit"),
        ("n..hw->n", "does not fit"),
        ("", "does not fit"),
    ],
)
def test_equations_that_do_not_fit(equation: str, said: str) -> None:
    inputs = ["x", "w"] if "cw" in equation else ["x"]
    with pytest.raises(ModelError, match=said):
        Explainer(
            model([node("Einsum", inputs, ["y"], equation=equation)], {"w": np.ones((3, 5), np.float32)})
        )


@pytest.mark.parametrize(
    ("equation", "said"),
    [
        ("nchw->chw", "the batch as its first axis"),
        ("nchw,n->nc", "batch's letter"),
        ("nchw,mchw->nm", "mixes"),
    ],
)
def test_equations_that_mix_the_batch(equation: str, said: str) -> None:
    second = {1: ["w"], 4: ["x"]}.get(len(equation.partition(",")[2].partition("->")[0]), [])
    m = model(
        [node("Einsum", ["x", *second], ["y"], equation=equation)],
        {"w": np.ones(1, np.float32)},
        ("n", 4, 6, 5),
    )
    with pytest.raises(UnsupportedError, match=said):
        Explainer(m)


def test_an_axis_that_is_the_largest_number() -> None:
    m = model([node("Softmax", ["x"], ["y"], axis=2**63 - 1)], {})
    with pytest.raises(ModelError, match="axis 9223372036854775807 is outside"):
        Explainer(m)


def test_a_graph_whose_name_is_no_text() -> None:
    m = model([call("Act", "x", "r"), MEAN], {}, functions=[function("Act", [node("Exp", ["a"], ["b"])])])
    m.graph.name = "four"
    data = m.SerializeToString().replace(b"four", b"\xbe\xff\xbe\xff")
    np.testing.assert_allclose(Explainer(data).predict(X), np.exp(X).mean((2, 3)), rtol=1e-5)


def test_an_activation_that_is_not_known_is_refused() -> None:
    fused = node("FusedConv", ["x", "w"], ["r"], domain="com.microsoft", activation="Swish")
    with pytest.raises(UnsupportedError, match="activation is 'Swish'"):
        Explainer(model([fused, MEAN], {"w": np.ones((3, 4, 1, 1), np.float32)}))
