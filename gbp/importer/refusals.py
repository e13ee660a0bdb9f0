"""Messages about nodes that gbp does not support: counted by op, with advice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from ..errors import UnsupportedError, counted
from ..ops import PARSERS, REWRITERS
from .branches import reads
from .folding import FOLDS
from .proto import label, qualified
from .subgraph import Source

#: How many ops a message lists before it only counts nodes.
_MAX_LISTED = 50
#: Ops whose result does not change, or jumps, where their input changes a little.
_WITHOUT_GRADIENT = ("TopK", "ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression", "NonZero", "Unique")
#: Ops whose result is true or false.  Its slope is 0, so what they compare is what can be explained.
_COMPARING = (
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor",
)  # fmt: skip
_RECURRENT = ("LSTM", "GRU", "RNN", "If", "Loop", "Scan")
#: Part of the names of ops that draw random numbers, as TensorFlow's StatelessRandomUniformV2.
_DRAWING = ("Random", "Bernoulli", "Multinomial")
_IN_TRAINING = (
    "The file draws random numbers, as in training: export the network for inference. Where a Keras network "
    "holds RandomFlip or the like, export keras.Model(x, network(x, training=False)), where x is a "
    "keras.Input."
)
#: Part of the names of ops that compute with integers; `QLinear` of those that have no rewriter.
_INTEGER = ("QLinear",)


@dataclass(frozen=True)
class Unsupported:
    """A node between the input and the scores that gbp does not support.

    Parameters
    ----------
    op, name
        Its op, with the domain, and its name in messages.
    place, count
        It is number `place`, from 1, of `count` nodes.
    hint
        Advice, or None.
    """

    op: str
    name: str
    place: int
    count: int
    hint: str | None

    def __str__(self) -> str:
        return f"{self.op} {self.name!r} (node {self.place} of {self.count})"


def instead(op: str, before: str | None) -> str | None:
    """Advice about an unsupported op.  `before`: a tensor that feeds it and can be explained."""
    if any(part in op for part in _INTEGER):
        return "gbp reads quantized networks in the QDQ format: quantize statically, or export in float32."
    if any(part in op for part in _DRAWING):
        return _IN_TRAINING
    if op.startswith("com.microsoft.nchwc."):
        return (
            "onnxruntime saved the file for one processor: explain the file that it was made of, or save "
            "with GraphOptimizationLevel.ORT_ENABLE_EXTENDED."
        )
    reason = None
    if op in _WITHOUT_GRADIENT:
        reason = f"Nothing flows back through {op}."
    elif "." not in op and not onnx.defs.has(op):
        reason = (
            "ONNX has no such op: the exporter left it as it found it. Export at a newer opset, or write it "
            "by other functions in the network, and export that."
        )
    elif op.startswith("com.microsoft."):
        reason = "It is onnxruntime's own: if its optimizer wrote it, explain the file that it was made of."
    elif op in _RECURRENT:
        reason = "gbp explains networks that go forward, once, through every node."
    way_out = f"To explain what feeds it, say output={before!r}." if before else None
    return " ".join(filter(None, (reason, way_out))) or None


def unsupported_nodes(source: Source) -> list[Unsupported]:
    """All nodes between input and scores that neither a parser nor constant folding can handle."""
    constant = {tensor.name for tensor in source.model.graph.initializer} | set(source.given)
    constant.discard(source.input)
    #: The image, and what depends on it through supported nodes alone; of the latter, their nodes.
    computed, makers = {source.input}, dict[str, onnx.NodeProto]()
    found = []
    for place, node in enumerate(source.nodes, start=1):
        op = qualified(node)
        read = reads(node)
        behind = any(name not in constant and name not in computed for name in read)
        folds = op in FOLDS or op in REWRITERS
        is_settled = op == "If" and node.input and node.input[0] in constant  # It folds once sizes are known.
        if op in ("Shape", "Size") or ((folds or is_settled) and constant.issuperset(read)):
            constant.update(node.output)
        elif op in PARSERS or op in REWRITERS or is_settled:
            computed.update(() if behind else node.output)
            makers.update({} if behind else dict.fromkeys(node.output, node))
        else:
            before = next((name for name in node.input if name in makers), None)
            while before in makers and makers[before].op_type in _COMPARING:
                before = next((name for name in makers[before].input if name in makers), None)
            hint = instead(op, None if behind else before)
            found.append(Unsupported(op, label(node), place, len(source.nodes), hint))
    return found


def advice(nodes: Sequence[Unsupported]) -> tuple[str, ...]:
    """The advice about these nodes, each once."""
    hints = tuple(dict.fromkeys(node.hint for node in nodes if node.hint))
    # Exported for inference, the network may hold none of the other nodes.
    return (_IN_TRAINING,) if _IN_TRAINING in hints else hints


def refusal(nodes: Sequence[Unsupported], supported: Iterable[str]) -> UnsupportedError:
    """The error about these nodes, of which there is at least one."""
    groups: dict[str, list[Unsupported]] = {}
    for node in nodes:
        groups.setdefault(node.op, []).append(node)
    lines = [
        str(first)
        if not rest
        else f"{len(rest) + 1} {first.op}, the first of them {str(first).partition(' ')[2]}"
        for first, *rest in groups.values()
    ]
    more = sum(len(group) for group in list(groups.values())[_MAX_LISTED:])
    listed = "; ".join(lines[:_MAX_LISTED]) + (f"; and {more} more" if more else "")
    hints = advice(nodes)
    is_enough = hints == (_IN_TRAINING,) or all(node.hint for node in nodes)
    return UnsupportedError(
        f"{counted(len(nodes), 'node')} that gbp does not support: {listed}.",
        supported=None if is_enough else f"{', '.join(sorted(supported))}; shape arithmetic",
        hint=" ".join(hints) or None,
    )


def with_way_out(error: UnsupportedError, before: str | None) -> UnsupportedError:
    """The error with advice: by default to explain the tensor `before` the node."""
    if error.hint or before is None:
        return error
    return with_hint(error, f"To explain what feeds it, say output={before!r}.")


def with_hint(error: UnsupportedError, more: str) -> UnsupportedError:
    """The error with this advice added."""
    hint = f"{error.hint} {more}" if error.hint else more
    return UnsupportedError(error.found, node=error.node, op=error.op, supported=error.supported, hint=hint)
