"""`Verification`: the errors that `verify` measured, each with its bound, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.shapes import Shape


@dataclass(frozen=True)
class StepError:
    """The error of one step of the plan.

    Parameters
    ----------
    node, op
        The name and op of the file's node; "first … last" where several nodes became one step.
    tensor
        The step's output.
    error
        The relative error of that tensor.
    told_apart
        The largest difference between two pixels that equal windows made, over the tensor's largest
        value.
    shapes
        The shapes of gbp's and of the reference's tensor, if they differ; then there is no error to measure.
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
    """The result of `verify`: relative L2 errors, each with its bound.

    Parameters
    ----------
    input
        The input's name, its shape and where its values came from.
    reference
        The runtime that the steps were compared with.
    steps
        How many steps were compared.
    worst
        The step with the largest error; None where the plan has no steps.
    step_bound
        The bound on a step's error.
    tie_breaker
        The step that breaks ties most; None where all keep them.
    scores
        The name of the explained tensor.
    scores_error, scores_bound
        The error of the scores, and its bound.
    target
        The class whose gradient was compared.
    directions
        In how many directions the score was smooth enough to compare.
    gradient_error, gradient_bound
        The error of the map, None where there was no such direction; and its bound.
    quantized
        Whether the model rounds to integers.  Then the gradient is not compared, because it ignores the
        rounding and differences do not.
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
        """The errors that exceed their bound, in words."""
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
        """Whether everything was compared and agrees."""
        return not self.mismatches and (self.quantized or self.gradient_error is not None)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if self.mismatches:
            return f"MISMATCH: {'; '.join(self.mismatches)}."
        if self.quantized:
            return "verified: steps and scores; the gradient passes straight through quantization."
        if self.gradient_error is None:
            return "NOT VERIFIED: the score is not smooth here and has no gradient. Try another image."
        return "verified: every error is within its bound."
