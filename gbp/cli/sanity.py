"""`gbp sanity`: randomises a model's weights and shows whether the maps notice."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import InputError
from ..rules import RULE_NAMES
from .methods import add_methods, method_options, refuse_misplaced, rules
from .options import (
    add_algorithm,
    add_device,
    add_ends,
    add_labels,
    add_model,
    add_preprocessing,
    as_printed,
    ends_of,
    out_name,
    preprocess_of,
    print_json,
    print_line,
    print_paragraph,
    target,
)

if TYPE_CHECKING:
    from ..doubt.result import Sanity


def add_command(commands: Any) -> None:
    """Add `sanity` to the parser's commands."""
    command = commands.add_parser(
        "sanity",
        help="randomise the weights and see whether the maps notice",
        description="Draw the weights anew, from the last layer to the first, and of one layer at a time. "
        "Compare the maps with the model's own (Adebayo et al. 2018).",
    )
    command.set_defaults(run=sanity)
    add_model(command)
    command.add_argument("image", metavar="IMAGE", help="a picture; or an .npy file, a sample, preprocessed")
    command.add_argument(
        "--rule",
        choices=(*RULE_NAMES, "all"),
        help="all, the default: the first three; of a --method: vanilla",
    )
    command.add_argument("--target", type=target, help="class index or label; default: the best class")
    command.add_argument("--layers", type=int, default=24, help="stages at most; default: 24")
    command.add_argument("--seed", type=int, help="of the draws, and of a method's noise; default: 0")
    command.add_argument(
        "-o", "--out", type=out_name, metavar="FILE", help="picture; default: IMAGE_sanity.png, here"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_methods(command, seed=False)
    model, computing = (command.add_argument_group(name) for name in ("model", "computing"))
    add_labels(model)
    add_ends(model)
    add_algorithm(computing)
    add_device(computing)
    add_preprocessing(command)


def sanity(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from ..pictures.files import check_path, check_writable, save_picture

    refuse_misplaced(arguments, free=("seed",))
    path = Path(arguments.out or f"{Path(arguments.image).stem}_sanity.png")
    check_path(path)
    check_writable(path)
    if path.resolve() in (Path(arguments.model).resolve(), Path(arguments.image).resolve()):
        raise InputError(f"{str(path)!r} would be overwritten.", hint="Name another file with -o.")
    from ..doubt.sanity import sanity as sanity_of
    from ..pictures.labels import read_labels
    from .progress import compiling_shown, reporting

    with compiling_shown(), reporting() as report:
        found = sanity_of(
            arguments.model,
            arguments.image,
            rules=None if arguments.rule is None else rules(arguments.rule),
            method=arguments.method,
            method_options=method_options(arguments),
            target=arguments.target,
            layers=arguments.layers,
            seed=arguments.seed or 0,
            report=report,
            preprocess=preprocess_of(arguments),
            labels=read_labels(arguments.labels),
            **ends_of(arguments),
            algorithm=arguments.algorithm,
            device=arguments.device,
            tf32=arguments.tf32,
        )
    save_picture(found.picture(), path)
    if arguments.json:
        print_json({"model": arguments.model, "image": arguments.image, "file": str(path)} | found.to_dict())
    else:
        _print_sanity(found)
        print_line(f"wrote {path}")
    return 0


def _print_sanity(found: Sanity) -> None:
    for mode, ways in found.likeness.items():
        print_line(f"{mode}: SSIM and rank correlation of |map| with the model's own")
        wide = max(14, 2 + max(map(len, ways)))
        names = [as_printed(name)[-34:] for name, _ in found.layers]
        first = max(map(len, names))
        print_line(" " * first + "".join(f"{rule:>{wide}}" for rule in ways))
        for k, name in enumerate(names):
            cells = []
            for values in ways.values():
                value = values[k]
                cell = "no map" if value is None else f"{value.ssim:.2f} {value.rank_magnitude:5.2f}"
                cells.append(f"{cell:>{wide}}")
            print_line(f"{name:{first}}" + "".join(cells))
    for rule, cosine in found.class_cosine.items():
        print_line(f"{rule}: mean cosine with the maps of other classes {cosine:.2f}")
    for rule, verdict in found.verdicts.items():
        print_paragraph(f"{rule}: {verdict}", 2)
