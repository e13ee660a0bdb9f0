"""Random small networks: the engine equals the float64 oracle, and keeps its promises to the bit.

Hypothesis composes the networks from `MOVES`, each of which grows a graph by a node or by a small block that
real networks have. What a move reads is drawn from all tensors so far, so branches, tensors with several
readers and rectifiers that share an input come by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import naive
import numpy as np
import onnx
import oracle
import pytest
from agreement import RULES, SAFE, assert_agree, assert_close
from builder import NEWEST, Builder
from cases.axes import reduce, resize
from cases.quantized import qdq
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gbp import Attribution, Explainer, passes
from gbp.devices import cpu as device
from gbp.graph.op import ALGORITHMS
from gbp.kernels.codegen.memory import aligned
from gbp.passes.drop_dead import drop_dead

Draw = Callable[[st.SearchStrategy[Any]], Any]
Move = Callable[[Draw, Builder, list[str]], list[str]]

REPRODUCIBLE = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
CLASSES = 4
MAX_CHANNELS = 24
#: The oldest opset, the newest, and those at which some attribute moved.
OPSETS = (NEWEST, 7, 8, 9, 10, 11, 12, 13, 14, 18)


@dataclass(frozen=True, repr=False)
class Network:
    """A model, samples for it, and K targets for each of them."""

    model: onnx.ModelProto
    x: NDArray[np.float32]
    target: NDArray[np.int64]

    def __repr__(self) -> str:
        nodes = "\n".join(
            f"  {' '.join(node.output)} = {node.op_type}({', '.join(node.input)})"
            f" { ({a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}) }"
            for node in self.model.graph.node
        )
        return f"Network on {self.x.shape}, opset {self.model.opset_import[0].version}:\n{nodes}\n"


# --- Moves: they read tensors (N, C, H, W) and return new ones ----------------------------------------------


def any_of(draw: Draw, names: list[str]) -> str:
    """One of the tensors, by preference a late one."""
    return str(draw(st.sampled_from(names[::-1])))


def convolve(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    group = draw(st.sampled_from([g for g in (1, 2, C) if C % g == 0]))
    outputs = group * draw(st.integers(1, max(1, min(8, MAX_CHANNELS // group))))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 2), (1, 3), (5, 2)]))
    options: dict[str, Any] = {"strides": draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))}
    if kernel[0] <= H and kernel[1] <= W and draw(st.booleans()):
        options["pads"] = draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0)]))
    else:
        options["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
        options["dilations"] = draw(st.sampled_from([(1, 1), (2, 1)]))
    return [b.conv(x, outputs, kernel, group=group, bias=draw(st.booleans()), **options)]


def rectify(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    return [draw(st.sampled_from([b.relu, lambda x: b.clip(x, 0, 1), lambda x: b.clip(x, -1, 1)]))(x)]


def activate(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """An activation that is no rectifier, some in parts."""
    x = any_of(draw, live)
    op = draw(st.sampled_from(["LeakyRelu", "Elu", "Sigmoid", "Tanh", "Softplus", "SiLU", "Mish"]))
    if op == "SiLU":
        return [b.mul(b.node("Sigmoid", x), x)]
    if op == "Mish":
        return [b.mul(x, b.node("Tanh", b.node("Softplus", x)))]
    return [b.node(op, x)]


def normalize(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    return [draw(st.sampled_from([b.batchnorm, lambda x: b.node("LRN", x, size=3, alpha=0.5)]))(x)]


def pool(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    op = draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"]))
    if op.startswith("Global"):
        return [b.node(op, x)]
    kernel = draw(st.sampled_from([(2, 2), (3, 3), (1, 2)]))
    strides = draw(st.sampled_from([(2, 2), (1, 1), (2, 3)]))
    return [b.node(op, x, kernel_shape=kernel, strides=strides, auto_pad="SAME_UPPER")]


def combine(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """Two tensors of one shape, or one with itself: a sum, or a product that stays small."""
    x = any_of(draw, live)
    y = any_of(draw, [name for name in live if b.shapes[name] == b.shapes[x]])
    how = draw(st.sampled_from(["Add", "Sum", "Mul"]))
    return [b.mul(b.clip(x, -1, 1), y) if how == "Mul" else b.node(how, x, y)]


def residual(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """A block whose skip starts behind the first rectifier, or (pre-activation) before it."""
    x = any_of(draw, live)
    C = b.shapes[x][1]
    r = b.relu(b.batchnorm(x) if draw(st.booleans()) else x)
    y = b.conv(r, C, 3, pads=(1, 1, 1, 1))
    skip = x if draw(st.booleans()) else r
    y = b.add(skip, y) if draw(st.booleans()) else b.add(y, skip)
    return [b.relu(y) if draw(st.booleans()) else y]


def squeeze_excite(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    gate = b.clip(b.conv(b.node("GlobalAveragePool", x), b.shapes[x][1], 1), 0, 6)
    return [b.mul(x, gate) if draw(st.booleans()) else b.mul(gate, x)]


def constant(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    shape = draw(st.sampled_from([(C, 1, 1), (), (1, 1, 1, W), (H, 1), (1, C, H, W)]))
    return [b.node(draw(st.sampled_from(["Mul", "Add"])), x, b.constant(b.noise(*shape)))]


def concatenate(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    axis = draw(st.sampled_from([1, 3]))

    def rest(name: str) -> tuple[int, ...]:
        return b.shapes[name][:axis] + b.shapes[name][axis + 1 :]

    fitting = [name for name in live if rest(name) == rest(x)]
    others = [any_of(draw, fitting) for _ in range(draw(st.integers(1, 2)))]
    y = b.concat(*others, x, axis=axis)
    return [y] if b.shapes[y][axis] <= MAX_CHANNELS else []


def part(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """Split; all parts, or just one, are there for others."""
    x = any_of(draw, live)
    axis = draw(st.sampled_from([1, 2]))
    size = b.shapes[x][axis]
    if size < 2:
        return []
    first = draw(st.integers(1, size - 1))
    parts = b.split(x, (first, size - first), axis)
    return parts if draw(st.booleans()) else [draw(st.sampled_from(parts))]


def dense_block(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """DenseNet: each layer reads all before it, joined anew from their parts or onto what was joined last."""
    parts = [any_of(draw, live)]
    joined, wholes = parts[0], []
    onto_the_last = draw(st.booleans())
    for _ in range(draw(st.integers(2, 3))):
        kernel = draw(st.sampled_from([1, 3]))
        x = b.relu(joined) if draw(st.booleans()) else joined
        y = b.conv(x, draw(st.sampled_from([3, 8])), kernel, pads=(kernel // 2,) * 4)
        parts.append(b.relu(y) if draw(st.booleans()) else y)
        joined = b.concat(joined, parts[-1]) if onto_the_last else b.concat(*parts)
        wholes.append(joined)
    return [*parts[1:], *wholes]


def inception(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """Branches side by side, rectified alike or each in its own way, whose parts others may read as well."""
    x = any_of(draw, live)
    C = b.shapes[x][1]
    rectifiers = {"relu": b.relu, "relu6": lambda x: b.clip(x, 0, 1), "clip": lambda x: b.clip(x, -1, 1)}
    endings = draw(st.sampled_from([["relu"], ["clip"], ["relu", "relu6"], [*rectifiers, "none"]]))
    branches = []
    for _ in range(draw(st.integers(2, 3))):
        ending, channels = draw(st.sampled_from(endings)), draw(st.sampled_from([8, 16, 5]))
        how = draw(st.sampled_from(["1x1", "3x3", "depthwise", "pool"]))
        if how == "pool":
            y = b.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
        elif how == "depthwise":
            y = b.conv(x, C, 3, group=C, pads=(1,) * 4)
        else:
            y = b.conv(x, channels, int(how[0]), pads=(int(how[0]) // 2,) * 4)
        branches.append(rectifiers[ending](y) if ending in rectifiers else y)
    joined = b.concat(*branches)
    return [*branches, b.relu(joined) if draw(st.booleans()) else joined]


def split_unit(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """ShuffleNet v2: half of the channels pass, the others are convolved; then they are shuffled, or not."""
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    if C % 2:
        return []
    first, second = b.split(x, (C // 2, C // 2))
    joined = b.concat(first, b.relu(b.conv(second, C // 2, 1)))
    if draw(st.booleans()):
        return [joined, second]
    grouped = b.transpose(b.reshape(joined, 0, 2, C // 2, H, W), 0, 2, 1, 3, 4)
    return [joined, b.reshape(grouped, 0, C, H, W)]


def shuffle(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """ShuffleNet's channel shuffle, with a rectifier inside or not."""
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    group = draw(st.sampled_from([g for g in (2, 3, 1) if C % g == 0]))
    y = b.transpose(b.reshape(x, 0, group, C // group, H, W), 0, 2, 1, 3, 4)
    return [b.reshape(b.relu(y) if draw(st.booleans()) else y, 0, C, H, W)]


def turn(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """Channels last for a while, as Keras has them; or left so, as no one would."""
    x = any_of(draw, live)
    last = b.transpose(x, 0, 2, 3, 1)
    C = b.shapes[last][3]
    inside = draw(st.sampled_from(["bias", "relu", "nothing"]))
    if inside == "bias":
        last = b.add(last, b.constant(b.noise(C)))
    elif inside == "relu":
        last = b.relu(last)
    return [b.transpose(last, 0, 3, 1, 2) if draw(st.booleans()) else last]


def reshape(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    targets = [(C, H * W, 1), (C * H, 1, W), (W, C, H), (1, C, H * W)]
    return [b.reshape(x, 0, *draw(st.sampled_from([t for t in targets if t[0] <= MAX_CHANNELS])))]


def dress(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    return [
        draw(
            st.sampled_from(
                [b.dropout, lambda x: b.node("Identity", x), lambda x: b.squeeze(b.unsqueeze(x, 1), 1)]
            )
        )(x)
    ]


def frame(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    pads = draw(
        st.sampled_from([(0, 0, 1, 1, 0, 0, 1, 1), (0, 0, 0, 2, 0, 0, 1, 0), (0, 1, 0, 0, 0, 0, 0, 0)])
    )
    return [b.pad(x, pads, draw(st.sampled_from([0.0, 0.5])))]


def rescale(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """Up or down, by whole numbers or not."""
    x = any_of(draw, live)
    H, W = b.shapes[x][2:]
    scales = [
        draw(st.sampled_from([f for f in (1.0, 2.0, 0.5, 1.5) if f == 1 or 1 <= n * f <= 12])) for n in (H, W)
    ]
    mode, scales = draw(st.sampled_from(["nearest", "linear"])), [1.0, 1.0, *scales]
    if b.opset < 9:
        return [b.node("Upsample", x, mode=mode, scales=scales)]
    if b.opset < 11:
        return [b.node("Upsample" if b.opset == 9 else "Resize", x, b.constant(scales), mode=mode)]
    how = draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners"]))
    return [resize(scales, mode=mode, coordinate_transformation_mode=how)(b, x)]


def reduce_axes(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """A mean, an extremum, a norm over some axes; by itself, or broadcast back."""
    x = any_of(draw, live)
    op = draw(st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceLogSumExp"]))
    axes = draw(st.sampled_from([(1,), (2, 3), (1, 3), (3,), (1, 2, 3)]))
    # Of few numbers: what grows with every move is beyond float32 soon.
    y = reduce(op, *axes)(b, b.clip(x, -1, 1) if op == "ReduceSum" else x)
    how = draw(st.sampled_from(["alone", "Add", "Sub", "Mul"]))
    return [y if how == "alone" else b.node(how, b.clip(x, -1, 1) if how == "Mul" else x, y)]


def standardize(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """By a sample's own statistics; ε keeps those of few numbers from rounding."""
    x = any_of(draw, live)
    C = b.shapes[x][1]
    scale, bias = b.constant(b.noise(C)), b.constant(b.noise(C))
    if b.opset < 18 or draw(st.booleans()):
        return [b.node("InstanceNormalization", x, scale, bias, epsilon=0.5)]
    if b.opset >= 21 and draw(st.booleans()):
        groups = draw(st.sampled_from([g for g in (1, 2, C) if C % g == 0]))
        return [b.node("GroupNormalization", x, scale, bias, num_groups=groups, epsilon=0.5)]
    last = b.transpose(x, 0, 2, 3, 1)
    return [b.transpose(b.node("LayerNormalization", last, scale, bias, epsilon=0.5), 0, 3, 1, 2)]


def spread(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    if H * W > 40:
        return []
    kernel, strides = draw(
        st.sampled_from([((2, 2), (2, 2)), ((3, 3), (1, 2)), ((4, 2), (2, 1)), ((1, 1), (2, 2))])
    )
    group = draw(st.sampled_from([g for g in (1, C) if C % g == 0]))
    outputs = group * draw(st.integers(1, max(1, min(8, MAX_CHANNELS // group))))
    return [b.conv_transpose(x, outputs, kernel, group=group, strides=strides, bias=draw(st.booleans()))]


def pick(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """Some of an axis, with steps, in another order or more than once; or a frame of what there is."""
    x = any_of(draw, live)
    axis = draw(st.sampled_from([1, 2, 3]))
    n = b.shapes[x][axis]
    how = draw(st.sampled_from(["run", "steps", "gather", "reflect", "edge", "tile"]))
    if how == "gather":
        indices = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6))
        return [b.node("Gather", x, b.constant(indices), axis=axis)]
    if how == "tile":
        repeats = [2 if i == axis else 1 for i in range(4)]
        return [b.node("Tile", x, b.constant(repeats))] if n <= 8 else []
    if how in ("reflect", "edge"):
        sides = [min(1, n - 1) if how == "reflect" and i == axis else int(i == axis) for i in range(4)]
        return [b.pad(x, sides + [0] * 4, mode=how)]
    start = draw(st.integers(0, n - 1))
    if b.opset < 10:
        return [b.node("Slice", x, starts=[start], ends=[n], axes=[axis])]
    step = 1 if how == "run" else draw(st.sampled_from([2, -1]))
    end = n if step > 0 else -n - 1
    return [b.node("Slice", x, *map(b.constant, ([start], [end], [axis], [step])))]


def detour(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """By way of a row of pixels, or of a volume whose depth are channels."""
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    rank = draw(st.sampled_from([1, 3]))
    y = b.reshape(x, 0, C, H * W) if rank == 1 else b.reshape(x, 0, 1, C, H, W)
    how = draw(st.sampled_from(["conv", "max", "average", "sums"]))
    same = {"kernel_shape": [3] * rank, "pads": [1] * 2 * rank}
    match how:
        case "conv":
            y = b.conv(y, b.shapes[y][1], 3, pads=[1] * 2 * rank)
        case "max":
            y = b.node("MaxPool", y, **same)
        case "average":
            y = b.node("AveragePool", y, **same)
        case _:
            y = b.node("CumSum", y, b.constant(2)) if b.opset >= 11 else y
    y = b.relu(y) if draw(st.booleans()) else y
    return [b.reshape(y, 0, C, H, W)]


def attend(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """Softmax(q kᵀ) v between pixels, or a product of tensors that is no attention."""
    x = any_of(draw, live)
    _, C, H, W = b.shapes[x]
    if draw(st.booleans()):
        y = b.clip(x, -1, 1)
        return [b.node("MatMul", b.node("MatMul", y, b.transpose(y, 0, 1, 3, 2)), x)]
    q, k, v = (b.reshape(b.clip(b.conv(x, C, 1), -1, 1), 0, C, H * W) for _ in range(3))
    weights = b.node("Softmax", b.node("MatMul", b.transpose(q, 0, 2, 1), k), axis=2)
    return [b.reshape(b.node("MatMul", v, weights), 0, C, H, W)]


def compare(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """A difference, a quotient, an extremum or a choice, of two tensors of which one may be broadcast."""
    x = any_of(draw, live)
    y = any_of(draw, [name for name in live if b.shapes[name] == b.shapes[x]])
    y = b.node("GlobalAveragePool", y) if draw(st.booleans()) else y
    operands = [x, y][:: draw(st.sampled_from([1, -1]))]
    how = draw(st.sampled_from(["Sub", "Div", "Max", "Min", "Where"]))
    if how == "Div":
        operands[1] = b.node("Exp", b.clip(operands[1], -1, 1))
    if how in ("Max", "Min") and b.opset < 8:
        return []
    if how == "Where":
        return [b.node("Where", b.node("Greater", x, y), *operands)] if b.opset >= 9 else []
    return [b.node(how, *operands)]


def quantize(draw: Draw, b: Builder, live: list[str]) -> list[str]:
    """To integers and back, before a pool or not."""
    if b.opset < 13:
        return []
    x = any_of(draw, live)
    by = draw(st.sampled_from([None, 1]))
    return [qdq(draw(st.sampled_from([np.uint8, np.int8])), 0.03, 20, by=by)(b, x)]


MOVES: tuple[Move, ...] = (
    convolve,
    rectify,
    activate,
    residual,
    normalize,
    pool,
    combine,
    concatenate,
    dense_block,
    inception,
    part,
    split_unit,
    constant,
    squeeze_excite,
    shuffle,
    turn,
    reshape,
    dress,
    frame,
    rescale,
    reduce_axes,
    standardize,
    spread,
    pick,
    detour,
    attend,
    compare,
    quantize,
)  # fmt: skip


@st.composite
def networks(draw: Draw) -> Network:
    seed = draw(st.integers(0, 999))
    b = Builder(draw(st.sampled_from(OPSETS)), seed)
    batch = draw(st.integers(1, 3))
    sizes = draw(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))
    live = [b.input(batch, *sizes)]
    for _ in range(draw(st.integers(2, 12))):
        live += draw(st.sampled_from(MOVES))(draw, b, live)
    # Some of the tensors make the scores, the last one through a rectifier, so that every rule has a meaning.
    ends = [b.relu(live[-1]), *(any_of(draw, live) for _ in range(draw(st.integers(0, 2))))]
    heads = [b.head(end, CLASSES) for end in ends]
    scores = heads[0] if len(heads) == 1 else b.node("Sum", *heads)
    if draw(st.booleans()):
        scores = b.node("Softmax", scores)
    rng = np.random.default_rng([seed, 1])
    target = rng.integers(0, CLASSES, (batch, draw(st.integers(1, 3))))
    return Network(b.model(scores), rng.standard_normal((batch, *sizes)).astype(np.float32), target)


# --- What holds of all of them ------------------------------------------------------------------------------


def poisoned(*args: Any) -> NDArray[Any]:
    """Memory that shows where anybody reads what nobody wrote; fresh pages are 0, which may hide it."""
    memory = aligned(*args)
    memory.fill(np.nan if memory.dtype.kind == "f" else 0b10101010)
    return memory


def safe_run(net: Network) -> oracle.Run:
    """The oracle's run; the example is discarded where float32 rounding might flip a gate, rightly."""
    run = oracle.Run(net.model, net.x)
    assume(run.margin > SAFE)
    return run


def assert_same(a: Attribution, b: Attribution) -> None:
    """Scores and maps are equal to the bit."""
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.map, b.map)


@given(networks(), st.sampled_from(RULES), st.sampled_from(ALGORITHMS))
@settings(REPRODUCIBLE, max_examples=500)
def test_engine_equals_oracle(net: Network, rule: str, algorithm: str) -> None:
    with mock.patch.object(device, "aligned", poisoned):
        assert_agree(Explainer(net.model, algorithm=algorithm), safe_run(net), rule, net.target)


@given(networks(), st.sampled_from(RULES))
@settings(REPRODUCIBLE, max_examples=50)
def test_without_a_target_each_sample_explains_its_argmax(net: Network, rule: str) -> None:
    assert_agree(Explainer(net.model), safe_run(net), rule)


@pytest.mark.threads
@given(networks(), st.sampled_from(RULES), st.sampled_from(ALGORITHMS))
@settings(REPRODUCIBLE, max_examples=150)
def test_bits_depend_on_nothing_but_sample_target_and_rule(net: Network, rule: str, algorithm: str) -> None:
    """K targets equal K calls, a batch its samples, one thread two, the first call the second."""
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
        np.testing.assert_array_equal(a.scores[n : n + 1], alone.scores)


@given(networks())
@settings(REPRODUCIBLE, max_examples=100)
def test_a_pass_changes_nothing(net: Network) -> None:
    """Each pass by itself; dead layers are dropped in any case, since a plan cannot have them."""
    safe_run(net)

    def explain(*simplifications: Any) -> dict[str, Attribution]:
        chosen = {
            kind: tuple(p for p in getattr(passes, kind) if p in simplifications)
            for kind in ("NAMING", "FOLDING")
        }
        with mock.patch.multiple(passes, **chosen):
            explainer = Explainer(net.model)
            return {rule: explainer.explain(net.x, rule=rule, target=net.target) for rule in RULES}

    plain = explain(drop_dead)
    for simplification in (*passes.NAMING, *passes.FOLDING):
        if simplification is not drop_dead:
            simplified = explain(drop_dead, simplification)
            for rule in RULES:
                what = f"{simplification.__name__}: {rule}"
                assert_close(simplified[rule].scores, plain[rule].scores, f"{what} scores")
                assert_close(simplified[rule].map, plain[rule].map, f"{what} map")


@given(networks())
@settings(REPRODUCIBLE, max_examples=50)
def test_the_vanilla_map_of_the_oracle_is_the_derivative(net: Network) -> None:
    # Rounding has no derivative; its reverse lets gradients pass.
    assume(all(node.op_type != "QuantizeLinear" for node in net.model.graph.node))
    run, rng = safe_run(net), np.random.default_rng(0)
    target, v = net.target[:, 0], rng.standard_normal(net.x.shape)
    _, gradient = run.explain("vanilla", target)

    def total(x: naive.Array) -> naive.Array:
        scores, _ = oracle.explain(net.model, x, "vanilla", target)
        return scores[np.arange(len(target)), target].sum()

    # Steps far below the margin, so that no gate flips on the way.
    numeric = naive.directional_derivative(total, net.x, v, eps=1e-8)
    scale = np.linalg.norm(gradient) * np.linalg.norm(v)
    assert abs(numeric - (gradient * v).sum()) <= 1e-5 * scale + 1e-6
