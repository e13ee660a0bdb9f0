"""What exporters of all ages write: the same network in other words gives the same scores and maps."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from agreement import RULES, assert_close
from broken import node, put, store, tensor, valid
from builder import Builder
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gbp import Explainer, GbpError, InputError, ModelError, UnsupportedError
from gbp.cli import main as cli
from gbp.diagnostics.inspection import inspect
from gbp.diagnostics.verify import verify
from gbp.importer.proto import read

Model = onnx.ModelProto
X = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)


def assert_same(model: Any, other: Any, x: NDArray[Any] = X, **options: Any) -> None:
    for rule in RULES:
        a, b = Explainer(model, **options).explain(x, rule=rule), Explainer(other).explain(X, rule=rule)
        assert_close(a.scores, b.scores.astype(np.float64), f"{rule} scores")
        assert_close(a.map, b.map.astype(np.float64), f"{rule} map")


# ---------------------------------------------------------------------------------------- number formats


def in_type(model: Model, kind: int) -> Model:
    """The model with all its floats, input and output of another width; the values are what float16 holds."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for stored in model.graph.initializer:
        values = numpy_helper.to_array(stored).astype(np.float16)
        stored.CopyFrom(numpy_helper.from_array(values.astype(dtype), stored.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    return model


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_widths_of_numbers(kind: int) -> None:
    single, other = in_type(valid(), TensorProto.FLOAT), in_type(valid(), kind)
    assert_same(other, single)
    assert_same(other, single, x=X.astype(np.float64))
    (note,) = Explainer(other).explain(X).notes
    assert TensorProto.DataType.Name(kind).lower() in note
    assert Explainer(single).explain(X).notes == ()


def test_bfloat16() -> None:
    model, single = valid(), valid()
    for stored, same in zip(model.graph.initializer, single.graph.initializer, strict=True):
        values = numpy_helper.to_array(stored).view(np.uint32) >> 16
        data = values.astype(np.uint16).tobytes()
        brain = helper.make_tensor(stored.name, TensorProto.BFLOAT16, stored.dims, data, raw=True)
        stored.CopyFrom(brain)
        same.CopyFrom(numpy_helper.from_array((values << 16).view(np.float32), same.name))
    assert_same(model, single)


def test_casts_between_widths() -> None:
    model = valid()
    put(model, "conv", "Cast", to=TensorProto.FLOAT16)
    put(model, "relu", "Cast", output="wide", to=TensorProto.FLOAT)
    assert_same(model, valid())


def test_an_image_of_bytes() -> None:
    model = valid()
    put(model, "conv", "Cast", to=TensorProto.FLOAT)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    pixels = np.random.default_rng(0).integers(0, 256, X.shape).astype(np.uint8)
    found, same = Explainer(model).explain(pixels), Explainer(valid()).explain(pixels.astype(np.float32))
    np.testing.assert_array_equal(found.map, same.map)


def test_a_cast_to_integers_is_refused() -> None:
    model = valid()
    put(model, "relu", "Cast", to=TensorProto.INT64)
    with pytest.raises(UnsupportedError, match="Cast 'new': it casts to INT64"):
        Explainer(model)


# -------------------------------------------------------------------------------------------- old opsets


def old(model: Model, opset: int = 1) -> Model:
    """Before opset 7: BatchNormalization says that it is a test, and ops what they consume."""
    model.opset_import[0].version = opset
    for name in ("bn", "relu"):
        node(model, name).attribute.append(helper.make_attribute("consumed_inputs", [0]))
    node(model, "bn").attribute.append(helper.make_attribute("is_test", 1))
    return model


@pytest.mark.parametrize("shape", [(8,), (8, 8, 8)], ids=["of MXNet", "by pixel"])
def test_statistics_by_pixel(shape: tuple[int, ...]) -> None:
    """MXNet says spatial=0 and means statistics by channel."""
    model = valid(8)
    node(model, "bn").attribute.append(helper.make_attribute("spatial", 0))
    for name in ("scale", "shift", "mean", "var"):
        values = numpy_helper.to_array(tensor(model, name)).reshape(8, *(1,) * (len(shape) - 1))
        store(model, name, np.broadcast_to(values, shape))
    assert_same(model, valid())


def test_statistics_by_pixel_fit_the_pixels() -> None:
    model = valid(8)
    node(model, "bn").attribute.append(helper.make_attribute("spatial", 0))
    store(model, "mean", np.zeros((8, 8), np.float32))
    with pytest.raises(ModelError, match=r"mean has shape \[8, 8\], expected \[8\]"):
        Explainer(model)


def test_thresholded_relu_before_opset_10() -> None:
    """An experimental op then, which WinMLTools wrote."""
    model, same = valid(7), valid()
    for m in (model, same):
        node(m, "relu").op_type = "ThresholdedRelu"
        node(m, "relu").attribute.append(helper.make_attribute("alpha", 0.3))
    assert_same(model, same)


@pytest.mark.parametrize("opset", [1, 3, 5])
def test_old_opsets(opset: int) -> None:
    assert_same(old(valid(), opset), valid())


def test_an_old_file_is_verified() -> None:
    """onnx's reference knows new ops alone, and counts the padding in an average of opset 1."""
    b = Builder(opset=1)
    y = b.nodes(
        "BatchNormalization", b.input(1, 3, 6, 6), *map(b.constant, abs(b.noise(4, 3))),
        outputs=5, is_test=1, consumed_inputs=[0, 0, 0, 1, 1],
    )[0]  # fmt: skip
    y = b.node("AveragePool", b.node("Selu", y), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    y = b.node("Add", y, b.constant(b.noise(3)), broadcast=1, axis=1)
    y = b.node("Concat", y, b.node("Clip", y, min=0.0, consumed_inputs=[0]))
    y = b.node("Reshape", b.node("Dropout", y, is_test=1), shape=[0, -1])
    y = b.node("Gemm", y, b.constant(b.noise(54, 4)), b.constant(b.noise(4)), broadcast=1)
    found = verify(b.model(y))
    assert found.verified, found
    assert found.directions


def test_a_norm_of_a_power_that_is_no_whole_number_is_refused() -> None:
    """Before opset 2 the power is a float.  It was cut to a whole number."""
    b = Builder(opset=1)
    x = b.input(1, 3, 6, 6)
    Explainer(b.model(b.node("GlobalLpPool", x, p=3.0)))
    with pytest.raises(UnsupportedError, match=r"p is 1\.5\. Supported: whole numbers"):
        Explainer(b.model(b.node("GlobalLpPool", x, p=1.5)))


def test_reshape_to_an_attribute() -> None:
    model = old(valid())
    flatten = node(model, "flatten")
    flatten.op_type = "Reshape"
    flatten.attribute.append(helper.make_attribute("shape", [0, -1]))
    assert_same(model, valid())


def test_weights_reshaped_to_an_attribute() -> None:
    model = old(valid())
    store(
        model,
        "flat",
        numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w")).ravel(),
    )
    model.graph.node.insert(0, helper.make_node("Reshape", ["flat"], ["shaped"], shape=[8, 3, 3, 3]))
    node(model, "conv").input[1] = "shaped"
    assert_same(model, valid())


def test_image_scaler() -> None:
    model, same = old(valid()), valid()
    put(model, "conv", "ImageScaler", scale=0.5, bias=[1.0, 2.0, 3.0])
    put(same, "conv", "Mul", store(same, "half", np.float32(0.5)))
    put(same, "conv", "Add", store(same, "means", np.float32([[[1]], [[2]], [[3]]])), output="shifted")
    assert_same(model, same)


def test_fc() -> None:
    model = old(valid())
    fc = node(model, "fc")
    fc.op_type = "FC"
    del fc.attribute[:]
    assert_same(model, valid())


def test_legacy_padding() -> None:
    """Caffe's pool: as many windows as reach over the end."""
    model, same = valid(), valid()
    put(model, "pool", "LegacyPadding", kernel_shape=[3, 3], strides=[2, 2], value=-1e38)
    node(model, "new").domain = "com.microsoft"
    for each, ceil in ((model, 0), (same, 1)):
        pool = node(each, "pool")
        del pool.attribute[:]
        pool.attribute.extend(
            helper.make_attribute(name, value)
            for name, value in (("kernel_shape", [3, 3]), ("strides", [2, 2]), ("ceil_mode", ceil))
        )
    assert_same(model, same)


# ------------------------------------------------------------------------------------- weights elsewhere


def beside(model: Model, folder: Path, location: str = "weights.bin", **options: Any) -> Path:
    """The model saved with its weights in another file."""
    path = folder / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0, **options)
    return path


@pytest.mark.parametrize("all_in_one", [True, False])
def test_weights_in_files_beside_the_model(tmp_path: Path, all_in_one: bool) -> None:
    model = in_type(valid(), TensorProto.FLOAT16)
    path = beside(model, tmp_path, all_tensors_to_one_file=all_in_one)
    assert_same(path, in_type(valid(), TensorProto.FLOAT))


def relocated(path: Path, **entries: str) -> None:
    """The model at `path` with other external data entries of its first tensor."""
    proto = onnx.load(path, load_external_data=False)
    data = proto.graph.initializer[0].external_data
    kept = {entry.key: entry.value for entry in data} | entries
    del data[:]
    for key, value in kept.items():
        data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


HOSTILE: dict[str, tuple[Callable[[Path], dict[str, str]], str]] = {
    "an absolute path": (lambda folder: {"location": str(folder / "weights.bin")}, "outside"),
    "the folder above": (lambda folder: {"location": "../weights.bin"}, "outside"),
    "by way of a folder that is there": (lambda folder: {"location": "sub/../../weights.bin"}, "outside"),
    "a link out of the folder": (lambda folder: {"location": "link.bin"}, "outside"),
    "a link within a path": (lambda folder: {"location": "up/weights.bin"}, "outside"),
    "a pipe": (lambda folder: {"location": "pipe"}, "no file"),
    "a folder": (lambda folder: {"location": "sub"}, "no file"),
    "nothing": (lambda folder: {"location": "nowhere.bin"}, "no file"),
    "no location": (lambda folder: {"location": ""}, "does not name"),
    "a name with a NUL": (lambda folder: {"location": "a\0b"}, "no sense"),
    "an offset beyond the end": (lambda folder: {"offset": "99999999"}, "do not make"),
    "an offset below 0": (lambda folder: {"offset": "-4"}, "do not make"),
    "an offset that is no number": (lambda folder: {"offset": "four"}, "no sense"),
    "another length": (lambda folder: {"length": "8"}, "do not make"),
    "an offset of 5000 digits": (lambda folder: {"offset": "9" * 5000}, "no sense"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes to name")
@pytest.mark.parametrize("name", HOSTILE)
def test_weights_that_are_not_beside_the_model(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    path = beside(valid(), folder)
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    entries, found = HOSTILE[name]
    relocated(path, **entries(folder))
    with pytest.raises(ModelError, match=found):
        Explainer(path)


def test_weights_in_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    path = beside(valid(), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"weights.bi\xff"))
    with pytest.raises(ModelError, match="not UTF-8"):
        Explainer(path)


def test_many_tensors_of_one_file_do_not_raise_the_budget(tmp_path: Path) -> None:
    path = beside(valid(), tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for i in range(1000):
        proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"copy {i}"
    path.write_bytes(proto.SerializeToString())
    assert read(path)[1].nbytes <= (tmp_path / "weights.bin").stat().st_size


def test_a_file_with_holes_holds_little(tmp_path: Path) -> None:
    """A terabyte that takes no room on disk, and a tensor of half a gigabyte in it."""
    path = beside(valid(), tmp_path)
    with open(tmp_path / "weights.bin", "r+b") as file:
        try:
            file.truncate(2**40)
        except OSError:
            pytest.skip("this file system has no files with holes")
    assert Explainer(path).predict(X).shape == (2, 4)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].dims[:] = [8, 2**24]
    del proto.graph.initializer[0].external_data[2:]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="many times the bytes of the files"):
        Explainer(path)


def test_a_cache_of_links(tmp_path: Path) -> None:
    """Model and weights are links to files that lie together under other names."""
    model = beside(valid(), tmp_path)
    store, shown = tmp_path / "store", tmp_path / "shown"
    for folder in (store, shown):
        folder.mkdir()
    for name, file in (("net.onnx", model), ("weights.bin", tmp_path / "weights.bin")):
        file.rename(store / f"{name} 0")
        (shown / name).symlink_to(Path("..") / "store" / f"{name} 0")
    assert_same(shown / "net.onnx", valid())


def test_weights_elsewhere_of_a_model_of_open_size(tmp_path: Path) -> None:
    model = valid()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 0
    path = beside(model, tmp_path)
    explainer = Explainer(path)
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_array_equal(explainer.predict(X), Explainer(valid()).predict(X))


def test_weights_elsewhere_want_a_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="by its path"):
        Explainer(beside(valid(), tmp_path).read_bytes())


# -------------------------------------------------------------------------------- several inputs, outputs


def two_inputs() -> Model:
    """The network with a second picture added to the first and scores times a number."""
    model = valid()
    put(model, "conv", "Add", "other")
    put(model, "softmax", "Mul", "factor", output="scaled")
    for name, shape in (("other", [1, 3, 8, 8]), ("factor", [])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def test_other_inputs_are_given() -> None:
    model, same = two_inputs(), two_inputs()
    other = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)
    given = {"other": other, "factor": 2}
    for name, value in given.items():
        store(same, name, np.float32(value))
    assert_same(model, same, given=given)
    assert_same(model, same, input="x", given=given)
    assert_same(model, same, given={"other": other[0], "factor": 2})  # without the axis of the batch
    swapped = Explainer(model, input="other", given={"x": X[:1], "factor": 2.0}).explain(other)
    np.testing.assert_array_equal(swapped.map, Explainer(same).explain(X[:1]).map)


def test_an_initializer_is_the_default_of_an_input() -> None:
    model = two_inputs()
    store(model, "other", np.zeros((1, 3, 8, 8), np.float32))
    store(model, "factor", np.float32(1))
    assert_same(model, valid())
    assert not np.array_equal(Explainer(model, given={"factor": 3.0}).predict(X), Explainer(model).predict(X))


def test_inputs_that_do_not_matter_need_no_value() -> None:
    model = valid()
    model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.INT64, [None]))
    assert_same(model, valid())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "3 inputs, 'x', 'other', 'factor', have no value"),
        ({"input": "x"}, "^other inputs have no value: 'other', 'factor'"),
        ({"given": {"other": X[:1]}}, "2 inputs, 'x', 'factor'"),
        ({"input": "nobody"}, "'nobody' is no input"),
        ({"input": "x", "given": {"x": X[:1]}}, "'x' is no input to explain"),
        ({"given": {"nobody": 1.0}}, "no input 'nobody'"),
        ({"given": {"other": "a cat"}}, "'other' is not of FLOAT"),
        ({"given": {"other": X[:1, :, :4]}}, r"'other' has shape \[1, 3, 4, 8\]"),
        ({"given": {"other": X[0, 0]}}, r"'other' has shape \[8, 8\]\. Supported: \[1, 3, 8, 8\]"),
        ({"given": {"other": np.full((1, 3, 8, 8), np.nan)}}, "for input 'other' holds NaN"),
        ({"given": {"other": X[:1] * 1j}}, "'other' is not of FLOAT"),
    ],
)
def test_inputs_that_are_missing_or_wrong(options: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError, match=found):
        Explainer(two_inputs(), **options)


def test_what_is_given_may_not_differ_by_sample() -> None:
    model = two_inputs()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(GbpError, match="does not broadcast"):
        Explainer(model, given={"other": X, "factor": 1.0})
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "N"
    with pytest.raises(GbpError, match=r"'other' has 2 rows: if .*, give one that all samples share"):
        Explainer(model, given={"other": X, "factor": 1.0})


@pytest.mark.parametrize("sizes", [[0, 3], [3, 0], None])
def test_a_part_of_nothing_is_named(sizes: list[int] | None) -> None:
    b = Builder()
    x, how = b.input(1, 3, 4, 4), {} if sizes else {"num_outputs": 4}
    given = [b.constant(sizes)] if sizes else []
    parts = b.nodes("Split", x, *given, outputs=2 if sizes else 4, axis=1, **how)
    model = b.model(b.relu(parts[sizes == [0, 3]]))
    with pytest.raises(UnsupportedError, match=r"^Split .*: output '\w+' is empty: the sizes are \["):
        Explainer(model)


def all_open(m: Model) -> Model:
    """The model with no size of its input said, as Optimum writes it."""
    for i, dim in enumerate(m.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_param = f"axis{i}"
    return m


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_first_conv_says_how_many_channels_an_open_file_takes(channels_last: bool) -> None:
    b = Builder(opset=13)
    x = b.input(1, *((8, 9, 4) if channels_last else (4, 8, 9)))
    like = b.node("ConstantOfShape", b.node("Shape", x))  # which says nothing of the image
    y = b.node("Sub", b.add(x, like), b.constant(b.noise(1)))
    y = b.conv(b.transpose(y, 0, 3, 1, 2) if channels_last else y, 4, group=2)
    model = all_open(b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", b.relu(y))), 3)))
    assert Explainer(model).input_shape == ((None, None, None, 4) if channels_last else (None, 4, None, None))
    assert verify(model, size=(8, 9)).verified
    assert not inspect(model, size=(8, 9)).unsupported


def test_an_image_that_is_turned_and_back_has_its_channels_first() -> None:
    b = Builder(opset=13)
    x = b.transpose(b.transpose(b.input(1, 4, 8, 9), 0, 3, 1, 2), 0, 2, 3, 1)
    explainer = Explainer(all_open(b.model(b.head(b.conv(x, 4)))))
    assert explainer.predict(np.ones((1, 4, 8, 9), np.float32)).size


def test_a_file_of_any_number_of_channels_is_not_taken_for_one_of_224() -> None:
    b = Builder(opset=13)
    model = all_open(b.model(b.node("GlobalMaxPool", b.input(1, 3, 8, 9))))
    other = Builder(opset=13)
    x = other.input(1, 3, 8, 9)
    twice = all_open(other.model(other.node("GlobalMaxPool", other.concat(x, x))))
    for ask, asked in ((inspect, model), (verify, model), (inspect, twice)):
        with pytest.raises(InputError, match="leaves the number of its channels open"):
            ask(asked)
    assert Explainer(model).explain(X[:, :2], rule="vanilla").scores.shape == (2, 2)


@pytest.mark.parametrize("more", ["x", "w", "scores"])
def test_what_no_node_makes_is_no_scores(more: str) -> None:
    """An output may be the image, a weight, or another output again."""
    model = valid()
    scores = model.graph.output[0].name
    model.graph.output.insert(0, helper.make_tensor_value_info(scores if more == "scores" else more, 1, None))
    assert_same(model, valid())


def test_labels_from_the_file() -> None:
    """A classifier as scikit-learn's converters end it: a label, and a table of probabilities."""
    model = valid()
    model.graph.node.add(op_type="ArgMax", input=["y"], output=["best"])
    zipmap = helper.make_node("ZipMap", ["y"], ["table"], domain="ai.onnx.ml", classlabels_strings=[*"abcd"])
    model.graph.node.append(zipmap)
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    del model.graph.output[:]
    model.graph.output.add(name="best").type.tensor_type.elem_type = TensorProto.INT64
    model.graph.output.add(name="table").type.map_type.key_type = TensorProto.STRING
    assert_same(model, valid())
    assert Explainer(model).labels == tuple("abcd")
    assert Explainer(model, labels=[*"wxyz"]).labels == tuple("wxyz")
    assert Explainer(model, output="z").labels is None


# ----------------------------------------------------------------------------------------- arrays in files


def test_samples_in_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.npy", str(tmp_path / "b.NPY")]
    np.save(paths[0], X[0])
    with open(paths[1], "wb") as file:
        np.save(file, X[1:])
    explainer = Explainer(valid())
    np.testing.assert_array_equal(explainer.explain(paths).map, explainer.explain(X).map)
    whole = np.rint(9 * X[0]).astype(np.int16)
    np.save(paths[0], whole)
    np.testing.assert_array_equal(explainer.prepare(paths[0]), whole[None])
    assert verify(valid(), paths[0]).verified


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ([(2, 3, 8, 8)], r"one sample of \[3, 8, 8\] in each"),
        ([(3, 8, 8), (3, 4, 8)], "one sample of"),
        ([(3, 8, 8), None], "one kind at a time"),
        ([(8, 8)], "one sample of"),
    ],
)
def test_samples_that_do_not_fit(tmp_path: Path, shapes: list[tuple[int, ...] | None], found: str) -> None:
    paths = [tmp_path / f"{i}.{'npy' if shape else 'png'}" for i, shape in enumerate(shapes)]
    for path, shape in zip(paths, shapes, strict=True):
        if shape:
            np.save(path, np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=found):
        Explainer(valid()).explain(paths)


def test_models_of_several_inputs_are_inspected_and_warmed_up(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(two_inputs(), path)
    np.save(tmp_path / "other.npy", X[:1])
    ends = ["--input", "x", "--given", f"other={tmp_path / 'other.npy'}", "--given", "factor=2"]
    for command in ("inspect", "warmup", "verify"):
        assert cli.main([command, str(path), *ends]) == 0
    assert cli.main(["inspect", str(path)]) == 2


# ------------------------------------------------------------------------------------------ quantization


def quantized() -> Model:
    """Between QDQ pairs, its weights and bias quantized by channel, its pool on the integers."""
    b = Builder()

    def scales(n: int) -> str:
        return b.constant(b.rng.uniform(0.01, 0.02, n))

    def through(x: str) -> str:
        return b.node("QuantizeLinear", x, b.constant(0.05), b.constant(3, np.uint8))

    def back(x: str) -> str:
        return b.node("DequantizeLinear", x, b.constant(0.05), b.constant(3, np.uint8))

    w = b.node(
        "DequantizeLinear", b.constant(b.rng.integers(-9, 9, (5, 3, 3, 3)), np.int8), scales(5), axis=0
    )
    bias = b.node("DequantizeLinear", b.constant(b.rng.integers(-99, 99, 5), np.int32), scales(5), axis=0)
    y = b.relu(b.node("Conv", back(through(b.input(1, 3, 8, 8))), w, bias))
    y = back(b.node("MaxPool", through(y), kernel_shape=[2, 2], strides=[2, 2]))
    return b.model(b.head(y))


def test_a_quantized_network() -> None:
    model = quantized()
    explainer = Explainer(model)
    (scores,) = ReferenceEvaluator(model).run(None, {"x": X})
    np.testing.assert_allclose(explainer.predict(X), scores, rtol=1e-4, atol=1e-5)
    (note,) = explainer.explain(X).notes
    assert "2 nodes of quantization" in note


def test_integer_arithmetic_is_refused_with_what_to_do() -> None:
    model = valid()
    node(model, "conv").op_type = "QLinearReduceMean"
    with pytest.raises(UnsupportedError, match=r"QLinearReduceMean 'conv' \(node 1 of 6\).*QDQ"):
        Explainer(model)
    (hint,) = inspect(model).hints
    assert "QDQ" in hint


# ------------------------------------------------------------------------------------------ verification


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (lambda: in_type(valid(), TensorProto.FLOAT16), {}),
        (lambda: in_type(valid(), TensorProto.DOUBLE), {}),
        (two_inputs, {"input": "x", "given": {"other": X[:1], "factor": 2.0}}),
        (quantized, {}),
    ],
    ids=["float16", "float64", "two inputs", "quantized"],
)
@pytest.mark.parametrize("onnxruntime", [True, False])
def test_verified(
    model: Callable[[], Model], options: dict[str, Any], onnxruntime: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onnxruntime:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert verify(model(), **options).verdict.startswith("verified: ")


def test_weights_in_other_files_are_verified(tmp_path: Path) -> None:
    assert verify(beside(valid(), tmp_path)).verified


@pytest.mark.parametrize("c", [1.0, 3.0, 0.3])
def test_what_is_the_image_again_has_its_gradient_everywhere(c: float) -> None:
    """(x + c) - c is no Shrink because it is 0 where x is next to nothing."""
    b = Builder()
    x = b.input(1, 3, 8, 8)
    constant = b.constant(np.float32(c))
    model = b.model(b.gemm(b.flatten(b.node("Sub", b.node("Add", x, constant), constant)), 4))
    assert Explainer(model).explain(np.zeros((1, 3, 8, 8), np.float32), rule="vanilla").map.all()
