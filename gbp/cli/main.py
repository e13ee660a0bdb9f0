"""Command line: parse arguments, call `Explainer`, print.  Everything it knows, the library knows too."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import io
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GbpError, InputError
from ..rules import RULES

if TYPE_CHECKING:  # at run time they are imported where they are used: `gbp --help` must not wait for Numba
    from ..attribution import Attribution
    from ..diagnostics.inspection import Inspection
    from ..diagnostics.verify import Verification

STYLES = ("overlay", "diverging", "gray", "rgb", "strip")


def run() -> int:
    """The program: `main` in a process of its own.

    Looking for garbage among what its imports made would take a tenth of a second, and again at its end.
    """
    gc.disable()
    code = main()
    gc.freeze()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0; 1 where `verify` finds a mismatch; 2 for what gbp refuses; 130 when interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label must not break an ASCII terminal
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # so that a closed pipe shows here and not at exit
        return code
    except GbpError as error:
        print("gbp: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough; the flush at exit needs a place to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


# ------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gbp", description="Show what the decision of an ONNX CNN rests on."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    explain = commands.add_parser("explain", help="explain images and write pictures")
    explain.set_defaults(run=_explain)
    explain.add_argument("model", metavar="MODEL.onnx")
    explain.add_argument(
        "images", metavar="IMAGE", nargs="+", help="pictures; or .npy files, a sample each, preprocessed"
    )
    explain.add_argument("--rule", choices=(*RULES, "all"), default="guided", help="default: guided")
    explain.add_argument(
        "--target", type=target, help='class index, label, or "top5"; default: what each image is taken for'
    )
    explain.add_argument("--style", choices=STYLES, default="strip", help="default: strip")
    explain.add_argument(
        "-o",
        "--out",
        help="file (.png, .jpg, or .npz for the arrays), or a folder; default: IMAGE_RULE.png, here",
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.add_argument("--labels", metavar="FILE", help="class names: a line each, or JSON")
    _add_ends(explain)
    explain.add_argument("--threads", type=int, help="default: all cores")
    explain.add_argument(
        "--memory",
        type=memory,
        metavar="BYTES",
        help="of working memory, 512M say; images in excess wait; default: 160M",
    )
    explain.add_argument(
        "--activations",
        default="gradient",
        help="at SiLU and others that no paper's rule speaks of: gradient (default) or rectify",
    )
    _add_algorithm(explain)
    explain.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    _add_tf32(explain)
    _add_preprocessing(explain)

    warmup = commands.add_parser("warmup", help="compile all kernels that models need, for a container say")
    warmup.set_defaults(run=_warmup)
    warmup.add_argument("models", metavar="MODEL.onnx", nargs="+")
    _add_ends(warmup)
    warmup.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    _add_tf32(warmup)
    warmup.add_argument("--size", type=size, metavar="N|HxW", help="image size, where a model leaves it open")

    inspect = commands.add_parser("inspect", help="list the layers, how each is computed, and unknown ops")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("model", metavar="MODEL.onnx")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    _add_ends(inspect)
    _add_algorithm(inspect)
    inspect.add_argument(
        "--size", type=size, metavar="N|HxW", help="image size, where the model leaves it open; default: 224"
    )

    verify = commands.add_parser(
        "verify",
        help="compare steps and gradient with onnxruntime, or onnx itself, and finite differences",
        description="Compare every step with onnxruntime, where it is installed, else with onnx's reference "
        "evaluator; and the gradient with finite differences in float64. Exit code 1: they do not agree.",
    )
    verify.set_defaults(run=_verify)
    verify.add_argument("model", metavar="MODEL.onnx")
    verify.add_argument("image", metavar="IMAGE", nargs="?", help="default: seeded noise")
    verify.add_argument("--json", action="store_true", help="print JSON")
    _add_ends(verify)
    _add_algorithm(verify)
    _add_preprocessing(verify)
    return parser


def _add_ends(command: argparse.ArgumentParser) -> None:
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


def _add_preprocessing(command: argparse.ArgumentParser) -> None:
    pixels = command.add_argument_group(
        "preprocessing", "what the network's training did to pixels x in 0..255: (x * scale - mean) / std"
    )
    pixels.add_argument("--preprocess", metavar="PRESET", help="imagenet, caffe, tf, unit or raw")
    pixels.add_argument("--mean", type=numbers, metavar="M[,M,M]")
    pixels.add_argument("--std", type=numbers, metavar="S[,S,S]")
    pixels.add_argument("--scale", type=fraction, help="a number, or a fraction such as 1/255")
    pixels.add_argument("--bgr", action="store_true", default=None, help="blue first")
    pixels.add_argument(
        "--size", type=size, metavar="N|HxW", help="input size, where the model leaves it open"
    )


def _add_tf32(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tf32", action="store_true", help="on a card, convolutions of 11 bits: quicker and less exact"
    )


def _add_algorithm(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--algorithm", default="auto", help="of convolutions: auto (default), direct, winograd or lists"
    )


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("gbp", version("gbp"))
        except PackageNotFoundError:  # run from a checkout
            print("gbp, not installed")
        parser.exit()


# The type functions below have plain names because argparse prints them: "invalid fraction value: 'x'".


def target(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def fraction(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    if slash and float(denominator) == 0:
        raise ValueError(text)
    return float(numerator) / (float(denominator) if slash else 1)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(fraction(part) for part in text.split(","))


def size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    return int(height), int(width if x else height)


def memory(text: str) -> int:
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:].upper(), 1)
    return int(text if unit == 1 else text[:-1]) * unit


# --------------------------------------------------------------------------------------------- explain

CHUNK = 16
"""Images explained together: enough to fill the kernels, few enough to hold their maps in memory."""


def _explain(arguments: argparse.Namespace) -> int:
    outputs = [_output(arguments, image) for image in arguments.images]
    _refuse_conflicts(arguments, outputs)
    from PIL import Image

    from ..explainer import Explainer
    from ..pictures.image import is_array_file, read_array, read_image
    from ..pictures.sidecar import read_labels
    from .progress import compiling_shown

    for image in arguments.images:  # a broken one is refused before a picture of another is written
        only = read_array(image) if is_array_file(image) else read_image(image)
    explainer = Explainer(
        arguments.model,
        preprocess=_preprocess(arguments),
        labels=read_labels(arguments.labels),
        **_ends(arguments),
        threads=arguments.threads,
        device=arguments.device,
        memory=arguments.memory,
        algorithm=arguments.algorithm,
        activations=arguments.activations,
        tf32=arguments.tf32,
    )
    pictures = [only] if len(outputs) == 1 and isinstance(only, Image.Image) else arguments.images
    rules = tuple(RULES) if arguments.rule == "all" else (arguments.rule,)
    reports: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for start in range(0, len(outputs), CHUNK):
        chunk = slice(start, start + CHUNK)
        with compiling_shown():
            attributions = [
                explainer.explain(pictures[chunk], rule=rule, target=arguments.target) for rule in rules
            ]
        notes.update(dict.fromkeys(note for attribution in attributions for note in attribution.notes))
        for index, image in enumerate(arguments.images[chunk]):
            path = outputs[start + index]
            _save(attributions, index, path, arguments.style)
            reports.append({"image": image, "file": str(path)} | _report(attributions, index))
            if not arguments.json:
                _print_report(reports[-1])
    if arguments.json:
        _print_json({"model": arguments.model, "notes": list(notes), "images": reports})
    else:
        for note in notes:
            print(textwrap.fill(f"note: {note}", 80, subsequent_indent="      "))
    return 0


def _ends(arguments: argparse.Namespace) -> dict[str, Any]:
    """What an Explainer is told of the model's inputs and outputs."""
    given = _given(arguments.given)
    return {"output": arguments.output, "input": arguments.input, "inputs": given}


def _given(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE for inputs that are not explained: numbers, or the array in an .npy file."""
    from ..pictures.image import is_array_file, read_array

    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals or name in values:
                raise ValueError("say NAME=VALUE, once for each input")
            values[name] = read_array(value) if is_array_file(value) else _value(value)
        except ValueError as error:
            raise InputError(f"--given {text!r}: {error}.") from None
    return values


def _value(text: str) -> Any:
    """A number, or a list of several, whole where all are."""
    import numpy as np

    parts = [part.strip() for part in text.split(",")]
    whole = all(part.removeprefix("-").isdecimal() for part in parts)
    values = np.array([int(part) if whole else float(part) for part in parts])
    return values if len(parts) > 1 else values[0]


def _output(arguments: argparse.Namespace, image: str) -> Path:
    """Where the picture of an image goes; `InputError` while nothing has been computed yet."""
    from ..attribution import check_path

    path = Path(f"{Path(image).stem}_{arguments.rule}.png")
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
    """Raise `InputError` for options that contradict each other and for files that would be lost."""
    arrays = any(path.suffix.lower() == ".npz" for path in outputs)
    several = arguments.target == "top5"
    if arguments.rule == "all" and (arrays or several):
        raise InputError("--rule all draws one target.", hint="For top5 or .npz, choose one rule.")
    if several and arguments.style != "strip" and not arrays:
        raise InputError("--target top5 is drawn as a strip.", hint="Leave --style out, or write an .npz.")
    taken = {Path(name).resolve() for name in (arguments.model, *arguments.images)}
    for path in outputs:
        if path.resolve() in taken:
            raise InputError(
                f"{str(path)!r} would be overwritten.", hint="Name another file or folder with -o."
            )
        taken.add(path.resolve())


def _preprocess(arguments: argparse.Namespace) -> Any:
    """Return what the options say, over the preset or the model's sidecar; None when they say nothing."""
    from ..pictures.image import Preprocess
    from ..pictures.sidecar import read_sidecar

    given = {key: getattr(arguments, key) for key in ("mean", "std", "scale", "bgr", "size")}
    given = {key: value for key, value in given.items() if value is not None}
    if not given or arguments.preprocess is not None:
        return Preprocess.parse(given | {"preset": arguments.preprocess} if given else arguments.preprocess)
    return Preprocess.parse(given, base=read_sidecar(arguments.model).preprocess)


def _save(attributions: Sequence[Attribution], index: int, path: Path, style: Any) -> None:
    from ..attribution import save_picture, strip_rules

    if len(attributions) == 1:
        attributions[0].save(path, style, index)
    else:
        save_picture(strip_rules(attributions, index, style=None if style == "strip" else style), path)


def _report(attributions: Sequence[Attribution], index: int) -> dict[str, Any]:
    """Tell one sample's scores and what was explained, in JSON's types."""
    first = attributions[0]
    chances = first.probabilities[index] if first.has_probabilities else None
    explained = first.target.reshape(len(first.scores), -1)[index]
    return {
        "rules": [attribution.rule for attribution in attributions],
        "explained": [
            {"class": int(number), "label": first.label(index, k)} for k, number in enumerate(explained)
        ],
        "top": [
            {
                "class": number,
                "label": label,
                "score": score,
                "probability": None if chances is None else float(chances[number]),
            }
            for number, label, score in first.top(5, index)
        ],
    }


def _print_report(report: dict[str, Any]) -> None:
    print(report["image"])
    for row in report["top"]:
        chance = "" if row["probability"] is None else f"{row['probability']:8.2%}"
        print(f"  {row['class']:>6} {chance} {row['score']:10.4f}  {row['label']}")
    explained = "; ".join(f"{row['label']} ({row['class']})" for row in report["explained"])
    print(f"  explained by {', '.join(report['rules'])}: {explained}")
    print(f"  wrote {report['file']}")


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


# ---------------------------------------------------------------------------------------------- warmup


def _warmup(arguments: argparse.Namespace) -> int:
    from ..explainer import Explainer
    from ..kernels.codegen.jit import CACHE_DIRECTORY, compiled
    from .progress import compiling_shown

    for model in arguments.models:
        before = len(compiled)
        with compiling_shown():
            chosen = {"device": arguments.device, "tf32": arguments.tf32}
            kernels = Explainer(model, **_ends(arguments), **chosen).warmup(arguments.size)
        seconds = sum(seconds for _, seconds in compiled[before:])
        print(f"{model}: {kernels} kernel(s) compiled in {seconds:.1f} s")
    print(f"All are kept in {CACHE_DIRECTORY}")
    return 0


# --------------------------------------------------------------------------------------------- inspect


def _inspect(arguments: argparse.Namespace) -> int:
    from ..diagnostics.inspection import inspect

    inspection = inspect(arguments.model, arguments.size, arguments.algorithm, **_ends(arguments))
    if arguments.json:
        _print_json(dataclasses.asdict(inspection))
    else:
        _print_inspection(inspection)
    return 2 if inspection.unsupported else 0


def _print_inspection(inspection: Inspection) -> None:
    # Of a name less is told than others tell: the op has a column, and all may lie in one scope.
    short = [layer.name.removesuffix(layer.op).rstrip("/_") or layer.name for layer in inspection.layers]
    scope = len(os.path.commonprefix(short).rpartition("/")[0])  # noqa: RUF071  # whole parts: rpartition
    header = ("layer", "op, plan", "output", "params", "MACs")
    rows = [
        (
            name[scope:].lstrip("/") or name,
            ", ".join(filter(None, (layer.op, layer.plan))),
            "×".join(map(str, layer.shape)),
            _count(layer.parameters),
            _count(layer.macs),
        )
        for name, layer in zip(short, inspection.layers, strict=True)
    ]
    widths = _widths([header, *rows])
    for row in (header, *rows):
        cells = [_cut(text, width) for text, width in zip(row, widths, strict=True)]
        texts = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
        counts = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
        print(" ".join([*texts, *counts]).rstrip())
    parameters = sum(layer.parameters for layer in inspection.layers)
    macs = sum(layer.macs for layer in inspection.layers)
    print(f"\n{len(rows)} layers, {_count(parameters)} parameters, {_count(macs)} MACs")
    ends = f"input {inspection.input}, output {inspection.output}"
    print(textwrap.fill(ends, 80, subsequent_indent="  "))
    for reason in inspection.unsupported:
        print(textwrap.fill(f"unsupported: {reason}", 80, subsequent_indent="  "))
    for hint in inspection.hints:
        print(textwrap.fill(f"what to do: {hint}", 80, subsequent_indent="  "))


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Column widths that fit 80 columns with a space between: names give way first, down to 20."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + len(widths) - 1 > 80:
        widths[0 if widths[0] > 20 else widths.index(max(widths))] -= 1
    return widths


def _cut(text: str, width: int) -> str:
    """Drop the middle: names differ at their ends."""
    if len(text) <= width:
        return text
    tail = width // 2
    return text[: width - 1 - tail] + "…" + text[len(text) - tail :]


def _count(number: float) -> str:
    """Three digits and a unit: 1.24M."""
    for unit in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


# ---------------------------------------------------------------------------------------------- verify


def _verify(arguments: argparse.Namespace) -> int:
    from ..diagnostics.verify import verify
    from .progress import compiling_shown, reporting

    with compiling_shown(), reporting() as report:
        verification = verify(
            arguments.model,
            arguments.image,
            size=arguments.size,
            report=report,
            preprocess=_preprocess(arguments) if arguments.image else None,
            **_ends(arguments),
            algorithm=arguments.algorithm,
        )
    if arguments.json:
        told_too = {"verified": verification.verified, "verdict": verification.verdict}
        _print_json({"model": arguments.model} | dataclasses.asdict(verification) | told_too)
    else:
        _print_verification(verification)
    return 0 if verification.verified else 1


def _print_verification(v: Verification) -> None:
    def off(error: float, bound: float) -> str:
        return f"off by {error:.1e} (allowed {bound:.0e}): "

    worst = "none"
    if v.worst is not None:
        worst = off(v.worst.error, v.step_bound)
        worst += f"{v.worst.op} {v.worst.node!r}, tensor {v.worst.tensor!r}"
    gradient = f"class {v.target}, smooth in {v.directions} direction(s)"
    if v.quantized:
        gradient = f"class {v.target}, not compared: it passes straight through quantization"
    elif v.gradient_error is not None:
        gradient = off(v.gradient_error, v.gradient_bound) + gradient
    rows = [
        ("input", v.input),
        ("reference", f"{v.reference} for steps, float64 for scores and gradient"),
        ("worst step", f"of {v.steps}, {worst}"),
        ("scores", f"{off(v.scores_error, v.scores_bound)}{v.scores!r}"),
        ("gradient", gradient),
    ]
    for name, text in rows:
        print(textwrap.fill(f"{name:12}{text}", 80, subsequent_indent=" " * 12, break_on_hyphens=False))
    print(textwrap.fill(v.verdict, 80, break_on_hyphens=False))
