"""What a model's outputs are, where it is not plain which of them to explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from ..errors import InputError
from .proto import declared_shape, label, type_name

Producers = Mapping[str, onnx.NodeProto]

#: Ops that only dress a result.
DRESS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Transpose", "Cast", "ZipMap")
#: Outputs that a message lists.
_MAX_LISTED = 12


def dressed(producers: Producers, name: str) -> onnx.NodeProto | None:
    """The node that makes a tensor, or what it only dresses: the first on the way back that does more."""
    node = producers.get(name)
    for _ in range(len(producers)):
        if node is None or node.op_type not in DRESS or not node.input:
            break
        node = producers.get(node.input[0])
    return node


def fed_to_argmax(producers: Producers, name: str) -> str | None:
    """The tensor whose maximum an output is the index of, where it is that of an ArgMax."""
    node = dressed(producers, name)
    if node is None or node.op_type != "ArgMax" or not node.input or node.input[0] not in producers:
        return None
    return str(node.input[0])


def none_holds_scores(outputs: Sequence[onnx.ValueInfoProto], producers: Producers) -> InputError:
    """The error that says what the outputs hold instead, and what feeds them."""
    told, before = [], None
    for value in outputs:
        node = dressed(producers, value.name)
        what = f"{value.name!r} holds {type_name(value.type.tensor_type.elem_type)}"
        if node is not None:
            what += f", made by {node.op_type} {label(node)!r}"
            before = before or next((name for name in node.input if name in producers), None)
        told.append(what)
    return InputError(
        f"no output of the model holds scores: {_joined(told)}.",
        supported="floating point; nothing flows back through whole numbers",
        hint=f"To explain what feeds it, say output={before!r}." if before else None,
    )


def several(outputs: Sequence[onnx.ValueInfoProto], heads: Sequence[str | None]) -> InputError:
    """The error that lists outputs of which one is to be chosen; `heads`: what each ends in."""
    told, likely = [], []
    for value, head in zip(outputs, heads, strict=True):
        shape = declared_shape(value)
        sizes = "of unknown shape" if shape is None else str(["?" if n is None else n for n in shape])
        told.append(f"{value.name!r} {sizes.replace(chr(39), '')}" + (f" behind a {head}" if head else ""))
        if head or (shape is not None and len(shape) == 2 and shape[1] != 1):
            likely.append(value.name)
    looks = f" Scores look like {_joined(list(map(repr, likely)))}." if likely else ""
    example = f"output={(likely[0] if likely else outputs[0].name)!r}"
    return InputError(
        f"the model has {len(outputs)} outputs: {_joined(told)}.{looks}",
        hint=f"Say which one is to be explained: {example}, say.",
    )


def _joined(told: Sequence[str]) -> str:
    more = f" and {len(told) - _MAX_LISTED} more" if len(told) > _MAX_LISTED else ""
    return "; ".join(told[:_MAX_LISTED]) + more
