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
    """

    name: str
    forward_gate: bool
    gradient_gate: bool
    source: str


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("vanilla", True, False, "Simonyan, Vedaldi & Zisserman 2013, arXiv:1312.6034"),
        Rule("deconvnet", False, True, "Zeiler & Fergus 2013, arXiv:1311.2901"),
        Rule("guided", True, True, "Springenberg et al. 2014, arXiv:1412.6806"),
    )
}


def rule_named(name: str | Rule) -> Rule:
    """Look a rule up by its name; a `Rule` is returned as it is.  Raises InputError for an unknown name."""
    if isinstance(name, Rule):
        return name
    if not isinstance(name, str) or name not in RULES:
        raise InputError(f"no rule is called {name!r}.", supported=", ".join(RULES))
    return RULES[name]
