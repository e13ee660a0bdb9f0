"""`gbp inspect`: prints the layers of a model, how each is computed, and the ops that are not supported."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import counted
from .options import (
    add_algorithm,
    add_ends,
    add_model,
    as_printed,
    ends_of,
    in_options,
    print_json,
    print_line,
    print_paragraph,
    size,
)

if TYPE_CHECKING:
    from ..diagnostics.inspection import Inspection


def add_command(commands: Any) -> None:
    """Add `inspect` to the parser's commands."""
    command = commands.add_parser(
        "inspect",
        help="list the layers, how each is computed, and unknown ops",
        description="List a model's layers with their names, which --at and --layer take, and how each is "
        "computed; or all that gbp does not support in it.",
    )
    command.set_defaults(run=inspect)
    add_model(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    model, computing = (command.add_argument_group(name) for name in ("model", "computing"))
    add_ends(model)
    add_algorithm(computing)
    model.add_argument(
        "--size", type=size, metavar="N|HxW", help="image size, where the model leaves it open; default: 224"
    )


def inspect(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from ..diagnostics.inspection import inspect as inspect_model

    inspection = inspect_model(arguments.model, arguments.size, arguments.algorithm, **ends_of(arguments))
    if arguments.json:
        print_json(dataclasses.asdict(inspection))
    else:
        _print_inspection(inspection)
    return 2 if inspection.unsupported else 0


def _print_inspection(inspection: Inspection) -> None:
    # Names are shortened: the op has its own column, and a scope that all names share says nothing.
    short = [layer.name.removesuffix(layer.op).rstrip("/_") or layer.name for layer in inspection.layers]
    scope = len(os.path.commonprefix(short).rpartition("/")[0])  # noqa: RUF071  # whole parts: rpartition
    header = ("layer", "op, plan", "output", "params", "MACs")
    rows = [
        (
            as_printed(name[scope:].lstrip("/") or name),
            as_printed(", ".join(filter(None, (layer.op, layer.plan)))),
            as_printed("×".join(map(str, layer.shape))),
            _count(layer.parameters),
            _count(layer.macs),
        )
        for name, layer in zip(short, inspection.layers, strict=True)
    ]
    widths = _widths([header, *rows])
    align = (*[str.ljust] * 3, *[str.rjust] * 2)  # texts to the left, numbers to the right
    for row in (header, *rows):
        cells = [to(_cut(text, n), n) for text, n, to in zip(row, widths, align, strict=True)]
        print_line(" ".join(cells).rstrip())
    parameters = sum(layer.parameters for layer in inspection.layers)
    macs = sum(layer.macs for layer in inspection.layers)
    print()
    print_line(f"{counted(len(rows), 'layer')}, {_count(parameters)} parameters, {_count(macs)} MACs")
    ends = f"input {inspection.input}, output {inspection.output}"
    print_paragraph(ends, 2)
    for reason in inspection.unsupported:
        print_paragraph(f"unsupported: {reason}", 2)
    for hint in inspection.hints:
        print_paragraph(f"what to do: {in_options(hint)}", 2)
    for note in inspection.notes:
        print_paragraph(f"note: {note}", 2)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Widths of columns that fit into 80 characters with spaces between.  Names shrink first, down to 20."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + len(widths) - 1 > 80:
        widths[0 if widths[0] > 20 else widths.index(max(widths))] -= 1
    return widths


def _cut(text: str, width: int) -> str:
    """Cut the middle out of a long text, because names differ at their ends."""
    if len(text) <= width:
        return text
    dots, tail = as_printed("…"), width // 2
    return text[: width - len(dots) - tail] + dots + text[len(text) - tail :]


def _count(number: float) -> str:
    """A number with three digits and a unit, such as 1.24M."""
    for unit in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"
