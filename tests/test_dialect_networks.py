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
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from agreement import RULES
from dialects import DRESSES, Array, Writer

from gbp import Explainer, InputError
from gbp.ops import fact

COUNT = int(os.environ.get("GBP_DIALECTS", "25"))
#: Off the other runtime, relative to the largest score; and of two maps of one network.
_BOUND = 1e-4


@dataclass
class Network:
    """One function, written twice: `model` in parts where dice say so, `plain` in ops."""

    seed: int
    model: onnx.ModelProto = field(repr=False)
    plain: onnx.ModelProto = field(repr=False)
    x: Array = field(repr=False)
    said: tuple[str, ...]


def network(seed: int) -> Network:
    parts, ops = Writer(seed, in_parts=True), Writer(seed, in_parts=False)
    (model, shape), (plain, _) = parts.network(), ops.network()
    model.ir_version = plain.ir_version = 8
    said = [f"opset {parts.b.opset}", f"{list(shape)}", *parts.said]
    rng = np.random.default_rng([seed, 2])
    if rng.random() < 0.5:
        dress = DRESSES[int(rng.integers(len(DRESSES)))]
        dress(model, rng)
        said.append(dress.__name__.strip("_"))
        shape = (1 if said[-1] == "squeezed" else shape[0], *shape[1:])
    if any(node.domain == "com.microsoft" for node in model.graph.node):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    x = np.random.default_rng([seed, 1]).standard_normal(shape).astype(np.float32)
    return Network(seed, model, plain, x, tuple(said))


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
    refusals = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        scores = np.asarray(session.run(None, {"x": x})[0])
        return scores if np.isfinite(scores).all() else None  # it overflows, as an LpPool of power 100 does
    except (refusals.Fail, refusals.InvalidArgument, refusals.NotImplemented):
        return None


def off(a: Array, b: Array) -> float:
    size = float(np.abs(b).max())
    return float(np.abs(np.asarray(a, np.float64) - b).max() / size) if size else float(np.abs(a).max())


def check(net: Network) -> None:
    """Raises AssertionError where gbp differs."""
    pairs = {
        activations: [Explainer(m, threads=1, activations=activations) for m in (net.model, net.plain)]
        for activations in ("gradient", "clamp")
    }
    # gbp's scores are what enters the head.
    has_head = fact(net.plain.graph.node[-1].op_type).is_head
    wanted = None if has_head else scores_elsewhere(net.model, net.x)
    quantized = "quantized" in net.said
    # A number half-way between integers may go to either, and the scores with it.
    bound = 0.05 if quantized else _BOUND
    scores = pairs["gradient"][0].predict(net.x)
    if wanted is not None and wanted.dtype == np.int64:
        chosen = np.take_along_axis(scores, wanted.reshape(len(scores), 1, *scores.shape[2:]), axis=1)
        assert off(chosen, scores.max(axis=1, keepdims=True)) < bound, "the best class"
    elif wanted is not None:
        assert off(scores.reshape(wanted.shape), wanted) < bound, "scores"
    rules = RULES if any(node.op_type == "Relu" for node in net.plain.graph.node) else ("vanilla",)
    for rule in rules:
        for activations, pair in pairs.items():
            ours, theirs = (e.explain(net.x, rule=rule, target=1) for e in pair)
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
