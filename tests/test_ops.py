"""The table of cases against the float64 oracle.

Each case is put into every frame, so that its op meets what a plan may do to it: be the first or the last
layer, take a rectifier into its forward pass, apply the gate of the rectifier before it in its reverse, add
to a gradient that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np
import onnx
import oracle
import pytest
from agreement import RULES, SAFE, as_kept, assert_agree, plan_of
from builder import Builder
from cases import CASES, Case, Net, chain, node, pool, relu
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from gbp import PROBABILITY, Explainer
from gbp.graph.op import ALGORITHMS
from gbp.packed import entry

Frame = Callable[[Builder, str, Net, Net], str]

#: What stands around an op; `head` makes scores.
FRAMES: dict[str, Frame] = {
    "alone": lambda b, x, net, head: head(b, net(b, x)),
    "before a rectifier": lambda b, x, net, head: head(b, b.relu(net(b, x))),
    "behind a rectifier": lambda b, x, net, head: head(b, net(b, b.relu(x))),
    "between rectifiers": lambda b, x, net, head: head(b, b.relu(net(b, b.relu(_channels_last(b, x))))),
    "beside another reader": lambda b, x, net, head: _beside(b, b.relu(_channels_last(b, x)), net, head),
}


def _channels_last(b: Builder, x: str) -> str:
    """Leave x as it is, but make the engine hold images channels last from here on."""
    return b.node("MaxPool", x, kernel_shape=[1, 1]) if len(b.shapes[x]) == 4 else x


def _beside(b: Builder, r: str, net: Net, head: Net) -> str:
    """A tensor that the op is not alone to read: in reverse the other reader comes first."""
    y = b.flatten(head(b, net(b, r)))
    return b.concat(y, b.head(b.relu(r)))


def build(case: Case, frame: Frame, seed: int) -> onnx.ModelProto:
    b = Builder(case.opset, seed)
    head: Net = (lambda b, y: y) if case.ends else (lambda b, y: b.head(y))
    return b.model(frame(b, b.input(*case.shape), case.net, head))


def safe_run(case: Case, frame: Frame) -> tuple[onnx.ModelProto, oracle.Run]:
    """The case with the first weights and input that leave no gate to float32 rounding, run by the oracle."""
    for seed in count():
        model = build(case, frame, seed)
        run = oracle.Run(model, noise(case.shape, seed))
        if run.margin > SAFE:
            return model, run
    raise AssertionError


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, 1]).standard_normal(shape).astype(np.float32)


def check(explainer: Explainer, run: oracle.Run) -> None:
    """Engine and oracle agree on two targets a sample; without a rectifier only vanilla has a meaning.

    The engine runs the plan as another process would find it in the cache.
    """
    explainer = as_kept(explainer)
    scores = run.values[run.output]
    target = np.random.default_rng(0).integers(0, scores[0].size, (len(scores), 2))
    rectifies = any(isinstance(vjp, oracle.Rectifier) and vjp.obeys for _, vjp in run.steps)
    for rule in RULES if rectifies else ("vanilla",):
        assert_agree(explainer, run, rule, target, run.output)


@pytest.fixture(autouse=True)
def _keep_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of any size are read-only, as large ones are in a plan that was kept."""
    monkeypatch.setattr(entry, "_SMALL", 0)


@contextmanager
def named(what: str) -> Iterator[None]:
    """What fails here names this among its notes."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


@pytest.mark.parametrize("name", CASES)
def test_op(name: str) -> None:
    for frame, around in FRAMES.items():
        model, run = safe_run(CASES[name], around)
        tried = set()
        for algorithm in ALGORITHMS if name.startswith("conv") else ("auto",):
            with named(f"{frame}, algorithm {algorithm}"):
                explainer = Explainer(model, output=run.output, algorithm=algorithm)
                plan = plan_of(explainer)
                if plan not in tried:  # algorithms that a layer does not suit leave the plan as it was
                    check(explainer, run)
                tried.add(plan)


#: Ops that decide by comparing, for inputs of few whole numbers.
DECIDING: dict[str, Net] = {
    "relu": relu,
    "relu6": lambda b, x: b.clip(x, 0, 2),
    "clip": lambda b, x: b.clip(x, -1, 1),
    "max": pool("MaxPool", 2, 2, strides=(2, 2)),
    "max overlapping": pool("MaxPool", 3, 3, strides=(2, 2), pads=(1, 1, 1, 1)),
    "max dilated": pool("MaxPool", 3, 2, dilations=(2, 3)),
    "max of a wide window": pool("MaxPool", 17, 17, pads=[8] * 4),
    "max of a max": chain(pool("MaxPool", 3, 2), pool("MaxPool", 2, 3)),
    "global max": node("GlobalMaxPool"),
}


@pytest.mark.parametrize("name", DECIDING)
def test_ties(name: str) -> None:
    """The first maximum wins, row-major; nothing passes a rectifier whose input is at a bound."""
    case = Case(DECIDING[name])
    for frame, around in FRAMES.items():
        model = build(case, around, seed=0)
        run = oracle.Run(model, np.random.default_rng(0).integers(-3, 4, case.shape))
        with named(frame):
            assert run.margin > SAFE  # equal or well apart
            check(Explainer(model, output=run.output), run)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.reference])
def test_oracle_reads_the_op_as_onnx_does(name: str) -> None:
    """Scores alone: onnx's reference implementation knows no gradients, and errs where a case says so."""
    case = CASES[name]
    model = build(case, FRAMES["alone"], seed=0)
    x = noise(case.shape, seed=0)
    (scores,) = ReferenceEvaluator(model).run(None, {"x": x})
    run = oracle.Run(model, x)
    np.testing.assert_allclose(run.values[run.output], scores, rtol=1e-3, atol=1e-4)


def test_output_says_which_tensor_is_explained() -> None:
    b = Builder()
    features = b.relu(b.conv(b.input(2, 3, 5, 5), 4))
    logits = b.gemm(b.flatten(b.conv(features, 5)), 6)
    model = b.model(b.flatten(b.node("Softmax", b.node("Identity", logits))))
    run = oracle.Run(model, noise((2, 3, 5, 5), seed=0))
    assert run.margin > SAFE
    for output in (None, PROBABILITY, logits, features):
        for rule in RULES:
            assert_agree(Explainer(model, output=output), run, rule, output=output)
