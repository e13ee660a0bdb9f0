"""The methods by name, as the command line has them: what each needs, and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Method:
    """One method.

    Parameters
    ----------
    name
        Its name on the command line.
    source
        The paper.
    rule
        The rule that it takes by default; None where it has a rule of its own.
    options
        Its arguments that are options of the command line.
    needs
        The option that has no default, or "".
    """

    name: str
    source: str
    rule: str | None = None
    options: tuple[str, ...] = ()
    needs: str = ""

    @property
    def function(self) -> str:
        """Its function's name in `gbp.methods`."""
        return self.name.replace("-", "_")

    def check(self, options: Mapping[str, Any], has_rule: bool) -> None:
        """Raise InputError unless the method takes these arguments, and a rule, where one is given.

        Parameters
        ----------
        options
            Arguments by name.
        has_rule
            Whether a rule is given.
        """
        strange = sorted(options.keys() - {*self.options})
        if strange:
            raise InputError(f"{strange[0]} is no argument of method {self.name!r}.")
        if self.needs and self.needs not in options:
            raise InputError(f"method {self.name!r} needs {self.needs}.")
        if has_rule and self.rule is None:
            raise InputError(f"method {self.name!r} has a rule of its own.", hint="Leave the rule out.")

    @property
    def call(self) -> Any:
        """That function; its module is imported now."""
        return getattr(import_module(__package__), self.function)


_NOISE = ("samples", "noise", "seed")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("saliency", "Simonyan, Vedaldi & Zisserman 2013, arXiv:1312.6034"),
        Method("smoothgrad", "Smilkov et al. 2017, arXiv:1706.03825", "vanilla", _NOISE),
        Method("smoothgrad-squared", "Hooker et al. 2018, arXiv:1806.10758", "vanilla", _NOISE),
        Method("vargrad", "Adebayo et al. 2018, arXiv:1810.03307", "vanilla", _NOISE),
        Method(
            "integrated-gradients",
            "Sundararajan, Taly & Yan 2017, arXiv:1703.01365",
            "vanilla",
            ("steps", "baseline"),
        ),
        Method("grad-cam", "Selvaraju et al. 2016, arXiv:1610.02391", options=("layer",)),
        Method("guided-grad-cam", "Selvaraju et al. 2016, arXiv:1610.02391", options=("layer",)),
        Method("layer-grad-cam", "Selvaraju et al. 2016, arXiv:1610.02391", options=("layer",)),
        Method(
            "layer-gradient", "the gradient with respect to an inner tensor", "vanilla", ("layer",), "layer"
        ),
    )
}


def method_named(name: str) -> Method:
    """The method of this name.

    Parameters
    ----------
    name
        A key of `METHODS`.

    Returns
    -------
    Method
        The method and its options.

    Raises
    ------
    InputError
        If there is no such method.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"method is {name!r:.80}.", supported=", ".join(METHODS))
    return METHODS[name]
