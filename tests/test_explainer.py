"""What an `Explainer` makes of a model's head, of its input's layout, of targets, and of several threads."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from builder import Builder
from PIL import Image

from gbp import PROBABILITY, Explainer, InputError, UnsupportedError, methods
from gbp.devices.cpu import CpuDevice
from gbp.diagnostics.inspection import inspect
from gbp.kernels.codegen.memory import aligned
from gbp.limits import is_finite
from gbp.report.make import report
from gbp.runtime.memory import MemoryPool
from gbp.runtime.sessions import Sessions
from gbp.runtime.tape import Tape

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo.onnx"


def classifier(head: str | None, classes: int = 4) -> onnx.ModelProto:
    b = Builder()
    scores = b.head(b.relu(b.conv(b.input(2, 3, 8, 9), 8, kernel=3)), classes)
    return b.model(b.node(head, scores) if head else scores)


def images(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def softmax(scores: Any) -> Any:
    weight = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def logistic(scores: Any) -> Any:
    return 1 / (1 + np.exp(-scores))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("Softmax", softmax),
        ("LogSoftmax", softmax),
        ("Sigmoid", lambda s: 1 / (1 + np.exp(-s))),
    ],
)
def test_probabilities_are_those_of_the_head(head: str | None, expected: Any) -> None:
    found = Explainer(classifier(head)).explain(images(2, 3, 8, 9))
    np.testing.assert_allclose(found.probabilities, expected(found.scores), rtol=1e-5)


def test_scores_behind_a_quantized_head_are_explained() -> None:
    """Onnxruntime's quantize_static puts a quantizer behind a final Softmax."""
    b = Builder()
    scores = b.head(b.relu(b.conv(b.input(2, 3, 8, 9), 8, kernel=3)), 4)
    grid = b.constant(1 / 256), b.constant(0, np.uint8)
    y = b.node("DequantizeLinear", b.node("QuantizeLinear", b.node("Softmax", scores), *grid), *grid)
    model, x = b.model(y), images(2, 3, 8, 9)
    found = Explainer(model).explain(x)
    np.testing.assert_array_equal(found.scores, Explainer(model, output=scores).predict(x))
    np.testing.assert_allclose(found.probabilities, softmax(found.scores), rtol=1e-5)
    rounded = Explainer(model, output=PROBABILITY).predict(x)
    np.testing.assert_allclose(rounded, found.probabilities, atol=1 / 512)


@pytest.mark.parametrize("op", ["FusedGemm", "FusedConv"])
def test_scores_before_a_fused_sigmoid_are_explained(op: str) -> None:
    """Onnxruntime fuses a final Sigmoid with the dense layer or the convolution before it."""
    b = Builder()
    x = b.relu(b.conv(b.input(2, 3, 8, 9), 8, kernel=3))
    if op == "FusedGemm":
        x = b.flatten(x)
    w = b.constant(b.noise(*b.shapes[x][1:], 4) if op == "FusedGemm" else b.noise(4, 8, 1, 1))
    logits = b.node(op.removeprefix("Fused"), x, w)
    y = b.foreign(op, b.shapes[logits], x, w, domain="com.microsoft", activation="Sigmoid")
    model, samples = b.model(y), images(2, 3, 8, 9)
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.node[-1].name = "fused"
    found = Explainer(model).explain(samples)
    np.testing.assert_array_equal(found.scores, Explainer(model, output=logits).predict(samples))
    np.testing.assert_allclose(found.probabilities, logistic(found.scores), atol=1e-6)
    for output in (PROBABILITY, y, "fused"):
        probability = Explainer(model, output=output).predict(samples)
        np.testing.assert_allclose(probability, found.probabilities, atol=1e-6)


def test_one_score_behind_a_sigmoid_has_a_probability() -> None:
    found = Explainer(classifier("Sigmoid", 1)).explain(images(1, 3, 8, 9))
    np.testing.assert_allclose(found.probabilities, logistic(found.scores), rtol=1e-5)


def test_what_is_prepared_is_what_the_model_is_fed() -> None:
    explainer = Explainer(classifier(None), preprocess="unit")
    picture = Image.fromarray(np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3))
    x = explainer.prepare([picture, picture])
    np.testing.assert_allclose(x, np.stack([np.asarray(picture).transpose(2, 0, 1) / 255] * 2), rtol=1e-6)
    np.testing.assert_array_equal(explainer.predict(x), explainer.predict([picture, picture]))


def test_probability_as_output() -> None:
    x = images(2, 3, 8, 9)
    found = Explainer(classifier("Softmax"), output=PROBABILITY).explain(x)
    np.testing.assert_allclose(found.scores, softmax(Explainer(classifier("Softmax")).predict(x)), rtol=1e-5)
    assert found.probabilities is found.scores


def test_without_a_head_there_are_no_probabilities() -> None:
    found = Explainer(classifier(None)).explain(images(1, 3, 8, 9))
    assert not found.has_probabilities
    with pytest.raises(InputError, match="no head"):
        _ = found.probabilities


@pytest.mark.parametrize(
    ("opset", "axis", "summed"), [(12, 1, (1, 2, 3)), (12, 2, (2, 3)), (13, 1, (1,)), (13, -1, (3,))]
)
def test_a_softmax_sums_over_its_own_axes(opset: int, axis: int, summed: tuple[int, ...]) -> None:
    """ONNX Softmax: before opset 13 over all axes from `axis` on, since over that one."""
    b = Builder(opset)
    y = b.node("Softmax", b.relu(b.conv(b.input(2, 3, 5, 4), 6)), axis=axis)
    found = Explainer(b.model(y)).explain(images(2, 3, 5, 4), rule="vanilla")
    x = np.exp(found.scores.reshape(2, 6, 3, 2))
    expected = x / x.sum(axis=summed, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected.reshape(2, -1), rtol=1e-5)


def test_probability_of_a_sigmoid() -> None:
    """Its gradient is that of the logit times p (1 − p)."""
    model, x = classifier("Sigmoid"), images(2, 3, 8, 9)
    found = Explainer(model, output=PROBABILITY).explain(x, rule="vanilla", target=1)
    logit = Explainer(model).explain(x, rule="vanilla", target=1)
    p = 1 / (1 + np.exp(-logit.scores.astype(float)))
    np.testing.assert_allclose(found.scores, p, rtol=1e-5)
    slopes = (p * (1 - p))[:, 1].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(found.map, logit.map * slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("head", [None, "LogSoftmax"])
def test_probability_is_refused_where_the_model_has_none(head: str | None) -> None:
    with pytest.raises(InputError, match=head or "scores"):
        Explainer(classifier(head), output=PROBABILITY)


def test_the_layout_is_what_the_graph_reads() -> None:
    b = Builder()
    channels_last = b.transpose(b.input(2, 8, 9, 4), 0, 3, 1, 2)
    model = b.model(b.head(b.relu(b.conv(channels_last, 8, kernel=3))))
    found = Explainer(model).explain(images(2, 8, 9, 4))
    assert (found.layout, found.reduce().shape) == ("NHWC", (2, 8, 9))

    b = Builder()
    model = b.model(b.head(b.relu(b.conv(b.input(2, 5, 8, 3), 8, kernel=3))))
    found = Explainer(model).explain(images(2, 5, 8, 3))
    assert (found.layout, found.reduce().shape) == ("NCHW", (2, 8, 3))


def test_all_refused_nodes_are_listed_where_shapes_are_declared() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input(1, 3, 8, 9), 8, kernel=3))
    for op in ("Softmax", "LogSoftmax"):
        x = b.node(op, x, axis=0)
    model = b.model(b.head(x))
    model = onnx.shape_inference.infer_shapes(model)
    with pytest.raises(UnsupportedError, match=r"Softmax.*batch.*LogSoftmax.*batch"):
        Explainer(model)
    assert "LogSoftmax" in " ".join(inspect(model).unsupported)


@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_one_hot_targets(dtype: Any) -> None:
    explainer = Explainer(classifier("Softmax", 2))
    x, chosen = images(3, 3, 8, 9), np.array([0, 1, 0])
    found = explainer.explain(x, target=np.eye(2, dtype=dtype)[chosen])
    assert found.map.tobytes() == explainer.explain(x, target=chosen).map.tobytes()


def test_integers_are_indices_however_they_look() -> None:
    """[[0, 1]] for a model of two classes asks for both."""
    explainer = Explainer(classifier("Softmax", 2))
    x = images(1, 3, 8, 9)
    both = explainer.explain(x, target=[[0, 1]])
    assert both.map.shape == (1, 2, 3, 8, 9)
    assert both.target.tolist() == [[0, 1]]


class InBytes:
    """A path of bytes, which Python's own functions take."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


def test_a_path_may_be_of_bytes(tmp_path: Path) -> None:
    array, labels = tmp_path / "x.npy", tmp_path / "labels.txt"
    labels.write_text("\n".join(map(str, range(12))))
    names = (DEMO, DEMO.with_suffix(".png"), array, labels, tmp_path / "a.png", tmp_path / "a.html")
    given: list[Any] = [InBytes(name) for name in names]
    model, image, samples, classes, picture, page = given
    explainer = Explainer(model, labels=classes, cache=False)
    np.save(array, explainer.prepare(image)[0])
    result = explainer.explain(image)
    assert np.array_equal(result.map, explainer.explain([samples]).map)
    assert result[0].provenance is not None
    assert result[0].provenance.model == DEMO.name
    result[0].save(picture)
    report(explainer, [image], page, rules=("vanilla",))
    assert inspect(model).layers
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "labels.txt", "a.png", "a.html"}


def test_saving_without_an_image_draws_in_grey(tmp_path: Path) -> None:
    Explainer(classifier(None)).explain(images(1, 3, 8, 9)).save(tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()


def test_counts_may_be_numpy_integers() -> None:
    x = images(3, 3, 8, 9)
    found = Explainer(classifier(None), threads=np.int64(2)).explain(x, batch_size=np.int64(2))
    assert found.map.tobytes() == Explainer(classifier(None)).explain(x).map.tobytes()


class Runs(Tape):
    """How many samples and targets each run had, and what it took by the plan."""

    seen: ClassVar[list[tuple[int, int, int]]] = []

    def backward(self, gate: Any, targets: Any) -> Any:
        n, k = targets.shape
        self.seen.append((n, k, self._plan.nbytes(n, k)))
        return super().backward(gate, targets)


@pytest.mark.parametrize(
    ("room", "runs"),
    [((6, 4), [(6, 4)]), ((6, 2), [(6, 2)] * 2), ((3, 1), [(3, 1)] * 8), (None, [(1, 1)] * 24)],
)
def test_memory_bounds_what_runs_together(
    room: tuple[int, int] | None, runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for so many: fewer samples at a time, then fewer targets; the same bits."""
    x, target = images(6, 3, 8, 9), np.tile(np.arange(4), (6, 1))
    whole = Explainer(classifier(None)).explain(x, target=target)
    plan, _ = Explainer(classifier(None))._plan_for((3, 8, 9))
    budget = plan.nbytes(*room) if room else 1
    monkeypatch.setattr("gbp.runtime.session.Tape", Runs)
    Runs.seen.clear()
    found = Explainer(classifier(None), memory=budget).explain(x, target=target, batch_size=6)
    assert [(n, k) for n, k, _ in Runs.seen] == runs
    assert room is None or max(nbytes for _, _, nbytes in Runs.seen) <= budget
    assert found.map.tobytes() == whole.map.tobytes()
    assert found.scores.tobytes() == whole.scores.tobytes()


SIZES = [(8, [2, 2, 2, 2]), (9, [3, 3, 3]), (7, [2, 2, 2, 1]), (2, [2]), (5, [2, 2, 1])]


@pytest.mark.parametrize(("count", "sizes"), SIZES)
def test_slices_are_of_sizes_whose_memory_is_kept(
    monkeypatch: pytest.MonkeyPatch, count: int, sizes: list[int]
) -> None:
    """A second call allocates nothing, where there is room for slices of 3, but not beside slices of 2."""
    allocated = []

    def empty(self: CpuDevice, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        allocated.append(shape)
        return aligned(shape, dtype)

    monkeypatch.setattr(CpuDevice, "empty", empty)
    explainer = Explainer(classifier(None), threads=1)
    session = explainer._engine.sessions.of((3, 8, 9))
    session.pool.max_bytes = 5 * session.plan.forward_bytes - 1
    found = list(session.slices(count, 1, 3))
    assert [part.stop - part.start for part in found] == sizes
    assert np.concatenate([np.arange(count)[part] for part in found]).tolist() == list(range(count))
    x = images(count, 3, 8, 9)
    explainer.explain(x, batch_size=3)
    allocated.clear()
    explainer.explain(x, batch_size=3)
    assert not allocated


def test_slices_differ_where_their_memory_is_kept() -> None:
    session = Explainer(classifier(None))._engine.sessions.of((3, 8, 9))
    assert [part.stop - part.start for part in session.slices(9, 1, 5)] == [5, 4]


@pytest.mark.parametrize("room", [0, None])
def test_memory_for_other_batches_is_kept_where_there_is_room(room: int | None) -> None:
    explainer = Explainer(classifier(None))
    pool = explainer._engine.sessions.of((3, 8, 9)).pool
    pool.max_bytes = pool.max_bytes if room is None else room
    for count in (2, 3, 4):
        explainer.explain(images(count, 3, 8, 9), target=np.zeros((count, 2), int))
    kept = (2, 3, 4) if room is None else (4,)
    assert {(kind, size[0]): len(free) for (kind, size), free in pool._free.items()} == {
        **{("forward", n): 1 for n in kept},
        **{("backward", 2 * n): 1 for n in kept},
    }


def test_the_pool_gives_up_what_was_used_longest_ago_and_no_more_than_it_must() -> None:
    pool = MemoryPool(max_bytes=100)

    def use(kind: str, size: int, nbytes: int) -> str:
        memory = pool.acquire(kind, size, nbytes, lambda: "new")
        pool.release(kind, size, nbytes, "kept")
        return memory

    assert [use("a", size, 30) for size in (1, 2, 3)] == ["new"] * 3
    assert use("b", 1, 90) == "new"  # another kind has room of its own
    assert use("a", 1, 30) == "kept"
    assert use("a", 4, 30) == "new"  # in the place of 2
    assert [use("a", size, 30) for size in (1, 3, 4)] == ["kept"] * 3
    assert use("a", 2, 30) == "new"
    assert use("a", 5, 200) == "new"  # in the place of all
    assert [use("a", size, 30) for size in (3, 4)] == ["new"] * 2


def test_the_pool_keeps_no_more_than_its_bound_whatever_many_callers_give_back() -> None:
    pool = MemoryPool(max_bytes=100)

    def together(*sizes: tuple[int, int]) -> int:
        """How many memories the pool keeps after these were in use at once."""
        for size, nbytes in sizes:
            pool.acquire("a", size, nbytes, str)
        for size, nbytes in sizes:
            pool.release("a", size, nbytes, "kept")
        return sum(map(len, pool._free.values()))

    assert together(*[(1, 40)] * 8) == 2
    # Four of one size are kept at most, and beside them one of the others.
    assert together(*[(2, 10)] * 8) == 5
    assert sum(len(pool._free[key]) * pool._bytes[key] for key in pool._free) <= 100
    assert together(*[(3, 150)] * 8) == 1  # always one


def test_it_pickles_as_what_it_was_made_from() -> None:
    explainer = Explainer(DEMO, output=PROBABILITY, threads=1)
    text = pickle.dumps(explainer)
    assert len(text) < 2000
    again = pickle.loads(text)
    x = np.zeros((1, *explainer.input_shape[1:]), np.float32)
    assert again.explain(x).map.tobytes() == explainer.explain(x).map.tobytes()


def test_a_closed_explainer_says_so() -> None:
    with Explainer(DEMO) as explainer:
        x = np.zeros((1, *explainer.input_shape[1:]), np.float32)
        explainer.predict(x)
    with pytest.raises(InputError, match="closed"):
        explainer.predict(x)


def test_a_tensor_within_has_no_labels_of_the_model() -> None:
    hidden = Explainer(DEMO, output="relu4")
    assert hidden.labels is None
    found = hidden.explain(np.zeros((1, *hidden.input_shape[1:]), np.float32))
    place = np.unravel_index(int(found.target[0]), found.score_shape)
    assert found.label() == f"score {':'.join(map(str, place))}"


def test_planning_one_size_does_not_wait_for_another() -> None:
    """While the plan of one shape is made, samples of another that has one are explained."""
    building, done = threading.Event(), threading.Event()

    def build(shape: tuple[int, ...], *_: Any) -> Any:
        if shape == (2,):
            building.set()
            assert done.wait(20)
        return SimpleNamespace(plan=SimpleNamespace(input_shape=shape))

    sessions = Sessions(build)
    thread = threading.Thread(target=sessions.of, args=((2,),))
    thread.start()
    assert building.wait(20)
    assert sessions.of((1,)).plan.input_shape == (1,)
    done.set()
    thread.join()


def test_what_is_closed_while_a_plan_is_made_keeps_no_plan() -> None:
    def build(shape: tuple[int, ...], *_: Any) -> Any:
        sessions.close()
        return SimpleNamespace(plan=SimpleNamespace(input_shape=shape))

    sessions = Sessions(build)
    sessions.of((1,))
    assert sessions.last() is None


def test_a_picture_is_a_path_bytes_a_file_pixels_or_a_pil_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    explainer = Explainer(classifier(None), preprocess="unit")
    with open(path, "rb") as file:
        kinds = [path, str(path), path.read_bytes(), file, Image.open(path), pixels]
        prepared = explainer.prepare(kinds)
    assert all(x.tobytes() == prepared[0].tobytes() for x in prepared)
    np.testing.assert_array_equal(explainer.prepare(pixels)[0], prepared[0])
    for other in (pixels[:, :, 0], np.dstack([pixels, pixels[:, :, :1]])):  # grey, and with transparency
        np.testing.assert_array_equal(explainer.prepare(other), explainer.prepare([other]))
        np.testing.assert_array_equal(explainer.prepare(other), explainer.prepare(Image.fromarray(other)))
    grey = explainer.prepare(pixels[:, :, 0])
    np.testing.assert_array_equal(explainer.prepare(pixels[:, :, :1]), grey)
    np.testing.assert_array_equal(explainer.prepare([pixels[:, :, :1]]), grey)


@pytest.mark.parametrize("sizes", [(8, 9), ("H", "W")])
def test_bytes_in_the_layout_of_a_model_without_a_batch_axis_are_a_sample(sizes: tuple[Any, ...]) -> None:
    """And pixels are a picture."""
    b = Builder()
    pooled = b.node("GlobalAveragePool", b.relu(b.conv(b.unsqueeze(b.input(3, 8, 9), 0), 4)))
    model = b.model(b.flatten(pooled))
    model.graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, *sizes])
    )
    explainer = Explainer(model, preprocess={"preset": "raw", "size": (8, 9)})
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    sample = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    expected = explainer.predict(sample.astype(np.float32))
    np.testing.assert_array_equal(explainer.predict(sample), expected)
    np.testing.assert_array_equal(explainer.predict(pixels), expected)


FIRST_USE = f"""
import threading
import numpy as np
from gbp import Explainer

explainer, start, results = Explainer({str(DEMO)!r}), threading.Barrier(8), []
x = np.random.default_rng(0).standard_normal((1, 3, 96, 96), dtype=np.float32)

def explain():
    start.wait()
    results.append(explainer.explain(x).map.tobytes())

threads = [threading.Thread(target=explain) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert results == [explainer.explain(x).map.tobytes()] * 8
"""


def test_the_very_first_use_by_several_threads() -> None:
    """Kernels are compiled, or loaded, while eight threads ask for them."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("targets", [1, 2])
def test_memory_of_another_size_is_given_up_at_once(targets: int) -> None:
    """And not when the garbage collector comes by: arenas are large."""
    explainer = Explainer(DEMO)
    x = np.zeros((3, *explainer.input_shape[1:]), np.float32)
    explainer._engine.sessions.of(explainer.input_shape[1:]).pool.max_bytes = 0
    explainer.explain(x[:1], target=np.zeros((1, targets), np.int64))  # compiling leaves all sorts of things
    gc.collect()
    gc.disable()
    try:
        kept = []
        for n in (3, 2):
            explainer.explain(x[:n], target=np.zeros((n, targets), np.int64))
            pool = explainer._engine.sessions.of(explainer.input_shape[1:]).pool
            kept.append([weakref.ref(memory) for free in pool._free.values() for memory in free])
        assert kept[0]
        assert all(memory() is None for memory in kept[0])
        assert all(memory() is not None for memory in kept[1])
    finally:
        gc.enable()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(bad: float) -> None:
    for shape, place in (((3, 5, 7), (1, 2, 3)), ((7, 5, 2**12), (6, 4, -1))):
        x = np.full(shape, 1e38, np.float32)
        assert is_finite(x)  # though the sum is not
        x[place] = bad
        assert not is_finite(x)
        assert not is_finite(x.transpose(2, 0, 1))
    assert not is_finite(np.array([np.inf, -np.inf], np.float32))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("order", [(2, 3, 1), (1, 2, 3), (2, 1, 3)])
def test_samples_enter_in_the_order_of_memory(channels: int, order: tuple[int, ...]) -> None:
    values = np.arange(2 * channels * 4 * 6, dtype=np.float32).reshape(2, channels, 4, 6)
    there = np.full_like(values.transpose(0, *order), -1, order="C")
    marks = np.ones(2, np.float32)
    entry = CpuDevice().entry(there, tuple(np.argsort((0, *order))), marks, 2)
    for given in (values, np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        there[...] = -1
        entry.write(given)
        entry.settle()
        np.testing.assert_array_equal(there, values.transpose(0, *order))
        assert not marks.any()


@pytest.mark.parametrize("is_whole", [True, False])
def test_maps_leave_in_the_order_of_memory(is_whole: bool) -> None:
    there = np.arange(2 * 5 * 7 * 3, dtype=np.float32).reshape(2, 5, 7, 3)
    there = there if is_whole else there[:, :, 1:]
    exit_ = CpuDevice().exit(there, (0, 3, 1, 2), 2)
    exit_.settle()  # nobody reads after this run
    for value, is_odd in ((4, False), (np.nan, True), (-np.inf, True), (3e38, False)):
        there[1, 4, -1, 2] = value
        exit_.prepare()
        exit_.settle()
        found, finite = exit_.read()
        np.testing.assert_array_equal(found, there.transpose(0, 3, 1, 2))
        assert found.strides[1] == 4
        assert finite != is_odd
        assert not np.shares_memory(found, there)


def test_pixels_that_nobody_prepared_are_asked_about() -> None:
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.relu(b.conv(b.input(1, 3, 16, 16), 4))), 3))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    x = np.moveaxis(pixels, -1, 0)[None]
    asked = {}
    for preset in ("imagenet", "tf", "unit", "raw", "caffe"):
        explainer = Explainer(model, preprocess=preset)
        right = explainer.prepare(Image.fromarray(pixels))
        given = {"prepared": right, "pixels": x, "shares": x / 255, "noise": right + 0.3 * right.std()}
        asked[preset] = [
            name for name, array in given.items() if "prepare them as" in str(explainer.explain(array).notes)
        ]
        assert not any("prepare them as" in note for note in explainer.explain(Image.fromarray(pixels)).notes)
    assert asked == {
        "imagenet": ["pixels", "shares"],
        "tf": ["pixels", "shares"],
        "unit": ["pixels"],
        "raw": ["shares"],
        "caffe": ["shares"],
    }
    assert not Explainer(model).explain(x).notes
    explainer, dark = Explainer(model, preprocess="imagenet"), (x / 255).astype(np.float32)
    dark[0, 1, 2, 3] = -0.1  # the only number below 0
    for array in (dark, np.zeros_like(dark), np.full_like(dark, 0.5)):  # a baseline is no pixels
        assert "prepare them as" not in str(explainer.explain(array).notes)
    found = methods.smoothgrad(Explainer(model, preprocess="imagenet"), x, samples=2)
    assert "holds numbers from 0 to 255; those of prepared pictures are from -2.12 to 2.64" in str(
        found.notes
    )
