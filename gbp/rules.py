"""The rules, as data: two booleans each.  Kernels receive the booleans and never a rule's name."""

from __future__ import annotations

from dataclasses import dataclass

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
        What a reader of its maps should know, as a sentence.
    """

    name: str
    forward_gate: bool
    gradient_gate: bool
    source: str
    caution: str = ""


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
            "Its map hardly depends on the class, and without max-pools not on the image either: do not read "
            "it as evidence for one class.",
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


def rule_named(name: str | Rule) -> Rule:
    """Look a rule up by its name; a `Rule` is returned as it is.  Raises InputError for an unknown name."""
    if isinstance(name, Rule):
        return name
    if not isinstance(name, str) or name not in RULES:
        raise InputError(f"no rule is called {name!r}.", supported=", ".join(RULES))
    return RULES[name]
