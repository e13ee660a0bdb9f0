"""The options for methods: which one, and its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import RULES, InputError
from ..methods import METHODS
from ..rules import RULE_NAMES, rule_named
from .options import refusal_of_choice

if TYPE_CHECKING:  # functions import it when they need it, so that `gbp --help` does not import Numba
    from .. import Attribution, Explainer

#: Options that are arguments of methods.
_OPTIONS = ("samples", "noise", "seed", "steps", "baseline", "layer")


def add_methods(command: argparse.ArgumentParser, *, seed: bool = True) -> None:
    """Add the method and its options; `seed`: whether the command has no seed of its own."""
    methods = command.add_argument_group(
        "methods", "built of explanations; each says in a note what it does not tell"
    )
    add = methods.add_argument
    add("--method", choices=(*METHODS,), metavar="NAME", help=f"one of {', '.join(METHODS)}")
    add("--samples", type=int, metavar="S", help="noisy copies of smoothgrad and its kin; default: 25")
    add(
        "--noise",
        type=float,
        metavar="SHARE",
        help="their noise, as a share of the prepared image's range; default: 0.15",
    )
    if seed:
        add("--seed", type=int, help="of their noise; default: 0")
    add("--steps", type=int, metavar="S", help="points of integrated-gradients, up to 1000; default: 50")
    add(
        "--baseline",
        type=baseline,
        help="of integrated-gradients: zero (default), mean, blur, a number, or an .npy file",
    )
    add(
        "--layer",
        metavar="TENSOR",
        help="of grad-cam and its kin: a tensor or node, or a part of its name; default: the last "
        "convolution with a plane of several pixels",
    )


def baseline(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


# Its name is plain because argparse prints it: "invalid rules value: 'x'".
def rules(text: str) -> tuple[str, ...]:
    chosen = tuple(RULES) if text == "all" else tuple(dict.fromkeys(text.split(",")))
    for rule in chosen:
        if rule not in RULE_NAMES:
            said = rule.lower().replace("-", "").replace("_", "")
            method = next((name for name in METHODS if name.replace("-", "") == said), None)
            hint = f" Did you mean --method {method}?" if method else ""
            raise argparse.ArgumentTypeError(refusal_of_choice(rule, (*RULE_NAMES, "all")) + hint)
    return chosen


def rules_of(arguments: argparse.Namespace) -> tuple[str | None, ...]:
    """The rules to explain with; None stands for the rule of the method itself."""
    if arguments.rule:
        chosen: tuple[str, ...] = arguments.rule
        return chosen
    return (None,) if arguments.method else ("guided",)


def cautions_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Rule → the remark for readers of its maps, for those that are named; a method's remarks are notes."""
    return {name: rule_named(name).caution for name in rules_of(arguments) if name is not None}


def made_by(arguments: argparse.Namespace) -> str:
    """The part of a picture's file name that says how it was made: the method and the rules."""
    chosen = rules_of(arguments)
    said = ("all",) if chosen == tuple(RULES) else chosen
    return "_".join(name for name in (arguments.method, *said) if name)


def refuse_misplaced(arguments: argparse.Namespace, free: Sequence[str] = ()) -> None:
    """Raise `InputError` for an option that the method does not take, but those in `free`."""
    method = METHODS.get(arguments.method)
    for option in (option for option in _OPTIONS if option not in free):
        if getattr(arguments, option) is not None and (method is None or option not in method.options):
            takers = ", ".join(name for name, each in METHODS.items() if option in each.options)
            raise InputError(f"--{option} belongs to another method.", supported=f"with --method {takers}")
    if method is not None and method.needs and getattr(arguments, method.needs) is None:
        raise InputError(f"--method {method.name} needs --{method.needs}.")
    if method is not None and method.rule is None and arguments.rule is not None:
        takers = ", ".join(name for name, each in METHODS.items() if each.rule is not None)
        raise InputError(
            f"--method {method.name} has a rule of its own.",
            hint=f"Leave --rule out.  Methods under any rule are {takers}.",
        )


def method_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The method's arguments that the options say."""
    from ..pictures.image import is_array_file, read_array

    takes = METHODS[arguments.method].options if arguments.method else ()
    options = {name: getattr(arguments, name) for name in takes}
    options = {name: value for name, value in options.items() if value is not None}
    if is_array_file(options.get("baseline")):
        options["baseline"] = read_array(options["baseline"])
    return options


class Explaining:
    """Explains images by the method of the arguments, or by a rule alone.

    Parameters
    ----------
    explainer
        The model.
    arguments
        Those of the command, checked.
    """

    def __init__(self, explainer: Explainer, arguments: argparse.Namespace) -> None:
        self._call: Any = explainer.explain
        if arguments.score:
            self._call = partial(explainer.explain, score=arguments.score)
        if arguments.method:
            self._call = partial(METHODS[arguments.method].call, explainer, **method_options(arguments))

    def __call__(self, images: Sequence[Any], rule: str | None, target: Any) -> Attribution:
        """Explain images; `rule` as `rules_of` returns it."""
        given = {} if rule is None else {"rule": rule}
        found: Attribution = self._call(images, target=target, **given)
        return found
