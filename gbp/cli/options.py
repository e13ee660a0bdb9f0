"""Options that several commands share, and their values in Python."""

from __future__ import annotations

import argparse
import codecs
import difflib
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TypeAlias, get_args

from .. import At, InputError
from ..errors import shown
from ..files import is_address
from ..pictures.look import Canvas, Limits
from ..questions.targets import target_of

#: A parser, or a group of its options.
Options: TypeAlias = argparse._ActionsContainer

STYLES = ("overlay", "diverging", "gray", "rgb", "strip")

#: Arguments of the library that are options of the same name.
_OPTIONS = (
    "activations|actors|algorithm|alpha|bare|baseline|canvas|channels?|classes|device|given|input|labels|"
    "layers?|limits|memory|noise|output|palette|part|percentile|port|preprocess|queue|rule|samples|score|"
    "seconds|seed|size|smooth|steps|style|target|threads|top"
)

#: Text in messages of the library → its form on the command line.
_SAID = {
    "output=PROBABILITY": "--output probability",
    "size=(H, W)": "--size HxW",
    "Give labels.": "Give --labels.",
    "given={name: array}": "--given NAME=VALUE",
    "max_side is": "--max-side is",
    "skip_broken=True": "--skip-broken",
    ", or None for all": "",
    "Leave the device out": "Leave --device out",
    "Leave the output out": "Leave --output out",
    "Top(k)": "top5",
    "`Explainer.tensors` lists them": "`gbp inspect` lists nodes",
}

#: The name of how streams print characters that their encoding lacks, and some of these in ASCII.
IN_ASCII = "gbp"
_ASCII = {"×": "x", "…": "...", "σ": "sigma", "²": "2", "≥": ">=", "–": "-", "“": '"', "”": '"', "\xa0": " "}

#: How a size of another input is said on the command line.
_TAKES = r"size\1 \2x\3, the network takes \4x\5"


def add_model(command: Options) -> None:
    """Add the argument for the model's file."""
    command.add_argument("model", metavar="MODEL.onnx", help="the trained network")


def add_labels(command: Options) -> None:
    """Add the option for class names."""
    command.add_argument(
        "--labels",
        metavar="FILE",
        help="class names: a line each, JSON or CSV; or imagenet, imagenet1001, cifar10, mnist",
    )


def add_ends(command: Options) -> None:
    """Add the options for the model's inputs and outputs."""
    command.add_argument(
        "--output", metavar="TENSOR", help='tensor to explain, or "probability"; default: logits'
    )
    command.add_argument("--input", metavar="NAME", help="input to explain, where there are several")
    command.add_argument(
        "--given",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another input's value: numbers, comma between, or an .npy file; once for each",
    )


def add_preprocessing(command: argparse.ArgumentParser) -> None:
    """Add the options for preprocessing."""
    pixels = command.add_argument_group(
        "preprocessing",
        "what the network's training did to pixels x in 0..255: (x * scale - mean) / std; "
        "default: as the file MODEL.toml says, which gbp init writes",
    )
    pixels.add_argument("--preprocess", metavar="PRESET", help="imagenet, caffe, tf, unit or raw")
    pixels.add_argument("--mean", type=numbers, metavar="M[,M,M]", help="one number, or one a channel")
    pixels.add_argument("--std", type=numbers, metavar="S[,S,S]", help="one number, or one a channel")
    pixels.add_argument("--scale", type=fraction, metavar="S", help="a number, or a fraction such as 1/255")
    pixels.add_argument("--bgr", action="store_true", default=None, help="blue first")
    pixels.add_argument(
        "--size", type=size, metavar="N|HxW", help="input size, where the model leaves it open"
    )
    pixels.add_argument(
        "--crop",
        type=crop,
        metavar="SHARE",
        help="of the shorter side, 1 for all; auto: 0.875, but 1 where the size fits or is under 64",
    )
    pixels.add_argument(
        "--resize",
        choices=("crop", "stretch", "fit"),
        help="crop (default): keep the aspect and crop; stretch: to the size; fit: keep the aspect and pad",
    )


def add_explainer(command: argparse.ArgumentParser, threads: str = "all cores") -> None:
    """Add the options that are arguments of `Explainer`; `explainer_options` reads them.

    `threads`: how many there are by default, in words.
    """
    model = command.add_argument_group("model")
    add_labels(model)
    add_ends(model)
    computing = command.add_argument_group("computing")
    computing.add_argument("--threads", type=int, metavar="N", help=f"at most; default: {threads}")
    computing.add_argument(
        "--memory",
        type=memory,
        metavar="BYTES",
        help="of working memory, 512M say; images in excess wait; default: 160M",
    )
    computing.add_argument(
        "--activations",
        default="gradient",
        metavar="HOW",
        help="at SiLU and others that no paper's rule speaks of: gradient (default) or clamp",
    )
    add_algorithm(computing)
    add_device(computing)
    add_cache(computing)


def add_drawing(command: argparse.ArgumentParser, *others: str) -> None:
    """Add the options for how maps are drawn; `others` are values of --style besides `STYLES`."""
    drawing = command.add_argument_group("drawing")
    add = drawing.add_argument
    add(
        "--style",
        choices=(*STYLES, *others),
        default="strip",
        help="one picture, or a strip of all; default: strip",
    )
    add(
        "--smooth",
        type=float,
        metavar="PX",
        help="σ of the Gaussian that smooths a map, in pixels of the input; default: 2.5 for 224 in overlays",
    )
    add("--alpha", type=float, metavar="A", help="opacity of the strongest heat; default: 0.85")
    add(
        "--percentile",
        type=float,
        metavar="P",
        help="of a map's magnitude, which is drawn at full strength; default: 99.5",
    )
    add("--palette", metavar="NAME", help="heat, gray, red-blue, or a colour map of Matplotlib")
    add("--limits", choices=get_args(Limits), help="of a strip's maps: own (default), or shared")
    add(
        "--canvas",
        choices=get_args(Canvas),
        help="draw on the whole photo (default of overlays), or on what the network saw",
    )
    add("--max-side", type=int, metavar="PX", help="of a photo, at most; default: 1600")
    add("--bare", action="store_true", help="the picture alone, without captions and colour bar")


def look_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of methods that draw.  Raises InputError for those out of range."""
    from ..pictures.look import Look
    from ..pictures.palettes import palette

    names = ("smooth", "alpha", "percentile", "palette", "limits", "canvas", "max_side")
    look = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    Look(**look)
    if arguments.palette is not None:
        palette(arguments.palette, 2)
    return look


def add_algorithm(command: Options) -> None:
    """Add the option for the algorithm of convolutions."""
    command.add_argument(
        "--algorithm",
        default="auto",
        metavar="HOW",
        help="of convolutions: auto (default), fast (breaks ties), direct, winograd or lists",
    )


def add_device(command: Options) -> None:
    """Add the options for the device."""
    command.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default) or cuda")
    command.add_argument(
        "--tf32", action="store_true", help="on a card, convolutions of 11 bits: faster and less exact"
    )


def add_cache(command: Options) -> None:
    """Add the option that keeps nothing."""
    command.add_argument(
        "--no-cache",
        action="store_false",
        dest="cache",
        help="neither keep the model's packed weights for the next process nor use what is kept",
    )


# The type functions below have plain names because argparse prints them: "invalid fraction value: 'x'".


def target(text: str) -> int | str | At:
    return target_of(text)


def out_name(text: str) -> str:
    """The name of what is written.  An empty one, as of an unset variable, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    if text == "-" or is_address(text):
        to = "the standard output" if text == "-" else "the network"
        raise argparse.ArgumentTypeError(f"nothing is written to {to}: name a file or a folder")
    return text


def fraction(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    if slash and float(denominator) == 0:
        raise ValueError(text)
    return float(numerator) / (float(denominator) if slash else 1)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(fraction(part) for part in text.split(","))


def crop(text: str) -> float | str:
    return text if text == "auto" else fraction(text)


def size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    return int(height), int(width if x else height)


def memory(text: str) -> int:
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:].upper(), 1)
    return int(text if unit == 1 else text[:-1]) * unit


def ends_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Explainer` that choose inputs and outputs."""
    from .. import PROBABILITY

    given = _given(arguments.given)
    output = PROBABILITY if arguments.output == "probability" else arguments.output
    return {"output": output, "input": arguments.input, "given": given}


def explainer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Explainer` that `add_explainer` and `add_preprocessing` gave options for."""
    from ..pictures.labels import read_labels

    named = ("threads", "device", "memory", "algorithm", "activations", "tf32", "cache")
    return {
        "preprocess": preprocess_of(arguments),
        "labels": read_labels(arguments.labels),
        **ends_of(arguments),
        **{name: getattr(arguments, name) for name in named},
    }


def _given(texts: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE for each input that is not explained.  A value is numbers or an .npy file."""
    from ..pictures.image import is_array_file, read_array

    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals or name in values:
                raise ValueError("say NAME=VALUE, once for each input")
            values[name] = read_array(value) if is_array_file(value) else _value(value)
        except ValueError as error:
            raise InputError(f"--given {text!r}: {str(error).rstrip('.')}.") from None
    return values


def _value(text: str) -> Any:
    """A number, or an array of several.  They are integers if all are whole."""
    import numpy as np

    parts = [part.strip() for part in text.split(",")]
    whole = all(part.removeprefix("-").isdecimal() for part in parts)
    values = np.array([int(part) if whole else float(part) for part in parts])
    return values if len(parts) > 1 else values[0]


def preprocess_of(arguments: argparse.Namespace) -> Any:
    """The preprocessing: the options on top of the preset or the model's sidecar; None without options."""
    from .. import Preprocess
    from ..pictures.sidecar import read_sidecar

    given = {
        key: getattr(arguments, key) for key in ("mean", "std", "scale", "bgr", "size", "crop", "resize")
    }
    given = {key: value for key, value in given.items() if value is not None}
    if not given or arguments.preprocess is not None:
        return Preprocess.parse(given | {"preset": arguments.preprocess} if given else arguments.preprocess)
    return Preprocess.parse(given, base=read_sidecar(arguments.model).preprocess)


def refusal_of_choice(value: str, choices: Sequence[str]) -> str:
    """The message about a value that is none of these, with those that are spelled most like it."""
    plain = {name.replace("-", ""): name for name in choices}
    said = value.lower().replace("-", "").replace("_", "")
    inside = [name for text, name in plain.items() if len(said) > 2 and (said in text or text in said)]
    near = inside or [plain[text] for text in difflib.get_close_matches(said, plain, 2, 0.7)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{value!r} is not known.{hint} Supported: {', '.join(choices)}."


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: it returns what is printed for characters that a stream lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    escaped = (c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(_ASCII.get(c, escape) for c, escape in zip(text, escaped, strict=True)), error.end


codecs.register_error(IN_ASCII, _in_ascii)


def as_printed(text: str) -> str:
    """The text on one line, in the characters that the standard output has, for a table's widths."""
    encoding = sys.stdout.encoding or "utf-8"
    return shown(text).encode(encoding, IN_ASCII).decode(encoding)


def print_json(value: object) -> None:
    """Print an object as JSON; control characters, and those that the stream lacks, as escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_line(text: str) -> None:
    """Print one line.  Characters from files cannot end it or move the cursor."""
    print(shown(text))


def print_paragraph(text: str, indent: int, break_on_hyphens: bool = True) -> None:
    """Print in lines of 80 characters, all but the first indented."""
    print(textwrap.fill(shown(text), 80, subsequent_indent=" " * indent, break_on_hyphens=break_on_hyphens))


def in_options(text: str) -> str:
    """A message of the library with arguments written as options: `target=3` → `--target 3`."""
    text = _of_preprocessing(text)
    for said, option in _SAID.items():
        text = text.replace(said, option)
    text = re.sub(r"\bAt\(([^()]*)\)", lambda at: re.sub(r", |'", lambda c: ":" * (c[0] != "'"), at[1]), text)
    if " was begun. " in text:  # a list of settings
        no_option = "gbp|images|model"
        setting = rf"(^|; )(?!({no_option})\b)([a-z]\w*)(?= is )"
        text = re.sub(setting, lambda found: f"{found[1]}--{found[3].replace('_', '-')}", text)
    text = re.sub(rf"\b({_OPTIONS})=(['\"]?)([^\s'\",;.)]+)\2", r"--\1 \3", text)
    text = re.sub(r"^k(?= is\b)", "top", text)  # of `Top(k)`
    text = re.sub(r"^(body|pixels|targets)(?= is\b)", r"--max-\1", text)
    text = re.sub(r"\bsize( is)? \((\w+), (\w+)\), the network takes \((\w+), (\w+)\)", _TAKES, text)
    text = re.sub(r"^size is \((-?\d+), (-?\d+)\)", r"size is \1x\2", text)
    return re.sub(rf"^((target|layer)(?= ['\d-])|({_OPTIONS})(?= (is|has|holds|names)\b))", r"--\1", text)


def _of_preprocessing(text: str) -> str:
    """`in_options` of what `Preprocess` refuses: preprocess std is (0.0, 1.0) → --std is 0,1."""
    found = re.fullmatch(r"preprocess (mean|std|scale|size|crop|resize) is (.*), wanted (.*)\.", text)
    if found is None:
        return text
    name, value, wanted = found.groups()
    if value.startswith("("):
        numbers = [f"{float(number):g}" for number in value.strip("()").split(",") if number]
        value = ("x" if name == "size" else ",").join(numbers)
    wanted = "N or HxW, of at least 1" if name == "size" else wanted.replace("resize is", "--resize is")
    return f"--{name} is {value}. Supported: {wanted.replace(chr(39), '')}."
