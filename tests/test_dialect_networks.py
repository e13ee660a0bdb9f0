"""Random small networks in the dialects of exporters, against another runtime and against themselves.

Scores are onnxruntime's where that is installed.  In any case the vanilla map is the derivative of the
scores, and under every rule a network has one map, whether its rectifiers and activations are ops or written
in parts.

By hand, on more: GBP_DIALECTS=20000 pytest tests/test_dialect_networks.py, or
python tests/test_dialect_networks.py 20000 [the first seed].
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from agreement import RULES
from builder import Builder
from numpy.typing import NDArray
from test_clothes import ACTIVATIONS, RECTIFIERS, commuted, say

from gbp import Explainer, InputError

COUNT = int(os.environ.get("GBP_DIALECTS", "25"))
#: Off the other runtime, relative to the largest score; and of two maps of one network.
_BOUND = 1e-4

Array = NDArray[Any]


@dataclass
class Network:
    """One function, written twice: `model` in parts where dice say so, `plain` in ops."""

    seed: int
    model: onnx.ModelProto = field(repr=False)
    plain: onnx.ModelProto = field(repr=False)
    x: Array = field(repr=False)
    said: tuple[str, ...]


class _Writer:
    """Throws the dice of `seed`, alike for either way of writing."""

    def __init__(self, seed: int, in_parts: bool) -> None:
        self.rng = np.random.default_rng([seed, 7])
        self.in_parts = in_parts
        self.said: list[str] = []
        self.b = Builder(int(self.rng.choice([9, 10, 11, 12, 13, 15, 17, 18, 20, 22])), seed)

    def one_of(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def network(self) -> tuple[onnx.ModelProto, tuple[int, ...]]:
        rank = self.one_of(2, 3, 4, 4, 4, 5)
        shape = (int(self.rng.integers(1, 3)), *(int(n) for n in self.rng.integers(3, 7, rank - 1)))
        y = self.b.input(*shape)
        for _ in range(int(self.rng.integers(2, 6))):
            y = self.one_of(*_MOVES)(self, self.dense(y))
        # Through a rectifier in the end, so that every rule has a meaning.
        return self.b.model(self.b.head(self.b.relu(self.dense(y)))), shape

    def dense(self, y: str) -> str:
        b, channels = self.b, int(self.rng.integers(3, 8))
        if len(b.shapes[y]) == 2:
            return b.gemm(y, channels)
        kernel = self.one_of(1, 3)
        return b.conv(y, channels, kernel, auto_pad="SAME_UPPER") if kernel > 1 else b.conv(y, channels, 1)

    def part(self, table: dict[str, Any], y: str) -> str:
        """One of a table of functions, as its op or in parts, of those that the opset can say."""
        names = [
            name for name, (_, known, since) in table.items() if max(since, _since(known)) <= self.b.opset
        ]
        name = str(self.one_of(*names))
        written, known, _ = table[name]
        turn = self.one_of(False, True)
        self.said.append(name + ", commuted" * turn)
        if not self.in_parts:
            return say(self.b, known, y)
        return say(self.b, commuted(written) if turn else written, y)


def _since(part: Any) -> int:
    """The first opset that has all ops of it."""
    if not isinstance(part, tuple):
        return 1
    op, *operands = part
    own = {"Gelu": 20, "Swish": 24, "HardSwish": 14, "Mish": 18, "Celu": 12, "Shrink": 9}.get(op, 7)
    return max(own, *map(_since, operands), 7)


def _rectify(w: _Writer, y: str) -> str:
    return w.part(RECTIFIERS, y)


def _activate(w: _Writer, y: str) -> str:
    return w.part(ACTIVATIONS, y)


def _prelu(w: _Writer, y: str) -> str:
    """As Keras writes it."""
    shape = w.b.shapes[y]
    spread = (shape[1], *(1,) * (len(shape) - 2)) if w.one_of(True, False) else shape[1:]
    slopes = w.rng.uniform(-0.5, 0.9, spread)
    w.said.append("prelu")
    known = ("PRelu", "x", slopes)
    return say(
        w.b, ("Sub", ("Relu", "x"), ("Mul", slopes, ("Relu", ("Neg", "x")))) if w.in_parts else known, y
    )


def _resize(w: _Writer, y: str) -> str:
    b, rank = w.b, len(w.b.shapes[y])
    if rank != 4:
        return y
    scales = [1.0, 1.0, float(w.one_of(0.7, 1.4, 0.9, 2.3, 1.3, 2.0)), float(w.one_of(0.7, 1.5, 1.0, 2.0))]
    mode = w.one_of("nearest", "linear")
    if b.opset < 10:
        w.said.append("upsample")
        scales = [max(1.0, scale) for scale in scales]
        return _sized(b, b.node("Upsample", y, b.constant(scales), mode=mode), y, scales)
    w.said.append(f"resize {mode} by {scales}")
    if b.opset < 11:
        return _sized(b, b.node("Resize", y, b.constant(scales), mode=mode), y, scales)
    how = w.one_of("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    if mode == "nearest":
        how = "asymmetric"  # others put pixels half-way, where rounding decides
    no_roi = b.constant(np.zeros(0, np.float32))
    options = {"mode": mode, "coordinate_transformation_mode": how}
    return _sized(b, b.node("Resize", y, no_roi, b.constant(scales), **options), y, scales)


def _sized(b: Builder, y: str, x: str, scales: list[float]) -> str:
    """With the shape that runtimes give it, which shape inference may not."""
    shape = [int(np.float32(n) * np.float32(s)) for n, s in zip(b.shapes[x], scales, strict=True)]
    b._know(y, onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shape))
    return y


def _constant(w: _Writer, y: str) -> str:
    """A product with what folds."""
    b, shape = w.b, w.b.shapes[y]
    op = w.one_of("Softmax", "Sigmoid", "Exp", "Clip")
    c = b.constant(w.rng.standard_normal((1, *shape[1:])))
    w.said.append(f"constant {op}")
    if op == "Softmax":
        c = b.node("Softmax", c, axis=int(w.rng.integers(0 if b.opset < 13 else 1, len(shape))))
    elif op == "Clip":
        c = b.clip(c, -0.5, 0.5)
    else:
        c = b.node(op, c)
    return b.mul(y, c)


def _quantize(w: _Writer, y: str) -> str:
    """Behind a rectifier, or saturating as one."""
    b = w.b
    if b.opset < 13:
        return y
    kind, zero = w.one_of((np.uint8, 0), (np.int8, -128))
    w.said.append("quantized")
    y = y if w.in_parts else b.relu(y)
    scale, zeros = b.constant(0.05), b.constant(np.full((), zero), kind)
    return b.node("DequantizeLinear", b.node("QuantizeLinear", y, scale, zeros), scale, zeros)


_MOVES: tuple[Callable[[_Writer, str], str], ...] = (
    _rectify, _rectify, _rectify, _activate, _activate, _activate, _prelu, _resize, _constant, _quantize,
)  # fmt: skip


def network(seed: int) -> Network:
    parts, ops = _Writer(seed, in_parts=True), _Writer(seed, in_parts=False)
    (model, shape), (plain, _) = parts.network(), ops.network()
    model.ir_version = plain.ir_version = 8
    x = np.random.default_rng([seed, 1]).standard_normal(shape).astype(np.float32)
    return Network(seed, model, plain, x, (f"opset {parts.b.opset}", f"{list(shape)}", *parts.said))


def scores_elsewhere(model: onnx.ModelProto, x: Array) -> Array | None:
    """None where the other runtime does not take the model, whose shape inference floors in its own way."""
    try:
        import onnxruntime
    except ImportError:
        return None  # onnx's evaluator has most ops in their newest meaning only
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return None
    return np.asarray(session.run(None, {"x": x})[0])


def off(a: Array, b: Array) -> float:
    size = float(np.abs(b).max())
    return float(np.abs(np.asarray(a, np.float64) - b).max() / size) if size else float(np.abs(a).max())


def check(net: Network) -> None:
    """Raises AssertionError where gbp differs."""
    explainer = Explainer(net.model, threads=1)
    wanted = scores_elsewhere(net.model, net.x)
    quantized = "quantized" in net.said
    # A number half-way between integers may go to either, and the scores with it.
    bound = 0.05 if quantized else _BOUND
    if wanted is not None:
        assert off(explainer.predict(net.x), wanted) < bound, "scores"
    for rule in RULES:
        for activations in ("gradient", "clamp"):
            a, b = (Explainer(m, threads=1, activations=activations) for m in (net.model, net.plain))
            ours, theirs = (e.explain(net.x, rule=rule, target=1) for e in (a, b))
            assert off(ours.scores, theirs.scores) < bound, f"{rule} scores in parts"
            # A gate at a near-tie may go either way in float32.
            assert off(ours.map, theirs.map) < (0.5 if quantized else 1e-3), (
                f"{rule}, {activations}: map in parts"
            )


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_network_is_what_it_means_in_any_dialect(seed: int) -> None:
    net = network(seed)
    try:
        check(net)
    except (AssertionError, InputError) as error:
        raise AssertionError(f"{net}: {error}") from error


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    wrong = 0
    for seed in range(first, first + count):
        net = network(seed)
        try:
            check(net)
        except Exception as error:  # every kind is a finding
            wrong += 1
            print(f"{net}\n    {type(error).__name__}: {str(error)[:300]}", flush=True)
    print(f"{count} networks from seed {first}, {wrong} wrong")
