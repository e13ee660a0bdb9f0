"""`verify`: compares gbp's computation of a model with other runtimes, and the map with finite differences.

    steps      Each step of the plan computes on the reference's inputs, and its output is compared with the
               reference's: ‖y − ŷ‖ / ‖ŷ‖.  A rectifier's error is divided by the norm of its input instead.
               So errors do not add up, and the worst step is the faulty one.  The image gets flat areas.
    ties       Windows that are equal in the reference must give equal values; see `ties`.
    scores     A whole run, from image to scores, is compared with float64: ‖s − ŝ‖ / ‖ŝ‖.
    gradient   The map is compared with finite differences of the score in float64; see `gradient`.

The bound on the map's error is a few times the distance that the map moves when x is rounded differently.  At
a kink, where a rectifier or a maximum switches, float32 may correctly be on the other side.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .. import Explainer, InputError, Model, Picture, UnsupportedError
from ..graph.shapes import Shape
from ..importer.load import open_model
from ..importer.proto import label
from ..importer.subgraph import Choice, Source
from ..limits import MAX_ELEMENTS, computing, elements
from ..ops import fact, qlinear
from ..ops.node import Node
from ..ops.window import read_axes
from ..plan.layout import Instruction
from ..plan.plan import Plan
from ..runtime.tape import steps
from .evaluated import Doubles
from .gradient import Report, gradient_error_of
from .reference import Reference, references
from .ties import same_windows, told_apart, with_flat_areas
from .verification import StepError, Verification

#: The error where it cannot be measured, as between different shapes.
_WRONG = 1e9
#: Float32 errors add up from image to scores.
_SCORES_BOUND = 1e-4
#: In a quantized network, rounding to the other neighbour moves a unit by a whole step.
_QUANTIZED_SCORES_BOUND = 1e-1
#: Ops that round to integers; how many of their results may be those of the other neighbour.
_ROUND = {
    *("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"),
    *(op.rpartition(".")[2] for op in qlinear.REWRITERS),
}
_OTHER_NEIGHBOURS = 1e-2
_GRADIENT_BOUND, _MAX_GRADIENT_BOUND = 1e-3, 1e-1
#: How often x is rounded differently, by how much, and how many times the map's motion its error may be.
_ROUNDINGS, _ROUNDING, _TIMES = 8, 5e-7, 4
#: Norm of the noise that is added to an image, over the image's norm.  Without noise, the flat areas of an
#: image give max-pools ties, and each tie is a kink.
_STIR = 1e-3
#: Bytes of the reference's tensors that are in memory at once.
_PART = 2**28


def verify(
    model: Model,
    image: Picture | NDArray[np.floating[Any]] | None = None,
    *,
    size: tuple[int, int] | None = None,
    report: Report = lambda _: None,
    **options: Any,
) -> Verification:
    """Compare a model's steps, its scores and the gradient of its best score, for one image.

    Parameters
    ----------
    model
        A path, the bytes of a file, or a ModelProto.
    image
        One picture, or an array of one sample, as for `Explainer.explain`.  A little seeded noise is added.
        By default seeded noise alone.
    size
        (H, W) of the noise where the model leaves the size open; by default that of the preprocessing, or
        224.
    report
        Called with a few words before each stage, for progress.
    **options
        Arguments of `Explainer`.

    Raises
    ------
    GbpError
        Where gbp cannot explain the model or the image.
    UnsupportedError
        Where onnx's reference evaluator does not support a node; the message names it.
    """
    explainer, source = Explainer(model, **options), _source(model, options)
    if len(explainer.input_shape) > len(source.input_shape):
        source = source.without_batch()
    rng = np.random.default_rng(0)
    x = _sample(explainer, source, image, size, rng)
    report("explaining")
    explained = explainer.explain(x, rule="vanilla")
    target = int(explained.target[0])
    flat = with_flat_areas(x, channels=x.ndim - 1 if explained.layout == "NHWC" else 1)
    moved = _moved_by_rounding(explainer, x, target, explained.map[0], rng)
    quantized = any(node.op_type in _ROUND for node in source.nodes)
    scores_bound = _QUANTIZED_SCORES_BOUND if quantized else _SCORES_BOUND

    reference, exact = references(model, source)
    with computing():
        report(f"running {reference.name}")
        errors = list(_step_errors(explainer, source, flat, reference))
        report(f"running {exact.name}")
        true = _true_scores(exact, source, x.astype(np.float64), explained.scores[0].size)
        scores_error = _relative(explained.scores[0], true, true)
        if scores_error > scores_bound and all(step.error <= reference.bound for step in errors):
            # Every step agrees, and the scores do not: against the exact reference the faulty step may show.
            reference = exact
            errors = list(_step_errors(explainer, source, flat, reference))
        gradient_error, directions = None, 0
        if not quantized:
            gradient_error, directions = gradient_error_of(
                lambda x: float(_true_scores(exact, source, x, true.size)[target] - true[target]),
                x,
                explained.map,
                rng,
                report,
            )
    return Verification(
        input=f"{source.input} {'×'.join(map(str, x.shape[1:]))}, {_called(image)}",
        reference=reference.name,
        steps=len(errors),
        worst=max(errors, key=lambda step: step.error, default=None),
        step_bound=reference.bound,
        tie_breaker=None if quantized else _tie_breaker(errors),
        scores=source.scores,
        scores_error=scores_error,
        scores_bound=scores_bound,
        target=target,
        directions=directions,
        gradient_error=gradient_error,
        gradient_bound=min(_MAX_GRADIENT_BOUND, max(_GRADIENT_BOUND, _TIMES * moved)),
        quantized=quantized,
    )


def _source(model: Model, options: Mapping[str, Any]) -> Source:
    """The part of the file that an `Explainer` of these options computes."""
    choice = Choice(options.get("output"), options.get("input"), options.get("given") or {})
    return open_model(model, choice)


def _sample(
    explainer: Explainer,
    source: Source,
    image: Picture | NDArray[np.floating[Any]] | None,
    size: tuple[int, int] | None,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The image with a little noise, or noise alone: float32 (1, …)."""
    if image is None:
        size = size or (explainer.preprocess.size if explainer.preprocess else None)
        shape = source.sample_shape(size)
        if elements(shape) > MAX_ELEMENTS:
            raise InputError(f"a sample has shape {list(shape)}.", supported=f"up to {MAX_ELEMENTS} numbers")
        return rng.standard_normal((1, *shape), np.float32)
    x = explainer.prepare(image)
    if len(x) != 1:
        raise InputError(f"there are {len(x)} images.", supported="one at a time")
    x += _STIR * (np.linalg.norm(x) / math.sqrt(x.size) or 1.0) * rng.standard_normal(x.shape, np.float32)
    return x


def _true_scores(exact: Reference, source: Source, x: Doubles, count: int) -> Doubles:
    """The scores of x, flat.  Raises UnsupportedError unless there are as many as gbp finds."""
    scores = exact.run(x, [source.scores])[source.scores].reshape(-1)
    if scores.size != count:
        raise UnsupportedError(
            f"{exact.name} makes {scores.size} scores, gbp {count}.",
            hint="One of them reads the model wrong; there is nothing to compare with.",
        )
    return scores


def _tie_breaker(errors: list[StepError]) -> StepError | None:
    worst = max(errors, key=lambda step: step.told_apart, default=None)
    return worst if worst is not None and worst.told_apart > 0 else None


def _called(image: object) -> str:
    if image is None:
        return "noise"
    given = os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else "the given image"
    return f"{given} with noise of {100 * _STIR:g} %"


def _relative(got: NDArray[Any], true: NDArray[Any], scale: NDArray[Any]) -> float:
    """‖got − true‖ / ‖scale‖; _WRONG where the shapes differ or the ratio is not finite."""
    if got.shape != true.shape:
        return _WRONG
    infinite = np.isinf(true)  # a mask's, or a padding's
    if infinite.any():
        if not np.array_equal(got[infinite], true[infinite]):
            return _WRONG
        got, true = got[~infinite], true[~infinite]
        scale = scale[np.isfinite(scale)]
    error = float(np.linalg.norm(np.subtract(got, true, dtype=np.float64)))
    norm = float(np.linalg.norm(scale))
    if error == 0 or norm == 0:
        return _WRONG if error else 0.0
    ratio = error / norm
    return ratio if math.isfinite(ratio) else _WRONG


def _step_errors(
    explainer: Explainer, source: Source, x: NDArray[np.float32], reference: Reference
) -> Iterator[StepError]:
    """The error of every tensor that both the plan and the file compute.

    After each step the reference's values replace its output, so that later steps compute on them.
    """
    plan, threads = explainer._plan_for(x.shape[1:])
    run = steps(plan, x, threads)
    nodes = {name: node for node in source.nodes for name in node.output}
    labelled = {label(node): node for node in source.nodes}
    rectified = {
        name: node.input[0]
        for name, node in nodes.items()
        if node.op_type in ("Relu", "Clip") and node.input[0] in nodes
    }
    compared = {tensor.name for tensor in plan.named}.intersection(nodes)
    for part in _parts(plan, _completed(plan, compared)):
        wanted = {name for names in part for name in names}
        wanted |= {rectified[name] for name in wanted & rectified.keys()}
        values = reference.run(x, sorted(wanted)) if wanted else {}
        # The run goes on with the next part, so it is longer than this one.
        for names, (instruction, arrays) in zip(part, run, strict=False):
            if instruction.step.yields_positions:  # ONNX counts positions differently
                continue
            for name in names:
                tensor = plan.tensors[name]
                got = arrays[tensor.name].transpose(tensor.logical_axes)
                title = _title(instruction, nodes[name], labelled)
                found = _step_error(name, title, got, values[name], values[rectified.get(name, name)])
                if found.told_apart:
                    sliding = labelled.get(instruction.layers[0], nodes[name])
                    same = _same_windows(source, sliding, reference, x, values[name].shape[2:])
                    found = replace(found, told_apart=told_apart(got, values[name], same))
                yield found
                if found.shapes is None:
                    np.copyto(got, values[name].reshape(got.shape))  # into the run


def _same_windows(
    source: Source, node: onnx.NodeProto, reference: Reference, x: NDArray[np.float32], places: Shape
) -> list[NDArray[np.bool_]] | None:
    """As `same_windows`, for a node on what it reads; None where that has not so many windows."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    stored = {tensor.name: tensor.dims[2:] for tensor in source.model.graph.initializer}
    kernel = attributes["kernel_shape"].ints if "kernel_shape" in attributes else stored.get(node.input[1])
    if node.op_type not in ("Conv", "MaxPool", "AveragePool", "LpPool") or not kernel:
        return None
    read = node.input[0]
    before = x if read == source.input else reference.run(x, [read])[read]
    ceil = "ceil_mode" in attributes and attributes["ceil_mode"].i == 1
    axes = read_axes(Node(node, source.opset, [before.shape]), tuple(kernel), ceil_mode=ceil)
    return same_windows(before, axes) if tuple(axis.outputs for axis in axes) == places else None


def _step_error(
    name: str, title: tuple[str, str], got: NDArray[Any], true: NDArray[Any], scale: NDArray[Any]
) -> StepError:
    """The error of one tensor.

    Parameters
    ----------
    name, title
        The tensor; the name and the op of the step that makes it.
    got, true
        Its values in gbp's run, and in the reference's.
    scale
        The tensor whose norm the error is divided by.
    """
    if got.shape == (1, *true.shape) or got.size == true.size == 1:  # a file without a batch axis
        true = true.reshape(got.shape)
    shapes = None if got.shape == true.shape else (got.shape, true.shape)
    ops = title[1].split(" … ")
    if shapes is None and not _ROUND.isdisjoint(ops):
        other = np.abs(got - true) == 1
        got = np.where(other, true, got) if other.mean() < _OTHER_NEIGHBOURS else got
    slides = any(fact(op).slides for op in ops)
    apart = told_apart(got, true) if slides and shapes is None else 0.0
    return StepError(*title, name, _relative(got, true, scale), apart, shapes)


def _title(
    instruction: Instruction, last: onnx.NodeProto, labelled: Mapping[str, onnx.NodeProto]
) -> tuple[str, str]:
    """Name and op for the output of `last`: those of all nodes of the step, or of `last` alone."""
    first = labelled.get(instruction.layers[0], last)
    if instruction.output not in last.output or first is last:
        return label(last), last.op_type
    return f"{label(first)} … {label(last)}", f"{first.op_type} … {last.op_type}"


def _completed(plan: Plan, names: Container[str]) -> list[list[str]]:
    """For each instruction, the tensors in `names` that are complete after it.

    They are its output, views of it, and tensors joined by a Concat whose last part it writes.
    """
    writes = defaultdict(list)  # buffer → (instruction, the slice that it writes), in order
    for i, instruction in enumerate(plan.instructions):
        written = plan.slices[instruction.output]
        writes[written.root].append((i, written))
    completed: list[list[str]] = [[] for _ in plan.instructions]
    for name, tensor in plan.tensors.items():
        at = plan.slices[tensor.name]
        writers = [i for i, it in writes[at.root] if it.start < at.stop and at.start < it.stop]
        if writers and name in names:
            completed[writers[-1]].append(name)
    return completed


def _parts(plan: Plan, completed: list[list[str]]) -> Iterator[list[list[str]]]:
    """Cut `completed` into parts whose tensors fit into _PART bytes, in float64 and with their inputs."""
    part: list[list[str]] = []
    room = _PART
    for names in completed:
        need = sum(16 * elements(plan.tensors[name].shape) for name in names)
        if part and need > room:
            yield part
            part, room = [], _PART
        part.append(names)
        room -= need
    yield part


def _moved_by_rounding(
    explainer: Explainer, x: NDArray[np.float32], target: int, own: NDArray[Any], rng: np.random.Generator
) -> float:
    """The largest relative change of the map `own` when the values of x are rounded differently."""
    noise = rng.standard_normal((_ROUNDINGS, *x.shape[1:]), np.float32)
    near = explainer.explain(x * (1 + _ROUNDING * noise), rule="vanilla", target=target)
    return max(_relative(moved, own, own) for moved in near.map)
