"""Layers that run on a few samples after others, forward and backward: the bits of samples alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from builder import Builder

from gbp import Explainer, InputError, Top, methods
from gbp.plan import stretch
from gbp.runtime import session


@pytest.fixture(autouse=True)
def _any_layer_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretch, "_LEAST", 1)


def a_chain(b: Builder, x: str) -> str:
    y = b.node("MaxPool", b.relu(b.conv(x, 8, kernel=3)), kernel_shape=[2, 2], strides=[2, 2])
    return b.node("GlobalAveragePool", b.relu(b.conv(y, 40, kernel=3)))


def branches(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 8, kernel=3))
    parts = [b.relu(b.conv(y, c, kernel=1)) for c in (4, 8)]
    return b.node("GlobalAveragePool", b.conv(b.node("Concat", *parts, axis=1), 40, kernel=5))


def a_block(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 8, kernel=3))
    y = b.relu(b.add(b.conv(y, 8, kernel=1), y))
    return b.node("GlobalAveragePool", b.conv(y, 60, kernel=5))


def the_image_again(b: Builder, x: str) -> str:
    """No such layers: a later layer reads the image, too."""
    y = b.relu(b.conv(x, 3, kernel=3, pads=[1, 1, 1, 1]))
    return b.node("GlobalAveragePool", b.node("Concat", b.node("Sigmoid", y), x, axis=1))


def kept_activations(b: Builder, x: str) -> str:
    """No such layers: the backward pass reads an activation of each sample."""
    return b.node("GlobalAveragePool", b.node("Sigmoid", b.relu(b.conv(x, 8, kernel=3))))


#: How many instructions run piece by piece.
NETWORKS = {a_chain: 2, branches: 3, a_block: 2, the_image_again: 0, kept_activations: 0}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_samples_piecewise_have_the_bits_of_samples_alone(
    network: Callable[[Builder, str], str], threads: int
) -> None:
    b = Builder()
    model = b.model(b.flatten(network(b, b.input(1, 3, 12, 10))))
    explainer = Explainer(model, threads=threads)
    x = np.random.default_rng(0).standard_normal((5, 3, 12, 10), np.float32)
    plan, _ = explainer._plan_for((3, 12, 10))
    assert NETWORKS[network] == (plan.piecewise.stop if plan.piecewise else 0)
    assert plan.piecewise is None or plan.piecewise.room(plan.activations, 5, threads) is not None
    for rule in ("guided", "vanilla"):
        for _ in range(2):  # the second run repeats what the first one recorded
            found = explainer.explain(x, rule=rule)
            for n in range(len(x)):
                expected = explainer.explain(x[n : n + 1], rule=rule)
                assert found.map[n].tobytes() == expected.map[0].tobytes()
                assert found.scores[n].tobytes() == expected.scores[0].tobytes()
    x[3, 1, 2, 2] = np.nan
    with pytest.raises(InputError, match="sample 3"):
        explainer.explain(x)


def as_squeezenet_begins(b: Builder, x: str) -> str:
    y = b.relu(b.conv(x, 8, strides=[2, 2]))
    y = b.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2])
    parts = [b.relu(b.conv(y, c, kernel=1)) for c in (4, 8)]
    y = b.relu(b.conv(b.node("Concat", *parts, axis=1), 4, kernel=1))
    return b.node("GlobalAveragePool", b.relu(b.conv(y, 60)))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_last_layers_go_back_piecewise_with_the_same_bits(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Builder()
    model = b.model(b.flatten(as_squeezenet_begins(b, b.input(1, 3, 31, 29))))
    monkeypatch.setattr(session, "_LEAST_AT_ONCE", 0)  # so that copies are added up

    def maps(expected: bool) -> list[bytes]:
        explainer = Explainer(model, threads=threads)
        plan, _ = explainer._plan_for((3, 31, 29))
        backward = plan.backward.piecewise
        assert (
            backward is not None and backward.room(plan.backward.arena, 9, threads) is not None
        ) == expected
        x = np.random.default_rng(0).standard_normal((3, 3, 31, 29), np.float32)
        found = [explainer.explain(x, rule=rule, target=Top(3)).map for rule in ("guided", "vanilla") * 2]
        return [each.tobytes() for each in (*found, methods.smoothgrad(explainer, x, samples=9).map)]

    found = maps(True)
    monkeypatch.setattr(stretch, "_LEAST", 2**30)
    assert found == maps(False)
