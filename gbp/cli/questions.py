"""The options for what is explained: a class, several, a contrast, a score of theirs, or a hidden unit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from .. import InputError
from .options import target

SCORES = ("logit", "probability", "log-probability", "margin", "sum")


def add_questions(command: argparse.ArgumentParser) -> None:
    """Add the target and the options beside it."""
    command.add_argument(
        "--target",
        help='class index, label, "top5", or an index for each axis of the scores, as 5763:1; several, as '
        "lion,chow; default: what each image is taken for",
    )
    add = command.add_argument_group("other questions").add_argument
    add("--top", type=int, metavar="K", help="the K classes of the highest scores, a map for each")
    add("--against", metavar="CLASS", help="the score of --target minus that of this class")
    add("--score", choices=SCORES, help="what of a class is explained; default: logit, the score itself")
    add(
        "--at",
        metavar="TENSOR",
        help="a hidden tensor or its node, or a part of its name: its strongest unit",
    )
    add("--channel", type=int, metavar="C", help="with --at: the strongest unit of this channel")
    add("--unit", metavar="C,Y,X", help="with --at: this unit")
    add("--sum", action="store_true", help="with --channel: the sum of its units")
    add("--activation", action="store_true", help="with --at: start with the activation, in place of 1")


def is_several(arguments: argparse.Namespace, target: Any) -> bool:
    """Whether there is a map for each of several targets; `target` as `question_of` returns it."""
    from .. import Several, Top

    return arguments.score != "sum" and isinstance(target, (Several, Top))


def refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for options of questions that contradict each other."""
    given = [name for name in ("target", "top", "at") if getattr(arguments, name) is not None]
    if len(given) > 1:
        raise InputError(f"--{' and --'.join(given)} ask different questions.", hint="Choose one.")
    of_tensor = (arguments.channel is not None, arguments.unit, arguments.sum, arguments.activation)
    if arguments.at is None and any(of_tensor):
        raise InputError("--channel, --unit, --sum and --activation belong to --at.", hint="Name the tensor.")
    if arguments.channel is not None and arguments.unit:
        raise InputError("--channel and --unit ask different questions.", hint="Choose one.")
    if arguments.sum and arguments.channel is None:
        raise InputError("--sum belongs to --channel.")
    if arguments.against is not None and arguments.target is None:
        raise InputError("--against needs --target.")
    if arguments.at is not None and arguments.score is not None:
        raise InputError("--score is of classes, and --at asks for a hidden unit.")
    if arguments.method and arguments.score:
        raise InputError("--method explains logits.", hint="Leave --score out.")


def question_of(arguments: argparse.Namespace, labels: Callable[[], Sequence[str] | None]) -> Any:
    """The target in Python.

    Parameters
    ----------
    arguments
        Those of the command, checked.
    labels
        Returns the names of the classes, or None.  It is called where a name could be mistaken.
    """
    from .. import Channel, Contrast, Several, Top, Unit

    if arguments.at is not None:
        seed: Any = "activation" if arguments.activation else "one"
        if arguments.channel is not None:
            return Channel(arguments.at, arguments.channel, "sum" if arguments.sum else "max", seed=seed)
        return Unit(arguments.at, *_position(arguments.unit), seed=seed)
    if arguments.top is not None:
        return Top(arguments.top)
    text = arguments.target
    if text is None:
        return None
    several = arguments.against is None and "," in text
    best = re.fullmatch(r"top(\d{1,9})", text)
    if (best or several) and text.casefold() in {label.casefold() for label in labels() or ()}:
        best, several = None, False  # labels of ImageNet hold commas
    if best:
        return Top(int(best[1]))
    if arguments.against is not None:
        _refuse_several(arguments, labels)
        return Contrast(target(text), target(arguments.against))
    parts = [part.strip() for part in text.split(",")]
    if several and all(parts):
        return Several(*map(target, parts))
    return target(text)


def _refuse_several(arguments: argparse.Namespace, labels: Callable[[], Sequence[str] | None]) -> None:
    """Raise `InputError` where a contrast is asked for with several classes on a side."""
    for name in ("target", "against"):
        text = getattr(arguments, name)
        if "," in text and text.casefold() not in {label.casefold() for label in labels() or ()}:
            raise InputError(f"--{name} is {text!r}.", supported="with --against, one class on each side")


def _position(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in re.split("[,:]", text)) if text else ()
    except ValueError:
        raise InputError(f"--unit is {text!r}.", supported="an index for each axis, as 17,5,7") from None
