"""Batches that run in pieces up to the plan's tail: the bits of samples alone, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder

from gbp import Explainer, InputError
from gbp.devices.cpu import CpuDevice
from gbp.kernels.codegen.memory import aligned
from gbp.ops import gemm
from gbp.plan import tail

RULES = ("guided", "deconvnet", "vanilla", "rectgrad")


@pytest.fixture(autouse=True)
def _any_dense_layer_is_a_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_LEAST", 1)


def images(n: int) -> Any:
    return np.random.default_rng(0).standard_normal((n, 3, 12, 10), dtype=np.float32)


def behind_pools(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 96, kernel=3))
    for _ in range(2):  # the planes take more memory than the input and what is behind them
        y = b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return b.gemm(b.relu(b.gemm(b.relu(b.gemm(b.flatten(y), 20)), 17)), 5)


def behind_a_rectifier(b: Builder, x: str) -> str:
    return b.gemm(b.relu(b.gemm(b.flatten(b.relu(b.conv(x, 8, kernel=3))), 20)), 5)


def behind_branches(b: Builder, x: str) -> str:
    parts = [b.relu(b.conv(x, c, kernel=3)) for c in (4, 8)]
    return b.gemm(b.flatten(b.node("Concat", *parts, axis=1)), 5)


def behind_a_block(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 8, kernel=3))
    return b.gemm(b.flatten(b.add(b.conv(y, 8, kernel=3, pads=[1, 1, 1, 1]), y)), 5)


def behind_a_sum(b: Builder, x: str) -> str:
    """No tail: the gradient of what the sum adds takes over the memory of the sum's."""
    y = b.relu(b.gemm(b.flatten(b.relu(b.conv(x, 8, kernel=3))), 20))
    return b.gemm(b.add(b.gemm(y, 20), y), 5)


def with_the_image_added(b: Builder, x: str) -> str:
    """No tail: the gradient of the image takes over the memory of the sum's."""
    return b.gemm(b.flatten(b.relu(b.add(b.conv(x, 3, kernel=3, pads=[1, 1, 1, 1]), x))), 5)


def with_a_part_of_the_image(b: Builder, x: str) -> str:
    """What no layer reads of the image has a gradient of 0, whichever piece it is in."""
    part = b.node("Slice", x, *(b.constant(np.int64([k])) for k in (1, 9, 2)))
    return b.gemm(b.flatten(b.relu(b.conv(part, 8, kernel=3))), 5)


def with_a_second_reader(b: Builder, x: str) -> str:
    y = b.flatten(b.relu(b.conv(x, 8, kernel=3)))
    return b.add(b.gemm(b.relu(b.gemm(y, 20)), 5), b.gemm(b.node("Sigmoid", y), 5))


def without_planes(b: Builder, x: str) -> str:
    return b.gemm(b.relu(b.gemm(b.flatten(x), 20)), 5)


NETWORKS = {
    behind_pools: 3,
    behind_a_rectifier: 2,
    behind_branches: 1,
    behind_a_block: 1,
    with_a_part_of_the_image: 1,
    with_the_image_added: 0,
    behind_a_sum: 0,
    with_a_second_reader: 0,
    without_planes: 0,
}


def model_of(network: Callable[[Builder, str], str]) -> onnx.ModelProto:
    b = Builder()
    return b.model(network(b, b.input(1, 3, 12, 10)))


def cut(model: onnx.ModelProto, most: int, together: int, **arguments: Any) -> Explainer:
    """An Explainer with memory for so many samples at once, and for so many in pieces."""
    plan, _ = Explainer(model)._plan_for((3, 12, 10))
    memory = plan.nbytes(most, 1)
    if plan.tail is not None:
        memory = max(memory, plan.nbytes_in_pieces(together, most))
    return Explainer(model, memory=memory, **arguments)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_tail_is_the_dense_layers_at_the_end(network: Callable[[Builder, str], str]) -> None:
    plan, _ = Explainer(model_of(network))._plan_for((3, 12, 10))
    found = 0 if plan.tail is None else len(plan.instructions) - plan.tail.forward.stop
    assert found == NETWORKS[network]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_pieces_have_the_bits_of_samples_alone(network: Callable[[Builder, str], str], threads: int) -> None:
    model, x = model_of(network), images(7)
    alone, explainer = Explainer(model, threads=threads), cut(model, 2, 5, threads=threads)
    for rule in RULES:
        for _ in range(2):  # the second run repeats what the first one recorded
            found = explainer.explain(x, rule=rule)
            for n in range(len(x)):
                expected = alone.explain(x[n : n + 1], rule=rule)
                assert found.map[n].tobytes() == expected.map[0].tobytes()
                assert found.scores[n].tobytes() == expected.scores[0].tobytes()
    assert explainer.predict(x).tobytes() == found.scores.tobytes()


def test_a_run_in_pieces_answers_any_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several targets, and seeds of a caller, take memory of their own."""
    model, x, whole = model_of(behind_pools), images(5), Explainer(model_of(behind_pools))
    monkeypatch.setattr(CpuDevice, "slice_bytes", whole._plan_for((3, 12, 10))[0].nbytes(2, 1))
    explainer = Explainer(model)
    assert explainer._engine.sessions.of((3, 12, 10)).samples_per_piece == 2
    target = np.tile([3, 1], (5, 1))
    found = explainer.explain(x, target=target, batch_size=5)
    assert found.map.tobytes() == whole.explain(x, target=target).map.tobytes()
    seeds = np.random.default_rng(1).standard_normal((5, 3, 5), np.float32)
    with explainer.run(x) as run, whole.run(x) as other:
        for some in (seeds, seeds[:, :1]):
            assert run.vjp(some).tobytes() == other.vjp(some).tobytes()


def test_a_sample_that_holds_nan_is_named_in_any_piece() -> None:
    x = images(5)
    x[3, 1, 2, 2] = np.nan
    with pytest.raises(InputError, match="sample 3"):
        cut(model_of(behind_pools), 2, 5).explain(x)


def test_the_tail_runs_once_for_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[tuple[str, int]] = []
    for name in ("gemm_fwd", "gemm_bwd"):
        kernel = getattr(gemm, name)

        def watched(x: Any, *rest: Any, kernel: Any = kernel, name: str = name) -> None:
            samples.append((name, len(x)))
            kernel(x, *rest)

        monkeypatch.setattr(gemm, name, watched)
    cut(model_of(behind_pools), 2, 6).explain(images(6), target=0)
    assert samples == [("gemm_fwd", 6)] * 3 + [("gemm_bwd", 6)] * 3


def test_pieces_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, allocated = model_of(behind_pools), images(6), [0]
    explainer = cut(model, 2, 6, threads=1)
    session = explainer._engine.sessions.of((3, 12, 10))

    def counted(self: CpuDevice, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        array = aligned(shape, dtype)
        allocated[0] += array.nbytes
        return array

    monkeypatch.setattr(CpuDevice, "empty", counted)
    explainer.explain(x)
    seeds_and_marks = 4 * 6 * (5 + 1)
    assert allocated[0] - seeds_and_marks <= session.plan.nbytes_in_pieces(6, 2) < session.plan.nbytes(6, 1)


def test_memory_counts_the_maps_of_all_pieces() -> None:
    """They stay until the last piece is done, and then are put into one array."""
    plan, _ = Explainer(model_of(behind_pools))._plan_for((3, 12, 10))
    one_more = plan.nbytes_in_pieces(7, 2) - plan.nbytes_in_pieces(6, 2)
    assert one_more > 2 * images(1).nbytes
