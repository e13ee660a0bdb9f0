"""`gbp init`: tries how a model's images may be prepared, and writes the choice into a file beside it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import InputError
from ..pictures.percent import percent
from .explain import make_folder
from .options import add_ends, add_labels, add_model, ends_of, print_line, print_paragraph, size

if TYPE_CHECKING:
    from .. import Explainer

#: Preset → the models that need it.
_OF = {
    "imagenet": "torchvision, most of timm",
    "caffe": "Keras: VGG, ResNet v1",
    "tf": "Keras: Inception, Xception, MobileNet, ResNet v2, NASNet",
    "unit": "0 to 1, where the network normalises by itself",
    "raw": "0 to 255, likewise",
}


def add_command(commands: Any) -> None:
    """Add `init` to the parser's commands."""
    command = commands.add_parser(
        "init",
        help="try how a model may want its images, and write it down",
        description="Print the best classes of a photo under each preset, so that you see which one fits, "
        "and write the one that you choose into MODEL.toml, which the other commands read. On a terminal it "
        "asks.",
    )
    command.set_defaults(run=init)
    add_model(command)
    command.add_argument("image", metavar="IMAGE", help="a photo whose class you know")
    command.add_argument("--preprocess", metavar="PRESET", help="the choice; default: ask, on a terminal")
    command.add_argument(
        "--resize",
        choices=("crop", "stretch", "fit"),
        help="crop (default): keep the aspect and crop; stretch: to the size; fit: keep the aspect and pad",
    )
    command.add_argument("--force", action="store_true", help="replace MODEL.toml")
    model = command.add_argument_group("model")
    model.add_argument(
        "--size", type=size, metavar="N|HxW", help="image size, where the model leaves it open"
    )
    add_labels(model)
    add_ends(model)


def init(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from .. import Explainer, Preprocess
    from ..pictures.files import check_writable
    from ..pictures.labels import SHIPPED
    from ..pictures.preprocess import PRESETS

    path = Path(arguments.model).with_suffix(".toml")
    if os.path.exists(path) and not arguments.force:
        raise InputError(f"{str(path)!r} is there already.", hint="Replace it with --force.")
    check_writable(path)
    if arguments.preprocess is not None and arguments.preprocess not in PRESETS:
        Preprocess.parse(arguments.preprocess)  # refuses it
    more = {key: getattr(arguments, key) for key in ("resize", "size") if getattr(arguments, key) is not None}
    labels = _labels(arguments.labels, path.parent)
    suggestion, is_named = "", True
    for preset in PRESETS:
        preprocess = Preprocess.parse({"preset": preset} | more)
        explainer = Explainer(
            arguments.model,
            preprocess=preprocess,
            labels=arguments.labels,
            **ends_of(arguments),
            cache=False,
        )
        suggestion, is_named = explainer.suggestion, explainer.labels is not None
        channels = _channels(explainer)
        if channels in (1, 3) and not preprocess.fits(channels):
            print_line(f"{preset}: left out, it is for colours, and the network takes grey pictures")
        else:
            _show(preset, explainer, arguments.image)
    if suggestion:
        print_paragraph(suggestion, 2)
    if not is_named:
        print_paragraph(f"--labels names the classes: a file with one a line, or {', '.join(SHIPPED)}.", 2)
    choice = arguments.preprocess or _asked(tuple(PRESETS))
    if choice is None:
        raise InputError(
            "nothing was chosen, and nothing is written.",
            hint="Choose the preset whose classes are right: --preprocess. Where several are, choose the "
            "one of the library that the model comes from. Where none is right, write mean, std and scale of "
            f"its training into {path.name}, as docs/preprocess.md shows.",
        )
    lines = [*([f"labels = {json.dumps(labels, ensure_ascii=False)}", ""] if labels else []), "[preprocess]"]
    lines += [f"preset = {json.dumps(choice)}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in more.items()]
    _write(path, "\n".join(lines) + "\n")
    print_line(f"wrote {path}")
    return 0


def _show(preset: str, explainer: Explainer, image: str) -> None:
    """Print the five best classes of the image under a preset."""
    from .compiling import compile_on_new_machine
    from .progress import compiling_shown

    with compiling_shown():
        compile_on_new_machine(explainer, image)
        found = explainer.explain(image, rule="vanilla")[0]
    print_line(f"{preset} ({_OF[preset]}):")
    for number, name, score in found.top(5):
        chance = found.chance(number)
        value = f"{score:12.4f}" if chance is None else f"{percent(chance):>12}"
        print_line(f"  {number:>6} {value}  {name}")


def _channels(explainer: Explainer) -> int | None:
    """How many channels a network of pictures takes; None where it is open or takes no pictures."""
    shape = explainer.input_shape
    return shape[3 if explainer.layout == "NHWC" else 1] if len(shape) == 4 else None


def _labels(given: str | None, folder: Path) -> str | None:
    """How the sidecar names a file of labels.  Raises InputError for one in another folder."""
    from ..pictures.labels import SHIPPED, read_labels

    if given is None or given in SHIPPED:
        return given
    read_labels(given)
    try:
        name = Path(given).resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise InputError(
            f"the labels {given!r} are outside the model's folder.",
            hint="Copy them there: the file names them.",
        ) from None
    if name != name.encode("utf-8", "replace").decode():
        raise InputError(f"the name of the labels {name!r} is no UTF-8, as TOML wants it.", hint="Rename it.")
    return name


def _asked(presets: tuple[str, ...]) -> str | None:
    """The preset that the user types; None where there is no terminal or nothing is typed."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    while True:
        try:
            answer = input(f"which classes are right? ({', '.join(presets)}; empty: none) ").strip()
        except EOFError:
            return None
        if answer in presets:
            return answer
        if not answer:
            return None


def _write(path: Path, text: str) -> None:
    from ..pictures.files import write

    make_folder(path)
    write(os.fspath(path), lambda to: to.write(text.encode()))
