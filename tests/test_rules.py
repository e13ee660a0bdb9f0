"""Rules that rewrite the graph or finish the gradient, against zennit's stored results and plain NumPy."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import relevance_networks as networks
from builder import Builder

from gbp import RULES, Explainer, InputError, ModelError, Rule, Unit, UnsupportedError
from gbp.rewrites.lrp import Relevance
from gbp.rewrites.rectgrad import Rectified
from gbp.rules import OTHER_RULES, rule_named, times_values

GOLDEN = np.load(Path(__file__).parent / "golden" / "relevance.npz")
X = networks.samples()


def relative(got: Any, truth: Any) -> float:
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("rule", ["epsilon", "epsilon-plus"])
def test_relevance_is_zennits(name: str, rule: str) -> None:
    found = Explainer(networks.model_of(name)).explain(X, rule=f"lrp-{rule}")
    assert relative(found.scores, GOLDEN[f"{name}/scores"]) < 1e-5
    assert relative(found.map, GOLDEN[f"{name}/{rule}"]) < 1e-4


def mlp(layers: list[tuple[Any, Any]]) -> Any:
    b = Builder()
    x = b.input(4, len(layers[0][0]))
    for i, (w, bias) in enumerate(layers):
        x = b.node("Gemm", x, b.constant(w), b.constant(bias))
        x = b.relu(x) if i < len(layers) - 1 else x
    return b.model(x)


@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
def test_epsilon_is_the_textbooks(epsilon: float) -> None:
    """Bach et al. 2015, equation 58, layer by layer in float64."""
    rng = np.random.default_rng(2)
    sizes = [7, 9, 8, 5]
    layers = [
        (rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[1]).astype(np.float32))
        for shape in pairwise(sizes)
    ]
    x = rng.standard_normal((4, 7)).astype(np.float32)
    values = [x.astype(np.float64)]
    sums = []
    for i, (w, bias) in enumerate(layers):
        sums.append(values[-1] @ w + bias)
        values.append(np.maximum(sums[-1], 0) if i < len(layers) - 1 else sums[-1])
    relevance = np.zeros((4, 5))
    relevance[:, 2] = values[-1][:, 2]
    for (w, _), a, z in zip(layers[::-1], values[-2::-1], sums[::-1], strict=True):
        share = relevance / (z + np.where(z >= 0, epsilon, -epsilon))
        relevance = a * (share @ w.T)
    rule = Rule("lrp", True, False, "", rewrite=Relevance(epsilon), finish=times_values)
    found = Explainer(mlp(layers)).explain(x, rule=rule, target=2)
    assert relative(found.map, relevance) < 1e-6


def test_relevance_at_an_inner_tensor_adds_up_to_the_score() -> None:
    """Without biases nothing is lost on the way, but for what epsilon takes."""
    b = Builder()
    x = b.conv(b.input(2, 3, 8, 8), 6, 3, bias=False)
    for _ in range(2):
        x = b.conv(b.relu(x), 6, 3, bias=False)
    y = b.node("Gemm", b.flatten(b.relu(x)), b.constant(b.noise(6 * 4, 4)))
    explainer = Explainer(b.model(y))
    names = [tensor.name for tensor in explainer.tensors[:-1]]
    seed = np.eye(4, dtype=np.float32)[[1, 2]]
    with explainer.run(np.abs(b.noise(2, 3, 8, 8)), names) as run:
        explained = (run.scores * seed).sum(axis=1)
        for name in names:
            for rule in ("lrp-epsilon", "lrp-epsilon-plus"):
                found = run.vjp(seed, rule, wrt=name)
                total = found.reshape(2, -1).sum(axis=1)
                np.testing.assert_allclose(total, explained, rtol=1e-3)
        assert len(run._runs) == 3


def test_input_times_gradient() -> None:
    explainer = Explainer(networks.model_of("plain"))
    gradient = explainer.explain(X, rule="vanilla", target=[[0, 3]] * 2).map
    found = explainer.explain(X, rule="input-x-gradient", target=[[0, 3]] * 2)
    np.testing.assert_array_equal(found.map, gradient * X[:, None])
    assert found.rule == "input-x-gradient"


def test_rectgrad_passes_what_is_above_the_percentile() -> None:
    """Equation 3 of Kim et al. 2019, by hand on two layers; each of two targets has its own threshold."""
    rng = np.random.default_rng(4)
    w, v, u = (rng.standard_normal(shape).astype(np.float32) for shape in ((7, 20), (20, 16), (16, 3)))
    x = rng.standard_normal((4, 7)).astype(np.float32)
    layers = [(m, np.zeros(m.shape[1], np.float32)) for m in (w, v, u)]
    a = np.maximum(x @ w.astype(np.float64), 0)
    c = np.maximum(a @ v, 0)
    targets = np.array([[0, 1], [1, 2], [2, 0], [0, 2]])

    def rectified(values: Any, g: Any) -> Any:
        products = values * g
        return np.where(products > np.percentile(products, 70, method="nearest"), g, 0)

    rule = Rule("rectgrad", False, False, "", rewrite=Rectified(70), finish=times_values)
    found = Explainer(mlp(layers)).explain(x, rule=rule, target=targets).map
    for n in range(4):
        for k, target in enumerate(targets[n]):
            g = rectified(c[n], u[:, target].astype(np.float64))
            g = rectified(a[n], v @ g)
            np.testing.assert_allclose(found[n, k], x[n] * (w @ g), rtol=1e-5, atol=1e-6)


def test_what_has_no_rule_is_refused_by_name() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input(1, 3, 6, 6), 4, 1))
    model = b.model(b.head(b.mul(x, b.node("Sigmoid", b.conv(x, 4, 1)))))
    explainer = Explainer(model)
    with pytest.raises(UnsupportedError, match=r"LRP has no rule here for Sigmoid 'sigmoid3', Mul 'mul4'"):
        explainer.explain(b.noise(1, 3, 6, 6), rule="lrp-epsilon")
    b = Builder()
    linear = Explainer(b.model(b.head(b.conv(b.input(1, 3, 6, 6), 4, 1))))
    with pytest.raises(InputError, match="no rectifier, and RectGrad"):
        linear.explain(b.noise(1, 3, 6, 6), rule="rectgrad")
    with pytest.raises(
        InputError, match=r"no rule is called 'lrp'. Supported: vanilla, .*lrp-epsilon.*gbp.methods"
    ):
        linear.explain(b.noise(1, 3, 6, 6), rule="lrp")


def test_a_tensor_that_a_rule_folds_away_is_refused() -> None:
    explainer = Explainer(networks.model_of("residual"))
    seed = np.ones((2, 5))
    with explainer.run(X, ["conv0", "batchnormalization1"]) as run:
        assert run.vjp(seed, "lrp-epsilon", wrt="batchnormalization1").shape == (2, 8, 16, 16)
        with pytest.raises(InputError, match=r"'lrp-epsilon' has no tensor 'conv0', which is between"):
            run.vjp(seed, "lrp-epsilon", wrt="conv0")


def test_every_rule_names_its_source_and_caution() -> None:
    assert not RULES.keys() & OTHER_RULES.keys()
    for name, rule in (RULES | OTHER_RULES).items():
        assert rule_named(name) is rule
        assert rule.name == name
        assert rule.source
        assert rule.caution


def test_every_gate_is_compared_with_plain_code() -> None:
    assert {name: (rule.forward_gate, rule.gradient_gate) for name, rule in RULES.items()} == naive.RULES


@pytest.mark.parametrize("target", [None, Unit("relu1")])
def test_what_a_finish_returns_is_checked(target: Any) -> None:
    explainer = Explainer(networks.model_of("plain"))

    def explain(finish: Any) -> Any:
        return explainer.explain(X, rule=Rule("own", True, False, "", finish=finish), target=target)

    assert explain(lambda g, v: (g * v).astype(np.float64)).map.dtype == np.float32
    for wrong in (lambda g, v: g[:, 0], lambda g, v: None, lambda g, v: g * 1j):
        with pytest.raises(InputError, match="the finish of 'own' returned"):
            explain(wrong)
    for wrong in (lambda g, v: g * np.nan, lambda g, v: np.full(g.shape, 1e60)):
        with pytest.raises(ModelError, match="the map holds NaN or infinity, which the finish of 'own' made"):
            explain(wrong)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, graph: Any) -> Any:
        return graph


def test_a_finish_needs_no_hash() -> None:
    class Twice:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, gradient: Any, values: Any) -> Any:
            return gradient * 2

    explainer = Explainer(Path(__file__).parents[1] / "models" / "demo.onnx")
    x = np.ones((1, 3, 96, 96), np.float32)
    rule = Rule("own", True, True, "here", finish=Twice())
    for _ in range(2):
        twice = explainer.explain(x, rule=rule, target=1).map
        np.testing.assert_array_equal(twice, 2 * explainer.explain(x, rule="guided", target=1).map)


GOOD: dict[str, Any] = {"name": "own", "forward_gate": True, "gradient_gate": False, "source": ""}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"name": " "},
        {"forward_gate": "yes"},
        {"forward_gate": 2},
        {"gradient_gate": None},
        {"gradient_gate": np.array([True, False])},
        {"source": 1913},
        {"caution": None},
        {"rewrite": "lrp"},
        {"rewrite": Unhashable()},
        {"finish": 1},
    ],
    ids=lambda wrong: str(*wrong),
)
def test_the_fields_of_a_rule_are_checked(wrong: dict[str, Any]) -> None:
    Rule(**GOOD)
    with pytest.raises(InputError, match=f"the rule's {next(iter(wrong))} is"):
        Rule(**(GOOD | wrong))


@pytest.mark.parametrize("epsilon", [0, -1e-6, np.nan, np.inf, 1e-60, 10**400, "small", None])
def test_an_epsilon_that_keeps_nothing_from_0_is_refused(epsilon: Any) -> None:
    with pytest.raises(InputError, match="epsilon is"):
        Relevance(epsilon)


@pytest.mark.parametrize("percentile", [-1, 101, np.nan, "98", None])
def test_a_percentile_is_one(percentile: Any) -> None:
    with pytest.raises(InputError, match="percentile is"):
        Rectified(percentile)


@pytest.mark.parametrize(
    ("rewrite", "what"),
    [
        (lambda graph: None, "returned None"),
        (lambda graph: replace(graph, output=graph.layers[0].output), "another input or output"),
    ],
)
def test_what_a_rewrite_returns_is_checked(rewrite: Any, what: str) -> None:
    explainer = Explainer(networks.model_of("plain"))
    with pytest.raises(InputError, match=what):
        explainer.explain(X, rule=Rule(**GOOD, rewrite=rewrite))
    explainer.explain(X)


def test_a_rewrite_has_a_plan_of_its_own() -> None:
    explainer = Explainer(networks.model_of("plain"))
    before = explainer.explain(X)
    for rule in OTHER_RULES:
        explainer.explain(X, rule=rule)
    found = explainer.explain(X)
    assert found.map.tobytes() == before.map.tobytes()
    assert found.scores.tobytes() == before.scores.tobytes()
