"""`gbp features`: what the channels of a layer respond to, over any number of images."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from .. import RULES
from ..errors import counted
from .actions import Each
from .options import (
    add_explainer,
    add_model,
    add_preprocessing,
    explainer_options,
    out_name,
    print_json,
    print_line,
)
from .progress import add_progress, compiling_shown, counting, reporting


def add_command(commands: Any) -> None:
    """Add `features` to the parser's commands."""
    command = commands.add_parser(
        "features",
        help="what the channels of a layer respond to, over any number of images",
        description="Find the strongest activations of a layer's channels over images in any number, and "
        "project each back to its image (Zeiler & Fergus 2013). A run that was stopped goes on when it is "
        "started again with the same options. Exit code 1: some images could not be read.",
    )
    command.set_defaults(run=features)
    add_model(command)
    command.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="pictures; folders of them; patterns; @FILE, which lists paths; - is such a list from stdin",
    )
    command.add_argument(
        "--layer", required=True, metavar="TENSOR", help="tensor, node, or a part of its name"
    )
    command.add_argument(
        "--channels", action=Each, type=channels, metavar="N[,N-M]", help="default: the first 16"
    )
    command.add_argument("--top", type=int, default=9, help="images of each channel; default: 9")
    command.add_argument("--rule", choices=RULES, default="deconvnet", help="default: deconvnet")
    command.add_argument(
        "--part",
        choices=("effective", "field"),
        default="effective",
        help="show all that a unit sees, or the middle of it that holds nine tenths of what is projected; "
        "default: effective",
    )
    command.add_argument(
        "-o",
        "--out",
        type=out_name,
        required=True,
        metavar="DIR",
        help="folder for the pictures and the index",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_progress(command)
    add_preprocessing(command)
    add_explainer(command)


# Its name is plain because argparse prints it: "invalid channels value: 'x'".
def channels(text: str) -> tuple[int, ...]:
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        chosen += range(int(first), int(last) + 1) if dash else [int(first)]
    return tuple(chosen)


def features(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from ..features.features import features as find

    with counting(arguments) as progress, compiling_shown(arguments.quiet), reporting() as report:
        found = find(
            arguments.model,
            arguments.images,
            arguments.out,
            layer=arguments.layer,
            channels=arguments.channels,
            top=arguments.top,
            rule=arguments.rule,
            part=arguments.part,
            stdin=sys.stdin.buffer,
            progress=progress,
            report=(lambda _: None) if arguments.quiet else report,
            **explainer_options(arguments),
        )
    if arguments.json:
        print_json(dataclasses.asdict(found) | {"index": str(found.index)})
    elif not arguments.quiet:
        failed = f"; {len(found.failed)} could not be read" if found.failed else ""
        before = f", {found.before} of them before" if found.before else ""
        print_line(f"{found.layer}: {counted(found.images, 'image')}{before}{failed}")
        print_line(f"a unit sees {found.field[0]}×{found.field[1]} pixels")
        for channel, hits in found.hits.items():
            if hits:
                print_line(f"  channel {channel:>4} {hits[0].value:10.4g}  {hits[0].image}")
            else:
                print_line(f"  channel {channel:>4} no image activates it")
        print_line(f"wrote {found.index}")
    return 1 if found.failed else 0
