"""ONNX's own backend tests: nothing fails, no exclusion is stale, as many pass as did before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance import KINDS, Result, Verdict, judge_all, scores_of_joined, summary, unneeded

from gbp.ops import PARSERS, REWRITERS

#: As of onnx 1.23; raise these when more pass.
LEAST = {"node": 890, "simple": 7, "pytorch-operator": 28, "pytorch-converted": 80, "real": 9}


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return judge_all()


def test_nothing_fails_and_no_exclusion_is_stale(results: list[Result]) -> None:
    wrong = [result for result in results if result.verdict in (Verdict.FAILED, Verdict.STALE)]
    assert not wrong, summary(results)
    assert not unneeded(results)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_pass(results: list[Result], kind: str, report: Callable[[str], None]) -> None:
    passed = sum(result.verdict == Verdict.PASSED for result in results if result.kind == kind)
    report(f"ONNX's {kind} tests: {passed} pass of {sum(result.kind == kind for result in results)}")
    assert passed >= LEAST[kind]


def test_models_stay_as_they_are() -> None:
    """One model is asked for each of its outputs, and with several sets of inputs."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "aby"]
    add = onnx.helper.make_node("Add", ["a", "b"], ["y"])
    graph = onnx.helper.make_graph([add], "g", values[:2], values[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    before, x = model.SerializeToString(), np.ones((2, 3), np.float32)
    assert np.array_equal(scores_of_joined(model, "y", {"a": x, "b": 2 * x}), 3 * x)
    assert model.SerializeToString() == before


def test_the_documents_name_every_op() -> None:
    named = set(re.findall(r"[\w.]+\w", (Path(__file__).parent.parent / "docs/operators.md").read_text()))
    ops = PARSERS.keys() | REWRITERS.keys()
    assert not ops - named
    assert f"with {len(ops)} operators" in (Path(__file__).parent.parent / "README.md").read_text()
