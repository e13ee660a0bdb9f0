"""The engine on a card, under the simulator (`make cudasim`): the cases of the CPU, each in one frame.

What needs no simulator, because there is no card, stands in test_no_card.py.
"""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
import relevance_networks
import test_one_sample as one_sample
import test_run as runs
from agreement import RULES, assert_agree
from builder import Builder
from cases import CASES
from numpy.typing import NDArray
from test_ops import FRAMES, noise, safe_run

from gbp import Explainer, GbpError, UnsupportedError, methods
from gbp.devices.cpu import CPU
from gbp.devices.cuda import CudaDevice, cuda_device
from gbp.errors import InputError, OutOfMemoryError
from gbp.importer.load import build as build_graph
from gbp.importer.load import open_model
from gbp.importer.subgraph import Choice
from gbp.kernels import conv_direct_cuda as conv
from gbp.kernels import conv_tiles_cuda as conv_tiles
from gbp.kernels import gemm_cuda, gemm_tensor_cuda
from gbp.kernels.codegen.gate import Gate
from gbp.kernels.codegen.jit_cuda import tensor_cores
from gbp.kernels.taps import Taps
from gbp.ops.conv import algorithms_cuda
from gbp.plan.plan import Plan
from gbp.runtime.memory import MemoryPool
from gbp.runtime.tape import Tape


def layers_of_numpy(explainer: Explainer, shape: tuple[int, ...]) -> list[str]:
    """The layers that steps compute through NumPy."""
    plan = explainer._engine.sessions.of(shape).plan
    return [layer for each in plan.instructions if each.step.needs_host for layer in each.layers]


@pytest.mark.parametrize(("name", "frame", "rule"), list(zip(CASES, cycle(FRAMES), cycle(RULES[::-1]))))
def test_op(name: str, frame: str, rule: str) -> None:
    """Scores and maps are the oracle's, for two targets a sample; what has no kernel is refused by name."""
    model, run = safe_run(CASES[name], FRAMES[frame])
    shape = run.values[run.image].shape[1:]
    try:
        explainer = Explainer(model, output=run.output, device="cuda")
    except UnsupportedError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        on_host = layers_of_numpy(Explainer(model, output=run.output), shape)
        assert f"no CUDA kernels for {', '.join(on_host or '?')}" in refused
        return
    assert not layers_of_numpy(explainer, shape)
    scores = run.values[run.output]
    target = np.random.default_rng(0).integers(0, scores[0].size, (len(scores), 2))
    rectifies = any(isinstance(vjp, oracle.Rectifier) and vjp.obeys for _, vjp in run.steps)
    assert_agree(explainer, run, rule if rectifies else "vanilla", target, run.output)


def test_several_rows_a_sample_are_computed_on_a_card_too() -> None:
    net = one_sample.model(one_sample.FRAMES, (1, 2, 3, 6, 6), opset=21, **one_sample.OF_FRAMES)
    x, target = noise((2, 2, 3, 6, 6), seed=0), [[0, 1], [2, 3]]
    expected = Explainer(net).explain(x, target=target)
    found = Explainer(net, device="cuda").explain(x, target=target)
    np.testing.assert_allclose(found.map, expected.map, rtol=1e-4, atol=1e-6 * np.abs(expected.map).max())


def small_net(n: int = 3) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """A stem, a residual block, a pool, a dense layer; and samples."""
    b = Builder()
    h = b.relu(b.conv(b.input(n, 3, 12, 12), 9, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
    h = b.relu(b.node("Add", b.conv(h, 9, 3, pads=[1, 1, 1, 1]), h))
    h = b.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    return b.model(b.gemm(b.flatten(h), 5)), noise((n, 3, 12, 12), seed=0)


def test_demo_model_explains_as_on_the_cpu() -> None:
    """Under the rule with both gates.  The simulator takes seconds for each; others have small networks."""
    model = Path(__file__).parent.parent / "models" / "demo.onnx"
    expected, found = (
        Explainer(model, device=device).explain(model.with_suffix(".png"), rule="guided")
        for device in ("cpu", "cuda")
    )
    assert (found.target == expected.target).all()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(found.map - expected.map) <= 1e-5 * np.linalg.norm(expected.map)


@pytest.mark.parametrize("rule", RULES)
def test_an_explanation_is_a_run_and_its_gradient(rule: str) -> None:
    model, x = small_net(2)
    explainer = Explainer(model, device="cuda")
    with explainer.run(x) as run:
        target = run.targets()
        scores, gradient = run.scores, run.vjp(np.eye(5, dtype=np.float32)[target], rule)
    explained = explainer.explain(x, rule=rule)
    assert (explained.target == target).all()
    assert explained.scores.tobytes() == scores.tobytes()
    assert explained.map.tobytes() == gradient.tobytes()


def units(bits: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """The bits of a mask, without those that fill up the last byte."""
    return np.unpackbits(bits, axis=-1, bitorder="little")[..., :channels].copy()


DECIDING = [name for name in CASES if name.startswith(("max", "Max", "relu", "depthwise", "clip", "conv in"))]


@pytest.mark.parametrize("name", DECIDING)
def test_masks_and_switches_are_those_of_the_cpu(name: str) -> None:
    model, run = safe_run(CASES[name], FRAMES["between rectifiers"])
    x = run.values[run.image].astype(np.float32)
    kept = []
    for device in (CPU, cuda_device()):
        graph = build_graph(open_model(model, Choice(run.output)), x.shape)
        with Tape(Plan.build(graph, device=device), x, MemoryPool(), 2, device) as tape:
            switches = [run.context.switches for run in tape._forward.bound if run.instruction.step.switches]
            masks = tape._forward.masks.items()
            kept.append(
                [units(device.read(bits), tape._plan.tensors[name].row) for name, bits in masks]
                + [device.read(array).copy() for array in switches]
            )
    assert kept[0]
    for on_cpu, on_card in zip(*kept, strict=True):
        assert on_cpu.tobytes() == on_card.tobytes()


def test_bits_depend_on_neither_batch_nor_targets_nor_repetition() -> None:
    model, x = small_net()
    explainer = Explainer(model, device="cuda")
    targets = np.array([[0, 4], [1, 2], [3, 3]])
    together = explainer.explain(x, target=targets).map
    assert explainer.explain(x, target=targets).map.tobytes() == together.tobytes()  # from what was recorded
    for n in range(len(x)):
        for k in range(2):
            alone = explainer.explain(x[n : n + 1], target=int(targets[n, k])).map
            assert alone.tobytes() == together[n, k].tobytes()


def test_rules_and_samples_take_turns_on_recorded_launches() -> None:
    model, x = small_net()
    on_cpu, on_card = Explainer(model), Explainer(model, device="cuda")
    for samples in (x, -x, x[:1], x[1:2], x):
        for rule in RULES:
            expected = on_cpu.explain(samples, rule=rule, target=1).map
            np.testing.assert_allclose(
                on_card.explain(samples, rule=rule, target=1).map, expected, rtol=1e-4, atol=1e-6
            )


def test_several_explainers_share_the_card() -> None:
    (first, x), (second, _) = small_net(), small_net()
    one, other = Explainer(first, device="cuda"), Explainer(second, device="cuda")
    a, b = one.explain(x), other.explain(-x)
    assert one.explain(x).map.tobytes() == a.map.tobytes()
    assert other.explain(-x).map.tobytes() == b.map.tobytes()


def test_threads_share_an_explainer_on_the_card() -> None:
    model, x = small_net(2)
    explainer = Explainer(model, device="cuda")
    expected = [explainer.explain(samples, target=1).map.tobytes() for samples in (x, -x)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            got = threads.map(lambda samples: explainer.explain(samples, target=1).map.tobytes(), (x, -x))
            assert list(got) == expected


def test_maps_stay_when_others_are_made() -> None:
    """Results lie in memory that is used again, but not while anything of them is left."""
    model, x = small_net(2)
    explainer = Explainer(model, device="cuda")
    kept = explainer.explain(x, target=1).map
    part, before = kept[1:, 0], kept[1:, 0].tobytes()
    del kept
    for target in (0, 2, 3):
        explainer.explain(-x, target=target)
    assert part.tobytes() == before


@dataclass
class Room:
    """What the card has for all arrays, in bytes; more is out of memory, as a card would say it."""

    limit: int = 2**40
    used: int = 0
    most_used: int = 0

    def take(self, array: Any, nbytes: int) -> None:
        self.used += nbytes
        self.most_used = max(self.used, self.most_used)
        weakref.finalize(array.shadow, self.give_back, nbytes)

    def give_back(self, nbytes: int) -> None:
        self.used -= nbytes


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    room, empty = Room(), CudaDevice.empty

    def limited(self: CudaDevice, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if room.used + needed > room.limit:
            raise self.out_of_memory(needed, free=room.limit - room.used, total=room.limit)
        array = empty(self, shape, dtype)
        room.take(array, needed)
        return array

    monkeypatch.setattr(CudaDevice, "empty", limited)
    return room


def test_smaller_slices_are_tried_before_memory_is_out(room: Room) -> None:
    model, x = small_net(6)
    explainer = Explainer(model, device="cuda")
    whole = explainer.explain(x, rule="guided").map
    del explainer
    explainer = Explainer(model, device="cuda")
    room.limit = room.used + (room.most_used - room.used) * 3 // 4  # beside the weights
    assert explainer.explain(x, rule="guided").map.tobytes() == whole.tobytes()
    # What did not fit is not tried again.
    assert explainer._engine.sessions.of((3, 12, 12)).max_fitting in (1, 2, 3)
    assert np.array_equal(explainer.predict(x), explainer.predict(x[:6]))


def test_out_of_memory_says_what_was_needed(room: Room) -> None:
    model, x = small_net(2)
    explainer = Explainer(model, device="cuda")
    room.limit = room.used + 100
    with pytest.raises(OutOfMemoryError, match=r"[KM]iB are needed at once") as raised:
        explainer.explain(x)
    assert isinstance(raised.value, GbpError)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_card_looks_for_what_is_not_finite(bad: float) -> None:
    model, x = small_net(3)
    explainer = Explainer(model, device="cuda")
    x[1, 2, 3, 4] = bad
    for take in (slice(None), slice(1, 2)):
        with pytest.raises(InputError, match=rf"sample {1 - (take.start or 0)} .* NaN or infinity"):
            explainer.explain(x[take])
    assert explainer.explain(x[:1]).map.shape == (1, 3, 12, 12)


def test_arrays_never_leave_the_card_in_silence() -> None:
    x = cuda_device().upload(noise((2, 3, 4, 5), seed=0))
    for read in (
        np.asarray,
        np.sum,
        np.negative,
        lambda x: x.reshape(5, 4, 3, 2).transpose(0, 2, 1, 3).reshape(-1),
    ):
        with pytest.raises((TypeError, ValueError)):
            read(x)
    with pytest.raises(TypeError):
        x[np.array([0, 1])]
    with pytest.raises(TypeError):
        x[0] = np.ones((3, 4, 5), np.float32)


def test_tf32_is_said_and_less_exact() -> None:
    model, x = small_net()
    exact, fast = Explainer(model, device="cuda"), Explainer(model, device="cuda", tf32=True)
    expected, got = exact.explain(x, rule="vanilla", target=1), fast.explain(x, rule="vanilla", target=1)
    error = np.linalg.norm(got.scores - expected.scores) / np.linalg.norm(expected.scores)
    assert 1e-6 < error < 1e-2
    assert any("TF32" in note for note in got.notes)
    assert not any("TF32" in note for note in expected.notes)


def test_cards_without_tensor_cores_multiply_in_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small_net()
    expected = Explainer(model).explain(x, target=1).map
    for module in (algorithms_cuda, gemm_cuda):
        monkeypatch.setattr(module, "tensor_cores", lambda: "")
    explainer = Explainer(model, device="cuda")
    plan = explainer._engine.sessions.of((3, 12, 12)).plan
    assert "3×3 tiles" in {instruction.step.algorithm for instruction in plan.instructions}
    np.testing.assert_allclose(explainer.explain(x, target=1).map, expected, rtol=1e-4, atol=1e-6)


def test_parts_tiles_and_blocks_of_tensor_cores_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of K by blocks of their own, or one after the other by the same; in tiles of each size."""
    model, x = small_net(2)
    maps = set()
    for enough in (0, 2**14):
        monkeypatch.setattr(conv_tiles, "_ENOUGH_SUMS", enough)
        for only in conv_tiles.conv_of(tensor_cores(), 3).rates:
            monkeypatch.setattr(conv_tiles.Conv, "tile_for", lambda self, pixels, channels, only=only: only)
            maps.add(Explainer(model, device="cuda").explain(x, rule="guided", target=2).map.tobytes())
    assert len(maps) == 1


@pytest.mark.parametrize("tile", [(16, 16), (64, 32), (64, 64), (128, 64), (128, 128)])
def test_tiles_change_no_bit(tile: tuple[int, int]) -> None:
    """Those of a real card, which the simulator's other tests replace by a small one."""
    N, C, O = 1, 10, 37
    x, r = (
        cuda_device().upload(noise((N, 9, 11, C), seed=0)),
        cuda_device().upload(noise((N, 9, 11, O), seed=1)),
    )
    w, b = (
        cuda_device().upload(conv.pack(noise((O, C, 3, 3), seed=2))),
        cuda_device().upload(noise((O,), seed=3)),
    )
    taps = Taps(3, 3, top=1, left=1)
    results = []
    for forward, reverse in (conv.KERNELS[conv.TILES[0]], conv._kernels(conv.Tile(*tile))):
        y, gx = cuda_device().empty((N, 9, 11, O)), cuda_device().upload(noise((N, 9, 11, O), seed=4))
        mask = cuda_device().empty((N, 9, 11, -(-O // 8)), np.uint8)
        forward(x, w, b, r, y, mask, taps, 0.0, np.inf, 0, 0)
        reverse(x, w, mask, Gate(1, 1), gx, 1, taps, 0, 0)
        results.append(b"".join(cuda_device().read(array).tobytes() for array in (y, mask, gx)))
    assert results[0] == results[1]


@pytest.mark.parametrize("C", [3, 4, 32])
def test_turns_at_once_change_no_bit(C: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that are copied one by one, in fours, and in fours of one tap (see at_once.py)."""
    b = Builder()
    h = b.relu(b.conv(b.input(2, C, 5, 6), 12, 3, strides=[2, 1], dilations=[1, 2], pads=[1, 2, 1, 1]))
    model, x = b.model(b.gemm(b.flatten(h), C)), noise((2, C, 5, 6), seed=0)
    conv = conv_tiles.Conv(tensor_cores())
    gemms = {
        columns: tuple(gemm_tensor_cuda._kernel_of(forward, columns) for forward in (True, False))
        for columns in gemm_tensor_cuda.SAMPLES
    }
    maps = [Explainer(model, device="cuda").explain(x, target=1)]
    monkeypatch.setattr(conv_tiles, "conv_of", lambda kind, products: conv)
    monkeypatch.setattr(gemm_tensor_cuda, "KERNELS", gemms)
    maps.append(Explainer(model, device="cuda").explain(x, target=1))
    assert maps[0].scores.tobytes() == maps[1].scores.tobytes()
    assert maps[0].map.tobytes() == maps[1].map.tobytes()


@pytest.mark.parametrize("name", ["a rectifier's output with two readers", "wholes in one another", "views"])
def test_kept_tensors_on_a_card(name: str) -> None:
    model, truth = runs.safe(runs.NETS[name])
    runs.check(model, truth, "guided", "cuda")


@pytest.mark.parametrize("name", relevance_networks.NETWORKS)
def test_relevance_on_a_card(name: str) -> None:
    model, x = relevance_networks.model_of(name), relevance_networks.samples()
    for rule in ("lrp-epsilon", "lrp-epsilon-plus"):
        expected = Explainer(model).explain(x, rule=rule).map
        found = Explainer(model, device="cuda").explain(x, rule=rule).map
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(UnsupportedError, match="no CUDA kernels"):
        Explainer(model, device="cuda").explain(x, rule="rectgrad")


def test_methods_on_a_card() -> None:
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 6, 6), 4, pads=[1, 1, 1, 1]))
    model = b.model(b.head(b.relu(b.conv(y, 3, pads=[1, 1, 1, 1], strides=[2, 2]))))
    x = noise((2, 3, 6, 6), seed=0)
    for name, options in (
        ("smoothgrad", {"samples": 2}),
        ("integrated_gradients", {"steps": 2}),
        ("grad_cam", {}),
    ):
        expected, found = (
            getattr(methods, name)(Explainer(model, device=device), x, target=[1, 2], **options).map
            for device in ("cpu", "cuda")
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
