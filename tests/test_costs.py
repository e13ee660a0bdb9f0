"""Small files that ask for much: planning and running take time in proportion to the nodes of a graph."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import onnx
import pytest
from builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gbp import Explainer, GbpError, UnsupportedError, limits
from gbp.importer import first_nodes, node_queue, subgraph
from gbp.importer.load import build, open_model
from gbp.passes.known import _FEW, known, likely
from gbp.passes.search import Search
from gbp.plan import arena
from gbp.plan.plan import Plan
from gbp.runtime import garbage
from gbp.runtime.garbage import collected_later

Graph = Callable[[int], onnx.ModelProto]
node = helper.make_node
naming = importlib.import_module("gbp.passes.name_activations")  # the package has a function of that name


def graph(nodes: list[onnx.NodeProto], output: str, channels: int = 3, **stored: object) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in stored.items()]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, 4, 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])


def chain(*ops: Callable[[str, str], onnx.NodeProto], **stored: object) -> Graph:
    """These ops in turns, n in all."""
    return lambda n: graph(
        [ops[i % len(ops)](f"t{i}" if i else "x", f"t{i + 1}") for i in range(n)], f"t{n}", **stored
    )


def relu(x: str, y: str) -> onnx.NodeProto:
    return node("Relu", [x], [y])


def twice(n: int) -> onnx.ModelProto:
    """x · Sigmoid(x), again and again."""
    nodes = []
    for i in range(n // 2):
        x = f"t{i}" if i else "x"
        nodes += [node("Sigmoid", [x], [f"s{i}"]), node("Mul", [x, f"s{i}"], [f"t{i + 1}"])]
    return graph(nodes, f"t{n // 2}")


def fan(n: int) -> onnx.ModelProto:
    """n tensors at once."""
    return graph(
        [*(relu("x", f"a{i}") for i in range(n)), node("Concat", [f"a{i}" for i in range(n)], ["y"], axis=1)],
        "y",
    )


def nested(n: int) -> onnx.ModelProto:
    """Each Concat holds the last, of one channel more."""
    joined = (node("Concat", [f"t{i}" if i else "x", "x"], [f"t{i + 1}"], axis=1) for i in range(n // 8))
    return graph(list(joined), f"t{n // 8}", channels=1)


GRAPHS: dict[str, Graph] = {
    "rectifiers": chain(relu),
    "transposes": chain(lambda x, y: node("Transpose", [x], [y], perm=[0, 2, 3, 1]), relu),
    "almost activations": chain(relu, lambda x, y: node("Add", [x, "c"], [y]), c=np.float32(1e-3)),
    "activations in parts": twice,
    "a fan": fan,
    "nested concatenations": nested,
    "convolutions": chain(
        lambda x, y: node("Conv", [x, "w"], [y]), w=np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    ),
    "constants": lambda n: graph(
        [
            *(node("Neg", [f"c{i}"], [f"c{i + 1}"]) for i in range(n // 4)),
            node("Add", ["x", f"c{n // 4}"], ["y"]),
        ],
        "y",
        c0=np.float32(1),
    ),
}


def cost(model: onnx.ModelProto) -> float:
    """CPU seconds to plan and to run."""
    data, start = model.SerializeToString(), time.process_time()
    explainer = Explainer(data)
    explainer.explain(np.ones((1, *explainer.input_shape[1:]), np.float32), rule="vanilla")
    return time.process_time() - start


@pytest.mark.parametrize("name", GRAPHS)
def test_cost_is_linear_in_nodes(name: str) -> None:
    make = GRAPHS[name]
    cost(make(64))  # kernels are loaded
    few, many = cost(make(1000)), cost(make(4000))
    if many >= min(8 * few + 0.3, 10):  # once more, for the machine may have been busy
        few, many = min(few, cost(make(1000))), min(many, cost(make(4000)))
    assert many < 8 * few + 0.3  # 4 times as many
    assert many < 10


def test_the_input_is_found_in_one_pass() -> None:
    """Behind however many transposes, of which each is read by the next."""
    n, real, looked_at = 2**11, subgraph.first_nodes, []

    def counted(nodes: Iterable[onnx.NodeProto], image: str) -> Iterator[onnx.NodeProto]:
        return real((looked_at.append(node.name) or node for node in nodes), image)

    patched = (mock.patch.object(module, "first_nodes", counted) for module in (subgraph, first_nodes))
    with next(patched), next(patched):
        Explainer(GRAPHS["transposes"](n).SerializeToString())
    assert n <= len(looked_at) <= 3 * n


REPEATED: dict[str, Graph] = {
    "rectifiers": GRAPHS["rectifiers"],
    "almost activations": GRAPHS["almost activations"],
    "activations in parts": twice,
    "nothing": chain(lambda x, y: node("Identity", [x], [y])),
    "shifts": chain(lambda x, y: node("Add", [x, "c"], [y]), c=np.float32(1e-6)),
    "scales": chain(lambda x, y: node("Mul", [x, "c"], [y]), c=np.ones((3, 1, 1), np.float32)),
    "guards": chain(lambda x, y: node("Max", [x, "c"], [y]), c=np.float32(1e-9)),
}


def judged(model: onnx.ModelProto) -> int:
    """How many subgraphs are tested for what they are while the model is loaded."""
    with mock.patch.object(naming, "known", wraps=naming.known) as known:
        Explainer(model.SerializeToString())
    return known.call_count


def named(model: onnx.ModelProto) -> list[str]:
    """The types of the layers once activations are named."""
    found = build(open_model(model.SerializeToString()), (1, 3, 4, 4))
    return [type(layer.op).__name__ for layer in naming.name_activations(found).layers]


@pytest.mark.parametrize("name", REPEATED)
def test_layers_that_repeat_are_judged_once(name: str) -> None:
    make = REPEATED[name]
    assert judged(make(128)) == judged(make(256)) < 600


def test_scales_and_shifts_of_any_constants_are_no_activation() -> None:
    """Each has its own, so none repeats; they need no test to be known as straight lines."""
    stored = {f"c{i}": np.float32(1 + i / 8) for i in range(64)}
    ops = ("Add", "Mul", "Sub", "Div")
    nodes = [node(ops[i % 4], [f"t{i}" if i else "x", f"c{i}"], [f"t{i + 1}"]) for i in range(64)]
    assert judged(graph(nodes, "t64", **stored)) == 0


OWN: dict[str, Callable[[int, str, str], onnx.NodeProto]] = {
    "LeakyRelu": lambda i, x, y: node("LeakyRelu", [x], [y], alpha=0.9 + i / 1000),
    "Elu": lambda i, x, y: node("Elu", [x], [y], alpha=0.9 + i / 1000),
    "Selu": lambda i, x, y: node("Selu", [x], [y], alpha=0.9 + i / 1000, gamma=1 + i / 1000),
    "HardSigmoid": lambda i, x, y: node("HardSigmoid", [x], [y], alpha=0.1 + i / 1000),
    "PRelu": lambda i, x, y: node("PRelu", [x, f"c{i}"], [y]),
    "Clip": lambda i, x, y: node("Clip", [x, f"low{i}", f"high{i}"], [y]),
    "Clip from 0": lambda i, x, y: node("Clip", [x, "zero", f"high{i}"], [y]),
}


@pytest.mark.parametrize("name", OWN)
def test_activations_with_constants_of_their_own_are_judged_one_by_one(name: str) -> None:
    """Not in every length of the chain: each of the nodes is an activation of its own."""
    n = 64
    stored: dict[str, object] = {f"c{i}": np.float32([[[0.1 + i / 1000]]] * 3) for i in range(n)}
    stored |= {f"low{i}": np.float32(-1 - i / 1000) for i in range(n)} | {"zero": np.float32(0)}
    stored |= {f"high{i}": np.float32(9 - i / 1000) for i in range(n)}
    nodes = [OWN[name](i, f"t{i}" if i else "x", f"t{i + 1}") for i in range(n)]
    model = graph(nodes, f"t{n}", **stored)
    assert judged(model) <= 3 * n
    if name != "Clip from 0":  # where all but the last Clip do nothing
        assert len(named(model)) == n


@pytest.mark.parametrize("spread", [(), (3, 1, 1)])
def test_scales_between_rectifiers_are_judged_in_few_lengths(spread: tuple[int, ...]) -> None:
    """Also those that nearly cancel: a chain of them may be judged in the length of a few rectifiers only."""
    n = 64
    by_place = np.arange(np.prod(spread, dtype=int)).reshape(spread) / 8
    stored = {f"c{i}": np.float32(1 + (i + 1) * 1e-5 + by_place) for i in range(n)}
    nodes = [
        node(("Mul", "Relu")[i % 2], [f"t{i}" if i else "x", *([f"c{i}"] * (i % 2 == 0))], [f"t{i + 1}"])
        for i in range(n)
    ]
    assert judged(graph(nodes, f"t{n}", **stored)) <= 2 * n


@settings(max_examples=100)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["Relu", "Sigmoid", "Neg", "Abs", "Exp", "Softplus", "HardSigmoid", "twice"]),
            st.tuples(st.sampled_from(["Add", "Mul", "Min", "Max"]), st.sampled_from([-1.0, 0.0, 1.0, 3.0])),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_question_of_little_cost_overlooks_no_known_function(ops: list[str | tuple[str, float]]) -> None:
    nodes, stored, last = [], dict[str, object](), "x"
    for i, op in enumerate(ops):
        if isinstance(op, tuple):
            stored[f"c{i}"] = np.float32(op[1])
            nodes.append(node(op[0], [last, f"c{i}"], [f"t{i}"]))
        elif op == "twice":
            nodes.append(node("Mul", [last, "x"], [f"t{i}"]))
        else:
            nodes.append(node(op, [last], [f"t{i}"]))
        last = f"t{i}"
    found = build(open_model(graph(nodes, last, **stored).SerializeToString()), (1, 3, 4, 4))
    search = Search(found)
    growths = [search.before(layer.output) for layer in found.layers]
    for growth, rows, sizes in zip(
        growths, search.values(growths, _FEW), likely(search, growths), strict=True
    ):
        assert len(rows) == len(growth.ends)
        for size, row in zip(growth.ends, rows, strict=True):
            assert np.array_equal(row, growth.subgraph(size)(_FEW)[:, 0], equal_nan=True)
        assert sizes.issuperset(size for size in growth.ends if known(growth.subgraph(size)))


def test_scales_that_nearly_cancel_are_no_prelu() -> None:
    near = np.array([0.5, 0.5 + 2e-7, 0.5 - 2e-7], np.float32).reshape(3, 1, 1)
    nodes = [node("Mul", ["x", "two"], ["t"]), node("Mul", ["t", "near"], ["y"])]
    assert named(graph(nodes, "y", two=np.float32(2), near=near)) == ["Affine", "Affine"]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu", "Add", "Mul", "Neg", "Abs"]), min_size=1))
def test_a_verdict_does_not_depend_on_what_was_judged_before(ops: list[str]) -> None:
    """The same layers twice, apart, and once: each time they are named alike."""

    def kinds(times: int) -> list[str]:
        nodes, last = [], "x"
        for at in range(times):
            nodes.append(node("Conv", [last, "w"], [f"c{at}"]))
            last = f"c{at}"
            for i, op in enumerate(ops):
                nodes.append(node(op, [last] * (2 if op in ("Add", "Mul") else 1), [f"t{at}/{i}"]))
                last = f"t{at}/{i}"
        nodes.append(node("Conv", [last, "w"], ["y"]))
        return named(graph(nodes, "y", w=np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)))

    assert kinds(2) == [*kinds(1)[:-1] * 2, "Conv"]


# -------------------------------------------------------------------------------- the collector of garbage


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_waits_while_a_network_is_built(was_on: bool) -> None:
    seen, real = [], Plan.build

    def watched(*args: object, **options: object) -> Plan:
        seen.append(gc.isenabled())
        return real(*args, **options)

    try:
        (gc.enable if was_on else gc.disable)()
        with mock.patch.object(Plan, "build", watched):
            Explainer(GRAPHS["rectifiers"](8).SerializeToString(), cache=False)
        assert (seen, gc.isenabled()) == ([False], was_on)
        with pytest.raises(GbpError):
            Explainer(b"no model")
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_the_collector_waits_for_the_last_of_several_threads() -> None:
    first, second = collected_later(), collected_later()
    with ThreadPoolExecutor(1) as pool:
        first.__enter__()
        pool.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert not gc.isenabled()
        pool.submit(second.__exit__, None, None, None).result()
        assert gc.isenabled()


def test_a_builder_that_an_interrupt_ended_is_forgotten() -> None:
    garbage._waiting.begin(garbage._Builder())  # and its frame is gone
    assert not gc.isenabled()
    with collected_later():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_collector_works_in_a_child_of_a_process_that_builds() -> None:
    code = """
import gc, os
from gbp.runtime.garbage import collected_later
with collected_later():
    child = os.fork()
    if not child:
        os._exit(not gc.isenabled())
assert os.waitpid(child, 0)[1] == 0 and gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_model_that_is_refused_leaves_no_memory(nodes: int) -> None:
    """Not even where Python does not look for cycles: what was folded is gone with the error."""
    refused = [node("Conv", ["x", "c"], [f"y{i}"]) for i in range(nodes)]  # of a constant with two axes
    model = graph(
        [node("Expand", ["one", "s"], ["c"]), *refused], "y0", one=np.float32(1), s=np.array([1024, 2048])
    )
    data = model.SerializeToString()
    gc.collect()
    tracemalloc.start()
    gc.disable()
    try:
        for _ in range(2):
            with pytest.raises(GbpError, match="weights have shape"):
                Explainer(data, cache=False)
        assert tracemalloc.get_traced_memory()[1] > 2**23  # it was folded
        assert tracemalloc.get_traced_memory()[0] < 2**22
    finally:
        gc.enable()
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------ places in memory

LIVES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 200)), max_size=40)


@given(LIVES, st.sampled_from([0, 10**6]))
def test_what_lives_at_once_lies_apart(lives: list[tuple[int, int, int]], most: int) -> None:
    uses = [(str(i), when) for i, (a, b, _) in enumerate(lives) for when in (a, b)]
    sizes = {str(i): size for i, (_, _, size) in enumerate(lives)}
    with mock.patch.object(arena, "_MAX_PACKED", most):
        packed = arena.pack(uses, sizes)
    for i, (a, b, size) in enumerate(lives):
        start = packed.begins[str(i)]
        assert start % arena._LINE == 0
        assert 0 <= start <= packed.size - size
        for j, (c, d, other) in enumerate(lives[:i]):
            if max(min(a, b), min(c, d)) <= min(max(a, b), max(c, d)):
                at = packed.begins[str(j)]
                assert start >= at + other or at >= start + size


def test_how_memory_is_packed_changes_no_bit() -> None:
    b = Builder()
    x = b.conv(b.input(1, 3, 9, 8), 8)
    for _ in range(4):
        x = b.relu(b.add(b.relu(b.conv(x, 8, pads=(1,) * 4)), x))
    model, given_x = b.model(b.head(x)), b.noise(2, 3, 9, 8)
    maps = set()
    for most in (0, 10**6):
        with mock.patch.object(arena, "_MAX_PACKED", most):
            maps.add(Explainer(model).explain(given_x).map.tobytes())
    assert len(maps) == 1


# ------------------------------------------------------------------------------------- limits of what is read

#: It makes 700 MiB of a picture of 48 numbers.
PADDED = node("Conv", ["a", "w"], ["y"], pads=[2**21, 1, 1, 1])

OPEN = """
import sys, time
from gbp import Explainer, GbpError, UnsupportedError, limits
start = time.process_time()
try:
    Explainer(sys.argv[1])
except GbpError as error:
    print(error)
peak = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024
assert peak < 400 and time.process_time() - start < 5, (peak, time.process_time() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: chain(relu)(2**14 + 1), "nodes, which make"),
        (
            lambda: graph(
                [node("Tile", ["x", "r"], ["a"]), relu("a", "y")], "y", r=np.array([1, 1, 2**14, 2**14])
            ),
            "the output would have shape",
        ),
        (
            lambda: graph(
                [node("ConstantOfShape", ["s"], ["w"]), node("Add", ["x", "w"], ["y"])],
                "y",
                s=np.array([2**20, 2**20]),
            ),
            "its constant result could have",
        ),
        (lambda: graph([node("Sum", ["x"] * 2**17, ["y"])], "y"), "more than 131072 names"),
        (
            lambda: graph([relu("x", "a"), PADDED], "y", w=np.ones((8, 3, 3, 3), np.float32)),
            "Supported: up to 256 MiB for a network and an image of this size. Explain a smaller image",
        ),
    ],
    ids=["nodes", "elements", "constants", "names", "working memory"],
)
def test_limits(tmp_path: Path, model: Callable[[], onnx.ModelProto], says: str) -> None:
    (tmp_path / "net.onnx").write_bytes(model().SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path / "net.onnx")],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def gated(layers: int) -> onnx.ModelProto:
    """A classifier of 16,000 samples of sound, like WaveNet: 64 channels at every sample."""
    b = Builder(17)
    x = b.conv(b.input(1, 1, 16000), 64, 1)
    for i in range(layers):
        past = {"dilations": [2 ** (i % 10)], "pads": [2 ** (i % 10), 0]}
        a, gate = b.node("Tanh", b.conv(x, 64, 2, **past)), b.node("Sigmoid", b.conv(x, 64, 2, **past))
        x = b.add(x, b.conv(b.mul(a, gate), 64, 1))
    return b.model(b.head(b.node("GlobalAveragePool", x)))


def unet() -> onnx.ModelProto:
    """A U-Net of grey pictures of 512 by 512 pixels, with 64 channels at every pixel."""
    b = Builder(17)

    def block(x: str, channels: int) -> str:
        for _ in range(2):
            x = b.conv(x, channels, pads=(1,) * 4)
            ones, zeros = b.constant(np.ones(channels)), b.constant(np.zeros(channels))
            x = b.node("InstanceNormalization", x, ones, zeros)
            x = b.mul(x, b.node("Sigmoid", x))
        return x

    fine = block(b.input(1, 1, 512, 512), 64)
    coarse = block(b.node("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2]), 128)
    x = b.concat(b.conv_transpose(coarse, 64, 2, strides=[2, 2]), fine)
    return b.model(b.flatten(b.node("GlobalAveragePool", b.conv(block(x, 64), 2, 1))))


@pytest.mark.parametrize("model", [lambda: gated(30), lambda: gated(40), unet], ids=["30", "40", "U-Net"])
def test_many_channels_in_many_layers_are_planned(model: Callable[[], onnx.ModelProto]) -> None:
    """They take 300 times the memory of their input and more."""
    Explainer(model(), cache=False)


COSTLY: dict[str, Callable[[int], onnx.ModelProto]] = {
    "layers": chain(
        lambda x, y: node("Conv", [x, "w"], [y]), w=np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    ),
    "nodes": chain(
        lambda x, y: node("Einsum", [x, "w"], [y], equation="nchw,wv->nchv"), w=np.eye(4, dtype=np.float32)
    ),
}


@pytest.mark.parametrize(("name", "module"), [("layers", limits), ("nodes", node_queue)])
def test_layers_of_costly_kinds_count_as_several(name: str, module: ModuleType) -> None:
    """20 of these count as more than 30 layers, or stand for more than 30 nodes; 4 do not."""
    with mock.patch.object(module, "MAX_NODES", 30):
        Explainer(COSTLY[name](4).SerializeToString(), cache=False)
        with pytest.raises(UnsupportedError, match=f"too many {name}.*layers; some kinds|3[0-9] {name}"):
            Explainer(COSTLY[name](20).SerializeToString(), cache=False)


def test_different_activations_in_parts_are_limited() -> None:
    def leaky(n: int) -> onnx.ModelProto:
        nodes, stored = [], dict[str, object]()
        for i in range(n):
            stored[f"c{i}"] = np.float32(0.1 + i / 100)
            nodes += [
                node("Mul", [f"t{i}" if i else "x", f"c{i}"], [f"m{i}"]),
                node("Max", [f"t{i}" if i else "x", f"m{i}"], [f"t{i + 1}"]),
            ]
        return graph(nodes, f"t{n}", **stored)

    assert named(leaky(4)) == ["Function"] * 4
    with mock.patch.object(naming, "_MAX_JUDGED", 8), pytest.raises(UnsupportedError, match="in parts"):
        named(leaky(40))
