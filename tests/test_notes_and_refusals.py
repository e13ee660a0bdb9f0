"""What is said of a file: notes where it is odd and can be read all the same, and refusals that help."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from broken import Model, before, image, input_dims, node, put, renamed, store, valid
from onnx import TensorProto, helper

from gbp import PROBABILITY, Explainer, InputError, ModelError, UnsupportedError
from gbp.diagnostics.inspection import inspect
from gbp.diagnostics.verify import verify

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def declare(m: Model, name: str, sizes: list[Any] | None, kind: int = FLOAT) -> None:
    m.graph.value_info.append(helper.make_tensor_value_info(name, kind, sizes))


def outputs(m: Model, *values: tuple[str, list[Any] | None, int]) -> None:
    del m.graph.output[:]
    m.graph.output.extend(helper.make_tensor_value_info(name, kind, sizes) for name, sizes, kind in values)


# -------------------------------------------------------------------------------------------- declared shapes


@pytest.mark.parametrize("sizes", [[1, 8, 9, 9], [1, 8], [2, 8, 16, 16], ["N", 7, -8, None], [1, 8, 8, 8, 1]])
@pytest.mark.parametrize("name", ["c", "p", "z"])
def test_a_stale_shape_is_a_note(name: str, sizes: list[Any]) -> None:
    model = valid()
    plain = Explainer(valid()).explain(image(), target=1)
    declare(model, name, sizes)
    found = Explainer(model).explain(image(), target=1)
    assert np.array_equal(found.map, plain.map)
    (note,) = found.notes
    assert f"declares {name!r} as [" in note
    assert note in inspect(model).notes


def test_many_stale_shapes_are_one_note() -> None:
    model = valid()
    for name in ("c", "n", "r", "p"):
        declare(model, name, [1, 8, 5, 5])
    (note,) = Explainer(model).explain(image()).notes
    assert "'c' as [1, 8, 5, 5], which is [1, 8, 8, 8] and 3 more shapes" in note


@pytest.mark.parametrize("name", ["c", "y", "f"])
def test_a_size_of_minus_one_is_open(name: str) -> None:
    model = valid()
    input_dims(-1, 3, -1, -1)(model)
    declare(model, name, [-1] * (2 if name != "c" else 4))
    explainer = Explainer(model)
    assert explainer.input_shape == (None, 3, None, None)
    assert explainer.explain(image(2, 3, 8, 8)).notes == ()


# ----------------------------------------------------------------------------------- outputs of whole numbers


def indexed(*behind: onnx.NodeProto) -> Model:
    """The valid model's probabilities, 'y', and what is made of them."""
    model = valid(15)
    model.graph.node.extend(behind)
    return model


@pytest.mark.parametrize("op", ["Identity", "Cast to float", "Squeeze", "twice"])
def test_the_index_of_a_maximum_stands_for_what_it_is_the_maximum_of(op: str) -> None:
    made = {
        "Identity": [helper.make_node("Identity", ["i"], ["out"])],
        "Cast to float": [helper.make_node("Cast", ["i"], ["out"], to=FLOAT)],
        "Squeeze": [helper.make_node("Squeeze", ["i"], ["out"])],
        "twice": [helper.make_node("Cast", ["i"], ["out"], to=TensorProto.INT32)],
    }[op]
    model = indexed(helper.make_node("ArgMax", ["y"], ["i"], axis=1), *made)
    kind = FLOAT if op == "Cast to float" else INT64
    outputs(model, *[("out", None, kind), ("i", None, INT64)][: 2 if op == "twice" else 1])
    found = Explainer(model).explain(image())
    assert found.map.tobytes() == Explainer(valid(15)).explain(image()).map.tobytes()
    assert found.head.op == "Softmax"
    assert "'out' is the index of a maximum" in found.notes[0]
    assert "'z'" in found.notes[0]
    assert Explainer(model, output=PROBABILITY).explain(image()).head.op == ""
    assert verify(model, image()).verified


@pytest.mark.parametrize(
    ("nodes", "before"),
    [
        ([helper.make_node("ArgMin", ["z"], ["i"], axis=1)], "z"),
        (
            [helper.make_node("Greater", ["y", "half"], ["o"]), helper.make_node("Cast", ["o"], ["i"], to=7)],
            "y",
        ),
        ([helper.make_node("TopK", ["z", "one"], ["values", "i"])], "z"),
        ([helper.make_node("ArgMax", ["z"], ["i"]), helper.make_node("ArgMax", ["r"], ["j"])], "z"),
    ],
)
def test_where_it_is_not_plain_what_to_explain_the_outputs_are_told(
    nodes: list[onnx.NodeProto], before: str
) -> None:
    model = indexed(*nodes)
    store(model, "half", np.float32(0.5))
    store(model, "one", np.array([1]))
    names = ["i", "j"] if len(nodes) == 2 and nodes[1].op_type == "ArgMax" else ["i"]
    outputs(model, *((name, None, INT64) for name in names))
    with pytest.raises(InputError, match=f"'i' holds INT64, made by .*say output='{before}'"):
        Explainer(model)


def test_several_outputs_are_listed_with_their_shapes() -> None:
    model = indexed()
    outputs(model, ("r", ["N", 8, 8, 8], FLOAT), ("y", ["N", 4], FLOAT), ("f", None, FLOAT))
    with pytest.raises(InputError) as caught:
        Explainer(model)
    text = str(caught.value)
    assert "3 outputs: 'r' [?, 8, 8, 8]; 'y' [?, 4] behind a Softmax; 'f' of unknown shape." in text
    assert "Scores look like 'y'." in text
    assert "output='y'" in text


def test_boxes_with_one_score_each_do_not_look_like_scores() -> None:
    model = indexed()
    outputs(model, ("r", [None, 4], FLOAT), ("f", [None], FLOAT))
    with pytest.raises(InputError, match=r"Scores look like 'f'\. .*output='f'"):
        Explainer(model)


# -------------------------------------------------------------------------------------------------- refusals


def test_the_first_refusal_comes_first_and_no_later_node_is_called_damaged() -> None:
    """Behind a refused node shapes are guessed, from what the file declares; here that lies."""
    model = valid()
    before("pool", "Transpose", perm=[1, 0, 2, 3])(model)
    for sizes in (["N", 8, 8, 8], ["N", 3, 5, 5], ["N", 8], [8, 1, 8, 8], None):
        del model.graph.value_info[:]
        declare(model, "new", sizes)
        with pytest.raises(UnsupportedError, match=r"^Transpose 'new': .*batch.*say output='r'") as caught:
            Explainer(model)
        refused, _, _ = str(caught.value).partition("Nor with a batch of one: ")  # Which is built anew.
        assert "'fc'" not in refused


def test_a_refusal_hides_no_other_and_damage_elsewhere_comes_second() -> None:
    model = valid()
    put(model, "relu", "Softmax", output="s", axis=0)
    model.graph.node[2].name = "guilty"
    put(model, "fc", "LogSoftmax", output="t", axis=0)
    declare(model, "s", ["N", 8, 8, 8])
    store(model, "fc_w", np.ones((4, 77), np.float32))
    with pytest.raises(UnsupportedError, match=r"^Softmax 'guilty': .*LogSoftmax 'new'"):
        Explainer(model)


def test_unsupported_nodes_are_counted_by_op() -> None:
    model = valid()
    for i in range(40):
        put(model, "relu", f"QLinear{'Split' if i % 2 else 'ReduceMean'}", output=f"q{i}")
        node(model, "new").name = f"/features/features.{i}/conv/Conv_quant"
    with pytest.raises(UnsupportedError) as caught:
        Explainer(model)
    text = str(caught.value)
    assert "40 nodes that gbp does not support: 20 QLinearReduceMean, the first of them '/features/" in text
    assert "20 QLinearSplit" in text
    assert text.endswith("quantize statically, or export in float32.")
    assert len(text) < 500


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN", "TopK", "NonMaxSuppression", "Frobnicate"])
def test_an_op_that_gbp_does_not_do_names_the_tensor_before(op: str) -> None:
    model = valid()
    renamed("pool", op)(model)
    renamed("flatten", "LSTM")(model)
    with pytest.raises(UnsupportedError, match=r"say output='r'\.") as caught:
        Explainer(model)
    assert "output='p'" not in str(caught.value)  # which depends on the first
    assert Explainer(model, output="r").explain(image(), target=3).map.any()


def test_an_op_that_onnx_has_not_is_said_to_be_none() -> None:
    model = valid()
    renamed("pool", "Digamma")(model)  # as tf2onnx leaves TensorFlow's
    with pytest.raises(
        UnsupportedError, match=r"ONNX has no such op: .*newer opset.*by other functions.*say output='r'\."
    ):
        Explainer(model)


def test_the_tensor_that_is_compared_is_named() -> None:
    """As before the NonZero of a detector: the slope of what is true or false is 0."""
    model = valid()
    put(model, "pool", "Greater", "zero", output="above")
    put(model, "pool", "Not", output="below")
    renamed("pool", "NonZero")(model)
    store(model, "zero", np.float32(0.1))
    with pytest.raises(
        UnsupportedError, match=r"through NonZero\. To explain what feeds it, say output='r'\."
    ):
        Explainer(model)


def test_no_tensor_is_named_where_only_the_input_is_before() -> None:
    model = valid()
    renamed("conv", "LSTM")(model)
    with pytest.raises(UnsupportedError) as caught:
        Explainer(model)
    assert "output=" not in str(caught.value)


# ---------------------------------------------------------------------------------- numbers, and what is none


def test_a_node_that_divides_0_by_0_is_named() -> None:
    model = valid()
    put(model, "pool", "Div", "r", output="q")
    explainer = Explainer(model)
    for use in (explainer.predict, explainer.explain):
        with pytest.raises(ModelError, match=r"^Div 'new': its result holds NaN") as caught:
            use(np.concatenate([image(), image()]))
        assert "overflow" not in str(caught.value)
    store(model, "w", np.full((8, 3, 3, 3), 1e38, np.float32))
    with pytest.raises(ModelError, match=r"^Div 'new': .*overflow"):  # of infinity by infinity
        Explainer(model).predict(image() * 1e5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64])
def test_whole_numbers_are_floats(dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 100, (2, 3, 8, 8)).astype(dtype)
    explainer = Explainer(valid())
    assert np.array_equal(explainer.predict(x), explainer.predict(x.astype(np.float32)))
    assert np.array_equal(explainer.explain(x).map, explainer.explain(x.astype(np.float32)).map)


@pytest.mark.parametrize("value", [[1.0], ["a"], np.zeros(3, int), None])
def test_text_inputs_take_no_value(value: Any) -> None:
    model = valid()
    model.graph.input.append(helper.make_tensor_value_info("id", TensorProto.STRING, [1]))
    with pytest.raises(InputError, match="input 'id' takes text"):
        Explainer(model, given={"id": value})
    assert Explainer(model).explain(image()).map.any()


def test_verify_says_which_shapes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    model = valid()
    monkeypatch.setattr(
        "gbp.diagnostics.reference._sample", lambda y, source: y[:, :-1] if y.shape[1:] == (8, 8, 8) else y
    )
    found = verify(model, image())
    assert not found.verified
    assert "makes [1, 8, 8, 8], and the reference [1, 7, 8, 8]" in found.verdict
    assert "e+09" not in found.verdict
