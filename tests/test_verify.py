"""Verification: models that are right are found so, and engines that are broken are not."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from cases.axes import grid_sample
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from gbp import PROBABILITY, InputError, UnsupportedError
from gbp.cli import main as cli
from gbp.cli.verify import _print_verification
from gbp.diagnostics import reference as others
from gbp.diagnostics import verify as module
from gbp.diagnostics.evaluated import LRN, MaxPool
from gbp.diagnostics.reference import Exact, OnnxRuntime
from gbp.diagnostics.ties import same_windows
from gbp.diagnostics.verification import StepError, Verification
from gbp.diagnostics.verify import verify
from gbp.graph.geometry import resolve_axes
from gbp.graph.op import ALGORITHMS
from gbp.importer.load import open_model
from gbp.ops.concat import ConcatStep
from gbp.ops.conv.conv import Conv, ConvStep
from gbp.ops.lrn import LRNStep
from gbp.ops.pool import AveragePoolStep, MaxPoolStep
from gbp.ops.step import GradientSlot, Step


@pytest.fixture(params=["onnxruntime", "onnx"])
def reference(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without onnxruntime."""
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    else:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    return str(request.param)


def model(opset: int = 13) -> onnx.ModelProto:
    """Most ways that the plan has to make one step, or none, of several nodes."""
    b = Builder(opset)
    x = b.input(1, 3, 16, 16)
    x = b.relu(b.batchnorm(b.conv(x, 16, pads=[1, 1, 1, 1])))  # folded and fused
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    x = b.relu(b.add(b.conv(x, 16, pads=[1, 1, 1, 1]), x))  # a residual
    x = b.node("LRN", x, size=5, alpha=0.1)
    x = b.batchnorm(b.concat(b.relu(b.conv(x, 8, 1)), b.clip(b.conv(x, 8, 3, pads=[1, 1, 1, 1]), 0.0, 0.5)))
    x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    left, right = b.split(b.transpose(x, 0, 2, 3, 1), [4, 12], axis=3)
    x = b.concat(b.relu(b.gemm(b.flatten(left), 9)), b.gemm(b.flatten(right), 9))
    return b.model(b.node("Softmax", b.gemm(b.dropout(x), 5), axis=1))


# ---------------------------------------------------------------------------------------- what is right


def test_indices_that_others_count_in_another_way(reference: str) -> None:
    """Through channels and samples; gbp counts in the plane."""
    b = Builder()
    x = b.conv(b.input(1, 3, 16, 16), 8, pads=[1, 1, 1, 1])
    pooled, indices = b.nodes("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    y = b.node("MaxUnpool", b.relu(pooled), indices, kernel_shape=[2, 2], strides=[2, 2])
    assert verify(b.model(b.head(y))).verified


@pytest.mark.parametrize("opset", [7, 9, 13, 21])
def test_a_right_engine_is_verified(opset: int, reference: str) -> None:
    found = verify(model(opset))
    assert found.verified, found.verdict
    assert found.verdict.startswith("verified: ")
    assert found.reference.startswith(reference)
    assert found.input == "x 3×16×16, noise"
    assert found.steps > 10
    assert found.worst is not None
    assert 0 < found.worst.error < 1e-6
    assert found.gradient_error is not None
    assert 0 < found.gradient_error < 1e-5
    assert found.directions == 3


@pytest.mark.parametrize(("opset", "mode"), [(16, "bilinear"), (16, None), (20, "linear"), (22, "nearest")])
def test_positions_are_double_where_slopes_are_taken(opset: int, mode: str | None, reference: str) -> None:
    b = Builder(opset)
    features = b.relu(b.conv(b.input(1, 3, 7, 8), 4))
    options = {} if mode is None else {"mode": mode}
    model = b.model(b.head(b.relu(grid_sample(3, 4, computed=True, **options)(b, features))))
    found = verify(model)
    assert found.verified, found.verdict


@pytest.mark.parametrize("opset", [7, 9, 13, 21])
def test_both_references_agree(opset: int) -> None:
    pytest.importorskip("onnxruntime")
    net = model(opset)
    source = open_model(net)
    names = [node.output[0] for node in source.nodes if node.op_type != "Constant"]
    x = np.random.default_rng(3).standard_normal((1, 3, 16, 16), np.float32)
    exact, single = Exact(net, source).run(x, names), OnnxRuntime(net, source).run(x, names)
    assert exact.keys() == single.keys() == set(names)
    for name in names:
        assert exact[name].dtype == np.float64
        np.testing.assert_allclose(exact[name], single[name], rtol=1e-4, atol=1e-5)


def test_how_much_is_held_at_once_changes_nothing(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = verify(model())
    monkeypatch.setattr(module, "_PART", 1)
    assert verify(model()) == whole


def test_halves_within_a_float_network(reference: str) -> None:
    """As Keras' mixed precision writes them: onnxruntime rounds there, and was called right."""
    b = Builder(opset=13)
    y = b.node("Cast", b.input(1, 3, 9, 9), to=TensorProto.FLOAT16)
    for channels in (3, 4):
        w, c = b.noise(4, channels, 3, 3), b.noise(4)
        y = b.relu(b.node("Conv", y, b.constant(w, np.float16), b.constant(c, np.float16)))
    y = b.node("Cast", y, to=TensorProto.FLOAT)
    found = verify(b.model(b.head(y)))
    assert found.verified, found


def test_groups_of_a_transposed_convolution(reference: str) -> None:
    b = Builder()
    y = b.conv_transpose(b.input(1, 6, 5, 4), 6, group=3, strides=[2, 1], dilations=[1, 2])
    found = verify(b.model(b.head(b.conv_transpose(y, 6, group=6, bias=False))))
    assert found.verified, found


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 2, 4, 5, 6)])
def test_ops_that_the_evaluator_has_for_images_or_float32_alone(
    reference: str, shape: tuple[int, ...]
) -> None:
    b = Builder()
    y = b.node("MeanVarianceNormalization", b.input(*shape), axes=[len(shape) - 1])
    found = verify(b.model(b.head(b.node("GlobalMaxPool", y))))
    assert found.verified, found


def test_a_file_made_for_one_batch_size(reference: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input(4, 3, 8, 8), 8))
    net = b.model(b.gemm(b.reshape(x, 4, -1), 5))
    net.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    found = verify(net)
    assert found.verified, found.verdict


def test_a_file_for_very_many_samples_is_refused() -> None:
    b = Builder()
    model = b.model(b.head(b.relu(b.conv(b.input(1, 3, 5, 5), 4))))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**16
    with pytest.raises(UnsupportedError, match="65536 samples at once"):
        verify(model)


def test_images_sizes_and_outputs(tmp_path: Path) -> None:
    b = Builder()
    b.input(1, 3, 8, 8)
    net = b.model(b.node("Softmax", b.head(b.node("GlobalAveragePool", b.relu(b.conv("x", 8)))), axis=1))
    for dim in net.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    assert verify(net, size=(9, 7)).input == "x 3×9×7, noise"
    assert verify(net, preprocess={"scale": 1, "size": 10}).input == "x 3×10×10, noise"
    whole = verify(net, np.zeros((1, 3, 9, 11), np.float32), output=PROBABILITY)
    assert whole.input == "x 3×9×11, the given image with noise of 0.1 %"
    assert whole.verified, whole.verdict
    assert whole.scores == net.graph.output[0].name
    with pytest.raises(InputError, match="2 images"):
        verify(net, np.zeros((2, 3, 9, 11), np.float32))
    with pytest.raises(InputError, match=r"a sample has shape \[3, 1099511627776, 9\]"):
        verify(net, size=(2**40, 9))


def test_without_steps_and_with_a_rectifier_first(reference: str) -> None:
    b = Builder()
    found = verify(b.model(b.flatten(b.input(1, 3, 2, 2))))
    assert (found.steps, found.worst, found.verified) == (0, None, True)
    b = Builder()
    found = verify(b.model(b.head(b.clip(b.relu(b.input(1, 3, 4, 4)), 0.1, 0.9))))
    assert found.verified, found.verdict


def test_where_no_direction_is_smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the noise, each max-pool window of a black image is a tie, which is a kink."""
    monkeypatch.setattr(module, "_STIR", 0.0)
    b = Builder()
    x = b.node("MaxPool", b.input(1, 3, 8, 8), kernel_shape=[2, 2], strides=[2, 2])
    found = verify(b.model(b.head(x)), np.zeros((1, 3, 8, 8), np.float32))
    assert (found.directions, found.gradient_error, found.verified) == (0, None, False)
    assert found.verdict.startswith("NOT VERIFIED: ")
    assert not found.mismatches


def test_a_gate_within_rounding_widens_the_bound() -> None:
    b = Builder()
    x = b.input(1, 16)
    w, c = np.eye(16, dtype=np.float32), np.full(16, -1, np.float32)
    shifted = b.relu(b.node("Gemm", x, b.constant(w), b.constant(c)))
    net = b.model(b.gemm(shifted, 4))
    far, near = np.full((1, 16), 2, np.float32), np.full((1, 16), 1, np.float32)
    bounds = []
    for image in (far, near):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_STIR", 1e-9)
            bounds.append(verify(net, image).gradient_bound)
    assert bounds == [1e-3, 1e-1]


# --------------------------------------------------------------------------------------- what is broken


def scaled(step: type[Step], by: float) -> object:
    """The step's vjp, its gradients `by` times too large."""
    vjp = step.vjp

    def broken(self: Step, gy: np.ndarray, gx: tuple[GradientSlot, ...], saved: object) -> None:
        vjp(self, gy * np.float32(by), gx, saved)  # type: ignore[arg-type]

    return broken


@pytest.mark.parametrize("step", [ConvStep, MaxPoolStep, AveragePoolStep, LRNStep])
def test_a_wrong_gradient_is_found(step: type[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "vjp", scaled(step, 1.01))
    found = verify(model())
    assert not found.verified
    assert len(found.mismatches) == 1
    assert found.verdict.startswith("MISMATCH: the gradient is off by ")


def test_a_wrong_switch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MaxPoolStep.forward

    def broken(self, x, r, y, clip, saved):
        forward(self, x, r, y, clip, saved)
        saved.switches[:, 3, 3] = 0

    monkeypatch.setattr(MaxPoolStep, "forward", broken)
    assert verify(model()).mismatches[0].startswith("the gradient is off by ")


def _kernel(net: onnx.ModelProto, conv: onnx.NodeProto) -> tuple[int, int]:
    """Filters and their height."""
    (w,) = (tensor for tensor in net.graph.initializer if tensor.name == conv.input[1])
    return w.dims[0], w.dims[2]


def test_a_wrong_bias_names_the_node(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = Conv.lower

    def broken(self, x, y, order, target):
        wrong = replace(self, b=self.b + 0.01) if self.w.shape[::2] == (8, 1) else self
        return lower(wrong, x, y, order, target)

    net = model()
    conv = next(node for node in net.graph.node if node.op_type == "Conv" and _kernel(net, node) == (8, 1))
    relu = next(node for node in net.graph.node if conv.output[0] in node.input)
    monkeypatch.setattr(Conv, "lower", broken)
    found = verify(net)
    assert found.worst is not None
    assert (found.worst.node, found.worst.op) == (f"{conv.name} … {relu.name}", "Conv … Relu")
    assert found.worst.tensor == relu.output[0]
    assert found.verdict.startswith(f"MISMATCH: Conv … Relu '{conv.name} … {relu.name}' is off by ")
    assert found.scores_error > found.scores_bound


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_breaks_ties_is_found(reference: str, algorithm: str, channels_last: bool) -> None:
    """By Winograd, which "fast" takes for one of the two convolutions."""
    b = Builder()
    x = b.input(1, 60, 60, 3) if channels_last else b.input(1, 3, 60, 60)
    x = b.transpose(x, 0, 3, 1, 2) if channels_last else x
    x = b.node("MaxPool", b.relu(b.conv(x, 8, pads=[1] * 4)), kernel_shape=[2, 2], strides=[2, 2])
    found = verify(b.model(b.head(b.relu(b.conv(x, 64, pads=[1] * 4)))), algorithm=algorithm)
    if algorithm in ("auto", "direct", "lists"):
        assert found.verified, found.verdict
        return
    assert found.tie_breaker is not None
    assert found.tie_breaker.op == "Conv … Relu"
    assert 0 < found.tie_breaker.told_apart < 1e-5
    assert "tells equal windows apart" in found.verdict


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_windows_whose_results_are_equal_by_chance_break_no_tie(reference: str, mode: str) -> None:
    """Resized, a flat area is flat but for rounding, which a Conv of one channel may round away."""
    b = Builder()
    y = b.conv(b.conv(b.input(1, 3, 32, 32), 8, strides=[2, 2]), 8)
    y = b.node("Resize", y, "", b.constant([1.0, 1.0, 1.5, 1.5]), mode=mode)
    found = verify(b.model(b.flatten(b.conv(y, 1, pads=[1, 1, 1, 1]))))
    assert found.verified, found


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_same_windows_hold_the_same(ceil_mode: bool) -> None:
    x = np.random.default_rng(0).choice(3, p=[0.9, 0.05, 0.05], size=(2, 2, 11, 14))
    axes = resolve_axes(
        (11, 14), (2, 3), stride=(2, 1), dilation=(3, 1), pads=(1, 2, 0, 1), ceil_mode=ceil_mode
    )
    room = [(0, 0), (0, 0), (1, 9), (2, 9)]
    padded = np.pad(x, room, constant_values=-1)

    def window(i: int, j: int) -> np.ndarray[Any, Any]:
        return padded[:, :, 2 * i : 2 * i + 4 : 3, j : j + 3]

    down, across = same_windows(x, axes)
    for i, j in np.ndindex(*(axis.outputs for axis in axes)):
        for same, other in ((down, (i + 1, j)), (across, (i, j + 1))):
            if i < same.shape[1] and j < same.shape[2]:
                equal = (window(i, j) == window(*other)).all(axis=(1, 2, 3))
                np.testing.assert_array_equal(same[:, i, j], equal)
    assert down.any()
    assert not down.all()


def test_one_wrong_number_of_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = AveragePoolStep.forward

    def broken(self, x, r, y, clip, saved):
        forward(self, x, r, y, clip, saved)
        y[0, 1, 2, 5] *= np.float32(1.1)

    monkeypatch.setattr(AveragePoolStep, "forward", broken)
    worst = verify(model()).worst
    assert worst is not None
    assert worst.op == "AveragePool"
    assert worst.error > 1e-4


@pytest.mark.parametrize(("others", "by", "is_right"), [(9, 1, True), (10, 1, False), (1, 2, False)])
def test_a_quantizer_may_round_to_the_other_neighbour_in_less_than_1_percent(
    others: int, by: int, is_right: bool
) -> None:
    true = np.random.default_rng(0).integers(0, 200, (1, 1000)).astype(np.float32)
    got = true.copy()
    got[0, :others] += by
    error = module._step_error("y", ("q", "Conv … QuantizeLinear"), got, true, true).error
    assert (error == 0) == is_right
    assert module._step_error("y", ("c", "Conv"), got, true, true).error > 0


def test_an_error_in_what_no_step_makes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining moves no bytes here, it only says where they lie."""
    init = ConcatStep.__init__

    def broken(self: ConcatStep, *args: Any) -> None:
        init(self, *args)
        self.part_starts = self.part_starts and self.part_starts[::-1]

    monkeypatch.setattr(ConcatStep, "__init__", broken)
    worst = verify(model()).worst
    assert worst is not None
    assert worst.op == "Concat"


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_softmax_of_an_old_opset_in_float64(op: str, axis: int) -> None:
    """Over all axes from `axis` on."""
    b = Builder(opset=11)
    b.node(op, b.input(1, 3, 4, 5), axis=axis)
    net = b.model(f"{op.lower()}0")
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 5))
    (y,) = others.Exact(net, open_model(net)).run(x, [f"{op.lower()}0"]).values()
    rows = x.reshape(*x.shape[:axis], -1)
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    soft = powers / powers.sum(axis=-1, keepdims=True)
    wanted = {"Softmax": soft, "LogSoftmax": np.log(soft)}
    np.testing.assert_allclose(y, wanted[op].reshape(x.shape), rtol=1e-12)


def test_where_the_references_part_float64_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(LRN, "_run", lambda self, x, **_: (1.1 * x,))
    found = verify(model())
    assert found.worst is not None
    assert found.worst.op == "LRN"
    assert found.reference.startswith("onnx 1")


def test_what_the_reference_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(proto: onnx.ModelProto, **options: object) -> object:
        if proto.graph.node[0].op_type == "LRN":
            raise NotImplementedError("no such op")
        return evaluator(proto, **options)

    evaluator = others.ReferenceEvaluator
    monkeypatch.setattr(others, "ReferenceEvaluator", lacking)
    with pytest.raises(UnsupportedError, match=r"LRN 'lrn.*NotImplementedError: no such op"):
        verify(model())


# ------------------------------------------------------------------------------------- the command line


def test_max_pools_are_those_of_the_evaluator() -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        taps, strides = rng.integers(1, 4, 2), rng.integers(2, 4, 2)
        given: dict[str, Any] = {"kernel_shape": taps, "strides": strides, "ceil_mode": i % 2}
        given |= {"dilations": rng.integers(1, 3, 2)} if i % 3 else {}
        given |= {"auto_pad": ("SAME_UPPER", "SAME_LOWER", "VALID")[i % 3]} if i % 4 == 0 else {}
        given |= {} if "auto_pad" in given else {"pads": rng.integers(0, [*taps, *taps])}
        node = onnx.helper.make_node("MaxPool", ["x"], ["y"], **given)
        graph = onnx.helper.make_graph(
            [node],
            "net",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, None)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)],
        )
        net = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
        x = {"x": rng.standard_normal((2, 3, *rng.integers(5, 9, 2)))}
        (found,) = ReferenceEvaluator(net, new_ops=[MaxPool]).run(None, x)
        np.testing.assert_array_equal(found, ReferenceEvaluator(net).run(None, x)[0])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(model().SerializeToString())
    return path


def test_the_command_prints_and_says_how_it_ended(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["verify", str(file)]) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[-1], err) == ("verified: every error is within its bound.", "")
    monkeypatch.setattr(MaxPoolStep, "vjp", scaled(MaxPoolStep, 2))
    assert cli.main(["verify", str(file), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == str(file)
    assert report["verified"] is False
    assert report["verdict"].startswith("MISMATCH: the gradient")
    assert report.keys() > {field.name for field in dataclasses.fields(Verification)}
    assert cli.main(["verify", str(file), "gone.png", "--preprocess", "unit"]) == 2


def test_every_field_is_printed_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    worst = StepError("features/0/conv … features/1/relu", "Conv … Relu", "r1", 1.5e-7)
    found = Verification(
        "x 3×8×8, cat.jpg", "onnx", 12, worst, 1e-5, None, "fc", 2.5e-7, 1e-4, 281, 3, 3.5e-7, 1e-3, False
    )
    _print_verification(found)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for text in (
        *("x 3×8×8, cat.jpg", "onnx", " 12, ", "Conv … Relu", worst.node, "'r1'", "1.5e-07", "1e-05"),
        *("'fc'", "2.5e-07", "1e-04", "281", " 3 ", "3.5e-07", "1e-03", "kept", found.verdict),
    ):
        assert text in " ".join(out.split())
    nothing = replace(found, steps=0, worst=None, directions=0, gradient_error=None)
    _print_verification(nothing)
    assert "NOT VERIFIED" in capsys.readouterr().out
