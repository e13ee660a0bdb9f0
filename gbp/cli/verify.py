"""`gbp verify`: compares steps, scores and the gradient with other runtimes."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ..errors import counted
from .options import (
    add_algorithm,
    add_ends,
    add_model,
    add_preprocessing,
    ends_of,
    preprocess_of,
    print_json,
    print_paragraph,
)

if TYPE_CHECKING:
    from ..diagnostics.verification import Verification


def add_command(commands: Any) -> None:
    """Add `verify` to the parser's commands."""
    command = commands.add_parser(
        "verify",
        help="compare steps and gradient with onnxruntime, or onnx itself, and finite differences",
        description="Compare every step with onnxruntime, where it is installed, else with onnx's reference "
        "evaluator; and the gradient with finite differences in float64. Exit code 1: they do not agree.",
    )
    command.set_defaults(run=verify)
    add_model(command)
    command.add_argument("image", metavar="IMAGE", nargs="?", help="default: seeded noise")
    command.add_argument("--json", action="store_true", help="print JSON")
    add_ends(command.add_argument_group("model"))
    add_algorithm(command.add_argument_group("computing"))
    add_preprocessing(command)


def verify(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from ..diagnostics.verify import verify as verify_model
    from .progress import compiling_shown, reporting

    with compiling_shown(), reporting() as report:
        verification = verify_model(
            arguments.model,
            arguments.image,
            size=arguments.size,
            report=report,
            preprocess=preprocess_of(arguments) if arguments.image else None,
            **ends_of(arguments),
            algorithm=arguments.algorithm,
        )
    if arguments.json:
        verdict = {"verified": verification.verified, "verdict": verification.verdict}
        print_json({"model": arguments.model} | dataclasses.asdict(verification) | verdict)
    else:
        _print_verification(verification)
    return 0 if verification.verified else 1


def _print_verification(v: Verification) -> None:
    def off(error: float, bound: float) -> str:
        return f"off by {error:.1e} (allowed {bound:.0e}): "

    worst = "none"
    if v.worst is not None:
        worst = f"{v.worst.op} {v.worst.node!r}, tensor {v.worst.tensor!r}"
        worst = (
            off(v.worst.error, v.step_bound) + worst
            if v.worst.shapes is None
            else f"{worst}, {v.worst.found}"
        )
    gradient = f"class {v.target}, smooth in {counted(v.directions, 'direction')}"
    if v.quantized:
        gradient = f"class {v.target}, not compared: it passes straight through quantization"
    elif v.gradient_error is not None:
        gradient = off(v.gradient_error, v.gradient_bound) + gradient
    rows = [
        ("input", v.input),
        ("reference", f"{v.reference} for steps, float64 for scores and gradient"),
        ("worst step", f"of {v.steps}, {worst}"),
        ("ties", "broken" if v.tie_breaker else "kept: equal windows give equal values"),
        ("scores", f"{off(v.scores_error, v.scores_bound)}{v.scores!r}"),
        ("gradient", gradient),
    ]
    for name, text in rows:
        print_paragraph(f"{name:12}{text}", 12, break_on_hyphens=False)
    print_paragraph(v.verdict, 0, break_on_hyphens=False)
