"""`gbp report`: one HTML page of many images, with their maps, that needs no network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .. import InputError
from ..errors import counted, readable_bytes, shown
from ..methods import METHODS
from .actions import Each
from .explain import new_folder
from .methods import rules
from .options import (
    add_explainer,
    add_model,
    add_preprocessing,
    explainer_options,
    out_name,
    print_json,
    print_line,
)
from .progress import add_progress, advancing, compiling_shown


def add_command(commands: Any) -> None:
    """Add `report` to the parser's commands."""
    command = commands.add_parser(
        "report",
        help="write one HTML page of many images with their maps",
        description="Write one HTML page that shows images with their best classes and maps of several "
        "rules and methods. It holds all that it shows, and loads nothing from any network.",
    )
    command.set_defaults(run=report)
    add_model(command)
    command.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="pictures; folders of them; patterns; @FILE, which lists paths",
    )
    command.add_argument(
        "-o", "--out", type=out_name, default="report.html", metavar="FILE", help="default: report.html"
    )
    command.add_argument(
        "--rule",
        action=Each,
        type=rules,
        default=("guided", "vanilla"),
        metavar="RULE[,RULE]",
        help="default: guided,vanilla",
    )
    command.add_argument(
        "--method",
        action=Each,
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAME[,NAME]",
        help=f"as well, of {', '.join(name for name, method in METHODS.items() if not method.needs)}",
    )
    command.add_argument(
        "--classes",
        type=int,
        default=3,
        metavar="K",
        help="how many of each image's best classes get a map; default: 3",
    )
    command.add_argument("--title", default="", help="of the page; default: the model's name")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out images that cannot be read, and say so; exit code 1",
    )
    add_progress(command)
    add_preprocessing(command)
    add_explainer(command)


def report(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code: 1 where images were skipped."""
    from ..pictures.paths import STDIN, find_images

    images = find_images(arguments.images)
    if STDIN in images:
        raise InputError("a report reads no picture from the standard input.", hint="Name files.")
    path = Path(arguments.out)
    if path.resolve() in {Path(name).resolve() for name in (arguments.model, *images)}:
        raise InputError(f"{str(path)!r} would be overwritten.", hint="Name another file with -o.")
    from .. import Explainer
    from ..report.make import check_file
    from ..report.make import report as write_report
    from .compiling import compile_on_new_machine

    check_file(path)
    explainer = Explainer(arguments.model, **explainer_options(arguments))
    with (
        new_folder(path),
        advancing(arguments, len(images)) as progress,
        compiling_shown(arguments.quiet),
    ):
        compile_on_new_machine(explainer, None if arguments.skip_broken else images[0])
        summary = write_report(
            explainer,
            images,
            path,
            rules=arguments.rule,
            methods=arguments.method,
            classes=arguments.classes,
            title=arguments.title,
            skip_broken=arguments.skip_broken,
            progress=progress.advance if progress is not None else lambda _: None,
        )
    if arguments.json:
        seconds = {name: round(value, 3) for name, value in summary.seconds.items()}
        answer = {"file": str(path), "images": summary.images, "skipped": summary.skipped, "seconds": seconds}
        print_json(answer)
    elif not arguments.quiet:
        for name, value in summary.seconds.items():
            print_line(f"  {name:<24} {value:8.2f} s")
        size = readable_bytes(path.stat().st_size)
        print_line(f"wrote {path}: {counted(summary.images, 'image')}, {size}")
    for why in summary.skipped.values():
        print(shown(f"gbp: skipped: {why}"), file=sys.stderr)
    return 1 if summary.skipped else 0
