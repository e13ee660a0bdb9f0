"""File or bytes → ModelProto with checked names, counts and tensors."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ..arguments import sizes_fit
from ..errors import InputError, ModelError, UnsupportedError
from ..files import hint_of_address
from ..limits import MAX_NAMES, MAX_NODES, MAX_STORED_ELEMENTS, elements, is_finite, max_bytes_made_of
from ..ops import fact
from ..ops.dtypes import type_name
from .formats import how_to_download, how_to_export
from .weights import Piece, Store, Weights, open_beside, open_split

Model = str | os.PathLike[str] | bytes | onnx.ModelProto

_MAX_BYTES = 2**31 - 1  # The limit of protobuf itself.
_MAX_FILES = 2**10
#: Types of tensors that may be stored in other files.
_STORED: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
    TensorProto.BFLOAT16: "<u2",
    TensorProto.BOOL: "u1",
    TensorProto.INT8: "i1",
    TensorProto.UINT8: "u1",
    TensorProto.INT16: "<i2",
    TensorProto.UINT16: "<u2",
    TensorProto.INT32: "<i4",
    TensorProto.UINT32: "<u4",
    TensorProto.INT64: "<i8",
    TensorProto.UINT64: "<u8",
}


def read(model: Model) -> tuple[onnx.ModelProto, Weights]:
    """Read the ModelProto in a file or in bytes; its large weights are returned apart.

    Raises InputError if a file cannot be read, ModelError if it holds no model.
    """
    stores: dict[str, Store] = {}
    pieces: dict[str, Piece] = {}
    own: tuple[Store, ...] = ()
    if isinstance(model, onnx.ModelProto):
        proto, name, file = model, "the model", None
    else:
        file, name = _file(model)
        try:
            data, spans, store = open_split(file)
        except OSError as error:
            raise InputError(f"cannot read {name}: {error.strerror}.") from None
        try:
            proto = onnx.load_model_from_string(data)
            named = zip(proto.graph.initializer, spans, strict=bool(spans))
            pieces = {tensor.name: Piece("", *span, np.dtype("<f4")) for tensor, span in named if span}
        except Exception:  # The exception depends on protobuf's backend.
            hint = how_to_download(data) or how_to_export(file)
            raise ModelError(f"{name} is not an ONNX file, or is damaged.", hint=hint) from None
        own = (store,)
        stores = {"": store} if pieces else {}
    if not proto.graph.node:
        hint = how_to_export(file) or "Is it a model file, and complete?"
        raise ModelError(f"{name} holds no ONNX graph.", hint=hint)
    _check_names(proto, name)
    _check_attributes(proto.graph.node)
    for tensor in proto.graph.initializer:
        if _is_outside(tensor):
            pieces[tensor.name] = _piece_outside(tensor, file, stores)
    weights = Weights(stores, pieces, (*own, *(store for name, store in stores.items() if name)))
    if sum(piece.length for piece in pieces.values()) > max_bytes_made_of(weights.nbytes):
        raise ModelError("its tensors take many times the bytes of the files that store them.")
    return proto, weights


def _is_outside(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)  # Other tensors ignore external_data.


def _piece_outside(tensor: onnx.TensorProto, file: Path | bytes | None, stores: dict[str, Store]) -> Piece:
    """Where a tensor is stored in a file beside the model (ONNX: external data).

    The file is added to `stores`.
    """
    given = {entry.key: entry.value for entry in tensor.external_data}
    # protobuf returns invalid text as bytes.
    if not all(isinstance(text, str) for entry in given.items() for text in entry):
        raise ModelError(f"tensor {tensor.name!r} is stored in a file whose name is not UTF-8 text.")
    location = given.get("location", "")
    if not location:
        raise ModelError(f"tensor {tensor.name!r} is stored in a file that it does not name.")
    if not isinstance(file, Path):
        raise InputError(
            f"tensor {tensor.name!r} is stored in the file {location!r}, and the model is not a file itself.",
            supported="such a model by its path",
        )

    def refuse(found: str) -> ModelError:
        return ModelError(f"tensor {tensor.name!r} is stored in the file {location!r}: {found}.")

    kind = int(tensor.data_type)
    if kind not in _STORED:
        raise refuse(f"it holds {type_name(kind)}")
    if any(n < 0 for n in tensor.dims) or elements(tensor.dims) > MAX_STORED_ELEMENTS:
        raise refuse(f"it has shape {list(tensor.dims)}")
    dtype = np.dtype(_STORED[kind])
    expected = dtype.itemsize * elements(tensor.dims)
    if location not in stores and len(stores) > _MAX_FILES:
        raise refuse(f"the weights are stored in more than {_MAX_FILES} files")
    try:
        if location not in stores:
            stores[location] = open_beside(file, location)
        start, length = int(given.get("offset", 0)), int(given.get("length", expected))
    except OSError as error:
        raise refuse(error.strerror or str(error)) from None
    except ValueError:  # Offset or length is no number, or the path holds a NUL.
        raise refuse("location, offset or length makes no sense") from None
    if start < 0 or length != expected or start + length > stores[location].size:
        raise refuse(
            f"bytes {start} to {start + length} of {stores[location].size} do not make "
            f"{dtype.name} of shape {list(tensor.dims)}"
        )
    return Piece(location, start, length, dtype)


def _file(model: str | os.PathLike[str] | bytes) -> tuple[Path | bytes, str]:
    """A file of acceptable size, or bytes; and its name in messages."""
    if isinstance(model, bytes):
        return model, "the data"
    try:
        path = Path(os.fsdecode(model))
    except TypeError:
        raise InputError(
            f"the model is of type {type(model).__name__}.",
            supported="a path, bytes or a ModelProto",
            hint=how_to_export(model),
        ) from None
    if not os.fsdecode(model):  # a Path of nothing is the current folder
        raise InputError("the path of the model is empty.")
    name = repr(os.fsdecode(model))  # as it was given: a Path of an address loses a slash
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL byte.
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {name}: {reason}.", hint=hint_of_address(str(path))) from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name} is a folder, not a model.", hint=how_to_export(path))
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is no file.")
    if status.st_size > _MAX_BYTES:
        raise ModelError(f"{name} is larger than 2 GiB, which no ONNX file is.")
    return path, name


def _check_names(proto: onnx.ModelProto, name: str) -> None:
    """Check that every name is text and that there are not too many.

    protobuf returns invalid text as `bytes`.
    """
    graph = proto.graph
    made = sum(max(1, len(node.output)) for node in graph.node)
    if made > MAX_NODES:
        raise UnsupportedError(
            f"the graph has {len(graph.node)} nodes, which make {made} tensors.",
            supported=f"up to {MAX_NODES}",
        )
    for count, text in enumerate(_names(proto), start=1):
        if not isinstance(text, str):
            raise ModelError(f"{name} is damaged: {bytes(text)!r:.80} is not UTF-8 text.")
        if count > MAX_NAMES:
            raise UnsupportedError(f"the graph holds more than {MAX_NAMES} names.")


def _names(proto: onnx.ModelProto) -> Iterator[str]:
    """All names in a model, in subgraphs and functions too."""
    graph = proto.graph
    for entry in proto.opset_import:
        yield entry.domain
    for tensor in graph.initializer:
        yield tensor.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
    for node in graph.node:
        yield from _names_of(node)
    for function in proto.functions:
        yield from (function.name, function.domain, function.overload, *function.input, *function.output)
        yield from function.attribute
        for node in function.node:
            yield from _names_of(node)


def _names_of(node: onnx.NodeProto) -> Iterator[str]:
    yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for attribute in node.attribute:
        yield attribute.name
        yield attribute.ref_attr_name
    for graph in graphs_of(node):
        yield from (value.name for value in (*graph.input, *graph.output))
        yield from (tensor.name for tensor in graph.initializer)
        for inner in graph.node:
            yield from _names_of(inner)


def _check_attributes(nodes: Iterable[onnx.NodeProto]) -> None:
    """Check that each attribute has its own value and a unique name, in subgraphs too."""
    for node in nodes:
        seen: set[str] = set()
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                raise ModelError(
                    f"attribute {attribute.name!r} refers to {attribute.ref_attr_name!r} of a function, "
                    "and the node is in none.",
                    node=label(node),
                    op=node.op_type,
                )
            if attribute.name in seen:
                raise ModelError(
                    f"attribute {attribute.name!r} is given twice.", node=label(node), op=node.op_type
                )
            seen.add(attribute.name)
        for graph in graphs_of(node):
            _check_attributes(graph.node)


def check_tensors(proto: onnx.ModelProto) -> None:
    """Check that all tensors are dense and have unique names.  Raises ModelError, UnsupportedError."""
    seen: set[str] = set()
    for tensor in proto.graph.initializer:
        if tensor.name in seen:
            raise ModelError(f"tensor {tensor.name!r} is stored twice.")
        seen.add(tensor.name)
    if proto.graph.sparse_initializer:
        raise UnsupportedError("the model stores sparse tensors.", supported="dense tensors")
    for node in all_nodes(proto.graph.node):
        _check_tensors_of(node)


def _check_tensors_of(node: onnx.NodeProto) -> None:
    """Check that no tensor in the node's attributes, or stored in its graphs, is stored in another file."""
    inside = [tensor for graph in graphs_of(node) for tensor in graph.initializer]
    if any(map(_is_outside, (*(a.t for a in node.attribute if a.HasField("t")), *inside))):
        raise UnsupportedError(
            "its tensor is stored in another file.",
            node=label(node),
            op=node.op_type,
            supported="initializers there",
        )


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those in graphs that they hold."""
    for node in nodes:
        yield node
        for graph in graphs_of(node):
            yield from all_nodes(graph.node)


def label(node: onnx.NodeProto) -> str:
    """The node's name in messages: its own, or that of its output if it has none."""
    return node.name or next(filter(None, node.output), "")


def qualified(node: onnx.NodeProto) -> str:
    """The op, with its domain unless that is ONNX's own."""
    return str(node.op_type) if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def stored_bytes(proto: onnx.ModelProto, weights: Weights) -> int:
    """Bytes of all tensors in the file.  ByteSize would write each to count them, in twice the time."""
    tensors = (*proto.graph.initializer, *(a.t for node in proto.graph.node for a in node.attribute))
    return weights.nbytes + sum(len(t.raw_data) if t.HasField("raw_data") else t.ByteSize() for t in tensors)


def declared_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """The declared shape, with None for each open size; None if nothing is declared."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    shape = (int(d.dim_value) if d.HasField("dim_value") else 0 for d in kind.shape.dim)
    return tuple(n if n > 0 else None for n in shape)  # Some exporters write 0 or -1 for an open size.


def fits(declared: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    """Whether a tensor declared in this shape may have `shape`, for some batch."""
    return len(declared) == len(shape) and sizes_fit(shape[1:], declared[1:])


def tensor_values(
    tensor: onnx.TensorProto, name: str, reader: onnx.NodeProto, weights: Weights | None = None
) -> NDArray[Any]:
    """The values of a stored tensor, which hold no NaN.  They may be in `weights`.

    `reader`: the node that messages name.
    """

    def damaged(found: str) -> ModelError:
        return ModelError(f"tensor {name!r} {found}", node=label(reader), op=reader.op_type)

    if any(n < 0 for n in tensor.dims) or elements(tensor.dims) > MAX_STORED_ELEMENTS:
        raise damaged(f"has shape {list(tensor.dims)}.")
    if tensor.data_type == TensorProto.STRING:
        raise damaged("holds text.")
    if tensor.HasField("segment"):
        raise damaged("is a segment of another, of which the file does not say more.")
    try:
        if weights is not None and name in weights.pieces:
            values: NDArray[Any] = weights.read(name, tuple(tensor.dims))
            if tensor.data_type == TensorProto.BFLOAT16:  # bfloat16 is the upper half of a float32.
                return _known(np.left_shift(values, 16, dtype=np.uint32).view(np.float32), damaged)
            if tensor.data_type == TensorProto.BOOL:
                values = values != 0
        elif _is_outside(tensor):  # It is in a graph inside a node.  Reading it here could open any file.
            raise damaged("is stored in another file.")
        else:
            values = numpy_helper.to_array(tensor)
    except OSError:
        raise damaged("cannot be read any more; has the file changed?") from None
    except ModelError:
        raise
    except Exception:  # The bytes do not fit the shape, or the type is unknown.
        kind = type_name(tensor.data_type)
        raise damaged(f"is damaged: its data does not make {kind} of shape {list(tensor.dims)}.") from None
    if tensor.data_type == TensorProto.BFLOAT16:  # NumPy lacks the type.
        values = values.astype(np.float32)
    return _known(values, damaged)


def _known(values: NDArray[Any], damaged: Callable[[str], ModelError]) -> NDArray[Any]:
    """The values, without NaN.  Infinity may be a bound or a mask; ops that cannot use it refuse it.

    They may be a NumPy scalar, which arithmetic makes of an array without axes.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f" and not is_finite(values) and np.isnan(values).any():
        raise damaged("holds NaN.")
    return values


_schema = lru_cache(maxsize=2**10)(onnx.defs.get_schema)  # A call takes as long as all the other checks.


def check_arity(node: onnx.NodeProto, opset: int) -> None:
    """Check that the op exists at this opset and has as many inputs and outputs as its schema says.

    Raises ModelError, which names the node.
    """

    def wrong(found: str) -> ModelError:
        return ModelError(found, node=label(node), op=node.op_type)

    known = fact(qualified(node))
    if known.operands:
        if found := known.misfit(node.input, node.output):
            raise wrong(found)
        return
    try:
        schema = _schema(node.op_type, max(opset, known.since))
    except onnx.defs.SchemaError:
        newer = [n for n in range(opset + 1, 100) if onnx.defs.has(node.op_type, n, "")]
        more = "".join(f"; opset {n} has it" for n in newer[:1])
        raise wrong(f"opset {opset} has no such op{more}.") from None
    for what, names, least, most in (
        ("input", node.input, schema.min_input, schema.max_input),
        ("output", node.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            some = f"{least} to {most}" if most < MAX_NAMES else f"{least} or more"
            expected = least if least == most else some
            raise wrong(f"it has {len(names)} {what}s, not {expected} (opset {opset}).")
    for i, (name, expected_input) in enumerate(zip(node.input, schema.inputs, strict=False)):
        if not name and expected_input.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise wrong(f"input {i} ({expected_input.name}) is missing.")


def shape_constant(node: onnx.NodeProto, shape: tuple[int, ...]) -> NDArray[Any]:
    """The result of Shape or Size for a tensor of `shape`."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Size":
        return np.array(elements(shape), np.int64)
    return np.array(shape[slice(given.get("start", 0), given.get("end", len(shape)))], np.int64)
