"""Whole ONNX models in plain float64, forward and in reverse under a rule: what the engine is compared with.

Nodes run in the order of the file, every tensor stays in a dict, every gradient is the sum over the tensor's
readers. Nothing is fused, folded or laid out anew, and nothing of gbp is imported: the arithmetic is that of
`naive`, this package only reads ONNX.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import naive
import numpy as np
import onnx
from naive import Array, f64

from gbp import PROBABILITY

from . import axes, classic, functions, picks, quantized, volumes
from .node import Activation, Kinked, Node, Operator, Rectifier, Reverse, Vjp, margin

_FAMILIES = (axes, classic, functions, picks, quantized, volumes)

OPERATORS: dict[str, Operator] = {op: f for family in _FAMILIES for op, f in family.OPERATORS.items()}

#: Bytes of gradients whose products with a Jacobian are kept.
_MOST_KEPT = 2**16


class Run:
    """One forward run of a model on x; `explain` goes back from it, as often as one likes.

    `values` holds every tensor by name. A model's only output is the last tensor; its image is the only input
    that is no initializer. `activations`: "gradient", or "clamp" to clamp the gradient of activations that
    are no rectifiers to its positive part, under rules with a gradient gate. `noise` disturbs every tensor,
    forward and in reverse, by so much of its RMS, as coarser arithmetic would; equal values alike, so that
    ties stay ties, and 0 not at all.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        x: Any,
        activations: str = "gradient",
        *,
        noise: float = 0,
        seed: int = 0,
    ) -> None:
        self.activations = activations
        graph, self._noise, self._seed = model.graph, noise, seed
        (opset,) = (entry.version for entry in model.opset_import if entry.domain == "")
        self.values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.values = {k: f64(v) if v.dtype.kind == "f" else v for k, v in self.values.items()}
        (self.image,) = (value.name for value in graph.input if value.name not in self.values)
        (self.output,) = (value.name for value in graph.output)
        self.values[self.image] = f64(x)
        self.steps: list[tuple[Node, Reverse]] = []
        self._known: dict[tuple[Any, ...], Sequence[Array]] = {}
        self._explained: dict[tuple[Any, ...], tuple[Array, Array]] = {}
        for node in (Node(proto, opset) for proto in graph.node):
            operands = [self.values[name] if name else None for name in node.inputs]
            result, vjp = OPERATORS[node.op](node, *operands)
            results = map(self._disturbed, result if isinstance(result, list) else [result])
            self.values.update(zip(node.outputs, results, strict=False))
            self.steps.append((node, vjp))
        self._join_clips()

    def _join_clips(self) -> None:
        """A Clip from above beside a rectifier, if nobody else reads it, is one with it: Min(Relu(x), 6)."""
        made = {name: i for i, (node, _) in enumerate(self.steps) for name in node.outputs}
        read = Counter([self.output, *(name for node, _ in self.steps for name in node.inputs)])
        for i, (node, vjp) in enumerate(self.steps):
            name = node.inputs[vjp.operand] if isinstance(vjp, Rectifier) else ""
            at = made.get(name)
            if not isinstance(vjp, Rectifier) or at is None or read[name] != 1:
                continue
            maker, before = self.steps[at]
            if not isinstance(before, Rectifier) or before.obeys == vjp.obeys:
                continue
            other, hi = vjp if before.obeys else before, min(before.hi, vjp.hi)
            if other.lo == -math.inf and hi > 0:
                nothing = other._replace(lo=-math.inf, hi=math.inf)
                whole = (before if before.obeys else vjp)._replace(x=before.x, hi=hi)
                self.steps[at] = maker, whole if before.obeys else nothing
                self.steps[i] = node, nothing if before.obeys else whole

    def explain(self, rule: str, target: Any = None, output: Any = None) -> tuple[Array, Array]:
        """Scores (N, classes), flattened, and the map of x's shape; (N, K, …) for targets (N, K).

        `target`: None for each sample's argmax, one index, (N,) or (N, K). `output`: None for the logits,
        PROBABILITY for the model's output, or a tensor.
        """
        name = self._logits() if output is None else self.output if output is PROBABILITY else output
        scores = self.values[name].reshape(len(self.values[name]), -1)
        target = np.asarray(scores.argmax(axis=1) if target is None else target)
        key = rule, name, target.shape, target.tobytes()
        if key not in self._explained:
            self._explained[key] = scores, self._map(rule, name, scores, target)
            for array in self._explained[key]:
                array.flags.writeable = False  # so that whoever asks again gets the same
        return self._explained[key]

    def _map(self, rule: str, name: str, scores: Array, target: Array) -> Array:
        if target.ndim == 2:
            return np.stack([self.explain(rule, column, name)[1] for column in target.T], axis=1)
        seed = np.zeros(scores.shape)
        seed[np.arange(len(seed)), target] = 1
        return self.reverse(rule, name, seed.reshape(self.values[name].shape))

    def reverse(self, rule: str, output: str, seed: Array, wrt: str | None = None) -> Array:
        """The gradient of the image, or of tensor `wrt`, under the rule, given that of tensor `output`.

        For a rectifier's output it is the gradient before the rectifier's gate.
        """
        gradients = {output: seed}
        for node, reverse in reversed(self.steps):
            if not gradients.keys() & set(node.outputs):
                continue  # behind the output
            gys = [gradients.get(name, np.zeros(self.values[name].shape)) for name in self._made(node)]
            if isinstance(reverse, Activation) and self.activations == "clamp" and naive.RULES[rule][1]:
                gys = [np.maximum(gy, 0) for gy in gys]
            vjp = reverse.vjp if isinstance(reverse, Activation) else reverse
            if isinstance(vjp, Rectifier):
                forward, gradient = naive.RULES[rule if vjp.obeys else "vanilla"]
                gates = {"forward_gate": forward, "gradient_gate": gradient}
                gx = naive.rectifier_bwd(*gys, vjp.x, lo=vjp.lo, hi=vjp.hi, **gates)
                gxs: Sequence[Array] = [np.zeros(())] * vjp.operand + [gx]
            else:
                gxs = self._once(vjp.vjp if isinstance(vjp, Kinked) else vjp, gys)
            for name, gx in zip(node.inputs, gxs, strict=False):
                gradients[name] = self._disturbed(gradients.get(name, 0) + gx)
        wrt = wrt or self.image
        return gradients.get(wrt, np.zeros(self.values[wrt].shape))

    def _once(self, vjp: Vjp, gys: Sequence[Array]) -> Sequence[Array]:
        """What the vjp makes of these gradients: rules part at a rectifier, and before they ask for the same.

        Large ones are not kept.
        """
        if sum(gy.nbytes for gy in gys) > _MOST_KEPT:
            return vjp(*gys)
        key = vjp, *((gy.shape, gy.tobytes()) for gy in gys)
        if key not in self._known:
            self._known[key] = tuple(vjp(*gys))
        return self._known[key]

    def _disturbed(self, x: Array) -> Array:
        if not self._noise or x.dtype.kind != "f":
            return x
        rms = math.sqrt(np.mean(x * x)) or 1.0
        # Bits of the value are mixed as in SplitMix64, so equal values get equal numbers.
        bits = x.reshape(-1).view(np.uint64) + np.uint64(self._seed + 1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits ^= bits >> np.uint64(shift)
            bits *= np.uint64(factor)
        bits >>= np.uint64(11)
        uniform = bits * 2.0**-53
        uniform -= 0.5
        uniform *= math.sqrt(12) * self._noise * rms  # √12, so of variance 1 before
        uniform = uniform.reshape(x.shape)
        uniform[x == 0] = 0
        uniform += x
        return uniform

    def _made(self, node: Node) -> list[str]:
        """The outputs that were computed; Dropout's mask and MaxPool's indices are not."""
        return [name for name in node.outputs if name in self.values]

    def _logits(self) -> str:
        """What feeds the Softmax or LogSoftmax at the end; the output where there is none."""
        maker = {name: node for node, _ in self.steps for name in node.outputs}
        name = self.output
        while name in maker and maker[name].op in ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze"):
            name = maker[name].inputs[0]
        ends = name in maker and maker[name].op in ("Softmax", "LogSoftmax")
        return maker[name].inputs[0] if ends else self.output

    @property
    def margin(self) -> float:
        """How near rounding is to flipping a gate or a switch of this run.

        The smallest distance of a rectifier's input from a bound, or of a window's maximum from its
        runner-up, in units of the largest magnitude in that tensor. An exact tie, as between zeros that a
        Relu made, does not count: no rounding is in it.
        """
        return min((self._margin(vjp) for _, vjp in self.steps), default=math.inf)

    @staticmethod
    def _margin(vjp: Reverse) -> float:
        if isinstance(vjp, Activation):
            vjp = vjp.vjp
        if isinstance(vjp, Kinked):
            return vjp.margin()
        if isinstance(vjp, Rectifier):
            bounds = [bound for bound in (vjp.lo, vjp.hi) if math.isfinite(bound)]
            return margin(np.abs(vjp.x[..., None] - bounds), vjp.x)
        return math.inf


def explain(
    model: onnx.ModelProto, x: Any, rule: str, target: Any = None, output: str | None = None
) -> tuple[Array, Array]:
    """Run the model on x and go back from the output under a rule: `Run.explain`."""
    return Run(model, x).explain(rule, target, output)
