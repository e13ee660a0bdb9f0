"""`gbp explain`: explains images, writes pictures and prints the scores."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import InputError
from ..errors import shown
from ..pictures.percent import percent
from ..result.titles import title_of
from ..rules import RULE_NAMES
from .actions import Each
from .methods import Explaining, add_methods, cautions_of, made_by, refuse_misplaced, rules, rules_of
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
from .progress import add_progress, advancing, compiling_shown
from .questions import add_questions, is_several, question_of, refuse_contradictions

if TYPE_CHECKING:  # functions import it when they need it, so that `gbp --help` does not import Numba
    from .. import Sample

#: Images that are explained together: enough to keep the kernels busy, few enough to hold their maps.
CHUNK = 16


def add_command(commands: Any) -> None:
    """Add `explain` to the parser's commands."""
    command = commands.add_parser(
        "explain",
        help="explain images and write pictures",
        description="Explain what each image is taken for, or another class, and write a picture of it: the "
        "image beside its maps. Print the five highest scores.",
    )
    command.set_defaults(run=explain)
    add_model(command)
    command.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="pictures, or .npy files, a sample each, preprocessed; folders of them; patterns; @FILE, which "
        "lists paths; - is a picture from stdin",
    )
    command.add_argument(
        "--rule",
        action=Each,
        type=rules,
        metavar="RULE[,RULE]",
        help=f"{', '.join(RULE_NAMES)}; several with commas between; all: the first three; "
        "default: guided; that of a --method: vanilla",
    )
    command.add_argument(
        "-o",
        "--out",
        type=out_name,
        help="file (.png, .jpg, .webp, .pdf, .svg, or .npz for the arrays), or a folder; "
        "default: IMAGE_RULE.png, here",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out images that cannot be read, and say so; exit code 1",
    )
    add_progress(command)
    add_preprocessing(command)
    add_questions(command)
    add_methods(command)
    add_drawing(command)
    add_explainer(command)


def explain(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code: 1 where --skip-broken left images out."""
    from ..pictures.paths import find_images

    arguments.images = find_images(arguments.images)
    outputs = [_output(arguments, image) for image in arguments.images]
    _refuse_conflicts(arguments, outputs)
    look = look_of(arguments)
    opened, skipped = _read(arguments)
    from .. import Explainer
    from .compiling import compile_on_new_machine

    images = [image for image in arguments.images if image not in skipped]
    paths = [path for path, image in zip(outputs, arguments.images, strict=True) if image not in skipped]
    explainer = Explainer(arguments.model, **explainer_options(arguments))
    pictures = [opened.get(image, image) for image in images]
    target = question_of(arguments, lambda: explainer.labels)
    _refuse_several(arguments, target, outputs)
    explaining, chosen = Explaining(explainer, arguments), rules_of(arguments)
    reports: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    with advancing(arguments, len(images)) as progress:
        for start in range(0, len(images), CHUNK):
            chunk = slice(start, start + CHUNK)
            with compiling_shown(arguments.quiet):
                if start == 0:
                    compile_on_new_machine(explainer, pictures[0])
                attributions = [explaining(pictures[chunk], rule, target) for rule in chosen]
            notes.update(dict.fromkeys(note for attribution in attributions for note in attribution.notes))
            if progress is not None:
                progress.clear()
            for index, (image, path) in enumerate(zip(images[chunk], paths[chunk], strict=True)):
                samples = [attribution[index] for attribution in attributions]
                make_folder(path)
                if path.suffix.lower() == ".npz":
                    attributions[0].alone(index).save(path)
                else:
                    _save(samples, path, arguments, look)
                reports.append({"image": image, "file": str(path)} | _report(samples))
                if not (arguments.json or arguments.quiet):
                    _print_report(reports[-1], samples[0])
            if progress is not None:
                progress.advance(len(images[chunk]))
    cautions = cautions_of(arguments)
    if arguments.json:
        answer = {"model": arguments.model, "notes": list(notes), "cautions": cautions, "images": reports}
        print_json(answer | ({"skipped": skipped} if arguments.skip_broken else {}))
    elif not arguments.quiet:
        for note in notes:
            print_paragraph(f"note: {note}", 6)
        for rule, caution in cautions.items():
            print_paragraph(f"note on {rule}: {caution}", 6)
    if skipped:
        images_were = "image was" if len(outputs) == 1 else "images were"
        print(f"gbp: {len(skipped)} of {len(outputs)} {images_were} skipped", file=sys.stderr)
    return 1 if skipped else 0


def _read(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Read all images, so that a broken one is found before anything is written.

    Only the standard input, which cannot be read twice, and a picture that is alone are kept.

    Returns
    -------
    The pictures that are kept, by name; and the images that are skipped, with the reasons.

    Raises
    ------
    InputError
        For a broken image, without --skip-broken.
    """
    from PIL import Image

    from ..pictures.image import is_array_file, read_array, read_image
    from ..pictures.paths import STDIN

    opened: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for image in arguments.images:
        if image.endswith(".onnx"):
            raise InputError(f"{image!r} is among the images.", hint="Name one model, and name it first.")
        try:
            if image == STDIN:
                opened[image] = read_image(sys.stdin.buffer)
                continue
            found: Any = read_array(image) if is_array_file(image) else read_image(image)
            if len(arguments.images) == 1 and isinstance(found, Image.Image):
                opened[image] = found
        except InputError as error:
            if not arguments.skip_broken:
                if len(arguments.images) == 1:
                    raise
                hint = " ".join(filter(None, (error.hint, "--skip-broken leaves such images out.")))
                raise InputError(error.found, supported=error.supported, hint=hint) from error
            skipped[image] = str(error)
            print(shown(f"gbp: skipped: {error}"), file=sys.stderr)
    return opened, skipped


def _output(arguments: argparse.Namespace, image: str) -> Path:
    """The path of the picture of an image.  Raises `InputError` if it cannot be written.

    --out names a file if it has a suffix and is no folder yet; else a folder, which is made when the first
    picture is written.
    """
    from ..pictures.files import check_path, suffix_of
    from ..pictures.paths import STDIN

    stem = "stdin" if image == STDIN else Path(image).stem
    path = Path(f"{stem}_{made_by(arguments)}.png")
    if arguments.out is not None:
        out = Path(arguments.out)
        is_folder = os.path.isdir(out) or not out.suffix or arguments.out.endswith(("/", os.sep))
        if not is_folder and len(arguments.images) > 1:
            raise InputError(f"-o {arguments.out!r} is no folder.", hint="Several images need one.")
        path = out / path if is_folder else out
    if os.path.isdir(path.parent):
        check_path(path)
    else:
        suffix_of(path)  # raises for a suffix that is not known
    return path


def make_folder(path: Path) -> None:
    """Make the folder of a file.  Raises `InputError` if it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(path.parent)!r}: {error.strerror}.") from error


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Make the folder of a file, and remove it where what is done within raises before a file is there."""
    missing = [folder for folder in path.parents if not folder.exists()]
    make_folder(path)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds something
            for folder in missing:
                folder.rmdir()
        raise


def _refuse_conflicts(arguments: argparse.Namespace, outputs: Sequence[Path]) -> None:
    """Raise `InputError` for options that contradict each other and for files that would be overwritten."""
    from ..pictures.files import check_writable

    refuse_misplaced(arguments)
    arrays = any(path.suffix.lower() == ".npz" for path in outputs)
    refuse_contradictions(arguments)
    together = len(rules_of(arguments)) > 1
    if together and arrays:
        raise InputError("several rules draw one target.", hint="For several or .npz, choose one --rule.")
    if arguments.bare and (arguments.style == "strip" or together):
        raise InputError("--bare writes one picture.", hint="Choose a --style and one rule.")
    for one_in_a_folder in {path.parent: path for path in outputs}.values():
        check_writable(one_in_a_folder)
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
                hint="Explain them one after the other, each with its own -o; or by gbp batch, whose index "
                "says which file belongs to which image.",
            )


def _refuse_several(arguments: argparse.Namespace, target: Any, outputs: Sequence[Path]) -> None:
    """Raise `InputError` where several targets cannot be drawn as the options say."""
    if not is_several(arguments, target):
        return
    if len(rules_of(arguments)) > 1:
        raise InputError("several rules draw one target.", hint="For several or .npz, choose one --rule.")
    if arguments.style != "strip" and not all(path.suffix.lower() == ".npz" for path in outputs):
        raise InputError("several targets are drawn as a strip.", hint="Leave --style out, or write an .npz.")


def _save(samples: Sequence[Sample], path: Path, arguments: argparse.Namespace, look: dict[str, Any]) -> None:
    from ..result.strips import save_rules

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


def _print_report(report: dict[str, Any], sample: Sample) -> None:
    """Print the scores as a table, and what was explained with its own score."""
    print_line(report["image"])
    has_chance = any(row["probability"] is not None for row in report["top"])
    chance = "probability" if has_chance else ""
    print_line(f"  {'class':>8} {chance:>11} {'score':>10}  label")
    shown_before = [None, *(row["class"] for row in report["top"])]
    for row in [*report["top"], *(row for row in report["explained"] if row["class"] not in shown_before)]:
        chance = "" if row["probability"] is None else percent(row["probability"])
        place = row.get("position", row["class"])
        print_line(f"  {place:>8} {chance:>11} {row['score']:10.4f}  {row['label']}")
    explained = "; ".join(
        f"{row['label']} = {row['score']:.4f}"
        if row["class"] is None
        else row["label"]
        if "position" in row or row["label"] == f"class {row['class']}"
        else f"{row['label']} ({row['class']})"
        for row in report["explained"]
    )
    method, details = report.get("method", ""), report.get("details", {})
    titles = ("; " if method else ", ").join(title_of(method, rule, details) for rule in report["rules"])
    print_line(f"  explained by {titles}: {explained}")
    if sample.photo is not None and not sample.photo.is_whole:
        print_line(f"  {sample.photo.description(framed=False)}")
    print_line(f"  wrote {report['file']}")
