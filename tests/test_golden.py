"""Whole networks against stored float64 maps: the nine architectures of `models/zoo.py`, under every rule.

Of two pictures: one of noise, and one with flat areas, where max-pools meet ties.

The maps come from `golden/make_golden.py`, which also says what the files hold and what the yardstick is. An
engine passes if it is off by no more than 1e-5, or by no more than four times what rounding alone may do to
the same map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import zoo
from inner_digest import SAMPLES, digest, seed_of
from numpy.typing import NDArray

from gbp import RULES, Explainer

TESTS = Path(__file__).resolve().parent
FLOOR = 1e-5
MARGIN = 4
# The projection of an error of norm e on random signs has mean 0 and standard deviation e.
DEVIATIONS = 6
PROJECTION_SEED = 1234


#: By what is appended to the name of the file.
PICTURES = {"": zoo.picture(), "_flat": zoo.flat_picture()}


class Case(NamedTuple):
    """One architecture: what is stored of it by picture, and the engine under test, planned once."""

    golden: Mapping[str, Mapping[str, NDArray[Any]]]
    fingerprint: str
    explainer: Explainer


@pytest.fixture(scope="module", params=zoo.ARCHITECTURES)
def case(request: pytest.FixtureRequest) -> Case:
    """Module-scoped and parametrised: pytest frees one network's weights before it builds the next one's."""
    model = zoo.build(request.param)
    golden = {}
    for kind in PICTURES:
        with np.load(TESTS / "golden" / f"{request.param}{kind}.npz") as file:
            golden[kind] = dict(file)
    return Case(golden, zoo.fingerprint(model), Explainer(model))


def bound(error: NDArray[Any]) -> float:
    """What relative L2 error is allowed where float32 alone makes this one."""
    return max(FLOOR, MARGIN * float(error))


def relative_error(got: NDArray[Any], truth: NDArray[np.float64]) -> float:
    """‖got − truth‖₂ / ‖truth‖₂."""
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


@cache  # all maps have one size
def signs(count: int, size: int) -> list[NDArray[np.float64]]:
    """Vectors of random signs, drawn as `make_golden.py` documents."""
    rngs = [np.random.default_rng(PROJECTION_SEED + i) for i in range(count)]
    return [rng.integers(0, 2, size) * 2.0 - 1 for rng in rngs]


def project(m: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The flat map m on `count` vectors of random signs: (count,)."""
    return np.array([each @ m for each in signs(count, m.size)])


@pytest.mark.parametrize("kind", PICTURES)
def test_inputs_are_those_of_the_golden_run(case: Case, kind: str) -> None:
    assert case.fingerprint == str(case.golden[kind]["weights_sha256"])
    digest = hashlib.sha256(PICTURES[kind].tobytes()).hexdigest()
    assert digest == str(case.golden[kind]["picture_sha256"])


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("rule", RULES)
def test_scores_and_map(case: Case, kind: str, rule: str) -> None:
    golden, picture = case.golden[kind], PICTURES[kind]
    target = int(golden["target"])
    a = case.explainer.explain(picture, rule=rule, target=target)

    assert a.scores.shape == (1, 1000)
    assert int(a.scores.argmax()) == target
    assert relative_error(a.scores[0], golden["logits"]) <= bound(golden["logits_float32_error"])

    assert a.map.shape == picture.shape
    assert a.map.dtype == np.float32
    m = a.map.astype(np.float64).ravel()
    allowed, norm = bound(golden[f"{rule}_yardstick"]), float(golden[f"{rule}_norm"])
    assert relative_error(m[golden["positions"]], golden[f"{rule}_values"]) <= allowed
    assert abs(np.linalg.norm(m) - norm) <= allowed * norm
    projections = golden[f"{rule}_projections"]
    assert np.abs(project(m, projections.size) - projections).max() <= DEVIATIONS * allowed * norm


def test_without_a_target_the_largest_logit_is_explained(case: Case) -> None:
    a = case.explainer.explain(PICTURES[""], rule="vanilla")
    b = case.explainer.explain(PICTURES[""], rule="vanilla", target=int(case.golden[""]["target"]))
    assert np.array_equal(a.map, b.map)


# --- Inner tensors ------------------------------------------------------------------------------------------

INNER = np.load(TESTS / "golden" / "inner.npz")
#: Network → its tensors in inner.npz, which `golden/make_inner.py` made.
STORED: dict[str, list[str]] = {}
for key in INNER:
    network, _, rest = key.partition("/")
    if rest.endswith("/value"):
        STORED.setdefault(network, []).append(rest.removesuffix("/value"))


def assert_digest(got: NDArray[Any], truth: NDArray[np.float64], allowed: float, what: str) -> None:
    """Samples and projections are off by what an error of `allowed` times the norm may make them."""
    found, norm = digest(got), float(truth[SAMPLES])
    samples, exact = found[:SAMPLES], truth[:SAMPLES]
    assert np.abs(samples - exact).max() <= allowed * norm, what
    assert abs(found[SAMPLES] - norm) <= allowed * norm, what
    assert np.abs(found[SAMPLES + 1 :] - truth[SAMPLES + 1 :]).max() <= DEVIATIONS * allowed * norm, what


@pytest.mark.parametrize("case", STORED, indirect=True)
def test_gradients_of_and_at_inner_tensors(case: Case, request: pytest.FixtureRequest) -> None:
    """Under each rule in turn; `golden/make_inner.py --check` compares every tensor under every rule."""
    name = request.node.callspec.params["case"]
    golden = case.golden[""]
    seed = np.eye(1000, dtype=np.float32)[[int(golden["target"])]]
    with case.explainer.run(PICTURES[""], STORED[name]) as run:
        for tensor, rule in zip(STORED[name], cycle(RULES)):
            value = run.value(tensor)
            assert_digest(value, INNER[f"{name}/{tensor}/value"], FLOOR, f"value of {tensor}")
            at, of = f"{name}/{tensor}/{rule}/at", f"{name}/{tensor}/{rule}/of"
            found = run.vjp(seed, rule, wrt=tensor)
            assert_digest(found, INNER[at], bound(INNER[f"{at}_yardstick"]), at)
            found = run.vjp(seed_of(value.shape), rule, of=tensor)
            assert_digest(found, INNER[of], bound(INNER[f"{of}_yardstick"]), of)
