"""Maps of copies that are added up before they are maps: the mean of maps, with the same bits in any run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import onnx
import oracle
import pytest
from builder import Builder
from numpy.typing import NDArray

from gbp import Explainer, Top, Unit, methods
from gbp.engine.repeated import Repeated
from gbp.errors import OutOfMemoryError
from gbp.methods.common import _blocks
from gbp.runtime import session, tape

Floats = NDArray[np.float32]

POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}
SIZE = (3, 23, 21)


def model(**pads: Any) -> onnx.ModelProto:
    """A convolution of stride 2 with a max-pool behind it, as SqueezeNet begins; 6 classes."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, *SIZE), 9, strides=[2, 2], **pads))
    y = b.node("MaxPool", y, **POOL)
    return b.model(b.head(b.relu(b.conv(y, 5)), 6))


@pytest.fixture(autouse=True)
def _a_run_of_any_size_adds_up() -> Iterator[None]:
    with mock.patch.object(session, "_LEAST_AT_ONCE", 0):
        yield


@pytest.fixture
def totals() -> Iterator[mock.MagicMock]:
    """The calls that add up maps before they are maps."""
    with mock.patch.object(Repeated, "total", side_effect=Repeated.total, autospec=True) as total:
        yield total


@pytest.fixture(scope="module")
def x() -> Floats:
    return np.random.default_rng(0).standard_normal((2, *SIZE), np.float32)


@pytest.fixture(scope="module")
def noise() -> Floats:
    return np.random.default_rng(1).standard_normal((11, *SIZE), np.float32)


def close(found: Floats, want: Floats) -> None:
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("pads", [{}, {"pads": [1, 1, 1, 1]}])
@pytest.mark.parametrize("rule", ["vanilla", "guided", "deconvnet"])
def test_the_mean_is_that_of_the_maps(
    rule: str, pads: dict[str, Any], x: Floats, noise: Floats, totals: mock.MagicMock
) -> None:
    file = model(**pads)
    explainer, target = Explainer(file), [[1, 4], [5, 0]]
    found = methods.smoothgrad(explainer, x, noise=noise, rule=rule, target=target).map
    assert [call.args[1] for call in totals.call_args_list] == 2 * [2] * 4
    maps = [explainer.explain(x + n, rule=rule, target=target).map for n in noise]
    close(found, np.mean(maps, axis=0, dtype=np.float64))

    truth = oracle.Run(file, (x[:1] + noise).astype(np.float64))
    for k, each in enumerate(target[0]):
        want = truth.explain(rule, np.full(len(noise), each))[1].mean(axis=0)
        np.testing.assert_allclose(found[0, k], want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("quadrature", ["gauss-legendre", "trapezoid"])
@pytest.mark.parametrize("rule", ["vanilla", "guided", "deconvnet"])
def test_points_have_weights(rule: str, quadrature: str, x: Floats, totals: mock.MagicMock) -> None:
    explainer, options = Explainer(model()), {"rule": rule, "quadrature": quadrature, "steps": 13}
    found = methods.integrated_gradients(explainer, x, **options).map
    assert totals.called
    with mock.patch.object(Repeated, "adds_up", return_value=False):
        close(found, methods.integrated_gradients(explainer, x, **options).map)


def last_unit(explainer: Explainer) -> Unit:
    """A unit of the last rectifier."""
    names = [tensor.name for tensor in explainer.tensors if tensor.op == "Relu"]
    return Unit(names[-1], 3, 1, 1)


QUESTIONS: dict[str, Callable[[Explainer, Floats], Floats]] = {
    "smoothgrad": lambda e, x: methods.smoothgrad(e, x, samples=15, target=Top(2)).map,
    "guided": lambda e, x: methods.smoothgrad(e, x, samples=9, rule="guided").map,
    "hidden unit": lambda e, x: methods.smoothgrad(e, x, samples=9, target=last_unit(e)).map,
    "integrated gradients": lambda e, x: methods.integrated_gradients(e, x, steps=14).map,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_threads_memory_and_batch_change_no_bit(question: str, x: Floats, totals: mock.MagicMock) -> None:
    ask = QUESTIONS[question]
    want = ask(Explainer(model(), threads=1), x)
    assert totals.called
    for threads in (1, 2, 3):
        for memory in (1, 2**16, None):
            explainer = Explainer(model(), threads=threads, memory=memory)
            for _ in range(2):  # recorded, and repeated
                assert ask(explainer, x[1:]).tobytes() == want[1:].tobytes()


def test_runs_that_do_not_fit_are_made_one_by_one(x: Floats) -> None:
    explainer = Explainer(model(), threads=1)
    want, run, sizes = methods.smoothgrad(explainer, x[:1]).map, session.Session.run, list[int]()

    def small(own: session.Session, samples: Any, *args: Any) -> tape.Tape:
        sizes.append(len(samples))
        if len(samples) > 1:
            raise OutOfMemoryError("there is no room.")
        return run(own, samples, *args)

    with mock.patch.object(session.Session, "run", small):
        assert methods.smoothgrad(explainer, x[:1]).map.tobytes() == want.tobytes()
    assert sizes.count(1) == 1 + 25
    assert max(sizes) > 1


def test_who_needs_each_map_has_each_map(x: Floats, totals: mock.MagicMock) -> None:
    explainer = Explainer(model())
    methods.vargrad(explainer, x)
    methods.smoothgrad_squared(explainer, x)
    methods.smoothgrad(explainer, x, rule="input-x-gradient")
    methods.smoothgrad(explainer, x, rule="lrp-epsilon")
    assert not totals.called


def test_networks_that_begin_otherwise_have_their_maps_added_up(x: Floats, totals: mock.MagicMock) -> None:
    b = Builder()
    y = b.relu(b.conv(b.input(1, *SIZE), 9, strides=[2, 2]))
    explainer = Explainer(b.model(b.head(b.relu(b.conv(y, 5)), 6)))
    methods.smoothgrad(explainer, x)
    assert not totals.called


def test_a_first_layer_that_takes_in_an_average_has_its_maps_added_up(totals: mock.MagicMock) -> None:
    """With AMX, one kernel computes such a layer's vjp and that of the average.  It adds up no copies."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 64, 32, 32), 256, 1))
    explainer = Explainer(b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", y)), 6)))
    rng = np.random.default_rng(2)
    x, noise = (rng.standard_normal((n, 64, 32, 32), np.float32) for n in (1, 11))
    found = methods.smoothgrad(explainer, x, noise=noise, rule="guided", target=2).map
    assert not totals.called
    close(found, np.mean([explainer.explain(x + n, target=2).map for n in noise], axis=0, dtype=np.float64))


@pytest.mark.parametrize("most", [1, 2, 5, 6, 32])
def test_blocks_hold_most_of_the_copies_and_are_a_multiple_of_four(most: int) -> None:
    for count in range(1, 200):
        size, blocks = _blocks(count, most)
        assert blocks % 4 == 0
        assert 0 <= size <= most
        assert 0 <= count - size * blocks < blocks
