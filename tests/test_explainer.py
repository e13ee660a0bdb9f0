"""What an `Explainer` makes of a model's head, of its input's layout, of targets, and of several threads."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from builder import Builder
from PIL import Image

from gbp import Explainer, InputError, UnsupportedError
from gbp.devices.base import all_finite
from gbp.diagnostics.inspection import inspect
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
        (None, softmax),
        ("Sigmoid", lambda s: 1 / (1 + np.exp(-s))),
    ],
)
def test_probabilities_are_those_of_the_head(head: str | None, expected: Any) -> None:
    found = Explainer(classifier(head)).explain(images(2, 3, 8, 9))
    np.testing.assert_allclose(found.probabilities, expected(found.scores), rtol=1e-5)


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
    found = Explainer(classifier("Softmax"), output="probability").explain(x)
    np.testing.assert_allclose(found.scores, softmax(Explainer(classifier("Softmax")).predict(x)), rtol=1e-5)
    assert found.probabilities is found.scores


@pytest.mark.parametrize("head", [None, "Sigmoid", "LogSoftmax"])
def test_probability_is_refused_where_the_model_has_none(head: str | None) -> None:
    with pytest.raises(InputError, match=head or "scores"):
        Explainer(classifier(head), output="probability")


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


@pytest.mark.parametrize("dtype", [np.int64, np.float32, bool])
def test_one_hot_targets(dtype: Any) -> None:
    explainer = Explainer(classifier("Softmax", 2))
    x, chosen = images(3, 3, 8, 9), np.array([0, 1, 0])
    found = explainer.explain(x, target=np.eye(2, dtype=dtype)[chosen])
    assert found.map.tobytes() == explainer.explain(x, target=chosen).map.tobytes()


def test_saving_without_an_image_draws_in_grey(tmp_path: Path) -> None:
    Explainer(classifier(None)).explain(images(2, 3, 8, 9)).save(tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()


def test_counts_may_be_numpy_integers() -> None:
    x = images(3, 3, 8, 9)
    found = Explainer(classifier(None), threads=np.int64(2)).explain(x, batch_size=np.int64(2))
    assert found.map.tobytes() == Explainer(classifier(None)).explain(x).map.tobytes()


class Runs(Tape):
    """How many samples and targets each run had, and what it took by the plan."""

    seen: ClassVar[list[tuple[int, int, int]]] = []

    def backward(self, rule: Any, targets: Any) -> Any:
        n, k = targets.shape
        self.seen.append((n, k, self._plan.nbytes(n, k)))
        return super().backward(rule, targets)


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
    plan, _ = Explainer(classifier(None))._plan((3, 8, 9))
    budget = plan.nbytes(*room) if room else 1
    monkeypatch.setattr("gbp.explainer.Tape", Runs)
    Runs.seen.clear()
    found = Explainer(classifier(None), memory=budget).explain(x, target=target, batch_size=6)
    assert [(n, k) for n, k, _ in Runs.seen] == runs
    assert room is None or max(nbytes for _, _, nbytes in Runs.seen) <= budget
    assert found.map.tobytes() == whole.map.tobytes()
    assert found.scores.tobytes() == whole.scores.tobytes()


def test_memory_for_other_batches_is_given_up() -> None:
    explainer = Explainer(classifier(None))
    for count in (2, 3, 4):
        explainer.explain(images(count, 3, 8, 9), target=np.zeros((count, 2), int))
    _, pool = explainer._plan((3, 8, 9))
    assert {key: len(free) for key, free in pool._free.items()} == {("forward", 4): 1, ("reverse", 8): 1}


def test_pickling_says_what_to_do() -> None:
    with pytest.raises(InputError, match="each process"):
        pickle.dumps(Explainer(classifier(None)))


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
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("targets", [1, 2])
def test_memory_of_another_size_is_given_up_at_once(targets: int) -> None:
    """And not when the garbage collector comes by: arenas are large."""
    explainer = Explainer(DEMO)
    x = np.zeros((3, *explainer.input_shape[1:]), np.float32)
    explainer.explain(x[:1], target=np.zeros((1, targets), np.int64))  # compiling leaves all sorts of things
    gc.collect()
    gc.disable()
    try:
        kept = []
        for n in (3, 2):
            explainer.explain(x[:n], target=np.zeros((n, targets), np.int64))
            ((_, pool),) = explainer._plans.values()
            kept.append([weakref.ref(memory) for free in pool._free.values() for memory in free])
        assert kept[0]
        assert all(memory() is None for memory in kept[0])
        assert all(memory() is not None for memory in kept[1])
    finally:
        gc.enable()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(bad: float) -> None:
    x = np.full((3, 5, 7), 1e38, np.float32)
    assert all_finite(x)  # though the sum is not
    x[1, 2, 3] = bad
    assert not all_finite(x)
    assert not all_finite(np.array([np.inf, -np.inf], np.float32))
