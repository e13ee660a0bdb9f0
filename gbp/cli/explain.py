"""`gbp explain`: explains images, writes pictures and prints the scores."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..rules import OTHER_RULES, RULES
from ..titles import title_of
from .methods import Explaining, add_methods, refuse_misplaced, rules_of, suffix_of
from .options import (
    add_drawing,
    add_explainer,
    add_preprocessing,
    explainer_options,
    look_of,
    print_json,
    print_line,
    print_paragraph,
    target,
)
from .progress import add_progress, advancing, compiling_shown

if TYPE_CHECKING:  # functions import it when they need it, so that `gbp --help` does not import Numba
    from ..sample import Sample


def add_command(commands: Any) -> None:
    """Add `explain` to the parser's commands."""
    command = commands.add_parser("explain", help="explain images and write pictures")
    command.set_defaults(run=explain)
    command.add_argument("model", metavar="MODEL.onnx")
    command.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="pictures, or .npy files, a sample each, preprocessed; folders of them; patterns; @FILE, which "
        "lists paths; - is a picture from stdin",
    )
    command.add_argument(
        "--rule",
        choices=(*RULES, *OTHER_RULES, "all"),
        help="default: guided; that of a --method: vanilla; all: the first three",
    )
    command.add_argument(
        "--target",
        type=target,
        help='class index, label, "top5", or an index for each axis of the scores, as 8763:1; '
        "default: what each image is taken for",
    )
    command.add_argument(
        "-o",
        "--out",
        help="file (.png, .jpg, .webp, .pdf, .svg, or .npz for the arrays), or a folder; "
        "default: IMAGE_RULE.png, here",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_explainer(command)
    add_progress(command)
    add_methods(command)
    add_preprocessing(command)
    add_drawing(command)


#: Images that are explained together: enough to keep the kernels busy, few enough to hold their maps.
CHUNK = 16


def explain(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from ..pictures.paths import STDIN, find_images

    arguments.images = find_images(arguments.images)
    outputs = [_output(arguments, image) for image in arguments.images]
    _refuse_conflicts(arguments, outputs)
    look = look_of(arguments)
    from PIL import Image

    from ..explainer import Explainer
    from ..pictures.image import is_array_file, read_array, read_image
    from ..targets import Top

    opened: dict[str, Any] = {}
    only: Any = None
    for image in arguments.images:  # read all first, so that a broken image stops before anything is written
        if image == STDIN:
            only = opened[image] = read_image(sys.stdin.buffer)
        else:
            only = read_array(image) if is_array_file(image) else read_image(image)
    explainer = Explainer(arguments.model, **explainer_options(arguments))
    if len(outputs) == 1 and isinstance(only, Image.Image):
        opened[arguments.images[0]] = only
    pictures = [opened.get(image, image) for image in arguments.images]
    target = Top(5) if arguments.target == "top5" else arguments.target
    explaining, rules = Explaining(explainer, arguments), rules_of(arguments)
    reports: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    with advancing(arguments, len(outputs)) as progress:
        for start in range(0, len(outputs), CHUNK):
            chunk = slice(start, start + CHUNK)
            with compiling_shown(arguments.quiet):
                attributions = [explaining(pictures[chunk], rule, target) for rule in rules]
            notes.update(dict.fromkeys(note for attribution in attributions for note in attribution.notes))
            if progress is not None:
                progress.clear()
            for index, image in enumerate(arguments.images[chunk]):
                path = outputs[start + index]
                samples = [attribution[index] for attribution in attributions]
                if path.suffix.lower() == ".npz":
                    attributions[0].save(path)
                else:
                    _save(samples, path, arguments, look)
                reports.append({"image": image, "file": str(path)} | _report(samples))
                if not (arguments.json or arguments.quiet):
                    _print_report(reports[-1])
            if progress is not None:
                progress.advance(len(outputs[chunk]))
    if arguments.json:
        print_json({"model": arguments.model, "notes": list(notes), "images": reports})
    elif not arguments.quiet:
        for note in notes:
            print_paragraph(f"note: {note}", 6)
    return 0


def _output(arguments: argparse.Namespace, image: str) -> Path:
    """The path of the picture of an image.  Raises `InputError` if it cannot be written."""
    from ..pictures.files import check_path
    from ..pictures.paths import STDIN

    stem = "stdin" if image == STDIN else Path(image).stem
    path = Path(f"{stem}_{suffix_of(arguments)}.png")
    if arguments.out is not None and os.path.isdir(arguments.out):
        path = Path(arguments.out) / path
    elif arguments.out is not None:
        if len(arguments.images) > 1:
            raise InputError(
                f"-o {arguments.out!r} is no folder.", hint="Several images need one that exists."
            )
        path = Path(arguments.out)
    check_path(path)
    return path


def _refuse_conflicts(arguments: argparse.Namespace, outputs: Sequence[Path]) -> None:
    """Raise `InputError` for options that contradict each other and for files that would be overwritten."""
    refuse_misplaced(arguments)
    arrays = any(path.suffix.lower() == ".npz" for path in outputs)
    several = arguments.target == "top5"
    if arguments.rule == "all" and (arrays or several):
        raise InputError("--rule all draws one target.", hint="For top5 or .npz, choose one rule.")
    if arguments.bare and (arguments.style == "strip" or arguments.rule == "all"):
        raise InputError("--bare writes one picture.", hint="Choose a --style and one rule.")
    if several and arguments.style != "strip" and not arrays:
        raise InputError("--target top5 is drawn as a strip.", hint="Leave --style out, or write an .npz.")
    read = {Path(name).resolve() for name in (arguments.model, *arguments.images)}
    written: dict[Path, int] = {}
    for index, path in enumerate(outputs):
        if path.resolve() in read:
            raise InputError(
                f"{str(path)!r} would be overwritten.", hint="Name another file or folder with -o."
            )
        other = written.setdefault(path.resolve(), index)
        if other != index:
            both = f"{arguments.images[other]!r} and {arguments.images[index]!r}"
            raise InputError(
                f"{both} would both be written to {str(path)!r}.",
                hint="Explain them one after the other, each with its own -o.",
            )


def _save(samples: Sequence[Sample], path: Path, arguments: argparse.Namespace, look: dict[str, Any]) -> None:
    from ..strips import save_rules

    style = arguments.style
    if len(samples) == 1:
        samples[0].save(path, style, bare=arguments.bare, **look)
    else:
        save_rules(samples, path, None if style == "strip" else style, **look)


def _report(samples: Sequence[Sample]) -> dict[str, Any]:
    """The scores and the explained classes of one sample, in JSON's types."""
    report = samples[0].to_dict()
    del report["rule"]
    return {"rules": [sample.rule for sample in samples]} | report


def _print_report(report: dict[str, Any]) -> None:
    print_line(report["image"])
    for row in report["top"]:
        chance = "" if row["probability"] is None else f"{row['probability']:8.2%}"
        print_line(f"  {row.get('position', row['class']):>6} {chance} {row['score']:10.4f}  {row['label']}")
    explained = "; ".join(
        row["label"] if "position" in row else f"{row['label']} ({row['class']})"
        for row in report["explained"]
    )
    method, details = report.get("method", ""), report.get("details", {})
    titles = ", ".join(title_of(method, rule, details) for rule in report["rules"])
    print_line(f"  explained by {titles}: {explained}")
    print_line(f"  wrote {report['file']}")
