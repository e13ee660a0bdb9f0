"""`verify`: whether gbp computes a model as others do, and whether the map is the gradient of its score.

    steps      every step of the plan, fed the reference's own inputs, against the reference's output:
               ‖y − ŷ‖ / ‖ŷ‖, for a rectifier over the norm of what it rectifies.  So errors do not add up,
               and the worst step is the one to blame.  The image is given flat areas for this
    ties       whether windows that are equal there, in the reference, gave equal values: see `ties`
    scores     the run as it is, from image to scores, against float64: ‖s − ŝ‖ / ‖ŝ‖
    gradient   √n · (⟨map, u⟩ − (f(x + hu) − f(x − hu)) / 2h) over random unit directions u in ℝⁿ, their root
               mean square over ‖map‖; f is the explained score in float64

Of an error e of the map a random direction sees ⟨e, u⟩, whose mean square is ‖e‖² / n: so the last estimates
the map's relative error.  f is smooth but for kinks, where a rectifier or a maximum switches.  Where one lies
within h the differences to either side disagree, and a smaller h is tried.  Where one lies within rounding of
x, float32 may rightly be on its other side: so the map may be off by a few times what it moves when x is
rounded anew.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..attribution import Attribution
from ..errors import InputError, UnsupportedError
from ..explainer import Explainer
from ..graph.shapes import Shape
from ..importer.load import open_model
from ..importer.proto import Model, label
from ..importer.subgraph import Choice, Source
from ..inputs import Picture
from ..limits import computing, elements
from ..plan.layout import Instruction
from ..plan.plan import Plan
from ..runtime.tape import steps
from .reference import Doubles, Reference, references
from .ties import SLIDING, told_apart, with_flat_areas

Report = Callable[[str], None]

_WRONG = 1e9
#: Float32 errors add up from image to scores.
_SCORES_BOUND = 1e-4
#: Between integers one unit's rounding is the whole step to the next.
_QUANTIZED_SCORES_BOUND = 3e-2
_GRADIENT_BOUND, _MAX_GRADIENT_BOUND = 1e-3, 1e-1
#: How often x is rounded anew, by how much, and how many times what that moves the map it may be off by.
_ROUNDINGS, _ROUNDING, _TIMES = 8, 5e-7, 4
_DIRECTIONS = 3
#: h to try, of ‖x‖; and how far the differences to either side may disagree, as a relative error.
_STEPS = (1e-7, 1e-8, 1e-9)
_SMOOTH = 1e-3
#: Noise on an image, in parts of its size: in flat areas the maxima of pools are ties, and each is a kink.
_STIR = 1e-3
#: Bytes of the reference's tensors that are held at once.
_PART = 2**28


@dataclass(frozen=True)
class StepError:
    """The relative error of a step of the plan in its output `tensor`.

    `node` and `op` name the file's node that makes that; "first … last" where several became one step.
    `told_apart`: by how much pixels differ, over the largest value, that equal windows made.
    `shapes`: gbp's and the reference's, where they differ, so that there is no telling how far off it is.
    """

    node: str
    op: str
    tensor: str
    error: float
    told_apart: float = 0.0
    shapes: tuple[Shape, Shape] | None = None

    @property
    def found(self) -> str:
        """In words."""
        if self.shapes is None:
            return f"is off by {self.error:.1e}"
        return "makes {}, and the reference {}".format(*map(list, self.shapes))


@dataclass(frozen=True)
class Verification:
    """What was compared, and how far off it was: relative L2 errors, each with the bound that it is held to.

    `steps` compared with `reference`, and the `worst` of them: None where the plan has none.  `tie_breaker`:
    the step that tells apart most what is equal, None where none does.  `scores`: the explained tensor, and
    `target` the class whose gradient it was.  `directions` in which the score is smooth enough to compare;
    where there are none, `gradient_error` is None.  `quantized`: the gradient passes straight through
    roundings, of which differences see only the steps, and is not compared.
    """

    input: str
    reference: str
    steps: int
    worst: StepError | None
    step_bound: float
    tie_breaker: StepError | None
    scores: str
    scores_error: float
    scores_bound: float
    target: int
    directions: int
    gradient_error: float | None
    gradient_bound: float
    quantized: bool

    @property
    def mismatches(self) -> tuple[str, ...]:
        """What is off by more than its bound, in words."""
        compared = [
            ("the scores are", self.scores_error, self.scores_bound),
            ("the gradient is", self.gradient_error or 0.0, self.gradient_bound),
        ]
        worst = self.worst
        if worst is not None and worst.shapes is not None:
            return (f"{worst.op} {worst.node!r} {worst.found}",)
        if worst is not None:
            compared.insert(0, (f"{worst.op} {worst.node!r} is", worst.error, self.step_bound))
        off = [
            f"{what} off by {error:.1e}, and {bound:.0e} is allowed"
            for what, error, bound in compared
            if error > bound
        ]
        if self.tie_breaker is not None:
            step = self.tie_breaker
            off.append(f"{step.op} {step.node!r} tells equal windows apart, by {step.told_apart:.1e}")
        return tuple(off)

    @property
    def verified(self) -> bool:
        return not self.mismatches and (self.quantized or self.gradient_error is not None)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.mismatches:
            return f"MISMATCH: {'; '.join(self.mismatches)}."
        if self.quantized:
            return "verified: steps and scores; the gradient passes straight through QuantizeLinear."
        if self.gradient_error is None:
            return "NOT VERIFIED: the score is not smooth here and has no gradient. Try another image."
        return "verified: every error is within its bound."


def verify(
    model: Model,
    image: Picture | NDArray[np.floating[Any]] | None = None,
    *,
    size: tuple[int, int] | None = None,
    report: Report = lambda _: None,
    **options: Any,
) -> Verification:
    """Compare a model's steps, its scores and the gradient of its best score on one image.

    `image`: a picture, or an array of one sample, as for `Explainer.explain`, to which a little noise is
    added; by default noise alone, of `size` = (H, W) where the model leaves that open and its preprocessing
    does not say it, or of 224.  All noise is seeded.  Steps are compared with flat areas in it, white, black
    and of one colour, where windows are equal.
    `report` is called with what is being done.  `options` are those of `Explainer`.

    Raises GbpError for what gbp does not explain, and UnsupportedError naming the node where onnx's
    reference evaluator does not compute it.
    """
    explainer = Explainer(model, **options)
    source = open_model(
        model, Choice(options.get("output"), options.get("input"), options.get("given") or {})
    )
    if len(explainer.input_shape) > len(source.input_shape):
        source = source.without_batch()
    rng = np.random.default_rng(0)
    if image is None:
        size = size or (explainer.preprocess.size if explainer.preprocess else None)
        x = rng.standard_normal((1, *source.sample_shape(size)), np.float32)
    else:
        x = explainer.prepare(image)
        if len(x) != 1:
            raise InputError(f"there are {len(x)} images.", supported="one at a time")
        x += _STIR * (np.linalg.norm(x) / math.sqrt(x.size) or 1.0) * rng.standard_normal(x.shape, np.float32)
    report("explaining")
    explained = explainer.explain(x, rule="vanilla")
    target = int(explained.target[0])
    flat = with_flat_areas(x, channels=x.ndim - 1 if explained.layout == "NHWC" else 1)
    moved = _moved_by_rounding(explainer, x, explained, rng)

    reference, exact = references(model, source)

    def scores(x: Doubles) -> Doubles:
        return exact.run(x, [source.scores])[source.scores].reshape(-1)

    with computing():
        report(f"running {reference.name}")
        errors = list(_step_errors(explainer, source, flat, reference))
        report(f"running {exact.name}")
        true_scores = scores(x.astype(np.float64))
        if true_scores.shape != explained.scores[0].shape:
            raise UnsupportedError(
                f"{exact.name} makes {true_scores.size} scores, gbp {explained.scores[0].size}.",
                hint="One of them reads the model wrong; there is nothing to compare with.",
            )
        scores_error = _relative(explained.scores[0], true_scores, true_scores)
        quantized = any(node.op_type == "QuantizeLinear" for node in source.nodes)
        scores_bound = _QUANTIZED_SCORES_BOUND if quantized else _SCORES_BOUND
        if scores_error > scores_bound and all(step.error <= reference.bound for step in errors):
            reference = exact  # which is to name the step where they part
            errors = list(_step_errors(explainer, source, flat, reference))
        gradient_error, directions = None, 0
        if not quantized:
            gradient_error, directions = _gradient_error(
                lambda x: float(scores(x)[target] - true_scores[target]), x, explained.map, rng, report
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


def _tie_breaker(errors: list[StepError]) -> StepError | None:
    worst = max(errors, key=lambda step: step.told_apart, default=None)
    return worst if worst is not None and worst.told_apart > 0 else None


def _called(image: object) -> str:
    if image is None:
        return "noise"
    given = str(image) if isinstance(image, (str, os.PathLike)) else "the given image"
    return f"{given} with noise of {_STIR:.1%}"


def _relative(got: NDArray[Any], true: NDArray[Any], scale: NDArray[Any]) -> float:
    """‖got − true‖ / ‖scale‖, or a very large number where there is no telling."""
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


# ------------------------------------------------------------------------------------------------ steps


def _step_errors(
    explainer: Explainer, source: Source, x: NDArray[np.float32], reference: Reference
) -> Iterator[StepError]:
    """The error of every tensor of the file that the plan makes, each made of the reference's own."""
    plan, threads = explainer.plan_for(x.shape[1:])
    run = steps(plan, x, threads)
    nodes = {name: node for node in source.nodes for name in node.output}
    labelled = {label(node): node for node in source.nodes}
    rectified = {
        name: node.input[0]
        for name, node in nodes.items()
        if node.op_type in ("Relu", "Clip") and node.input[0] in nodes
    }
    for part in _parts(plan, _made(plan, nodes)):
        wanted = {name for names in part for name in names}
        wanted |= {rectified[name] for name in wanted & rectified.keys()}
        values = reference.run(x, sorted(wanted)) if wanted else {}
        for names, (instruction, arrays) in zip(part, run, strict=False):
            for name in names:
                if instruction.step.yields_positions:  # which count in another way
                    continue
                tensor, true = plan.tensors[name], values[name]
                got = arrays[tensor.name].transpose(tensor.logical_axes)
                if (
                    got.shape == (1, *true.shape) or got.size == true.size == 1
                ):  # as the file has no batch axis
                    true = true.reshape(got.shape)
                error = _relative(got, true, values[rectified.get(name, name)])
                shapes = None if got.shape == true.shape else (got.shape, true.shape)
                title = _title(instruction, nodes[name], labelled)
                slides = not SLIDING.isdisjoint(title[1].split(" … "))
                apart = told_apart(got, true) if slides and shapes is None else 0.0
                yield StepError(*title, name, error, apart, shapes)
                if shapes is None:
                    np.copyto(got, true)


def _title(
    instruction: Instruction, last: onnx.NodeProto, labelled: Mapping[str, onnx.NodeProto]
) -> tuple[str, str]:
    """Name and op of what makes the output of `last`: all that the step computes, or `last` alone."""
    first = labelled.get(instruction.layers[0], last)
    if instruction.output not in last.output or first is last:
        return label(last), last.op_type
    return f"{label(first)} … {label(last)}", f"{first.op_type} … {last.op_type}"


def _made(plan: Plan, names: Container[str]) -> list[list[str]]:
    """For each call those of the tensors that are there once it is done.

    They are its output, views of that, and wholes that it was the last to write a part of.
    """
    writes = defaultdict(list)
    for i, instruction in enumerate(plan.instructions):
        at = plan.slices[instruction.output]
        writes[at.root].append((i, at))
    made: list[list[str]] = [[] for _ in plan.instructions]
    for name, tensor in plan.tensors.items():
        at = plan.slices[tensor.name]
        parts = [i for i, part in writes[at.root] if part.start < at.stop and at.start < part.stop]
        if parts and name in names:
            made[parts[-1]].append(name)
    return made


def _parts(plan: Plan, made: list[list[str]]) -> Iterator[list[list[str]]]:
    """Runs of calls whose tensors, in float64 and with as much for what is rectified, may be held at once."""
    part: list[list[str]] = []
    room = _PART
    for names in made:
        need = sum(16 * elements(plan.tensors[name].shape) for name in names)
        if part and need > room:
            yield part
            part, room = [], _PART
        part.append(names)
        room -= need
    yield part


# --------------------------------------------------------------------------------------------- gradient


def _moved_by_rounding(
    explainer: Explainer, x: NDArray[np.float32], explained: Attribution, rng: np.random.Generator
) -> float:
    """How far the map moves, at most, where the numbers of x are rounded in other ways."""
    noise = rng.standard_normal((_ROUNDINGS, *x.shape[1:]), np.float32)
    near = explainer.explain(x * (1 + _ROUNDING * noise), rule="vanilla", target=int(explained.target[0]))
    return max(_relative(moved, explained.map[0], explained.map[0]) for moved in near.map)


def _gradient_error(
    rise: Callable[[Doubles], float],
    x: NDArray[np.float32],
    gradient: NDArray[np.float32],
    rng: np.random.Generator,
    report: Report,
) -> tuple[float | None, int]:
    """The relative error of the gradient, estimated, and in how many random directions the score is smooth.

    `rise`: how much higher the score is elsewhere than at x.
    """
    origin, root = x.astype(np.float64), math.sqrt(x.size)
    length, norm = float(np.linalg.norm(origin)) or 1.0, float(np.linalg.norm(gradient))
    found = []
    for i in range(_DIRECTIONS):
        report(f"finite differences, direction {i + 1} of {_DIRECTIONS}")
        u = rng.standard_normal(x.shape)
        u /= np.linalg.norm(u)
        for relative in _STEPS:
            h = relative * length
            ahead, behind = rise(origin + h * u) / h, -rise(origin - h * u) / h
            slope = (ahead + behind) / 2
            if root * abs(ahead - behind) <= _SMOOTH * max(norm, root * abs(slope)):
                found.append((float(np.vdot(gradient, u)), slope))
                break
    if not found:
        return None, 0
    projections, slopes = np.array(found).T
    error, scale = (root * math.sqrt(np.mean(v**2)) for v in (projections - slopes, slopes))
    return (error / max(norm, scale) if error else 0.0), len(found)
