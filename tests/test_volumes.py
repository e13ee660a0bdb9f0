"""Random networks over one to three spatial axes: the engine equals the float64 oracle, to the promised bit.

As `test_graphs`, with the moves that rows and volumes know.
"""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from agreement import RULES, assert_agree
from builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_graphs import CLASSES, REPRODUCIBLE, Draw, Move, Network, any_of, assert_same, poisoned, safe_run

from gbp import Explainer
from gbp.devices import cpu as device
from gbp.graph.op import ALGORITHMS

MAX_PIXELS = 300


def axes_of(b: Builder, x: str) -> int:
    return len(b.shapes[x]) - 2


def each(draw: Draw, b: Builder, x: str, *choices: int) -> list[int]:
    """One of the choices for every spatial axis."""
    return [draw(st.sampled_from(choices)) for _ in range(axes_of(b, x))]


def window(draw: Draw, b: Builder, x: str) -> tuple[list[int], dict[str, Any]]:
    """(kernel, attributes) of windows that see a pixel each."""
    kernel = [min(k, n) for k, n in zip(each(draw, b, x, 1, 2, 3), b.shapes[x][2:], strict=True)]
    options: dict[str, Any] = {"strides": each(draw, b, x, 1, 1, 2)}
    if draw(st.booleans()):
        return kernel, options | {"auto_pad": draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))}
    return kernel, options | {
        "pads": [min(p, k - 1) for p, k in zip(each(draw, b, x, 0, 1), kernel, strict=True)] * 2
    }


def convolve(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    C = b.shapes[x][1]
    group = draw(st.sampled_from([g for g in (1, 2, C) if C % g == 0]))
    kernel, options = window(draw, b, x)
    return [
        b.conv(
            x, group * draw(st.sampled_from([1, 2, 8 // group or 1])), tuple(kernel), group=group, **options
        )
    ]


def spread(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    C = b.shapes[x][1]
    group = draw(st.sampled_from([g for g in (1, 2, C) if C % g == 0]))
    kernel, strides = each(draw, b, x, 1, 2, 3), each(draw, b, x, 1, 2)
    pads = [min(p, k - 1) for p, k in zip(each(draw, b, x, 0, 1), kernel, strict=True)]
    sizes = zip(b.shapes[x][2:], kernel, strides, pads, strict=True)
    made = [(n - 1) * s + k - 2 * p for n, k, s, p in sizes]
    if min(made) < 1 or math.prod(made) > MAX_PIXELS:
        return []
    options = {"strides": strides, "pads": [*pads, *pads]}
    return [b.conv_transpose(x, group * draw(st.integers(1, 2)), tuple(kernel), group=group, **options)]


def rectify(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    return [draw(st.sampled_from([b.relu, lambda x: b.clip(x, 0, 1), lambda x: b.clip(x, -1, 1)]))(x)]


def normalize(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    return [draw(st.sampled_from([b.batchnorm, lambda x: b.node("LRN", x, size=3, alpha=0.5)]))(x)]


def pool(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    op = draw(st.sampled_from(["MaxPool", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"]))
    if op.startswith("Global"):
        return [b.node(op, x)]
    kernel, options = window(draw, b, x)
    return [b.node(op, x, kernel_shape=kernel, **options)]


def norm(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    p = draw(st.sampled_from([2, 3]))
    if draw(st.booleans()):
        return [b.node("GlobalLpPool", x, p=p)]
    kernel, options = window(draw, b, x)
    return [b.node("LpPool", x, kernel_shape=kernel, p=p, **options)]


def unpool(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """MaxPool, and the way back, where the windows fill the plane."""
    x = any_of(draw, live)
    kernel = [draw(st.sampled_from([k for k in (1, 2, 3) if n % k == 0])) for n in b.shapes[x][2:]]
    options = {"kernel_shape": kernel, "strides": kernel}
    y, indices = b.nodes("MaxPool", x, outputs=2, storage_order=draw(st.integers(0, 1)), **options)
    return [y, b.node("MaxUnpool", draw(st.sampled_from([y, b.relu(y)])), indices, **options)]


def residual(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    r = b.relu(b.batchnorm(x) if draw(st.booleans()) else x)
    kernel = each(draw, b, x, 1, 3)
    y = b.conv(r, b.shapes[x][1], tuple(kernel), pads=[k // 2 for k in kernel] * 2)
    y = b.add(y, draw(st.sampled_from([x, r])))
    return [b.relu(y) if draw(st.booleans()) else y]


def concatenate(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    fitting = [name for name in live if b.shapes[name][2:] == b.shapes[x][2:] and b.shapes[name][1] <= 8]
    return [b.concat(x, any_of(draw, fitting))] if fitting else []


MOVES: tuple[Move, ...] = (
    convolve,
    convolve,
    spread,
    rectify,
    rectify,
    normalize,
    pool,
    norm,
    unpool,
    residual,
    concatenate,
)


@st.composite
def volumes(draw: Draw) -> Network:
    seed = draw(st.integers(0, 999))
    b = Builder(seed=seed)
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    sizes = draw(st.sampled_from([(12,), (5,), (4, 5), (3, 4, 3), (4, 2, 3), (1, 3, 2), (6, 1, 1)]))
    live = [b.input(batch, channels, *sizes)]
    for _ in range(draw(st.integers(2, 8))):
        live += draw(st.sampled_from(MOVES))(draw, b, live)
    ends = [b.relu(live[-1]), *(any_of(draw, live) for _ in range(draw(st.integers(0, 2))))]
    heads = [b.head(end, CLASSES) for end in ends]
    scores = heads[0] if len(heads) == 1 else b.node("Sum", *heads)
    rng = np.random.default_rng([seed, 1])
    target = rng.integers(0, CLASSES, (batch, draw(st.integers(1, 3))))
    x = rng.standard_normal((batch, channels, *sizes)).astype(np.float32)
    return Network(b.model(scores), x, target)


@given(volumes(), st.sampled_from(RULES), st.sampled_from(ALGORITHMS))
@settings(REPRODUCIBLE, max_examples=100)
def test_engine_equals_oracle(net: Network, rule: str, algorithm: str) -> None:
    with mock.patch.object(device, "aligned", poisoned):
        assert_agree(Explainer(net.model, algorithm=algorithm), safe_run(net), rule, net.target)


@pytest.mark.threads
@given(volumes(), st.sampled_from(RULES), st.sampled_from(ALGORITHMS))
@settings(REPRODUCIBLE, max_examples=40)
def test_bits_depend_on_nothing_but_sample_target_and_rule(net: Network, rule: str, algorithm: str) -> None:
    explainer, other = (Explainer(net.model, threads=n, algorithm=algorithm) for n in (1, 2))
    a = explainer.explain(net.x, rule=rule, target=net.target)
    assert_same(a, explainer.explain(net.x, rule=rule, target=net.target))
    assert_same(a, other.explain(net.x, rule=rule, target=net.target))
    for k, target in enumerate(net.target.T):
        one = explainer.explain(net.x, rule=rule, target=target)
        np.testing.assert_array_equal(a.map[:, k], one.map)
    for n in range(len(net.x)):
        alone = explainer.explain(net.x[n : n + 1], rule=rule, target=net.target[n : n + 1])
        np.testing.assert_array_equal(a.map[n : n + 1], alone.map)
