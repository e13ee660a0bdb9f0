"""What the importer knows of ops is listed at the ops, once."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx
import pytest

import gbp
from gbp.ops import FACTS, PARSERS, REWRITERS, fact
from gbp.ops.facts import Fact

IMPORTER = sorted((Path(gbp.__file__).parent / "importer").glob("*.py"))
#: Files that list ops for other questions: where a result holds the batch, what an older opset computes, how
#: to lift a node over a batch, where integers meet their scale, and how to compute a window of constants.
LISTING = {
    "batch_place_nodes.py",
    "folding_dated.py",
    "folding_windows.py",
    "moved_batch.py",
    "sample_axis_nodes.py",
    "scales.py",
}
#: Lists by op in the other files, which ask what no Fact says: which axes a head sums over, and which heads
#: give probabilities; which nodes normalise an input, and which only hand it on; which may count samples;
#: which compare.
OTHER = {
    ("subgraph.py", ("Softmax", "LogSoftmax")),
    ("outputs.py", ("Softmax", "Sigmoid")),
    ("hints.py", ("Identity", "Cast", "Transpose", "Dropout")),
    ("hints.py", ("Sub", "Div", "Mul", "BatchNormalization")),
    ("batch_axis.py", ("Reshape",)),
    ("batch_axis.py", ("Slice",)),
    (
        "refusals.py",
        (
            "And",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "IsInf",
            "IsNaN",
            "Less",
            "LessOrEqual",
            "Not",
            "Or",
            "Xor",
        ),
    ),
}


def listed(path: Path) -> set[tuple[str, ...]]:
    """The ops with facts that a file names in tuples, lists, sets and dicts: the names in each of these."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Dict(keys=parts):
                parts = [part for part in parts if part is not None]
            case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
                pass
            case _:
                continue
        names = [part.value for part in parts if isinstance(part, ast.Constant) and part.value in FACTS]
        if names:
            found.add(tuple(names))
    return found


def test_the_importer_lists_no_op_that_has_facts() -> None:
    found = {(path.name, names) for path in IMPORTER if path.name not in LISTING for names in listed(path)}
    assert found == OTHER
    assert {path.name for path in IMPORTER if path.name in LISTING and listed(path)} == LISTING


def test_facts_say_something_of_an_op_that_is_read() -> None:
    assert [op for op in FACTS if fact(op) != FACTS[op]] == []
    assert FACTS.keys() - PARSERS.keys() - REWRITERS.keys() == {"ZipMap"}


def test_every_op_states_its_facts() -> None:
    """What it does with planes has no default: a new op that says nothing is found here."""
    assert {*PARSERS, *REWRITERS} - FACTS.keys() == set()


#: Ops that stand for another, where the name does not say for which.
STANDS_FOR = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "QuickGelu"), "Gelu"),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"), "MatMul"),
    **{
        "TransposeMatMul": "MatMul",
        "QAttention": "Attention",
        "QGemm": "Gemm",
        "FC": "Gemm",
        "Affine": "Add",
        "Scale": "Mul",
    },
    **{"ScaledTanh": "Tanh", "ParametricSoftplus": "Softplus"},
}


@pytest.mark.parametrize("op", [op for op in FACTS if not onnx.defs.has(op) or "QLinear" in op])
def test_an_op_that_stands_for_another_does_the_same_with_planes(op: str) -> None:
    alone = op.rsplit(".", maxsplit=1)[-1].removeprefix("QLinear").removeprefix("Fused")
    same = STANDS_FOR.get(alone, alone)
    assert same not in FACTS or fact(op).planes == fact(same).planes


def test_operands_are_listed_where_onnx_does_not_know_the_op() -> None:
    known = {op for op in (*PARSERS, *REWRITERS) if "." not in op and onnx.defs.has(op)}
    known -= {"ThresholdedRelu"}  # ONNX knows it since opset 10
    assert {op for op in (*PARSERS, *REWRITERS) if fact(op).operands is None} == known


def test_an_op_without_facts_has_the_defaults() -> None:
    assert fact("NoSuchOp") == Fact("other")
