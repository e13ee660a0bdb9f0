"""Weights are cut out of a file before protobuf sees it, read where a layer wants them, and kept once."""

from __future__ import annotations

import math
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from builder import Builder
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gbp import Explainer, GbpError, InputError, ModelError
from gbp.importer.load import build, open_model
from gbp.importer.proto import read, tensor_values
from gbp.importer.weights import open_split, split
from gbp.kernels.codegen import memory

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo.onnx"


def dense(matmul: bool = False) -> onnx.ModelProto:
    """A network of one large matrix: 1024 × 3072 float32."""
    b = Builder()
    x = b.flatten(b.input(1, 3, 32, 32))
    x = b.node("Add", b.matmul(x, 1024), b.constant(b.noise(1024))) if matmul else b.gemm(x, 1024, transB=1)
    return b.model(b.gemm(b.relu(x), 10, transB=1))


def check(data: bytes) -> int:
    """Data and what is left of it mean the same to protobuf; the number of tensors that were cut out."""
    rest, spans = split(data)
    proto, whole = onnx.load_model_from_string(rest), onnx.load_model_from_string(data)
    tensors = zip(proto.graph.initializer, whole.graph.initializer, spans or [None] * 10**6, strict=False)
    cut = [(left, tensor, *span) for left, tensor, span in tensors if span]
    for left, tensor, start, length in cut:
        assert tensor.data_type == TensorProto.FLOAT
        assert data[start : start + length] == tensor.raw_data
        assert not left.HasField("raw_data")
        left.raw_data = tensor.raw_data
    assert proto == whole
    return len(cut)


def test_what_is_cut_is_found_again() -> None:
    data = DEMO.read_bytes()
    assert check(data) == 4
    assert len(split(data)[0]) < 0.1 * len(data)
    _, weights = read(DEMO)
    for tensor in onnx.load(DEMO).graph.initializer:
        if tensor.name in weights.pieces:
            values = weights.read(tensor.name, tuple(tensor.dims))
            np.testing.assert_array_equal(values, numpy_helper.to_array(tensor))


def test_a_graph_in_two_pieces() -> None:
    """protobuf appends the initializers of a second graph field to those of the first."""
    model, more = dense(), onnx.ModelProto()
    more.graph.initializer.append(numpy_helper.from_array(np.arange(2000, dtype=np.float32), "more"))
    data = model.SerializeToString() + more.SerializeToString()
    assert check(data) == check(model.SerializeToString()) + 1


def test_the_last_data_of_a_tensor_count() -> None:
    """As in protobuf, and wherever in the tensor its type stands."""
    first, second = (np.full(2000, value, np.float32).tobytes() for value in (1, 2))
    tensor = b"".join(
        TensorProto(**fields).SerializeToString()
        for fields in (
            {"raw_data": first},
            {"data_type": 1, "dims": [2000]},
            {"raw_data": second, "name": "w"},
        )
    )
    data = bytes([0x2A, *varint(len(tensor))]) + tensor
    data = bytes([0x3A, *varint(len(data))]) + data
    ((start, length),) = filter(None, split(data)[1])
    assert data[start : start + length] == second


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, *varint(value >> 7)]) if value >= 0x80 else bytes([value])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64])
def test_only_float32_is_cut(kind: int) -> None:
    values = np.arange(5000).astype(helper.tensor_dtype_to_np_dtype(kind))
    graph = helper.make_graph([], "net", [], [], [numpy_helper.from_array(values, "w")])
    data = helper.make_model(graph).SerializeToString()
    assert split(data) == (data, [None])


def test_what_is_damaged_is_left_to_protobuf() -> None:
    """It refuses what is left just where it would have refused the whole."""
    data, rng = DEMO.read_bytes(), np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        broken = bytearray(data[: rng.choice([len(data), rng.integers(len(data))])])
        heads = np.flatnonzero(rng.random(len(broken)) < 1 / len(data))  # one byte on average
        for at in (*heads, *rng.integers(0, 300, rng.integers(3))):
            broken[at % len(broken)] = rng.integers(256)
        try:
            onnx.load_model_from_string(bytes(broken))
        except DecodeError:
            with pytest.raises(DecodeError):
                onnx.load_model_from_string(split(bytes(broken))[0])
            outcomes.add("refused")
        else:
            outcomes.add(check(bytes(broken)) > 0)
    assert outcomes == {"refused", True}


def test_a_field_of_a_kind_that_nobody_writes() -> None:
    """protobuf skips an unknown group, 15; `split` leaves all of such a file to it."""
    data = DEMO.read_bytes() + b"\x7b\x7c"
    assert check(data) == 0
    assert Explainer(data).input_shape == Explainer(DEMO).input_shape


def test_path_bytes_and_proto_are_the_same(tmp_path: Path) -> None:
    b = Builder()
    scores = b.head(b.relu(b.conv(b.batchnorm(b.conv(b.input(2, 3, 8, 9), 40)), 40)), 50)
    model = b.model(scores)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    x = b.noise(2, 3, 8, 9)
    maps = {Explainer(given).explain(x).map.tobytes() for given in (path, path.read_bytes(), model)}
    assert len(maps) == 1


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(dense().SerializeToString())
    source = open_model(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"Gemm .* has the file changed\?"):
        build(source, (1, 3, 32, 32))
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read any more"):
        build(source, (1, 3, 32, 32))
    with pytest.raises(OSError, match="No such file"):
        open_split(path)
    with pytest.raises(InputError, match="cannot read"):
        open_model(path)


def test_a_model_of_open_size_outlives_its_file(tmp_path: Path) -> None:
    b = Builder()
    pooled = b.node("GlobalAveragePool", b.relu(b.conv(b.input(1, 3, 8, 9), 50)))
    model = b.model(b.gemm(b.flatten(pooled), 40))
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "any"
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    explainer = Explainer(path)
    path.unlink()
    assert explainer.explain(b.noise(1, 3, 10, 12)).map.any()


@pytest.mark.parametrize(("matmul", "copies"), [(False, 1), (True, 2)])
def test_a_dense_layer_is_in_memory_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, matmul: bool, copies: int
) -> None:
    """Its weights are read into the memory that the kernel reads; MatMul's are turned around on the way."""
    monkeypatch.setattr(memory, "_FILLED", sys.maxsize)  # tracemalloc sees what NumPy allocates alone
    path = tmp_path / "net.onnx"
    path.write_bytes(dense(matmul).SerializeToString())
    Explainer(path, cache=False)  # what is imported and cached on first use is not counted
    weights = 4 * 1024 * 3072
    tracemalloc.start()
    explainer = Explainer(path, cache=False)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert weights <= after < 1.1 * weights
    assert peak < (copies + 0.2) * weights
    assert explainer.input_shape == (None, 3, 32, 32)


# ---------------------------------------------------------------------------------------------- external data

KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT8)


@st.composite
def stored_somewhere(draw: st.DrawFn) -> TensorProto:
    """A tensor with data of its own, or in a file, or said to be in one; right or not."""
    kind = draw(st.sampled_from(KINDS))
    dims = draw(st.sampled_from([(), (5,), (3, 4), (1200,)]))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nbytes = dtype.itemsize * math.prod(dims)
    tensor = TensorProto(name="w", data_type=kind, dims=dims)
    if draw(st.booleans()):
        tensor.raw_data = bytes(range(1, 251)) * (nbytes // 250) + bytes(nbytes % 250)
    if draw(st.booleans()):
        tensor.data_location = draw(st.sampled_from([TensorProto.EXTERNAL, TensorProto.DEFAULT]))
    choices = {
        "location": [
            "w.bin",
            "w.bin",
            "w.bin",
            "./w.bin",
            "m.onnx",
            "",
            "nowhere",
            "../w.bin",
            "folder/../w.bin",
        ],
        "offset": ["0", "4", "4000", "-4", "1e3", "99999", " 8", "1_0"],
        "length": [str(nbytes), str(nbytes), str(nbytes), "0", "-1", str(nbytes + 4), "x"],
    }
    for key, values in choices.items():
        if draw(st.integers(0, 3)):
            tensor.external_data.add(key=key, value=draw(st.sampled_from(values)))
    return tensor


@settings(max_examples=400)
@given(stored_somewhere())
def test_what_lies_in_files_is_what_onnx_finds_there(
    tmp_path_factory: pytest.TempPathFactory, tensor: TensorProto
) -> None:
    """What both read is the same; what onnx's own loader refuses is refused."""
    folder = tmp_path_factory.mktemp("external")
    (folder / "folder").mkdir()
    (folder / "w.bin").write_bytes(np.random.default_rng(0).integers(0, 100, 20_000, np.uint8).tobytes())
    node = helper.make_node("Identity", ["w"], ["y"])
    path = folder / "m.onnx"
    model = helper.make_model(helper.make_graph([node], "g", [], [], [tensor]))
    path.write_bytes(model.SerializeToString())
    complete = folder / "complete.onnx"  # where there is no length, onnx would take all that the file holds
    stored = model.graph.initializer[0]
    if "length" not in {entry.key for entry in stored.external_data}:
        nbytes = helper.tensor_dtype_to_np_dtype(stored.data_type).itemsize * math.prod(stored.dims)
        stored.external_data.add(key="length", value=str(nbytes))
    complete.write_bytes(model.SerializeToString())
    try:
        expected = numpy_helper.to_array(onnx.load(complete).graph.initializer[0])
    except Exception:
        expected = None
    try:
        proto, weights = read(path)
        values = tensor_values(proto.graph.initializer[0], "w", node, weights)
    except GbpError:
        return
    assert expected is not None
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("kind", "nbytes"), [(TensorProto.BFLOAT16, 2), (TensorProto.BOOL, 1), (TensorProto.FLOAT, 4)]
)
def test_a_single_number_in_another_file_is_a_constant(tmp_path: Path, kind: int, nbytes: int) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(nbytes))
    tensor = TensorProto(name="w", data_type=kind, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    identity = helper.make_node("Identity", ["w"], ["y"])
    model = helper.make_model(helper.make_graph([identity], "g", [], [], [tensor]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    proto, weights = read(tmp_path / "m.onnx")
    value = tensor_values(proto.graph.initializer[0], "w", identity, weights)
    assert isinstance(value, np.ndarray)
    assert value.shape == ()


@pytest.mark.parametrize("location", [None, ""])
@pytest.mark.parametrize("of_its_own", [False, True])
def test_a_file_without_a_name_is_refused(tmp_path: Path, location: str | None, of_its_own: bool) -> None:
    """It is not the model file, though that holds a tensor of 4096 bytes or more."""
    model = dense()
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [10])
    if not of_its_own:
        bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    if location is not None:
        bias.external_data.add(key="location", value=location)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    for given_as in (path, path.read_bytes(), model):
        with pytest.raises(ModelError, match="is stored in a file that it does not name"):
            Explainer(given_as)


def test_what_is_said_of_a_file_counts_only_where_the_data_lie_there(tmp_path: Path) -> None:
    model = dense()
    expected = Explainer(model).predict(np.ones((1, 3, 32, 32), np.float32))
    for tensor in model.graph.initializer:
        tensor.external_data.add(key="location", value="net.onnx")
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    for given_as in (path, path.read_bytes()):
        found = Explainer(given_as).predict(np.ones((1, 3, 32, 32), np.float32))
        assert found.tobytes() == expected.tobytes()
