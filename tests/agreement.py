"""How tests compare the engine with the oracle: on one model, one input, under one rule."""

from __future__ import annotations

import pickle
from typing import Any, TypeVar

import numpy as np
import oracle
from numpy.typing import NDArray

from gbp import Explainer
from gbp.packed.entry import Pickled

T = TypeVar("T")

RULES = tuple(oracle.naive.RULES)

#: Relative L2 distance from float64 that float32 arithmetic may make.
BOUND = 1e-5
#: Below this margin (`oracle.Run.margin`) float32 rounding might flip a gate or a switch, rightly.
SAFE = 1e-5


def assert_close(got: NDArray[Any], truth: NDArray[Any], what: str) -> None:
    """‖got − truth‖₂ ≤ BOUND · ‖truth‖₂, so zero must be zero."""
    assert got.shape == truth.shape, f"{what}: shape {got.shape}, not {truth.shape}"
    error, norm = np.linalg.norm(np.subtract(got, truth, dtype=np.float64)), np.linalg.norm(truth)
    assert error <= BOUND * norm, f"{what}: off by {error:.3g}, where the norm is {norm:.3g}"


def assert_agree(
    explainer: Explainer,
    run: oracle.Run,
    rule: str,
    target: NDArray[np.int64] | None = None,
    output: str | None = None,
) -> None:
    """The engine's scores and map are the oracle's.  `output` is the one the explainer was made with."""
    x = run.values[run.image].astype(np.float32)
    result = explainer.explain(x, rule=rule, target=target)
    scores, truth = run.explain(rule, target, output)
    assert_close(result.scores, scores, f"{rule} scores")
    assert_close(result.map, truth, f"{rule} map")


def from_cache(plan: T) -> T:
    """The plan as another process finds it in the cache: weights are read-only."""
    kept = Pickled(plan)
    found: T = pickle.loads(kept._pickled, buffers=map(bytes, kept._arrays))
    return found


def plan_of(explainer: Explainer) -> tuple[bytes, ...]:
    """The one plan of an Explainer, in bytes."""
    (entry,) = explainer._engine.sessions._entries.values()
    assert entry.session
    kept = Pickled(entry.session.plan)
    return kept._pickled, *map(bytes, kept._arrays)


def as_kept(explainer: Explainer) -> Explainer:
    """The same Explainer with its plan as another process finds it in the cache."""
    for entry in explainer._engine.sessions._entries.values():
        assert entry.session
        entry.session.plan = from_cache(entry.session.plan)
    return explainer
