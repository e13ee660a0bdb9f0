"""What a plan saves, bytes that do not move and passes that nobody makes; and that the results are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import oracle
import pytest
from agreement import RULES, SAFE, assert_agree
from builder import Builder
from test_graphs import poisoned

from gbp import Explainer
from gbp.devices import cpu as device
from gbp.graph.geometry import Window
from gbp.importer.load import build, open_model
from gbp.kernels.codegen import amx
from gbp.kernels.codegen.gate import Gate
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.parallel.program import Program
from gbp.kernels.parallel.threads import parallel
from gbp.ops.concat import AxisSliceStep, ConcatStep
from gbp.ops.conv import algorithms_lists
from gbp.ops.conv.algorithms import BackwardAlgorithm, DirectBackward
from gbp.ops.conv.algorithms_lists import ListsBackward, SparseBackward
from gbp.ops.conv.conv import ConvStep
from gbp.ops.pool import AveragePool, AveragePoolStep, MaxPool, MaxPoolStep
from gbp.ops.step import NO_TENSOR, Context, GradientSlot, view
from gbp.plan.plan import Plan

Net = Callable[[Builder, str], str]
SHAPE = (2, 8, 6, 5)
#: The last opset whose Softmax sums over several axes.
OPSET = 12


def model_of(net: Net, seed: int = 0) -> onnx.ModelProto:
    """`net` between convolutions."""
    b = Builder(OPSET, seed)
    x = b.conv(b.input(*SHAPE), 8, 3, pads=(1,) * 4)
    return b.model(b.head(b.conv(net(b, x), 4, 1)))


def plan_of(net: Net) -> Plan:
    return Plan.build(build(open_model(model_of(net)), SHAPE))


def check(model: onnx.ModelProto, seed: int, output: str | None = None) -> bool:
    """Engine and oracle agree; or this input leaves a gate to rounding."""
    run = oracle.Run(model, np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32))
    if run.margin <= SAFE:
        return False
    scores = run.values[run.output]
    target = np.random.default_rng(1).integers(0, scores[0].size, (len(scores), 2))
    rectifies = any(isinstance(vjp, oracle.Rectifier) and vjp.obeys for _, vjp in run.steps)
    with mock.patch.object(device, "aligned", poisoned):
        for rule in RULES if rectifies else ("vanilla",):
            assert_agree(Explainer(model, output=output), run, rule, target, output)
    return True


def branches(b: Builder, x: str, *channels: int) -> list[str]:
    """Rectified convolutions of x, side by side."""
    return [b.relu(b.conv(x, count, 1)) for count in channels]


# --- Parts that lie in their wholes -------------------------------------------------------------------------


def dense_block(onto_the_last: bool) -> Net:
    """Each layer reads all before it, joined onto what was joined last, or all anew."""

    def net(b: Builder, x: str) -> str:
        parts, joined = [x], x
        for _ in range(3):
            parts.append(b.conv(b.relu(b.batchnorm(joined)), 8, 3, pads=(1,) * 4))
            joined = b.concat(joined, parts[-1]) if onto_the_last else b.concat(*parts)
        return joined

    return net


def two_joined_crosswise(b: Builder, x: str) -> str:
    first, second = branches(b, x, 8, 8)
    return b.add(b.conv(b.concat(first, second), 8, 1), b.conv(b.concat(second, first), 8, 1))


def beside_other_readers(b: Builder, x: str) -> str:
    """A part that is read before and after it is joined."""
    (part,) = branches(b, x, 8)
    joined = b.concat(b.conv(part, 8, 1), part)
    return b.add(b.conv(joined, 8, 1), b.conv(part, 8, 3, pads=(1,) * 4))


def softmax_of_all_axes(b: Builder, x: str) -> str:
    """In the file's order W is innermost."""
    return b.concat(b.node("Softmax", x, axis=1), b.node("Softmax", x, axis=3), axis=3)


def split_of_shuffled(b: Builder, x: str) -> str:
    _, C, H, W = b.shapes[x]
    grouped = b.transpose(b.reshape(x, 0, 2, C // 2, H, W), 0, 2, 1, 3, 4)
    first, second = b.split(b.reshape(grouped, 0, C, H, W), (4, 4))
    return b.add(b.conv(first, 4, 1), b.conv(second, 4, 1))


def split_unit(b: Builder, x: str) -> str:
    first, second = b.split(x, (4, 4))
    return b.concat(first, b.relu(b.conv(second, 4, 1)))


def join_reshaped(b: Builder, x: str) -> str:
    return b.concat(b.reshape(x, 0, 8, 5, 6), b.reshape(b.conv(x, 8, 1), 0, 8, 5, 6))


def split_rows(*lengths: int) -> Net:
    """Rectified pixels of 8 channels, seen as rows of these lengths, each parted in two."""

    def net(b: Builder, x: str) -> str:
        last = b.transpose(b.relu(b.conv(x, 8, 1)), 0, 2, 3, 1)
        sums = []
        for length in lengths:
            first, second = b.split(b.reshape(last, 0, -1, length), (length // 2,) * 2, axis=2)
            sums.append(b.reshape(b.add(b.clip(first, -1, 1), second), 0, 3, 5, 8))
        return b.transpose(b.node("Sum", *sums), 0, 3, 1, 2)

    return net


#: Networks, and how many parts each Concat or Split in them still copies.
COPIES: dict[str, tuple[Net, list[int]]] = {
    "parts": (lambda b, x: b.concat(*branches(b, x, 8, 3, 16)), []),
    "wholes that are parts": (dense_block(onto_the_last=True), []),
    "the same, joined anew each time": (dense_block(onto_the_last=False), []),
    "a part that others read": (beside_other_readers, []),
    "a part twice": (lambda b, x: b.concat(*2 * branches(b, x, 8)), [1]),
    "parts of two": (two_joined_crosswise, [2]),
    "views": (join_reshaped, [2]),
    "a softmax of all axes": (softmax_of_all_axes, [1]),
    "along W": (lambda b, x: b.concat(*branches(b, x, 8, 8), axis=3), [2]),
    "split": (lambda b, x: b.add(*(b.conv(part, 4, 1) for part in b.split(x, (3, 5)))), []),
    "split, one part dead": (lambda b, x: b.split(x, (3, 5))[0], []),
    "split of a view": (split_of_shuffled, []),
    "split of rows of two pixels": (split_rows(16), []),
    "split of rows of two pixels, and of half a pixel": (split_rows(16, 4), [1, 1]),
    "split along W": (lambda b, x: b.concat(*b.split(x, (2, 3), axis=3), axis=3), [1, 1, 2]),
    "split and joined": (split_unit, [1]),
}


@pytest.mark.parametrize("name", COPIES)
def test_parts_are_copied_only_where_they_must_be(name: str) -> None:
    net, copied = COPIES[name]
    calls = plan_of(net).instructions
    assert [
        len(call.inputs) for call in calls if isinstance(call.step, (ConcatStep, AxisSliceStep))
    ] == copied


def test_what_is_joined_anew_costs_no_more_than_what_is_joined_onto() -> None:
    anew, onto = plan_of(dense_block(onto_the_last=False)), plan_of(dense_block(onto_the_last=True))
    assert len(anew.instructions) == len(onto.instructions)
    assert (anew.forward_bytes, anew.backward_bytes) == (onto.forward_bytes, onto.backward_bytes)


def test_a_thousand_wholes_in_one_another() -> None:
    b = Builder()
    x = b.relu(b.input(1, 8, 1, 1))
    joined = x
    for _ in range(1000):
        joined = b.concat(joined, b.relu(x))
    model = b.model(b.node("GlobalMaxPool", joined))
    explainer = Explainer(model)
    result = explainer.explain(np.ones((1, 8, 1, 1), np.float32), target=4004)
    np.testing.assert_array_equal(result.map.ravel(), [0, 0, 0, 0, 1, 0, 0, 0])


#: Networks that end in parts and wholes.
ENDS: dict[str, Net] = {
    "a part of the image": lambda b, x: b.split(x, (3, 5))[1],
    "a part of a rectifier": lambda b, x: b.split(b.relu(b.conv(x, 9, 1)), (4, 5))[1],
    "a whole": lambda b, x: b.concat(b.relu(x), b.conv(x, 8, 1), x),
    "a part of a whole": lambda b, x: b.split(b.concat(b.relu(x), b.conv(x, 8, 1)), (5, 3, 8))[1],
    "a view": lambda b, x: b.reshape(b.relu(x), 0, 4, 2, 30),
    "all, of a part of the image": lambda b, x: b.gemm(b.flatten(b.relu(b.split(x, (3, 5))[1])), 3),
}


@pytest.mark.parametrize("name", ENDS)
def test_where_nobody_contributes_the_gradient_is_0(name: str) -> None:
    """And not what the memory held before."""
    b = Builder()
    output = ENDS[name](b, b.input(*SHAPE))
    assert check(b.model(output), 0, output)


def test_a_view_is_never_a_copy() -> None:
    part = np.zeros((2, 4, 8))[:, :, :3]
    assert np.shares_memory(view(part, 2, 2, 2, 3), part)
    with pytest.raises(ValueError, match="copy"):
        view(part, 2, 12)


# --- Gates and sums in the reverse --------------------------------------------------------------------------


def parted_elsewhere(b: Builder, x: str) -> str:
    """A branch that begins within a byte, but one of whose parts does not."""
    parts = b.split(b.concat(*branches(b, x, 4, 20)), (8, 8, 8))
    return b.node("Sum", *(b.conv(part, 8, 1) for part in parts))


def flat(channels: int) -> Net:
    """A dense layer on rectified units, which are flattened without a copy."""

    def net(b: Builder, x: str) -> str:
        last = b.transpose(b.relu(b.conv(x, channels, 1)), 0, 2, 3, 1)
        return b.reshape(b.gemm(b.flatten(last), 8), 0, 8, 1, 1)

    return net


#: Networks, and how many rectifiers need a pass of their own in the reverse.
GATES: dict[str, tuple[Net, int]] = {
    "one branch": (lambda b, x: branches(b, x, 8)[0], 0),
    "branches": (lambda b, x: b.concat(*branches(b, x, 8, 16, 5)), 0),
    "branches that begin within a byte": (lambda b, x: b.concat(*branches(b, x, 8, 5, 8)), 3),
    "a branch that is not rectified": (lambda b, x: b.concat(*branches(b, x, 8, 8), b.conv(x, 8, 1)), 2),
    "rectifiers of two kinds": (lambda b, x: b.concat(*branches(b, x, 8), b.clip(b.conv(x, 8, 1), 0, 1)), 0),
    "a rectifier and a clip": (lambda b, x: b.concat(*branches(b, x, 8), b.clip(b.conv(x, 8, 1), -1, 1)), 2),
    "a branch with other readers": (beside_other_readers, 0),
    "branches parted elsewhere": (parted_elsewhere, 2),
    "flat": (flat(8), 0),
    "flat, of pixels that end within a byte": (flat(5), 1),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_are_applied_by_whoever_completes_the_gradient(name: str) -> None:
    net, passes = GATES[name]
    assert sum(reverse.gates_first for reverse in plan_of(net).backward.instructions) == passes


def residual_block(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 8, 3, pads=(1,) * 4))
    return b.relu(b.add(b.conv(y, 8, 1), x))


def sum_with_a_part(b: Builder, x: str) -> str:
    first, second = b.split(b.conv(x, 8, 1), (4, 4))
    return b.relu(b.add(b.conv(b.relu(second), 4, 1), first))


#: Networks, and how many sums copy their gradient to what was added.
SUMS: dict[str, tuple[Net, int]] = {
    "blocks": (lambda b, x: residual_block(b, residual_block(b, x)), 0),
    "a shortcut": (lambda b, x: b.relu(b.add(b.conv(b.relu(x), 8, 1), b.conv(x, 8, 1))), 0),
    "of a tensor and itself": (lambda b, x: b.add(b.conv(x, 8, 1), x), 1),
    "of what others read later": (lambda b, x: b.mul(b.clip(residual_block(b, x), -1, 1), x), 1),
    "of a part": (sum_with_a_part, 1),
    "that is a part": (lambda b, x: b.concat(residual_block(b, x), b.conv(x, 8, 1)), 1),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_gradient_of_a_sum_becomes_that_of_what_was_added(name: str) -> None:
    net, copied = SUMS[name]
    plan = plan_of(net)
    sums = [
        reverse for reverse in plan.backward.instructions if plan.instructions[reverse.instruction].residual
    ]
    assert sums
    assert sum(reverse.residual is not None for reverse in sums) == copied


def pooled(b: Builder, x: str, **window: Any) -> str:
    y = b.relu(b.conv(x, 8, 3, pads=(1,) * 4, strides=(2, 2)))
    return b.node("MaxPool", y, kernel_shape=[2, 2], **window)


def pooled_beside_another_reader(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 8, 3, pads=(1,) * 4, strides=(2, 2)))
    z = b.node("MaxPool", y, kernel_shape=[2, 2], pads=[0, 0, 1, 1])
    return b.add(z, y)


def pooled_part(b: Builder, x: str) -> str:
    parts = [b.relu(b.conv(x, 8, 3, pads=(1,) * 4, strides=(2, 2))) for _ in range(2)]
    return b.node("MaxPool", b.concat(*parts), kernel_shape=[2, 2])


def pooled_sum(b: Builder, x: str) -> str:
    first, second = (b.conv(x, 8, 3, pads=(1,) * 4, strides=(2, 2)) for _ in range(2))
    return b.node("MaxPool", b.relu(b.add(first, second)), kernel_shape=[2, 2])


#: Networks, and how many max-pools go backward in one kernel with the convolution before them.
POOLED: dict[str, tuple[Net, int]] = {
    "a stem": (pooled, 1),
    "without a rectifier": (
        lambda b, x: b.node("MaxPool", b.conv(x, 8, 3, strides=(2, 2)), kernel_shape=[2, 1]),
        1,
    ),
    "of planes in which windows overlap much": (
        lambda b, x: b.node("MaxPool", b.relu(b.conv(x, 8, 3, pads=(1,) * 4)), kernel_shape=[2, 2]),
        0,
    ),
    "beside another reader": (pooled_beside_another_reader, 0),
    "of a whole": (pooled_part, 0),
    "of a sum": (pooled_sum, 0),
    "another pool": (
        lambda b, x: b.node("AveragePool", b.relu(b.conv(x, 8, 3, strides=(2, 2))), kernel_shape=[2, 2]),
        0,
    ),
}


@pytest.mark.parametrize("name", POOLED)
def test_a_pool_and_the_convolution_before_it_go_backward_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amx, "is_usable", lambda: False)  # else strides go by tiles of it
    net, together = POOLED[name]
    plan = plan_of(net)
    assert sum(reverse.maker is not None for reverse in plan.backward.instructions) == together


def test_a_step_that_adds_to_a_gradient_twice_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pool does so; here, a convolution and what was added to it."""
    monkeypatch.setattr(ConvStep, "takes_in", lambda *_: True)

    def net(b: Builder, x: str) -> str:
        y = b.relu(b.conv(x, 8, 3))
        return b.add(b.conv(y, 8, 1), y)

    plan = plan_of(net)
    (adds,) = (reverse for reverse in plan.backward.instructions if reverse.residual)
    assert adds.maker is None


@pytest.mark.parametrize("name", [*COPIES, *GATES, *SUMS, *POOLED])
def test_results_are_right(name: str) -> None:
    net, _ = {**COPIES, **GATES, **SUMS, **POOLED}[name]
    assert any(check(model_of(net, seed), seed) for seed in range(9))


@pytest.mark.parametrize(("size", "otherwise"), [(16, {"conv_winograd_bwd"}), (7, {"conv_bwd", "pad"})])
def test_a_warmup_knows_the_kernels_that_values_decide_about(
    size: int, otherwise: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the gradient is mostly zero; else planes go by Winograd, but small ones by tiles.

    Where AMX is usable, it may take the place of both.
    """
    monkeypatch.setattr(amx, "is_usable", lambda: False)
    b = Builder()
    x = b.relu(b.conv(b.input(1, 64, size, size), 64, 3, pads=(1, 1, 1, 1)))
    plan, _ = Explainer(b.model(b.head(x)))._plan_for((64, size, size))
    named = {kernel.name for call in plan.instructions for kernel in call.step.kernels}
    assert named == {"conv_lists_bwd", *otherwise}


@pytest.mark.parametrize("targets", [1, 3])
def test_an_average_goes_backward_with_the_convolution_before_it_as_it_does_alone(targets: int) -> None:
    """For seeds of few classes and for dense ones, which change when a recorded pass is repeated."""
    random = np.random.default_rng(0)
    O, C, size, n = 80, 24, (5, 7), 6
    window = Window.resolve(size, (1, 1))
    w = random.standard_normal((O, C, 1, 1), np.float32)
    step, mean = SparseBackward(w, window, DirectBackward(w, window), 0.1), AveragePoolStep(average(size))
    assert step.takes_in_average
    assert mean.is_global
    fixed, each = step.scratch(2)
    context = Context(2, aligned((fixed + n * each,)))
    passes = random.integers(0, 256, (n // targets, *size, O // 8), np.uint8)
    mask = random.integers(0, 256, (n // targets, *size, C // 8), np.uint8)
    gy, array, z, apart = (
        aligned(shape) for shape in ((n, 1, 1, O), (n, *size, C), (n, *size, O), (n, *size, C))
    )
    slot, between = (
        GradientSlot(array, False, mask, Gate(1, 1)),
        GradientSlot(NO_TENSOR, False, passes, Gate(1, 1)),
    )
    again = Program()
    for dense in (range(0), range(n), (0, 4), (1, 2, 3, 5)):
        gy[:] = 0
        gy[np.arange(n), 0, 0, random.integers(O, size=n)] = 1
        for row in dense:
            gy[row] = random.standard_normal(O)
        with parallel():
            again(lambda: step.through_average(gy, mean, between, slot, context))
            mean.vjp(gy, (replace(between, array=z),), context)
            step(z, replace(slot, array=apart), context)
        np.testing.assert_array_equal(array, apart)


@pytest.mark.parametrize("targets", [1, 3])
def test_a_max_pool_goes_backward_with_lists_as_it_does_alone(targets: int) -> None:
    """For gradients that are mostly zero and others, which change when a recorded pass is repeated."""
    random = np.random.default_rng(0)
    O, C, size, n = 70, 64, (9, 11), 6
    window = Window.resolve(size, (3, 3), pads=(1, 1, 1, 1))
    w = random.standard_normal((O, C, 3, 3), np.float32)
    pool = MaxPoolStep(MaxPool(Window.resolve(size, (2, 2), stride=(2, 2))))
    step, half = ListsBackward(w, window, DirectBackward(w, window), 0.2), (size[0] // 2, size[1] // 2)
    step.takes_in_pool = True
    fixed, each = step.scratch(2)
    context = Context(2, aligned((fixed + each,)))
    alone = replace(context, scratch=aligned((fixed + n * each,)))
    read = Context(2, NO_TENSOR, switches=random.integers(0, 4, (n // targets, *half, O), np.uint8))
    passes = random.integers(0, 256, (n // targets, *size, O // 8 + 1), np.uint8)
    mask = random.integers(0, 256, (n // targets, *size, C // 8), np.uint8)
    gy, array, z, apart = (
        aligned(shape) for shape in ((n, *half, O), (n, *size, C), (n, *size, O), (n, *size, C))
    )
    slot, between = (
        GradientSlot(array, False, mask, Gate(1, 1)),
        GradientSlot(NO_TENSOR, False, passes, Gate(1, 0)),
    )
    again = Program()
    for dense in (range(0), range(n), (0, 4), (1, 2, 3, 5)):
        gy[:] = random.standard_normal(gy.shape) * (random.random(gy.shape) < 0.2)
        for row in dense:
            gy[row] = random.standard_normal(gy[row].shape)
            read.switches[row // targets, :4] = 0
            passes[row // targets, :8] = 255
        context.scratch[:] = np.nan
        with parallel():
            again(lambda: step.through_pool(gy, pool, read, between, slot, context))
            pool.vjp(gy, (replace(between, array=z),), read)
            step(z, replace(slot, array=apart), alone)
        np.testing.assert_array_equal(array, apart)


def test_a_large_plane_goes_back_by_lists_through_its_max_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithms_lists, "_LARGE", 0)

    def net(b: Builder, x: str) -> str:
        y = b.relu(b.conv(b.relu(b.conv(x, 64, 1)), 64, 3, pads=(1,) * 4))
        return b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])

    assert sum(reverse.maker is not None for reverse in plan_of(net).backward.instructions) == 1
    assert any(check(model_of(net, seed), seed) for seed in range(9))


def average(size: tuple[int, int]) -> AveragePool:
    return AveragePool(Window.resolve(size, size))


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize(("kind", "kernel"), [(ListsBackward, 3), (SparseBackward, 1)])
def test_each_sample_chooses_its_lists_when_a_recorded_pass_is_repeated(
    kind: Callable[..., BackwardAlgorithm], kernel: int, targets: int
) -> None:
    """Rows are mostly zero or not, all or some of them, and other ones than when the pass was recorded."""
    random = np.random.default_rng(0)
    O, C, size, n = 24, 80, 9, 6
    window = Window.resolve((size, size), (kernel, kernel), pads=(kernel // 2,) * 4)
    w = random.standard_normal((O, C, kernel, kernel), np.float32)
    other = DirectBackward(w, window)
    step = kind(w, window, other, 0.3)
    assert step.repeats
    fixed, each = step.scratch(1)
    context = Context(1, aligned((fixed + n * each,)))
    mask = random.integers(0, 256, (n // targets, size, size, C // 8), np.uint8)
    gy, array = aligned((n, size, size, O)), aligned((n, size, size, C))
    slot = GradientSlot(array, False, mask, Gate(1, 1))
    again = Program()
    for sparse in (
        range(0),
        range(n),
        (0, 4),
        (1, 2, 3, 5),
    ):
        gy[:] = random.standard_normal(gy.shape)
        for row in sparse:
            gy[row] *= random.random(gy[row].shape) < 0.1
        with parallel():
            again(lambda: step(gy, slot, context))
            for row in range(n):
                alone = GradientSlot(
                    aligned((1, size, size, C)), False, mask[row // targets][None], Gate(1, 1)
                )
                step(gy[row : row + 1], alone, context)
                np.testing.assert_array_equal(array[row], alone.array[0])
                dense = GradientSlot(aligned((1, size, size, C)), False, alone.mask, Gate(1, 1))
                other(gy[row : row + 1], dense, context)
                np.testing.assert_allclose(array[row], dense.array[0], rtol=1e-4, atol=1e-4)
                assert row in sparse or np.array_equal(array[row], dense.array[0])
