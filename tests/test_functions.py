"""Activations that no paper's rule speaks of: the two policies, and how exporters write them in parts."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from agreement import RULES, SAFE, assert_agree, assert_close
from builder import Builder
from cases import Net, chain, node

from gbp import Explainer, InputError
from gbp.cli.main import main
from gbp.diagnostics.inspection import inspect
from gbp.ops import PARSERS
from gbp.ops.functions import Function
from gbp.ops.node import Node

SHAPE = (2, 3, 6, 7)


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(*nets: Net, opset: int = 24, rectifier: bool = False) -> onnx.ModelProto:
    """Convolutions with these between them, and with a rectifier at the end or none."""
    b = Builder(opset)
    x = b.input(*SHAPE)
    for net in nets:
        x = net(b, b.conv(x, 8, 3, pads=(1, 1, 1, 1)))
    return b.model(b.head(b.relu(x) if rectifier else x))


def safe_run(model: onnx.ModelProto, activations: str = "gradient") -> tuple[oracle.Run, Any]:
    """The oracle's run on the first input that leaves no gate to float32 rounding, and the input."""
    for seed in count():
        run = oracle.Run(model, noise(seed=seed), activations)
        if run.margin > SAFE:
            return run, noise(seed=seed)
    raise AssertionError


# --- The policy ---------------------------------------------------------------------------------------------


def squeeze_excite(b: Builder, x: str) -> str:
    gate = b.conv(b.node("Swish", b.conv(b.node("GlobalAveragePool", x), 2, 1)), b.shapes[x][1], 1)
    return b.mul(b.node("Sigmoid", gate), x)


def branches(*ops: str) -> Net:
    """Side by side in one memory, where all or some of the gates are alike."""
    return lambda b, x: b.concat(*(b.node(op, b.conv(x, 8, 1)) for op in ops))


NETWORKS: dict[str, tuple[Net, ...]] = {
    "leakyrelu": (node("LeakyRelu", alpha=0.1), node("LeakyRelu", alpha=0.1)),
    "prelu": (lambda b, x: b.node("PRelu", x, b.constant(b.noise(8, 1, 1))),),
    "swish": (node("Swish"), node("Swish")),
    "tanh behind relu": (node("Relu"), node("Tanh")),
    "sigmoid of sigmoid": (chain(node("Sigmoid"), node("Sigmoid")),),
    "squeeze-excite": (node("Relu"), squeeze_excite, squeeze_excite),
    "alike side by side": (branches("Tanh", "Elu"), node("Gelu")),
    "others side by side": (branches("Tanh", "Relu", "Softplus"),),
    "parts that are read alone": (
        branches("Tanh", "Mish"),
        lambda b, x: b.conv(b.split(b.node("HardSwish", x), (3, 5))[1], 4),
    ),
    "residual": (lambda b, x: b.add(b.conv(y := b.node("Elu", x), 8, 1), y), node("Elu")),
    "arithmetic": (chain(node("Abs"), node("Exp"), node("Sigmoid")), node("Sin")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rectify_clamps_the_gradient_at_every_activation(name: str) -> None:
    model = network(*NETWORKS[name])
    run, _ = safe_run(model, "clamp")
    target = np.random.default_rng(0).integers(0, 4, (2, 2))
    explainer = Explainer(model, activations="clamp")
    for rule in RULES:
        assert_agree(explainer, run, rule, target)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 5, 4), (2, 3, 4, 3, 5)])
def test_rectify_clamps_the_gradient_of_what_a_convolution_reads(shape: tuple[int, ...]) -> None:
    """Whose reverse gates it, without a mask; of volumes in the last plane that adds to it."""
    b = Builder()
    y = b.node("Softplus", b.conv(b.input(*shape), 5, 1))
    model = b.model(b.head(b.conv(y, 4, 3, auto_pad="SAME_UPPER")))
    run = oracle.Run(model, noise(shape), "clamp")
    for rule in RULES:
        assert_agree(Explainer(model, activations="clamp"), run, rule)


def test_by_default_they_take_their_true_gradient() -> None:
    model = network(*NETWORKS["tanh behind relu"])
    run, _ = safe_run(model)
    for rule in RULES:
        assert_agree(Explainer(model), run, rule)


def test_a_network_without_rectifiers_has_a_meaning_under_rectify_only() -> None:
    model = network(*NETWORKS["swish"])
    with pytest.raises(InputError, match=r"no rectifier.*activations='clamp'"):
        Explainer(model).explain(noise())
    assert Explainer(model, activations="clamp").explain(noise()).map.any()
    with pytest.raises(InputError, match="no rectifier"):  # nor is arithmetic an activation
        Explainer(network(node("Sin")), activations="clamp").explain(noise())
    with pytest.raises(InputError, match=r"activations is 'rectify'.*gradient, clamp"):
        Explainer(model, activations="rectify")


def test_the_notes_say_what_was_done() -> None:
    model = network(node("Sigmoid"), node("Elu"), node("Sigmoid"), rectifier=True)
    nodes = "2 Sigmoid, 1 Elu nodes: the papers define no rule for them; "
    true = nodes + "the true gradient of them is taken."
    clamped = nodes + "the gradient of them was clamped to its positive part first (activations='clamp')."
    assert Explainer(model).explain(noise()).notes == (true,)
    rectifying = Explainer(model, activations="clamp")
    assert rectifying.explain(noise()).notes == (clamped,)
    assert rectifying.explain(noise(), rule="vanilla").notes == (true,)
    assert Explainer(network(node("Abs"), rectifier=True)).explain(noise()).notes == ()


def test_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    model, image = tmp_path / "m.onnx", tmp_path / "i.png"
    onnx.save(network(node("Swish")), model)
    Image.new("RGB", (7, 6), "navy").save(image)
    options = ["explain", str(model), str(image), "--preprocess", "unit", "-o", str(tmp_path / "o.png")]
    assert main(options) == 2
    assert "--activations clamp" in capsys.readouterr().err
    assert main([*options, "--activations", "clamp"]) == 0
    assert "1 Swish node: the papers define no rule for it" in capsys.readouterr().out


# --- In parts -----------------------------------------------------------------------------------------------


def number(value: float) -> Net:
    return lambda b, x: b.constant(float(value))


def op(name: str, *operands: Net) -> Net:
    return lambda b, x: b.node(name, *(operand(b, x) for operand in operands))


def x(b: Builder, name: str) -> str:
    return name


def clip(operand: Net, hi: float) -> Net:
    return lambda b, name: b.clip(operand(b, name), 0, hi)


def both(name: str, f: Net) -> Net:
    """Of one tensor twice."""

    def net(b: Builder, operand: str) -> str:
        y = f(b, operand)
        return b.node(name, y, y)

    return net


shifted = clip(op("Add", x, number(3)), 6)
cubic = op("Add", x, op("Mul", number(0.044715), op("Pow", x, number(3))))
normal = op("Add", op("Erf", op("Div", x, number(2**0.5))), number(1))
inner = op("Mul", cubic, number((2 / np.pi) ** 0.5))

#: How it is written → what it is, and whether a rectifier is in it.
PARTS: dict[str, tuple[Net, Net, bool]] = {
    "silu": (op("Mul", x, op("Sigmoid", x)), node("Swish"), False),
    "silu as a quotient": (
        op("Div", x, op("Add", number(1), op("Exp", op("Neg", x)))),
        node("Swish"),
        False,
    ),
    "hardswish": (op("Div", op("Mul", x, shifted), number(6)), node("HardSwish"), True),
    "hardswish, divided first": (op("Mul", op("Div", shifted, number(6)), x), node("HardSwish"), True),
    "hardswish by factors": (op("Mul", op("Mul", shifted, number(1 / 6)), x), node("HardSwish"), True),
    "hardswish by HardSigmoid": (
        op("Mul", x, lambda b, name: b.node("HardSigmoid", name, alpha=1 / 6, beta=0.5)),
        node("HardSwish"),
        False,
    ),
    "hardswish by Min and Max": (
        op(
            "Mul",
            x,
            op("Div", op("Min", op("Max", op("Add", x, number(3)), number(0)), number(6)), number(6)),
        ),
        node("HardSwish"),
        True,
    ),
    "hardsigmoid": (op("Div", shifted, number(6)), node("HardSigmoid", alpha=1 / 6, beta=0.5), True),
    "gelu": (op("Mul", op("Mul", x, normal), number(0.5)), node("Gelu"), False),
    "gelu, halved first": (op("Mul", op("Mul", x, number(0.5)), normal), node("Gelu"), False),
    "gelu by tanh": (
        op("Mul", op("Mul", number(0.5), x), op("Add", number(1), op("Tanh", inner))),
        node("Gelu", approximate="tanh"),
        False,
    ),
    "mish": (op("Mul", x, op("Tanh", op("Softplus", x))), node("Mish"), False),
    "mish by Log and Exp": (
        op("Mul", x, op("Tanh", op("Log", op("Add", op("Exp", x), number(1))))),
        node("Mish"),
        False,
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_an_activation_in_parts_is_the_activation(name: str) -> None:
    written, known, clips = PARTS[name]
    parts, whole = (network(net, node("Relu"), net, node("Relu")) for net in (written, known))
    explainer = Explainer(parts)
    run, image = safe_run(parts)
    for rule in RULES:
        a, b = (e.explain(image, rule=rule) for e in (explainer, Explainer(whole)))
        assert_close(a.scores, b.scores, f"{rule} scores")
        assert_close(a.map, b.map, f"{rule} map")
        if rule == "vanilla" or not clips:
            assert_agree(explainer, run, rule)
    assert [note.split()[0] for note in a.notes] == ["2"]  # and no note about a Clip
    rows = [layer for layer in inspect(parts).layers if layer.op not in ("Conv", "Relu", "Flatten", "Gemm")]
    assert sum(row.plan == "by vector" for row in rows) == 2
    assert {row.plan for row in rows} <= {"by vector", "folded"}


OTHERS: dict[str, Net] = {
    "relu6": clip(x, 6),
    "relu6 shifted": shifted,
    "sigmoid of another tensor": lambda b, name: b.mul(name, b.node("Sigmoid", b.conv(name, 8, 1))),
    "steeper silu": op("Mul", x, op("Sigmoid", op("Mul", x, number(1.5)))),
    "gelu with another root": op("Mul", x, op("Erf", op("Div", x, number(1.5)))),
    "by channel": lambda b, name: b.mul(name, b.node("Sigmoid", b.mul(name, b.constant(b.noise(8, 1, 1))))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_known_activation_stays(name: str) -> None:
    model = network(OTHERS[name], node("Relu"))
    run, _ = safe_run(model)
    for rule in RULES:
        assert_agree(Explainer(model), run, rule)


def test_parts_that_others_read_stay() -> None:
    def net(b: Builder, name: str) -> str:
        gate = b.clip(b.add(name, b.constant(3.0)), 0, 6)
        return b.concat(b.node("Div", b.mul(name, gate), b.constant(6.0)), b.conv(gate, 4, 1))

    model = network(net, rectifier=True)
    run, _ = safe_run(model)
    for rule in RULES:
        assert_agree(Explainer(model), run, rule)


def test_a_file_of_nothing_but_parts_is_read_in_time() -> None:
    """Each layer could end an activation that begins some layers before."""
    b = Builder()
    y = b.node("Sigmoid", b.input(1, 2))
    for _ in range(2000):
        y = b.node("Erf", y)
    assert len(inspect(b.model(y)).layers) == 2001


# --- Dialects -----------------------------------------------------------------------------------------------


def old(name: str, *shape: int, **attributes: int) -> Net:
    return lambda b, x: b.node(name, x, b.constant(np.abs(b.noise(*shape)) + 0.5), broadcast=1, **attributes)


def new(name: str, shape: tuple[int, ...], now: tuple[int, ...]) -> Net:
    return lambda b, x: b.node(name, x, b.constant((np.abs(b.noise(*shape)) + 0.5).reshape(now)))


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    ("shape", "attributes", "now"),
    [
        ((8,), {"axis": 1}, (8, 1, 1)),
        ((8, 6), {"axis": 1}, (8, 6, 1)),
        ((7,), {}, (7,)),
        ((6, 7), {}, (6, 7)),
    ],
)
def test_broadcast_before_opset_7(
    name: str, shape: tuple[int, ...], attributes: dict[str, int], now: tuple[int, ...]
) -> None:
    before = Explainer(network(old(name, *shape, **attributes), opset=6, rectifier=True))
    after = Explainer(network(new(name, shape, now), opset=13, rectifier=True))
    for rule in RULES:
        a, b = (explainer.explain(noise(), rule=rule) for explainer in (before, after))
        np.testing.assert_array_equal(a.map, b.map)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_max_with_zeros_is_a_rectifier() -> None:
    """One number, or as many as there are channels."""
    for zeros in (np.zeros(()), np.zeros((8, 1, 1)), np.zeros((1, 8, 1, 1))):
        net = network(lambda b, x, zeros=zeros: b.node("Max", x, b.constant(zeros)))
        same = network(lambda b, x: b.relu(x))
        for rule in RULES:
            a, b = (Explainer(model).explain(noise(), rule=rule) for model in (net, same))
            np.testing.assert_array_equal(a.map, b.map)


def test_a_whole_exponent() -> None:
    """May be of another type than what it raises, since opset 12."""
    a = Explainer(network(lambda b, x: b.node("Pow", x, b.constant(3))))
    b = Explainer(network(lambda b, x: b.node("Pow", x, b.constant(3.0))))
    np.testing.assert_array_equal(a.predict(noise()), b.predict(noise()))


def test_slopes_of_prelu_before_opset_7_are_those_of_channels() -> None:
    def prelu(*shape: int) -> Net:
        return lambda b, x: b.node("PRelu", x, b.constant(b.noise(8).reshape(shape)))

    a = Explainer(network(prelu(8), opset=6)).explain(noise(), rule="vanilla")
    b = Explainer(network(prelu(8, 1, 1), opset=13)).explain(noise(), rule="vanilla")
    np.testing.assert_array_equal(a.map, b.map)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_the_constants_of_selu_changed_with_opset_6() -> None:
    proto = onnx.helper.make_node("Selu", ["x"], ["y"], consumed_inputs=[0])
    old, new = (Node(proto, opset, [(1, 3)]) for opset in (1, 6))
    assert PARSERS["Selu"](old) == Function("Elu", 1.6732, 1.0507)
    assert PARSERS["Selu"](new) == Function("Elu", 1.67326319217681884765625, 1.05070102214813232421875)
    old.check_all_attributes_read()
