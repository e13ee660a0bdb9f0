"""ONNX's own backend tests, run by gbp: `make conformance` prints what passed, what is excluded and why.

A test is a model, its inputs and the outputs that ONNX publishes.  gbp explains one input: `GbpBackend` lets
that be the first float input with an axis, and gives the others.  Only float outputs are
compared: no map explains another.

A test that is not run, refused or wrong is *excluded* where a row of `EXCLUSIONS` says so, else *failed*.  A
row must be needed: one that names a test that passes, or that no test needs, is *stale*.
"""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from gbp import Explainer, GbpError
from gbp.ops import PARSERS

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "real")

#: Float types and the least relative tolerance that each allows: gbp computes all in float32.
FLOATS = {
    TensorProto.FLOAT: 0.0,
    TensorProto.DOUBLE: 0.0,
    TensorProto.FLOAT16: 2.0**-9,
    TensorProto.BFLOAT16: 2.0**-6,
}

Array = NDArray[Any]


# --- The backend --------------------------------------------------------------------------------------------


class GbpBackend(Backend):
    """gbp as a backend of ONNX's tests."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return bool(Device(device).type == DeviceType.CPU)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> GbpRep:
        return GbpRep(model)


class GbpRep(BackendRep):
    """A model that waits for its inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def run(self, inputs: Sequence[Array], **_: Any) -> tuple[Array | None, ...]:
        """The outputs, shaped as the model declares them; None for each that gbp does not compute.

        These are what is not float, and by-products of a node, as a normalization's mean.  Raises GbpError
        where gbp refuses the model in every way of giving it its inputs.
        """
        given = {v.name: _known_to_numpy(x) for v, x in zip(free_inputs(self.model), inputs, strict=True)}
        outputs: list[Array | None] = []
        for value in self.model.graph.output:
            try:
                is_float = value.type.tensor_type.elem_type in FLOATS
                outputs.append(self._output(value, given) if is_float else None)
            except GbpError as error:
                if "Supported: the first output" not in str(error) or all(y is None for y in outputs):
                    raise
                outputs.append(None)
        return tuple(outputs)

    def _output(self, value: onnx.ValueInfoProto, given: dict[str, Array]) -> Array:
        kind = value.type.tensor_type
        sizes = [d.dim_value for d in kind.shape.dim]  # 0: open
        varying = of_one_shape(self.model, given)
        by_sample = len(varying) > 1 and sizes[:1] in ([0], [len(given[varying[0]])])
        ways = (scores_of_one, scores_sample_by_sample, scores_of_joined) if by_sample else (scores_of_one,)
        refusals: list[str] = []
        for way in ways:
            try:
                scores = way(self.model, value.name, given)
                break
            except GbpError as error:
                refusals.append(str(error))
        else:
            raise GbpError(" ".join(dict.fromkeys(refusals)))
        if 0 not in sizes[1:]:
            scores = scores.reshape(-1, *sizes[1:]) if sizes else scores.reshape(())
        return scores.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _known_to_numpy(x: Array) -> Array:
    """bfloat16 as float32."""
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16" else x


def scores_of_one(model: onnx.ModelProto, output: str, given: dict[str, Array]) -> Array:
    """Explain the first input that can be, with all others constant."""
    name = explainable(model)[0]
    others = {other: array for other, array in given.items() if other != name}
    model = with_constants(model, others) if others else model  # some are large
    return Explainer(model, output=output).predict(given[name])


def scores_sample_by_sample(model: onnx.ModelProto, output: str, given: dict[str, Array]) -> Array:
    """So that what is constant may differ by sample."""
    names = of_one_shape(model, given)
    samples = (
        {name: array[i : i + 1] if name in names else array for name, array in given.items()}
        for i in range(len(given[names[0]]))
    )
    return np.concatenate([scores_of_one(model, output, sample) for sample in samples])


def scores_of_joined(model: onnx.ModelProto, output: str, given: dict[str, Array]) -> Array:
    """Explain all float inputs of as many samples, side by side in one, which the model takes apart again."""
    floats = [value.name for value in free_inputs(model) if value.type.tensor_type.elem_type in FLOATS]
    names = [name for name in of_one_shape(model, given) if name in floats]
    others = {name: array for name, array in given.items() if name not in names}
    joining = onnx.ModelProto()  # a copy, because the model is asked for other outputs, too
    joining.CopyFrom(with_constants(model, others))
    model = joining
    rows = [given[name].reshape(len(given[name]), -1) for name in names]
    joined, parts = "joined", [f"{name} of joined" for name in names]
    sizes = [row.shape[1] for row in rows]
    split = onnx.helper.make_node("Split", [joined], parts, axis=1)
    if next(entry.version for entry in model.opset_import if entry.domain == "") >= 13:
        split.input.append("sizes")
        model.graph.initializer.append(numpy_helper.from_array(np.array(sizes), "sizes"))
    else:
        split.attribute.append(onnx.helper.make_attribute("split", sizes))
    nodes = [split]
    for name, part in zip(names, parts, strict=True):
        shape = numpy_helper.from_array(np.array([0, *given[name].shape[1:]]), f"shape of {name}")
        model.graph.initializer.append(shape)
        nodes.append(onnx.helper.make_node("Reshape", [part, shape.name], [name]))
    nodes += model.graph.node
    kind = next(v.type.tensor_type.elem_type for v in model.graph.input if v.name == names[0])
    inputs = [value for value in model.graph.input if value.name not in names]
    inputs.append(onnx.helper.make_tensor_value_info(joined, kind, ["N", sum(sizes)]))
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.input.extend(inputs)
    return Explainer(model, output=output).predict(np.concatenate(rows, axis=1))


def with_constants(model: onnx.ModelProto, values: dict[str, Array]) -> onnx.ModelProto:
    """A copy of the model with these inputs constant."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    return copy


def of_one_shape(model: onnx.ModelProto, given: dict[str, Array]) -> list[str]:
    """The explained input and others that have as many axes and samples."""
    x = given[explainable(model)[0]]
    return [name for name, array in given.items() if array.ndim == x.ndim and len(array) == len(x)]


def free_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no initializers."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def explainable(model: onnx.ModelProto) -> list[str]:
    """The float inputs that have an axis."""
    kinds = [(value.name, value.type.tensor_type) for value in free_inputs(model)]
    return [name for name, kind in kinds if kind.elem_type in FLOATS and len(kind.shape.dim) > 0]


# --- The tests ----------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One of ONNX's tests."""

    kind: str
    test: TestCase

    @property
    def name(self) -> str:
        return str(self.test.name)

    @cached_property
    def model(self) -> onnx.ModelProto:
        if self.test.model is not None:
            return self.test.model
        model = onnx.load(self._path)
        return model if self.test.url is None else with_weights(model)

    @property
    def _path(self) -> Path:
        if self.test.url is None:
            return Path(self.test.model_dir) / "model.onnx"
        return Path(onnx.__file__).parents[1] / self.test.url

    @property
    def ops(self) -> frozenset[str]:
        """Op types; those that are not ONNX's own with their domain."""
        return frozenset(
            ".".join(filter(None, (node.domain, node.op_type))) for node in self.model.graph.node
        )

    @property
    def data_sets(self) -> Iterator[tuple[list[Array], list[Array]]]:
        """Inputs and outputs."""
        counts = len(free_inputs(self.model)), len(self.model.graph.output)
        if self.test.data_sets is not None:
            for arrays in self.test.data_sets:
                inputs, outputs = (list(map(_array, each)) for each in arrays)
                yield inputs, outputs
        elif self.test.url is not None:
            inputs = [Runner.generate_dummy_data(value) for value in free_inputs(self.model)]
            published = self._path.with_suffix("")
            yield inputs, [_read(Path(f"{published}_output_{i}.pb")) for i in range(counts[1])]
        else:
            for folder in sorted(self._path.parent.glob("test_data_set_*")):
                inputs, outputs = (
                    [_read(folder / f"{what}_{i}.pb") for i in range(count)]
                    for what, count in zip(("input", "output"), counts, strict=True)
                )
                yield inputs, outputs

    def check(self) -> None:
        """Raise GbpError where gbp refuses the model or its input, AssertionError where it is wrong."""
        rep = GbpBackend.prepare(self.model)
        coarsest = max(FLOATS.get(value.type.tensor_type.elem_type, 0.0) for value in self.model.graph.output)
        for inputs, outputs in self.data_sets:
            pairs = [(y, truth) for y, truth in zip(rep.run(inputs), outputs, strict=True) if y is not None]
            found, truths = zip(*pairs, strict=True)
            Runner.assert_similar_outputs(
                truths, found, rtol=max(self.test.rtol, coarsest), atol=self.test.atol
            )


def _array(value: Any) -> Array:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _read(path: Path) -> Array:
    return numpy_helper.to_array(TensorProto.FromString(path.read_bytes()))


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A light model with its weights in the file, as in the model that it stands for.

    It has a ConstantOfShape for each, and gbp refuses a file of some kilobytes that asks for gigabytes.
    """
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        value, shape = node.attribute[0].t, shapes[node.input[0]]
        one = numpy_helper.to_array(value).tobytes()
        kind, name = value.data_type, node.output[0]
        graph.initializer.add(data_type=kind, dims=shape, name=name, raw_data=one * int(shape.prod()))
        graph.node.remove(node)
    return model


def cases(kind: str) -> Iterator[Case]:
    # ONNX would also parse the source of each example, for its documents.
    without_source = mock.patch("onnx.backend.test.case.base.process_snippet", return_value=("", ""))
    with warnings.catch_warnings(), without_source:
        warnings.simplefilter("ignore")  # ONNX computes some of its examples from infinities
        tests = load_model_tests(kind=kind)
    for test in sorted(tests, key=lambda test: test.name):
        yield Case(kind, test)


# --- What is excluded ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exclusion:
    """A reason not to count tests, and which.

    `holds` knows it of the test itself, which is then not run.  The others have to fail: `refusal` is part of
    what gbp says when it refuses, and without one the output has to differ; `names`, a regular expression,
    restricts it to some tests.
    """

    reason: str
    holds: Callable[[Case], bool] | None = None
    refusal: str = ""
    names: str = ""

    def is_named(self, case: Case) -> bool:
        return bool(self.names) and re.fullmatch(self.names, case.name) is not None

    def explains(self, case: Case, error: Exception) -> bool:
        if self.holds or (self.names and not self.is_named(case)):
            return False
        return self.refusal in str(error) if isinstance(error, GbpError) == bool(self.refusal) else False


def has_no_float(
    values: Callable[[onnx.ModelProto], Sequence[onnx.ValueInfoProto]],
) -> Callable[[Case], bool]:
    return lambda case: FLOATS.keys().isdisjoint(v.type.tensor_type.elem_type for v in values(case.model))


def is_empty(case: Case) -> bool:
    kinds = (v.type.tensor_type for v in free_inputs(case.model) if v.type.tensor_type.elem_type in FLOATS)
    return any(d.HasField("dim_value") and d.dim_value == 0 for kind in kinds for d in kind.shape.dim)


UNKNOWN_OP = "gbp does not support an op"

#: Ops that are no part of a trained CNN with a gradient.
OUT_OF_SCOPE = {
    "training": ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    "sequences and optionals": (
        *("ConcatFromSequence", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceEmpty"),
        *("SequenceConstruct", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"),
        "SplitToSequence",
    ),
    "text": ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    "control flow": ("Loop", "Scan"),
    "recurrent networks": ("GRU", "LSTM", "RNN"),
    "random numbers": ("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"),
    "transformers": (
        *("CausalConvWithState", "LinearAttention"),
        "TensorScatter",
    ),
    "signal processing": ("DFT", "MelWeightMatrix", "STFT"),
    "shapes that depend on values": ("Compress", "NonMaxSuppression", "NonZero", "Unique"),
}

TRAINS = "runs as in training"

#: The first row that fits a test counts.
EXCLUSIONS = (
    *(
        Exclusion(f"out of scope: {what}", lambda case, ops=frozenset(ops): bool(ops & case.ops))
        for what, ops in OUT_OF_SCOPE.items()
    ),
    Exclusion("out of scope: ops of another domain", lambda case: any("." in op for op in case.ops)),
    Exclusion("Attention with a cache, a window, a cap or fewer keys", refusal="Attention 'Y'"),
    Exclusion("integers, or their scale", refusal="integers of a DynamicQuantizeLinear, or their scale"),
    Exclusion("no output is float", has_no_float(lambda model: model.graph.output)),
    Exclusion("no input is float", has_no_float(free_inputs)),
    Exclusion("no float input has an axis", lambda case: not explainable(case.model)),
    Exclusion("an input is empty", is_empty),
    Exclusion(UNKNOWN_OP, refusal="that gbp does not support: "),
    Exclusion("an output is made of constants alone", refusal=" does not depend on the input "),
    Exclusion("its output is constant", refusal="The output would be constant"),
    Exclusion(TRAINS, refusal="training_mode is"),
    Exclusion("an input is not finite", refusal="holds NaN or infinity"),
    Exclusion("an output is not finite", refusal="the scores hold NaN or infinity"),
    Exclusion(
        "a tensor is empty",
        refusal="it takes nothing of axis",
        names="test_slice_start_out_of_bounds|test_causal_conv_with_state_kernel_size_one_.*",
    ),
    Exclusion(
        "a tensor is empty",
        refusal="is empty: the sizes are [8, 0]",
        names=r"test_rotary_embedding_(?!.*rotary_dim_expanded).*",
    ),
    Exclusion("positions that differ by sample", refusal=", the same for all samples"),
    Exclusion("crops an image, by boxes that are data", refusal="is 'tf_crop_and_resize'"),
    Exclusion(
        "align_corners takes the size that scales make, as runtimes have it",
        names="test_resize_downsample_scales_(cubic|linear)_align_corners",
    ),
    Exclusion(
        "constant indices in a plane of another size, which runtimes read differently",
        refusal="constant indices, and an output_shape",
    ),
    Exclusion(
        "its only float input is a scale of quantization",
        refusal="input 1 is computed",
        names="test_dequantizelinear_.*",
    ),
)


# --- The verdicts -------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    PASSED = "passed"
    EXCLUDED = "excluded"
    FAILED = "failed"
    STALE = "stale"


@dataclass(frozen=True)
class Result:
    """Why a test did not pass: the row, and what gbp said where it was run."""

    kind: str
    name: str
    verdict: Verdict
    row: Exclusion | None = None
    said: str = ""


def judge(case: Case) -> Result:
    for row in EXCLUSIONS:
        if row.holds and row.holds(case):
            return Result(case.kind, case.name, Verdict.EXCLUDED, row)
    try:
        case.check()
    except (GbpError, AssertionError) as error:
        for row in EXCLUSIONS:
            if row.explains(case, error):
                return Result(case.kind, case.name, Verdict.EXCLUDED, row, str(error))
        return Result(case.kind, case.name, Verdict.FAILED, said=str(error))
    except Exception as error:  # what the engine should have refused
        return Result(case.kind, case.name, Verdict.FAILED, said=f"{type(error).__name__}: {error}")
    needless = next((row for row in EXCLUSIONS if row.is_named(case)), None)
    return Result(case.kind, case.name, Verdict.STALE if needless else Verdict.PASSED, needless)


def judge_all() -> list[Result]:
    return [judge(case) for kind in KINDS for case in cases(kind)]


def unneeded(results: Sequence[Result]) -> list[str]:
    """Rows that exclude nothing, and ops that are not out of scope any more."""
    used = {id(result.row) for result in results}
    known = {op for ops in OUT_OF_SCOPE.values() for op in ops} & PARSERS.keys()
    rows = [f"{row.reason} ({row.refusal or row.names})" for row in EXCLUSIONS if id(row) not in used]
    return rows + [f"{op} is in PARSERS" for op in sorted(known)]


def unknown_ops(results: Sequence[Result]) -> Counter[str]:
    """How many tests each op excludes that gbp does not support, but for those out of scope."""
    listed = (
        result.said.partition("does not support: ")[2].partition(" Supported: ")[0]
        for result in results
        if result.row and result.row.reason == UNKNOWN_OP
    )
    return Counter(op for text in listed for op in set(re.findall(r"([\w.]+) '", text)))


def summary(results: Sequence[Result]) -> str:
    """Counts of each kind, the reasons, and what went wrong."""
    counts = Counter((result.kind, result.verdict) for result in results)
    lines = [f"{'':18}" + "".join(f"{verdict:>9}" for verdict in Verdict)]
    for kind in KINDS:
        lines.append(f"{kind:18}" + "".join(f"{counts[kind, verdict]:9}" for verdict in Verdict))
    lines += ["", "excluded:"]
    reasons = Counter(result.row.reason for result in results if result.row)
    lines += [f"{count:9}  {reason}" for reason, count in reasons.most_common()]
    ops = ", ".join(f"{op} {count}" for op, count in unknown_ops(results).most_common())
    lines += ["", *textwrap.wrap(f"ops that gbp does not support, and tests that have them: {ops}", 110)]
    for verdict in (Verdict.FAILED, Verdict.STALE):
        wrong = [result for result in results if result.verdict == verdict]
        lines += [f"{verdict}: {each.kind} {each.name}: {' '.join(each.said.split())}" for each in wrong]
    lines += [f"{Verdict.STALE}: {row}" for row in unneeded(results)]
    return "\n".join(lines)


def main() -> int:
    results = judge_all()
    print(summary(results))
    return int(any(r.verdict in (Verdict.FAILED, Verdict.STALE) for r in results) or bool(unneeded(results)))


if __name__ == "__main__":
    sys.exit(main())
