"""Choose the tensor to explain from a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx

from ..errors import InputError, ModelError
from ..graph.graph import unused
from ..graph.tensors import Tensor, find
from ..ops import fact
from ..ops.dtypes import FLOATS, type_name
from .proto import declared_shape, label

Producers = Mapping[str, onnx.NodeProto]

#: How many outputs a message lists.
_MAX_LISTED = 12


class Probability(Enum):
    """The type of `PROBABILITY`."""

    PROBABILITY = "PROBABILITY"

    def __repr__(self) -> str:
        return "gbp.PROBABILITY"


#: A value for `output=`: explain the probabilities that the model's head computes, not the scores.
PROBABILITY = Probability.PROBABILITY


@dataclass(frozen=True)
class Scores:
    """The tensor to explain.

    Parameters
    ----------
    name
        Its name.
    head
        The op that turns the scores into probabilities.  None if there is none, "" if the scores are
        probabilities.
    head_axis
        The axis of the head's softmax; None if the file does not give one.
    notes
        Remarks on the choice.
    """

    name: str
    head: str | None = None
    head_axis: int | None = None
    notes: tuple[str, ...] = ()


def scores_of(proto: onnx.ModelProto, producers: Producers, output: str | Probability | None) -> Scores:
    """The tensor to explain; `output` is as in `Choice`.  Raises InputError where that is not clear."""
    if output is not None and output is not PROBABILITY:
        return Scores(_named(proto, producers, output))
    different = {value.name: value for value in proto.graph.output}.values()
    outputs = [value for value in different if _holds_scores(value, producers)]
    if len(outputs) > 1:
        raise _several(outputs, producers)
    found = [value.name for value in outputs or proto.graph.output]
    if not found:
        raise InputError(
            "the model has 0 outputs.", hint="Say what is to be explained: output=…, any tensor."
        )
    if any(name not in producers for name in found):
        raise ModelError(f"output {min(set(found) - set(producers))!r} is made by no node.")
    fed = {_fed_to_argmax(producers, name) for name in found}
    maximum_of = fed.pop() if len(fed) == 1 else None
    if maximum_of is None and not outputs:
        raise _none_holds_scores(proto.graph.output, producers)
    last = maximum_of or found[0]
    logits, head = _logits(producers, last)
    op = None if head is None else head.op_type
    if output is PROBABILITY and op not in ("Softmax", "Sigmoid"):
        raise InputError(
            f"the model ends in {op or 'scores'}, not in probabilities.",
            supported="output=PROBABILITY where it ends in Softmax or Sigmoid",
            hint="Leave the output out to explain the logits.",
        )
    scores = last if output is PROBABILITY else logits
    note = (
        f"Output {found[0]!r} is the index of a maximum; what it is the maximum of is explained: {scores!r}."
    )
    notes = () if maximum_of is None else (note,)
    if output is PROBABILITY:
        return Scores(scores, head="", notes=notes)
    axes = (int(attribute.i) for attribute in (head.attribute if head else ()) if attribute.name == "axis")
    return Scores(scores, op, next(axes, None), notes)


def with_heads_apart(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model; a Sigmoid or Softmax that onnxruntime joined with other nodes is a node again.

    So the scores that a final one reads have a name.
    """
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    joined = [
        i for i, node in enumerate(proto.graph.node) if _ends_in_sigmoid(node) or _is_quantized(node, opset)
    ]
    if not joined:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    taken = {value.name for value in (*proto.graph.input, *proto.graph.initializer)}
    taken.update(name for node in proto.graph.node for name in node.output)
    for i in reversed(joined):
        node = result.graph.node[i]
        apart = _sigmoid_apart(node, taken) if _ends_in_sigmoid(node) else _between_quantizers(node, taken)
        for place, each in enumerate(apart, start=i):
            result.graph.node.insert(place, each)
        del result.graph.node[i + len(apart)]
    return result


def _new(name: str, taken: set[str]) -> str:
    """A name that no tensor has, made of `name`."""
    taken.add(name := unused(name, taken))
    return name


def _ends_in_sigmoid(node: onnx.NodeProto) -> bool:
    is_its_own = node.domain == "com.microsoft" and len(node.output) == 1
    return is_its_own and any(a.name == "activation" and a.s == b"Sigmoid" for a in node.attribute)


def _sigmoid_apart(node: onnx.NodeProto, taken: set[str]) -> list[onnx.NodeProto]:
    """The node without its activation, and the Sigmoid; the result keeps its name and the node's."""
    before = onnx.NodeProto()
    before.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if not attribute.name.startswith("activation")]
    del before.attribute[:]
    before.attribute.extend(kept)
    before.output[0] = _new(f"{node.output[0]}_before_sigmoid", taken)
    before.name = node.name and f"{node.name}_before_sigmoid"
    return [before, onnx.helper.make_node("Sigmoid", before.output[:1], node.output, name=node.name)]


def _is_quantized(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node is a head on integers.  A Softmax names its opset, which must mean the file's."""
    is_head = node.op_type in ("QLinearSigmoid", "QLinearSoftmax")
    is_of_file = all((a.i < 13) == (opset < 13) for a in node.attribute if a.name == "opset")
    is_its_own = node.domain == "com.microsoft" and len(node.input) == 5 and len(node.output) == 1
    is_its_own = is_its_own and all(node.input[i] for i in (0, 1, 3, 4))
    return is_head and is_of_file and is_its_own


def _between_quantizers(node: onnx.NodeProto, taken: set[str]) -> list[onnx.NodeProto]:
    """DequantizeLinear, the op on floats and QuantizeLinear."""
    real, made = (_new(f"{node.output[0]}_{what}", taken) for what in ("of", "as_float"))
    op = onnx.helper.make_node(node.op_type.removeprefix("QLinear"), [real], [made], name=node.name)
    op.attribute.extend(a for a in node.attribute if a.name != "opset")  # which is as the file's
    if op.op_type == "Softmax" and all(a.name != "axis" for a in op.attribute):
        op.attribute.append(onnx.helper.make_attribute("axis", -1))  # at any opset
    return [
        onnx.helper.make_node("DequantizeLinear", node.input[:3], [real]),
        op,
        onnx.helper.make_node("QuantizeLinear", [made, *node.input[3:]], node.output),
    ]


def _named(proto: onnx.ModelProto, producers: Producers, output: object) -> str:
    """The tensor that a caller means by its name, its node's, or a part of either that no other has."""
    if isinstance(output, str) and output in producers:
        return output
    tensors = [Tensor(name, node.name, node.op_type, ()) for name, node in producers.items()]
    try:
        if isinstance(output, str) and len(output) > 1:  # one letter is a part of any name
            return find(tensors, output).name
        hint = None
    except InputError as error:
        if error.found.startswith(repr(output)):  # a part of several names
            raise
        hint = error.hint if error.hint and error.hint.startswith("Did") else None
    raise InputError(
        f"no tensor is called {output!r}.",
        supported=f"outputs {[value.name for value in proto.graph.output]}, or any node's output",
        hint=hint,
    )


def _holds_scores(value: onnx.ValueInfoProto, producers: Producers) -> bool:
    """Whether a node makes an output that is, or may be, a tensor of floats, or a table of one, and no label.

    An output may also be an input or a weight again.
    """
    made_by = producers[value.name].op_type if value.name in producers else ""
    kind = value.type.tensor_type.elem_type
    return made_by == "ZipMap" or (made_by != "" and (kind in FLOATS or not kind))


def _logits(producers: Producers, last: str) -> tuple[str, onnx.NodeProto | None]:
    """The input of the final Softmax, LogSoftmax or Sigmoid, and that node; `last` if there is none."""
    name = last
    for _ in range(len(producers)):
        node = producers.get(name)
        if node is None or not node.input:
            break
        name = node.input[0]
        if fact(node.op_type).is_head and name in producers:
            return name, node
        if not fact(node.op_type).keeps_values:
            break
    return last, None


def _maker_of(producers: Producers, name: str) -> onnx.NodeProto | None:
    """The node that computes a tensor: the first one, going back, that does more than reshape or cast."""
    node = producers.get(name)
    for _ in range(len(producers)):
        if node is None or not fact(node.op_type).keeps_values or not node.input:
            break
        node = producers.get(node.input[0])
    return node


def _fed_to_argmax(producers: Producers, name: str) -> str | None:
    """The tensor that an output's ArgMax reads; None if the output is no ArgMax's index."""
    node = _maker_of(producers, name)
    if node is None or node.op_type != "ArgMax" or not node.input or node.input[0] not in producers:
        return None
    return str(node.input[0])


def _none_holds_scores(outputs: Sequence[onnx.ValueInfoProto], producers: Producers) -> InputError:
    """The error for a model without scores.  It says what the outputs hold, and which tensors feed them."""
    lines, before = [], None
    for value in outputs:
        node = _maker_of(producers, value.name)
        what = f"{value.name!r} holds {type_name(value.type.tensor_type.elem_type)}"
        if node is not None:
            what += f", made by {node.op_type} {label(node)!r}"
            before = before or next((name for name in node.input if name in producers), None)
        lines.append(what)
    return InputError(
        f"no output of the model holds scores: {_joined(lines)}.",
        supported="floating point; nothing flows back through whole numbers",
        hint=f"To explain what feeds it, say output={before!r}." if before else None,
    )


def _several(outputs: Sequence[onnx.ValueInfoProto], producers: Producers) -> InputError:
    """The error for a model with several outputs.  It lists them, with the op that ends each."""
    lines, likely = [], []
    shapes = [declared_shape(value) for value in outputs]
    ends = {(len(shape), shape[-1] == 4) for shape in shapes if shape}
    rank = 1 if {(1, False), (2, True)} <= ends else 2  # a detector's boxes have one score each
    for value, shape in zip(outputs, shapes, strict=True):
        _, head = _logits(producers, value.name)
        sizes = "of unknown shape" if shape is None else str(["?" if n is None else n for n in shape])
        lines.append(
            f"{value.name!r} {sizes.replace(chr(39), '')}" + (f" behind a {head.op_type}" if head else "")
        )
        if head or (shape is not None and len(shape) == rank and (rank == 1 or shape[1] != 1)):
            likely.append(value.name)
    looks = f" Scores look like {_joined(list(map(repr, likely)))}." if likely else ""
    example = f"output={(likely[0] if likely else outputs[0].name)!r}"
    return InputError(
        f"the model has {len(outputs)} outputs: {_joined(lines)}.{looks}",
        hint=f"Say which one is to be explained: {example}, say.",
    )


def _joined(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - _MAX_LISTED} more" if len(lines) > _MAX_LISTED else ""
    return "; ".join(lines[:_MAX_LISTED]) + more
