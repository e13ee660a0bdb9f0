"""Attention as one op: scores as onnx computes them, and what is refused."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from builder import Builder
from onnx.reference import ReferenceEvaluator

from gbp import Explainer, UnsupportedError

NUMBERS = np.random.default_rng(0).standard_normal((5, 5))
MASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "none": (None, {}),
    "numbers": (NUMBERS, {"scale": 0.5}),
    "truths": (NUMBERS > -0.5, {}),
    "causal": (None, {"is_causal": 1}),
    "numbers by head, causal": (np.random.default_rng(2).standard_normal((1, 3, 5, 5)), {"is_causal": 1}),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("rank", [3, 4])
def test_scores(case: str, rank: int) -> None:
    mask, options = MASKS[case]
    b = Builder()
    x = b.reshape(b.input(2, 15, 4), 0, 5, 12) if rank == 3 else b.reshape(b.input(2, 15, 4), 0, 3, 5, 4)
    heads = {"q_num_heads": 3, "kv_num_heads": 3} if rank == 3 else {}
    keys, values = b.mul(x, b.constant(0.5)), b.node("Tanh", x)
    given = [] if mask is None else [b.constant(mask, np.bool_ if mask.dtype.kind == "b" else np.float32)]
    model = b.model(b.gemm(b.flatten(b.node("Attention", x, keys, values, *given, **heads, **options)), 4))
    pixels = np.random.default_rng(1).standard_normal((2, 15, 4)).astype(np.float32)
    (scores,) = ReferenceEvaluator(model).run(None, {"x": pixels})
    np.testing.assert_allclose(Explainer(model).predict(pixels), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "keys", "says"),
    [
        ({"softcap": 2.0}, 4, "softcap is 2"),
        ({}, 2, "more heads"),
        ({"mask": np.zeros((5, 5), np.bool_)}, 4, "leaves a query without keys"),
        ({"mask": np.ones((5, 1), np.bool_)}, 4, r"its mask has shape \[5, 1\]"),
        ({"mask": np.ones((3, 5), np.bool_), "is_causal": 1}, 4, r"its mask has shape \[3, 5\]"),
    ],
)
def test_refused(options: dict[str, Any], keys: int, says: str) -> None:
    b = Builder()
    x = b.reshape(b.input(1, 20, 4), 0, 4, 5, 4)
    k = b.node("Slice", x, b.constant([0]), b.constant([keys]), b.constant([1]))
    given = [b.constant(options.pop("mask"), np.bool_)] if "mask" in options else []
    model = b.model(b.gemm(b.flatten(b.node("Attention", x, k, k, *given, **options)), 4))
    with pytest.raises(UnsupportedError, match=says):
        Explainer(model)


def test_a_causal_mask_is_refused_before_it_takes_gigabytes() -> None:
    b = Builder()
    x = b.reshape(b.input(1, 1, 2**7, 2**7), 0, 1, 2**14, 1)
    y = b.node("Attention", x, x, x, is_causal=1)
    with (
        mock.patch.object(np, "tri", side_effect=AssertionError),
        pytest.raises(UnsupportedError, match="16384 queries and 16384 keys"),
    ):
        Explainer(b.model(b.flatten(y)))
