"""`gbp batch`: explains images in any number into a folder, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from ..rules import RULE_NAMES
from .methods import add_methods, method_options, refuse_misplaced
from .options import (
    add_drawing,
    add_explainer,
    add_model,
    add_preprocessing,
    explainer_options,
    look_of,
    out_name,
    print_json,
    print_line,
    print_paragraph,
)
from .progress import add_progress, compiling_shown, counting
from .questions import add_questions, question_of, refuse_contradictions


def add_command(commands: Any) -> None:
    """Add `batch` to the parser's commands."""
    command = commands.add_parser(
        "batch",
        help="explain images in any number, with an index; goes on where it was stopped",
        description="Explain images in any number into a folder with an index. A run that was stopped, "
        "however it was, goes on when it is started again with the same options. An image that cannot be "
        "explained is a row with an error in the index. Exit code 1: there are such rows. It needs "
        "gbp-explain[batch].",
    )
    command.set_defaults(run=batch)
    add_model(command)
    command.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="pictures, or .npy files, a sample each, preprocessed; folders of them; patterns; @FILE, which "
        "lists paths; - is such a list from stdin",
    )
    command.add_argument(
        "-o", "--out", type=out_name, required=True, metavar="DIR", help="folder for the files and the index"
    )
    command.add_argument(
        "--rule",
        choices=(*RULE_NAMES, "all"),
        help="all: the first three; default: guided; that of a --method: vanilla",
    )
    command.add_argument(
        "--format", choices=("png", "jpg", "webp", "svg"), default="png", help="of pictures; default: png"
    )
    command.add_argument(
        "--arrays", choices=("npz", "zarr"), help="write maps as numbers: a file each, or one group for all"
    )
    command.add_argument(
        "--shard", type=shard, metavar="I/N", help="explain the I-th of N parts, I from 1 to N, beside others"
    )
    command.add_argument("--retry", action="store_true", help="try again what failed before")
    command.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: actors of Ray; default: local"
    )
    command.add_argument(
        "--actors",
        type=int,
        metavar="N",
        help="of Ray, each on one processor or on --threads of them; default: as many as fit here; on "
        "cards say how many, each takes one",
    )
    command.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a Ray cluster; default: one on this machine for the run"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_progress(command)
    add_preprocessing(command)
    add_questions(command)
    add_methods(command)
    add_drawing(command, "none")
    add_explainer(command, "all cores; with --engine ray one for each actor")


# Its name is plain because argparse prints it: "invalid shard value: 'x'".
def shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not 1 <= int(i) <= int(n):
        raise ValueError(text)
    return int(i), int(n)


def batch(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from .. import Explainer
    from .. import batch as explain_all

    refuse_misplaced(arguments)
    refuse_contradictions(arguments)
    options = explainer_options(arguments)

    def labels() -> Sequence[str] | None:
        with Explainer(arguments.model, **options) as explainer:
            return explainer.labels

    with counting(arguments) as progress, compiling_shown(arguments.quiet):
        summary = explain_all(
            arguments.model,
            arguments.images,
            arguments.out,
            rule=arguments.rule,
            target=question_of(arguments, labels),
            score=arguments.score,
            method=arguments.method,
            method_options=method_options(arguments),
            style=arguments.style,
            format=arguments.format,
            look=look_of(arguments),
            bare=arguments.bare,
            arrays=arguments.arrays,
            shard=arguments.shard,
            retry=arguments.retry,
            engine=arguments.engine,
            actors=arguments.actors,
            ray_address=arguments.ray_address,
            stdin=sys.stdin.buffer,
            progress=progress,
            **options,
        )
    if arguments.json:
        print_json(dataclasses.asdict(summary) | {"index": str(summary.index)})
    elif not arguments.quiet:
        before = f", {summary.before} before" if summary.before else ""
        failed = f"; {summary.failed} failed: column error of the index says why" if summary.failed else ""
        print_line(f"explained {summary.explained}{before}{failed}")
        print_line(f"wrote {summary.index}")
        for note in summary.notes:
            print_paragraph(f"note: {note}", 6)
    return 1 if summary.failed else 0
