"""Models that cannot be used are refused with a `GbpError` that names node, op and what was found."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from broken import (
    Change,
    all_of,
    before,
    constant,
    dims,
    external,
    external_constant,
    field,
    image,
    input_dims,
    inputs,
    made_by,
    node,
    raw,
    renamed,
    sparse,
    stored,
    subgraph,
    tensor,
    unknown_ops,
    valid,
    weights,
    with_,
)
from builder import Builder
from onnx import TensorProto, numpy_helper

from gbp import Explainer, GbpError, InputError, ModelError, UnsupportedError
from gbp.diagnostics.inspection import inspect

M, U, I = ModelError, UnsupportedError, InputError
HUGE, MOST = 2**40, 2**63 - 1


def transposed(**attributes: Any) -> Change:
    """A ConvTranspose of 2×2 taps before the pool."""
    return all_of(
        before("pool", "ConvTranspose", "t", **attributes), stored("t", np.ones((8, 8, 2, 2), np.float32))
    )


def sampled(grid: tuple[int, ...], **attributes: Any) -> Change:
    """A GridSample before the pool, with a grid of this shape."""
    values = np.random.default_rng(0).uniform(-1, 1, grid).astype(np.float32)
    return all_of(
        field("opset_import[0].version", 20),
        before("pool", "GridSample", "grid", **attributes),
        stored("grid", values),
    )


def indices_to(name: str) -> Change:
    """The pool's Indices, 'i', are what node `name` reads."""
    return all_of(lambda m: node(m, "pool").output.append("i"), inputs(name, "i"))


def unpooled(*operands: str, **attributes: Any) -> Change:
    """A MaxUnpool behind the pool, whose Indices are 'i'."""
    return all_of(
        lambda m: node(m, "pool").output.append("i"),
        before("flatten", "MaxUnpool", *operands, kernel_shape=[2, 2], **attributes),
    )


BROKEN: dict[str, tuple[Change, type[GbpError], str]] = {
    # the file as a whole
    "unknown ops, all at once": (
        unknown_ops,
        U,
        r"3 node.*Frobnicate 'relu' \(node 3 of 6\); LSTM 'pool'.*NonZero 'flatten'.*explain what feeds",
    ),
    "random numbers, as in training": (
        all_of(renamed("relu", "StatelessRandomUniformV2"), renamed("pool", "TopK")),
        U,
        r"2 node.*TopK 'pool' \(node \d of 6\)\. The file draws random numbers, as in training: "
        r"export .*training=False\)\), where x is a keras.Input\.$",
    ),
    "If": (subgraph("If"), U, "If 'relu'"),
    "Loop": (subgraph("Loop"), U, "Loop 'relu'"),
    "own domain": (renamed("relu", "Relu", "com.example"), U, "com.example.Relu 'relu'"),
    "no opset": (lambda m: m.ClearField("opset_import"), M, "imports no version"),
    "opset of another domain": (field("opset_import[0].domain", "ai.onnx.ml"), M, "imports no version"),
    "opset 0": (field("opset_import[0].version", 0), U, r"opset 0\..*opset 1 to"),
    "training mode by outputs": (
        lambda m: node(m, "bn").output.extend(["mean'", "var'", "saved mean", "saved var"]),
        U,
        "'bn': it has 5 outputs, as in training",
    ),
    "training mode, opset 6": (field("opset_import[0].version", 6), U, "'bn': is_test is 0"),
    "opset 999": (field("opset_import[0].version", 999), U, r"opset 999\."),
    "opset -1": (field("opset_import[0].version", -1), U, r"opset -1\."),
    "no nodes": (lambda m: m.graph.ClearField("node"), M, "holds no ONNX graph"),
    "no input": (lambda m: m.graph.ClearField("input"), U, "no input to explain"),
    "two inputs": (
        all_of(lambda m: m.graph.input.add(name="other"), before("conv", "Add", "other")),
        I,
        "2 inputs, 'x', 'other', have no value.*input='x', if that is the image",
    ),
    "no output": (lambda m: m.graph.ClearField("output"), I, "0 outputs"),
    "two outputs": (lambda m: m.graph.output.add(name="z"), I, "2 outputs: 'y' .*; 'z' .*output="),
    "output of no node": (field("graph.output[0].name", "w"), M, "output 'w' is made by no node"),
    "output that ignores the image": (
        all_of(inputs("softmax", "fc_b"), with_("softmax", axis=0)),
        M,
        "'y' does not depend on",
    ),
    "external data": (external, I, "'w' is stored in the file '/etc/passwd'"),
    "external data in a node": (external_constant, U, "'made': its tensor is stored in another file"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.append(sparse()), U, "sparse"),
    # names
    "cycle": (inputs("conv", "r", "w", "b"), M, "cycle"),
    "node that reads itself": (inputs("relu", "r"), M, "Relu 'relu': the graph has a cycle"),
    "name made twice": (field("graph.node[2].output[0]", "c"), M, "Relu 'relu': tensor 'c' is made twice"),
    "input made again": (field("graph.node[2].output[0]", "x"), M, "Relu 'relu': tensor 'x' is made twice"),
    "weights stored twice": (lambda m: m.graph.initializer.append(tensor(m, "w")), M, "'w' is stored twice"),
    "weights of no name": (
        inputs("conv", "x", "nowhere"),
        M,
        "Conv 'conv': input 'nowhere' is made by no node",
    ),
    "input of no name": (inputs("relu", "nowhere"), M, "Relu 'relu': input 'nowhere'"),
    # operands
    "weights left out": (inputs("conv", "x", "", "b"), M, r"Conv 'conv': input 1 \(W\) is missing"),
    "no operands": (inputs("conv"), M, "Conv 'conv': it has 0 inputs, not 2 to 3"),
    "one operand": (inputs("conv", "x"), M, "Conv 'conv': it has 1 inputs, not 2 to 3"),
    "operand too many": (inputs("relu", "n", "w"), M, "Relu 'relu': it has 2 inputs, not 1"),
    "output too many": (lambda m: node(m, "relu").output.append("o"), M, "Relu 'relu': it has 2 outputs"),
    "first output without a name": (field("graph.node[2].output[0]", ""), M, "input 'r' is made by no node"),
    "image in place of weights": (inputs("conv", "x", "x"), U, "Conv 'conv': input 1 is computed"),
    "all operands constant": (
        made_by("Affine", "conv", 1, np.ones((8, 3, 3, 3), np.float32)),
        U,
        "Affine 'made': its inputs are all constant",
    ),
    "op of a later opset": (
        renamed("relu", "HardSwish"),
        M,
        "HardSwish 'relu': opset 13 has no such op; opset 14 has it",
    ),
    "Mod of the image": (before("relu", "Mod", "b"), U, "Mod 'new'"),
    "Celu of alpha 0": (before("relu", "Celu", alpha=0.0), U, "Celu 'new': alpha is 0"),
    "Gelu of another kind": (
        all_of(field("opset_import[0].version", 20), before("relu", "Gelu", approximate="sinh")),
        M,
        "Gelu 'new': approximate is 'sinh'",
    ),
    "slopes of the image": (before("relu", "PRelu", "n"), U, "PRelu 'new': input 1 is computed"),
    "slopes of another shape": (before("relu", "PRelu", "w"), U, "PRelu 'new': a constant of shape"),
    "division by constants that hold 0": (
        all_of(before("relu", "Div", "zero"), stored("zero", np.zeros(1, np.float32))),
        U,
        "Div 'new': it divides by a constant that holds 0",
    ),
    "power of a negative constant": (
        all_of(
            before("relu", "Pow"),
            stored("base", np.float32(-2)),
            lambda m: node(m, "new").input.insert(0, "base"),
        ),
        U,
        "Pow 'new': the constant that it raises is not positive",
    ),
    "maximum of unequal shapes": (before("fc", "Max", "p"), U, "Max 'new': inputs of shapes"),
    "maximum with too many axes": (
        all_of(before("fc", "Max", "many"), stored("many", np.ones((1,) * 5 + (3,), np.float32))),
        M,
        "Max 'new': its constants do not broadcast",
    ),
    "choice by sample": (
        all_of(
            before("fc", "Max", "batch"), stored("batch", np.arange(256, dtype=np.float32).reshape(2, 128))
        ),
        U,
        r"Max 'new': a constant of shape \[2, 128\]",
    ),
    "mask is read": (
        all_of(
            before("fc", "Dropout"),
            lambda m: node(m, "new").output.append("mask"),
            inputs("fc", "mask", "fc_w"),
        ),
        U,
        "Dropout 'new': output 'mask' is used",
    ),
    # element types
    "int64 weights": (weights(8, 3, 3, 3, dtype=np.int64), M, r"Conv 'conv': input 1 \('w'\) holds int64"),
    "float64 weights beyond float32": (
        stored("w", np.full((8, 3, 3, 3), 1e300)),
        U,
        r"Conv 'conv': input 1 \('w'\) overflows float32",
    ),
    "text weights": (stored("w", np.array(["a"], object)), M, "Conv 'conv': tensor 'w' holds text"),
    "int64 input": (field("graph.input[0].type.tensor_type.elem_type", 7), U, "input 'x' holds INT64"),
    "input of an unknown type": (
        field("graph.input[0].type.tensor_type.elem_type", 77),
        U,
        "unknown type 77",
    ),
    # weights
    "one channel in the weights": (weights(8, 1, 3, 3), M, r"'conv': 3 input channels.*\[8, 1, 3, 3\]"),
    "four channels in the weights": (weights(8, 4, 3, 3), M, r"'conv': 3 input channels.*\[8, 4, 3, 3\]"),
    "three axes of weights": (weights(8, 3, 3), M, "'conv': weights have shape"),
    "no weights": (weights(0, 3, 3, 3), M, "'conv'"),
    "kernel of no size": (weights(8, 3, 0, 3), M, "'conv'"),
    "kernel larger than the image": (weights(8, 3, 11, 3), M, "'conv': a window of .*does not fit"),
    "kernel_shape of another kernel": (
        with_("conv", kernel_shape=[5, 5]),
        M,
        "'conv': kernel_shape .*differs",
    ),
    "bias of another size": (stored("b", np.ones(7, np.float32)), M, r"'conv': bias has shape \[7\]"),
    "too few bytes": (raw("w", lambda b: b[:-1]), M, "Conv 'conv': tensor 'w' is damaged"),
    "too many bytes": (raw("w", lambda b: b + b"1234"), M, "Conv 'conv': tensor 'w' is damaged"),
    "no bytes": (raw("w", lambda b: b""), M, "Conv 'conv': tensor 'w' is damaged"),
    "negative size": (dims("w", 8, -3, 3, 3), M, r"tensor 'w' has shape \[8, -3"),
    "huge size": (dims("w", HUGE, HUGE, HUGE, 3), M, "tensor 'w' has shape"),
    "sizes that wrap around": (dims("w", 2**32, 2**32, 1, 1), M, "tensor 'w' has shape"),
    "unknown element type": (
        lambda m: setattr(tensor(m, "w"), "data_type", 99),
        M,
        "'w' is damaged.*type 99",
    ),
    "NaN in weights": (
        stored("w", np.full((8, 3, 3, 3), np.nan, np.float32)),
        M,
        "Conv 'conv': tensor 'w' holds NaN",
    ),
    "infinity in the mean": (
        stored("mean", np.full(8, np.inf, np.float32)),
        U,
        r"'bn': input 3 \('mean'\) holds infinity",
    ),
    "NaN in the mean": (
        stored("mean", np.full(8, np.nan, np.float32)),
        M,
        "'bn': tensor 'mean' holds NaN",
    ),
    "variance below 0": (stored("var", np.full(8, -1, np.float32)), M, "'bn': var"),
    "mean of another size": (stored("mean", np.ones(9, np.float32)), M, r"'bn': mean has shape \[9\]"),
    "overflow": (stored("w", np.full((8, 3, 3, 3), 3e38, np.float32)), M, "overflow"),
    "dense weights of another size": (
        stored("fc_w", np.ones((4, 127), np.float32)),
        M,
        "'fc': weights of shape",
    ),
    "dense weights of three axes": (stored("fc_w", np.ones((4, 2, 64), np.float32)), U, "'fc': weights"),
    "dense bias of another size": (stored("fc_b", np.ones(5, np.float32)), U, "'fc': C has shape"),
    # attributes
    "unknown attribute": (with_("conv", flavour=3), U, "Conv 'conv': attribute 'flavour' is not known"),
    "strides as text": (with_("conv", strides="2"), M, "Conv 'conv': attribute 'strides' is text"),
    "strides as a number": (
        with_("conv", strides=2),
        M,
        "'conv': attribute 'strides' is an integer, expected a list",
    ),
    "strides as floats": (
        with_("conv", strides=[1.0, 1.0]),
        M,
        "'conv': attribute 'strides' is a list of numbers",
    ),
    "group as floats": (with_("conv", group=1.0), M, "'conv': attribute 'group' is a number"),
    "group 0": (with_("conv", group=0), M, "'conv'.* 0 groups"),
    "group -3": (with_("conv", group=-3), M, "'conv'.* -3 groups"),
    "group 2": (with_("conv", group=2), M, "'conv'.* 2 groups"),
    "group 2⁶³": (with_("conv", group=MOST), M, "'conv'"),
    "stride 0": (with_("conv", strides=[0, 1]), M, "'conv': .*at least 1"),
    "stride -1": (with_("conv", strides=[1, -1]), M, "'conv': .*at least 1"),
    "stride 2⁶³": (with_("conv", strides=[MOST, MOST]), U, "'conv': .*up to"),
    "dilation 0": (with_("conv", dilations=[0, 1]), M, "'conv': .*at least 1"),
    "dilation 2⁶³": (with_("conv", dilations=[MOST, 1]), U, "'conv'"),
    "dilation beyond the plane": (with_("conv", dilations=[7, 7]), M, "'conv': a window of .*does not fit"),
    "pad -1": (with_("conv", pads=[0, -1, 0, 0]), M, "'conv': .*pads at least 0"),
    "pad 2⁶³": (with_("conv", pads=[MOST] * 4), U, "'conv': .*up to"),
    "pads that ask for terabytes": (with_("conv", pads=[2**20] * 4), U, "'conv': padded, the plane has"),
    "three strides": (with_("conv", strides=[1, 1, 1]), U, "'conv': strides has 3 values"),
    "two pads": (with_("conv", pads=[1, 1]), U, "'conv': pads has 2 values"),
    "auto_pad SAME": (with_("conv", auto_pad="SAME"), M, "'conv': auto_pad is 'SAME'"),
    "no kernel_shape": (with_("pool", kernel_shape=None), M, "'pool': kernel_shape is missing"),
    "kernel_shape 0": (with_("pool", kernel_shape=[0, 2]), M, "'pool'"),
    "kernel_shape 2⁶²": (with_("pool", kernel_shape=[2**62, 2**62]), U, "'pool'"),
    "kernel_shape of one axis": (with_("pool", kernel_shape=[2]), U, "'pool': the kernel has 1 axis"),
    "pool wider than its plane": (with_("pool", kernel_shape=[9, 9]), M, "'pool': a window .*does not fit"),
    "pool of four axes": (
        before("pool", "Reshape", "to=0,8,2,4,2,4"),
        U,
        "'pool': input 0 has shape .*1 to 3 spatial axes",
    ),
    "pool of a row by a plane's window": (
        before("pool", "Reshape", "to=0,8,64"),
        U,
        "'pool': the kernel has 2 axes|'pool': strides has 2 values",
    ),
    "too many taps along the depth": (
        all_of(input_dims(1, 3, 5000, 1, 1), weights(8, 3, 5000, 1, 1), with_("conv", pads=None)),
        U,
        "'conv': it has 1 groups and 5000 taps",
    ),
    "a volume of petabytes of padding": (
        all_of(input_dims(1, 3, 8, 8, 8), weights(8, 3, 3, 3, 3), with_("conv", pads=[2**12] * 6)),
        U,
        "'conv': padded, the plane has 8200 × 8200 × 8200",
    ),
    "transposed weights of other channels": (
        all_of(before("pool", "ConvTranspose", "t"), stored("t", np.ones((4, 8, 2, 2), np.float32))),
        M,
        r"ConvTranspose 'new': weights have shape \[4, 8, 2, 2\], expected \(8, O / group\)",
    ),
    "transposed groups that do not part": (transposed(group=3), M, "'new': 8 input channels .* 3 groups"),
    "transposed strides of exabytes": (transposed(strides=[2**23] * 2), U, "'new': padded, the plane has"),
    "transposed output of gigabytes": (transposed(strides=[2**10] * 2), U, "'new': the output would have"),
    "transposed, and all cut off": (transposed(pads=[5, 5, 5, 5]), M, "'new': nothing is left of 9 pixels"),
    "output_padding -1": (transposed(output_padding=[-1, 0]), M, "'new': output_padding is"),
    "output_padding of one axis": (transposed(output_padding=[1]), U, "'new': output_padding has 1 value"),
    "output_shape 0": (transposed(output_shape=[0, 8]), M, "'new': output_padding is .*output_shape"),
    "output_shape 2⁶²": (transposed(output_shape=[2**62, 8]), U, "'new': .*up to"),
    "p = 0": (before("pool", "LpPool", kernel_shape=[2, 2], p=0), M, "LpPool 'new': p is 0"),
    "p = 2⁴⁰": (before("pool", "GlobalLpPool", p=2**40), U, "GlobalLpPool 'new': p is 1099511627776"),
    "indices read by another op": (indices_to("flatten"), U, "Flatten 'flatten': input 0 is the Indices"),
    "indices to be unpooled": (
        all_of(indices_to("flatten"), before("flatten", "MaxUnpool", "i", kernel_shape=[2, 2])),
        U,
        "MaxUnpool 'new': input 0 is the Indices",
    ),
    "indices of pixels that are not there": (
        unpooled("i", strides=[3, 3]),
        U,
        r"'new': its indices are those of \[8, 8\] pooled pixels, its output has \[11, 11\]",
    ),
    "indices of no MaxPool": (unpooled("r", strides=[2, 2]), U, "'new': its indices are computed"),
    "constant indices of another shape": (unpooled("at=1,2,3"), U, r"'new': constant indices .*\[3\]"),
    "output_shape for another x": (
        unpooled("i", "to=1,9,8,8", strides=[2, 2]),
        M,
        r"'new': output_shape is \[1, 9, 8, 8\]",
    ),
    "unpooling to petabytes": (unpooled("i", strides=[2**24] * 2), U, "'new': padded, the plane has"),
    "unpooling to nothing": (unpooled("i", pads=[9, 9, 9, 9]), M, "'new': the output would have"),
    "indices to be explained": (
        all_of(
            indices_to("flatten"),
            field("graph.output[0].name", "i"),
            lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"),
        ),
        U,
        "MaxPool 'pool': its Indices have no gradient",
    ),
    "pool of padding": (with_("pool", pads=[4, 4, 4, 4]), U, "'pool': some window sees padding alone"),
    "flatten beyond the rank": (with_("flatten", axis=5), M, "'flatten': axis 5"),
    "flatten of the batch": (with_("flatten", axis=2), U, "'flatten': .*batch"),
    "softmax beyond the rank": (
        all_of(
            with_("softmax", axis=9),
            before("softmax", "Relu"),
            lambda m: m.graph.node.add(op_type="Relu", name="last", input=["y"], output=["out"]),
            field("graph.output[0].name", "out"),
        ),
        M,
        "'softmax': axis 9",
    ),
    "transA": (with_("fc", transA=1), U, "'fc': transA"),
    "epsilon NaN": (with_("bn", epsilon=float("nan")), M, "'bn': attribute 'epsilon' is nan"),
    "training mode": (
        all_of(field("opset_import[0].version", 15), with_("bn", training_mode=1)),
        U,
        "'bn': training",
    ),
    "LRN of no size": (before("pool", "LRN", size=0), M, "LRN 'new': size is 0"),
    "LRN of 2⁶³ channels": (before("pool", "LRN", size=MOST), U, "LRN 'new': size is"),
    "Clip upside down": (
        all_of(before("pool", "Clip", "lo", "hi"), stored("lo", np.float32(6)), stored("hi", np.float32(0))),
        U,
        "Clip 'new': min 6.0 is not below max 0.0",
    ),
    # shapes
    "input of negative size": (input_dims(1, 3, -8, 8), M, "input 'x' declares shape"),
    "input of nine axes": (input_dims(1, 3, 8, 8, 8, 8, 1, 1, 1), U, "input 'x' has shape"),
    "volume for a plane's weights": (
        input_dims(1, 3, 8, 8, 8),
        M,
        r"'conv': weights have shape \[8, 3, 3, 3\], expected .* 3 spatial",
    ),
    "row for a plane's weights": (input_dims(1, 3, 8), M, "'conv': weights have shape .* 1 spatial"),
    "conv over four axes": (
        before("conv", "Reshape", "to=0,3,2,4,2,4"),
        U,
        r"'conv': input 0 has shape \[1, 3, 2, 4, 2, 4\].*1 to 3 spatial axes",
    ),
    "conv over no axes": (
        before("conv", "Reshape", "to=0,192"),
        U,
        r"'conv': input 0 has shape \[1, 192\].*1 to 3 spatial axes",
    ),
    "input of no axes": (input_dims(), U, "input 'x' has shape"),
    "input of petabytes": (input_dims(1, 3, HUGE, HUGE), U, "input 'x' has shape"),
    "input whose size wraps around": (input_dims(1, 2**32, 2**31, 2), U, "input 'x' has shape"),
    "image of terabytes of maps": (
        input_dims(1, 3, 6000, 6000),
        U,
        "'conv': the output would have|working memory|GiB",
    ),
    "reshape to another size": (
        before("fc", "Reshape", "to=1,99"),
        M,
        r"Reshape 'new': \[1, 128\] cannot become",
    ),
    "reshape with two -1": (before("fc", "Reshape", "to=-1,-1"), M, "Reshape 'new': target .*no meaning"),
    "reshape to -2": (before("fc", "Reshape", "to=1,-2"), M, "Reshape 'new'"),
    "reshape to 0": (before("fc", "Reshape", "to=1,0,128", allowzero=1), M, "Reshape 'new'"),
    "reshape that wraps around": (before("fc", "Reshape", f"to=1,{2**32},{2**32}"), M, "Reshape 'new'"),
    "reshape that copies nothing": (before("fc", "Reshape", "to=0,128,0"), M, "Reshape 'new': target"),
    "reshape of the batch": (before("fc", "Reshape", "to=2,64"), U, "Reshape 'new': .*batch"),
    "reshape to nothing": (before("fc", "Reshape", "to="), M, "Reshape 'new'"),
    "reshape to a million large axes": (
        all_of(before("fc", "Reshape", "many"), stored("many", np.full(2**20, 2**40))),
        U,
        "Reshape 'new': .*up to 8 axes",
    ),
    "reshape to many axes": (
        before("fc", "Reshape", "to=" + "1," * 99 + "128"),
        U,
        "Reshape 'new': .*up to 8 axes",
    ),
    "reshape by the image": (before("fc", "Reshape", "f"), U, "Reshape 'new': input 1 is computed"),
    "transpose of the batch": (before("pool", "Transpose", perm=[1, 0, 2, 3]), U, "Transpose 'new': .*batch"),
    "transpose of nothing": (before("pool", "Transpose", perm=[0, 1, 1, 2]), M, "Transpose 'new': perm"),
    "transpose of five axes": (before("pool", "Transpose", perm=[0, 1, 2, 3, 4]), M, "Transpose 'new': perm"),
    "concat of unequal shapes": (
        before("flatten", "Concat", "r", axis=1),
        M,
        "Concat 'new': inputs of shapes",
    ),
    "concat of the batch": (before("flatten", "Concat", "p", axis=0), U, "Concat 'new': axis is 0"),
    "computed ratio": (before("fc", "Dropout", "f"), U, "Dropout 'new': input 1 is computed"),
    "computed region": (
        all_of(
            before("pool", "Resize", "r", "s", coordinate_transformation_mode="asymmetric"),
            stored("s", np.ones(4, np.float32)),
        ),
        U,
        "Resize 'new': input 1 is computed",
    ),
    "matrix by a scalar": (
        all_of(before("softmax", "MatMul", "k"), stored("k", np.float32(2))),
        M,
        "MatMul 'new': a constant of shape",
    ),
    "vector of samples by a matrix": (
        all_of(
            before("softmax", "MatMul", "m"),
            stored("m", np.ones((1, 1), np.float32)),
            before("new", "ReduceSum", "a=1", keepdims=0, output="sum"),
        ),
        M,
        "MatMul 'new': a constant of shape",
    ),
    "two tiles": (
        all_of(
            field("opset_import[0].version", 1),
            with_("bn", is_test=1),
            before("pool", "Tile", "t", "t"),
            stored("t", np.float32([1, 2])),
        ),
        M,
        "Tile 'new': input . has shape",
    ),
    "scale of 2²⁷ channels": (
        all_of(
            field("opset_import[0].version", 17),
            input_dims("N", 2**27),
            lambda m: node(m, "conv").ClearField("attribute"),
            renamed("conv", "LayerNormalization"),
            inputs("conv", "x", "k"),
            stored("k", np.float32(2)),
        ),
        U,
        "LayerNormalization 'conv': axis 1 of x has 134217728 channels",
    ),
    "concat with weights": (
        before("flatten", "Concat", "b", axis=1),
        M,
        "Concat 'new': a constant does not join",
    ),
    "concat beyond the rank": (before("flatten", "Concat", "p", axis=-5), M, "Concat 'new': axis -5"),
    "split into wrong sizes": (before("flatten", "Split", "s=3,4", axis=1), M, "Split 'new'"),
    "split into more than there is": (before("flatten", "Split", "s=9", axis=1), M, "Split 'new': sizes"),
    "squeeze of an axis of 8": (before("pool", "Squeeze", "s=1"), M, "Squeeze 'new': axes .*are not all 1"),
    "squeeze beyond the rank": (before("pool", "Squeeze", "s=7"), M, "Squeeze 'new': axis 7"),
    "unsqueeze twice the same": (before("pool", "Unsqueeze", "s=1,1"), M, "Unsqueeze 'new': axes .*repeat"),
    "pads that leave nothing": (
        before("pool", "Pad", "s=0,0,-4,0,0,0,-4,0"),
        M,
        "Pad 'new': pads .*leave nothing",
    ),
    "pads of the batch": (before("pool", "Pad", "s=1,0,0,0,0,0,0,0"), U, "Pad 'new': pads .*batch"),
    "mirrored exabytes": (
        before("pool", "Pad", f"s=0,0,0,0,0,0,{2**40},0", mode="reflect"),
        U,
        "Pad 'new': 1.1e.12 outputs",
    ),
    "pads of two axes": (before("pool", "Pad", "s=1,1,1,1"), M, "Pad 'new'"),
    "pads of exabytes": (
        before("pool", "Pad", f"s=0,0,0,0,0,0,{2**40},0"),
        U,
        "Pad 'new': the output would have",
    ),
    "pads of an unknown mode": (
        before("pool", "Pad", "s=0,0,1,0,0,0,1,0", mode="twist"),
        U,
        "Pad 'new': mode",
    ),
    "sum that does not broadcast": (before("fc", "Add", "p"), U, "Add 'new': inputs of shapes"),
    "sum with too large a constant": (before("relu", "Add", "w"), U, "Add 'new': a constant of shape"),
    "sum with integers": (before("relu", "Add", "s=1"), M, "Add 'new': input 1 .*holds int64"),
    "mean over the batch": (
        before("flatten", "ReduceMean", axes=[0, 1]),
        U,
        "ReduceMean 'new': axes .*batch",
    ),
    "mean over everything": (before("flatten", "ReduceMean"), U, "ReduceMean 'new': it has no axes"),
    "maximum over an axis that is not there": (before("flatten", "ReduceMax", axes=[4]), M, "'new': axis 4"),
    "sum over an axis twice": (before("flatten", "ReduceSum", "s=1,-3"), M, "ReduceSum 'new': axes .*repeat"),
    "sums up to every pixel of many": (
        all_of(input_dims("N", 3, 8, 2**13), before("flatten", "CumSum", "s=3")),
        U,
        "CumSum 'new': 4096 outputs",
    ),
    "resize to exabytes": (
        all_of(before("pool", "Resize", "", "scales"), stored("scales", np.float32([1, 1, 2**30, 1]))),
        U,
        "Resize 'new': 8.59e.09 outputs",
    ),
    "resize by NaN": (
        all_of(before("pool", "Resize", "", "scales"), stored("scales", np.float32([1, 1, np.nan, 1]))),
        M,
        "Resize 'new': tensor 'scales' holds NaN",
    ),
    "resize by -1": (
        all_of(before("pool", "Resize", "", "scales"), stored("scales", np.float32([1, 1, -1, 1]))),
        M,
        "Resize 'new': axis 2 of 8 becomes",
    ),
    "grid of another rank": (sampled((1, 4, 4, 3)), M, "GridSample 'new': a grid of shape"),
    "grid of one axis": (sampled((2,)), M, "GridSample 'new': a grid of shape"),
    "grid of nothing": (sampled((1, 0, 4, 2)), M, "GridSample 'new': a grid of shape"),
    "grid that differs by sample": (
        sampled((2, 4, 4, 2)),
        U,
        "GridSample 'new': its constant grid differs by sample",
    ),
    "grid of millions of positions": (
        sampled((1, 2**11, 2**10, 2), mode="cubic"),
        U,
        "GridSample 'new': 2.097e.06 outputs",
    ),
    "grid with an unknown mode": (sampled((1, 4, 4, 2), mode="area"), U, "GridSample 'new': mode is 'area'"),
    "grid with an unknown padding": (
        sampled((1, 4, 4, 2), padding_mode="wrap"),
        U,
        "GridSample 'new': padding_mode is 'wrap'",
    ),
    "grid that runtimes read differently": (
        sampled((1, 4, 4, 2), mode="cubic", padding_mode="border"),
        U,
        "GridSample 'new': mode is 'cubic' and padding_mode 'border'",
    ),
    "resize to 0": (before("pool", "Resize", "", "", "s=1,8,0,8"), M, "Resize 'new': axis 2 of 8 becomes"),
    "resize of the batch": (before("pool", "Resize", "", "", "s=2,8,8,8"), U, "Resize 'new': the batch"),
    "resize of three axes": (
        before("pool", "Resize", "", "", "s=1,8,8"),
        M,
        "Resize 'new': sizes for 3 axes, where it resizes 4",
    ),
    "resize without a size": (before("pool", "Resize"), M, "Resize 'new': it has neither"),
    "resize of a crop": (
        before("pool", "Resize", "", "", "s=1,8,8,8", coordinate_transformation_mode="tf_crop_and_resize"),
        U,
        "Resize 'new': coordinate_transformation_mode",
    ),
    "slice of the batch": (before("pool", "Slice", "u=1", "v=9", "s=0"), U, "Slice 'new': .*batch"),
    "slice of nothing": (before("pool", "Slice", "u=5", "v=5", "s=2"), M, "Slice 'new': it takes nothing"),
    "slice by steps of 0": (before("pool", "Slice", "u=0", "v=5", "s=2", "t=0"), M, "Slice 'new': .*steps"),
    "gather from the batch": (before("pool", "Gather", "s=0"), U, "Gather 'new': axis is 0"),
    "gather from beyond": (before("pool", "Gather", "s=0,8", axis=1), M, "Gather 'new': indices"),
    "gather from before": (before("pool", "Gather", "s=0,-9", axis=1), M, "Gather 'new': indices"),
    "gather nothing": (before("pool", "Gather", "s=", axis=1), M, "Gather 'new': indices"),
    "tiles of the batch": (before("pool", "Tile", "s=2,1,1,1"), U, "Tile 'new': .*batch"),
    "tiles of exabytes": (before("pool", "Tile", f"s=1,1,1,{2**60}"), U, "Tile 'new': 1.153e.18 outputs"),
    "no tiles": (before("pool", "Tile", "s=1,1,1,0"), M, "Tile 'new': repeats"),
    "expanded batch": (before("pool", "Expand", "s=2,1,8,8,8"), U, "Expand 'new': .*before the batch"),
    "expanded to what does not fit": (before("pool", "Expand", "s=1,8,8,7"), M, "Expand 'new': .*broadcast"),
    "blocks that do not part the channels": (
        before("pool", "DepthToSpace", blocksize=3),
        M,
        "DepthToSpace 'new': blocks of 3",
    ),
    "blocks of 2⁶²": (before("pool", "SpaceToDepth", blocksize=2**62), M, "SpaceToDepth 'new': blocks"),
    "norm with too few scales": (
        before("pool", "InstanceNormalization", "fc_b", "fc_b"),
        M,
        "InstanceNormalization 'new': scale has shape",
    ),
    "norm over the batch": (
        before("pool", "MeanVarianceNormalization"),
        U,
        "MeanVarianceNormalization 'new': axes .*batch",
    ),
    "norm with p = 3": (before("pool", "LpNormalization", p=3), U, "LpNormalization 'new': p is 3"),
    "product that does not fit": (before("pool", "MatMul", "fc_w"), M, "MatMul 'new': a constant of shape"),
    "product with itself": (before("fc", "MatMul", "f"), U, "MatMul 'new': tensors .*mix the batch"),
    "product over the batch": (
        all_of(
            before("fc", "MatMul"), inputs("new", "fc_b", "f"), stored("fc_b", np.ones((1, 1), np.float32))
        ),
        U,
        "MatMul 'new': .*mix the batch",
    ),
    # constants
    "Constant of text": (constant(value_string="abc"), U, "Constant 'made': .*text"),
    "Constant of texts": (constant(value_strings=["a", "b"]), U, "Constant 'made': .*text"),
    "Constant of an integer": (constant(value_int=3), M, r"Conv 'conv': input 1 \('made'\) holds int64"),
    "Constant of integers": (constant(value_ints=[3, 4]), M, "Conv 'conv': input 1 .*holds int64"),
    "Constant of a float": (constant(value_float=3.0), M, r"Conv 'conv': weights have shape \[\]"),
    "Constant of floats": (constant(value_floats=[3.0, 4.0]), M, r"Conv 'conv': weights have shape \[2\]"),
    "Constant that is sparse": (constant(sparse_value=sparse()), U, "Constant 'made': it holds a sparse"),
    "Constant of nothing": (constant(), M, "Constant 'made'"),
    "Constant that is NaN": (constant(value_float=float("nan")), M, "Constant 'made': .*NaN"),
    "Constant tensor that is NaN": (
        constant(value=numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, np.float32))),
        M,
        "Constant 'made': .*NaN",
    ),
    "ConstantOfShape bomb": (
        made_by("ConstantOfShape", "conv", 1, [HUGE, HUGE]),
        U,
        "'made': .*1.21e.24 elements",
    ),
    "ConstantOfShape of 4 GiB": (
        made_by("ConstantOfShape", "conv", 1, [2**30]),
        U,
        "'made': .*1.07e.09 elements",
    ),
    "ConstantOfShape of text": (
        made_by(
            "ConstantOfShape",
            "conv",
            1,
            [2**20],
            value=numpy_helper.from_array(np.array(["a" * 9999], object)),
        ),
        U,
        "'made': .*text",
    ),
    "negative ConstantOfShape": (made_by("ConstantOfShape", "conv", 1, [-5]), M, "ConstantOfShape 'made'"),
    "Expand bomb": (made_by("Expand", "conv", 1, np.float32(1), [2**31, 2**31]), U, "Expand 'made'"),
    "Tile bomb": (made_by("Tile", "conv", 1, np.ones(9, np.float32), [2**40]), U, "Tile 'made'"),
    "Resize bomb": (
        made_by("Resize", "conv", 1, np.ones((1, 1, 9, 9)), np.empty(0), np.float32([1, 1, 2**20, 2**20])),
        U,
        "Resize 'made': .* elements",
    ),
    "Resize to next to nothing": (
        made_by("Resize", "conv", 1, np.ones((1, 1, 9, 9)), np.empty(0), np.float32([1, 1, 1e-30, 1])),
        U,
        "Resize 'made': .* elements",
    ),
    "Range bomb": (made_by("Range", "conv", 1, 0, 2**50, 1), U, "Range 'made'"),
    "endless Range": (made_by("Range", "conv", 1, 0.0, 1.0, 0.0), U, "Range 'made'"),
    "Range in tiny steps": (made_by("Range", "conv", 1, 0.0, 1.0, 1e-300), U, "Range 'made'"),
    "OneHot bomb": (made_by("OneHot", "conv", 1, np.zeros(9, int), 2**40, np.zeros(2)), U, "OneHot 'made'"),
    "Pad bomb": (made_by("Pad", "conv", 1, np.ones((1, 1)), [0, 2**40, 0, 2**40]), U, "Pad 'made'"),
    "outer product": (made_by("Mul", "conv", 1, np.ones((2**15, 1)), np.ones((1, 2**15))), U, "Mul 'made'"),
    "matrix product": (
        made_by("MatMul", "conv", 1, np.ones((2**15, 1)), np.ones((1, 2**15))),
        U,
        "MatMul 'made'",
    ),
    "gather of copies": (
        made_by("Gather", "conv", 1, np.ones((2, 2**13)), np.zeros(2**16, int)),
        U,
        "Gather 'made'",
    ),
    "cast to text": (made_by("Cast", "conv", 1, np.ones(9), to=TensorProto.STRING), U, "Cast 'made': .*text"),
    "division by zero": (
        made_by("Div", "conv", 1, np.float32(1), np.float32(0)),
        U,
        r"Conv 'conv': input 1 \('made'\) holds infinity",
    ),
    "zero by zero": (
        made_by("Div", "conv", 1, np.float32(0), np.float32(0)),
        M,
        "Div 'made': .*holds NaN",
    ),
    "nonsense constants": (
        made_by("Concat", "conv", 1, np.ones(2), np.ones((2, 2)), axis=0),
        M,
        "Concat 'made'",
    ),
    "too many groups": (
        all_of(
            input_dims("N", 2**13, 8, 8),
            weights(2**14, 1, 1, 1),
            inputs("conv", "x", "w"),
            with_("conv", group=2**13),
        ),
        U,
        "Conv 'conv': it has 8192 groups",
    ),
    "years of work": (
        all_of(
            input_dims("N", 3, 4096, 4096),
            with_("conv", pads=[0, 0, 0, 0], strides=[1024, 1024]),
            before("conv", "AveragePool", kernel_shape=[2047, 2047], pads=[1023] * 4, count_include_pad=1),
        ),
        U,
        "AveragePool 'new': with it one image takes",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_by_name(case: str) -> None:
    change, error, message = BROKEN[case]
    model = valid()
    change(model)
    with pytest.raises(error, match=message) as caught:
        Explainer(model).explain(image())
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_the_model_that_they_break_is_whole() -> None:
    assert np.isfinite(Explainer(valid()).explain(image(), target=1).map).all()


@pytest.mark.parametrize(
    "case", [case for case, (_, error, _) in BROKEN.items() if error is UnsupportedError]
)
def test_inspect_lists_what_is_unsupported(case: str) -> None:
    model = valid()
    BROKEN[case][0](model)
    assert inspect(model).unsupported


# ------------------------------------------------------------------------------- attributes of functions


@pytest.mark.parametrize("nested", [False, True])
def test_an_attribute_that_refers_to_a_functions(nested: bool) -> None:
    """Outside of a function nobody gives it a value."""
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.relu(b.conv(b.input(1, 3, 8, 8), 4))), 3))
    node = model.graph.node[0]
    if nested:
        inner = onnx.helper.make_graph([onnx.NodeProto(op_type="Conv")], "inner", [], [])
        node.attribute.append(onnx.helper.make_attribute("body", inner))
        node = node.attribute[-1].g.node[0]
    node.attribute.add(name="strides", ref_attr_name="s", type=onnx.AttributeProto.INTS)
    for use in (Explainer, inspect):
        with pytest.raises(ModelError, match="attribute 'strides' refers to 's' of a function"):
            use(model)


def test_an_attribute_that_is_given_twice() -> None:
    """Readers differ on which of the two counts."""
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.conv(b.input(1, 3, 8, 8), 4, strides=[2, 2])), 3))
    model.graph.node[0].attribute.add().CopyFrom(model.graph.node[0].attribute[0])
    with pytest.raises(ModelError, match=r"attribute '.*' is given twice"):
        Explainer(model)


def test_a_tensor_that_is_a_segment() -> None:
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.conv(b.input(1, 3, 8, 8), 400)), 3))
    model.graph.initializer[0].segment.end = 5
    for given in (model, model.SerializeToString()):
        with pytest.raises(ModelError, match="is a segment"):
            Explainer(given)
