"""The rules, as data.  Kernels receive a rule's two booleans and never its name.

A rule of two booleans is a gate at rectifiers.  Other rules replace the graph by one whose layers have other
local slopes (`rewrite`), or change the gradient at the end (`finish`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


@dataclass(frozen=True)
class Rule:
    """How a rectifier passes on the gradient g of its output.

    Parameters
    ----------
    name
        The rule's name.
    forward_gate
        Whether g passes only where the input x was in the linear range: x > 0, and x < b for Clip(0, b).
    gradient_gate
        Whether g passes only where g > 0.
    source
        The paper that defines the rule.
    caution
        A remark for readers of its maps, as a sentence.
    rewrite
        A function that returns a `Graph` of the same values with other slopes; None for the graph as it is.
        A plan is kept for each rewrite, so two equal rewrites should compare equal.
    finish
        A function (gradient, values) → map of the gradient at a tensor and what that tensor holds, by default
        the input; None for the gradient itself.
    """

    name: str
    forward_gate: bool
    gradient_gate: bool
    source: str
    caution: str = ""
    rewrite: Callable[[Any], Any] | None = None
    finish: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]] | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a field that no rule can have."""
        for field in ("name", "source", "caution"):
            self._check(field, isinstance(getattr(self, field), str), "a text")
        self._check("name", bool(self.name.strip()), "a text")
        for field in ("forward_gate", "gradient_gate"):
            self._check(field, isinstance(getattr(self, field), (bool, np.bool_)), "True or False")
        for field in ("rewrite", "finish"):
            value = getattr(self, field)
            self._check(field, value is None or callable(value), "a function, or None")
        # A plan is looked up by its rewrite.
        self._check("rewrite", _is_hashable(self.rewrite), _KEY)

    def _check(self, field: str, is_right: bool, supported: str) -> None:
        if not is_right:
            raise InputError(f"the rule's {field} is {getattr(self, field)!r:.80}.", supported=supported)


#: The type of a rewrite.
_KEY = "a function that can be a key: its dataclass is frozen, say"


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def times_values(gradient: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The gradient times the values."""
    return gradient * values


# They import the rewrites when they are used, so that `gbp --help` imports neither Numba nor onnx.


def _epsilon(graph: Any) -> Any:
    from .rewrites.lrp import Relevance

    return Relevance()(graph)


def _epsilon_plus(graph: Any) -> Any:
    from .rewrites.lrp import Relevance

    return Relevance(plus=True)(graph)


def _rectified(graph: Any) -> Any:
    from .rewrites.rectgrad import Rectified

    return Rectified()(graph)


#: The rules that are gates.
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "vanilla",
            True,
            False,
            "Simonyan, Vedaldi & Zisserman 2013, arXiv:1312.6034",
            "It shows where a small change of the pixels moves the score, which is noisy and not all that "
            "the decision rests on.",
        ),
        Rule(
            "deconvnet",
            False,
            True,
            "Zeiler & Fergus 2013, arXiv:1311.2901",
            "Its map hardly depends on the class, and in a network without max-pools it does not depend on "
            "the image: do not read it as evidence for one class.",
        ),
        Rule(
            "guided",
            True,
            True,
            "Springenberg et al. 2014, arXiv:1412.6806",
            "Its map shows structure that the network sees and hardly depends on the class: do not read it "
            "as evidence for one class.",
        ),
    )
}


_BY_VALUE = "It divides a score among the numbers of the input, and a number that is 0 gets nothing."

#: The rules that finish the gradient or rewrite the graph.
OTHER_RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "input-x-gradient",
            True,
            False,
            "Shrikumar et al. 2016, arXiv:1605.01713",
            _BY_VALUE,
            finish=times_values,
        ),
        Rule(
            "lrp-epsilon",
            True,
            False,
            "Bach et al. 2015, doi:10.1371/journal.pone.0130140",
            _BY_VALUE,
            _epsilon,
            times_values,
        ),
        Rule(
            "lrp-epsilon-plus",
            True,
            False,
            "Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10",
            "In convolutions it counts what raises an output, and not what lowers it.",
            _epsilon_plus,
            times_values,
        ),
        Rule(
            "rectgrad",
            False,
            False,
            "Kim et al. 2019, arXiv:1902.04893",
            "Of each layer only the two units in a hundred that matter most pass the gradient on.",
            _rectified,
            times_values,
        ),
    )
}


#: The names of all rules.
RULE_NAMES: tuple[str, ...] = (*RULES, *OTHER_RULES)


def rule_named(name: str | Rule) -> Rule:
    """Look a rule up by its name; a `Rule` is returned as it is.  Raises InputError for an unknown name."""
    if isinstance(name, Rule):
        return name
    rule = (RULES.get(name) or OTHER_RULES.get(name)) if isinstance(name, str) else None
    if rule is None:
        raise InputError(
            f"no rule is called {name!r}.",
            supported=", ".join(RULE_NAMES),
            hint="SmoothGrad, Grad-CAM and others are methods: see gbp.methods.",
        )
    return rule
