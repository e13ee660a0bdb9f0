"""The words of a figure: how to read a style's colours, and when to doubt a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .drawing import Drawn, Panel
from .figure import Key
from .look import Look

#: Below this probability of the explained class a picture says that it is no evidence.
UNLIKELY = 0.01

SHOWN: dict[str, str] = {
    "overlay": "where",
    "gray": "where, alone",
    "rgb": "in colour",
    "diverging": "by sign",
}

#: Rules whose maps leave out what lowers the score on the way: they are no gradient.
_POSITIVE_RULES = ("guided", "deconvnet")
#: Methods that share the score out among pixels, and those that weigh the places of an inner layer.
_SHARES = ("integrated-gradients", "layer-gradient-x-activation")
_SHARING_RULES = ("lrp", "input-x-gradient")
_PLACES = ("grad-cam", "layer-grad-cam")
#: Methods whose maps have no sign, and of them those that are made of the maps of a rule.
_UNSIGNED = ("saliency", "smoothgrad-squared", "vargrad", "grad-cam")
_OF_SQUARES = ("smoothgrad-squared", "vargrad")


def meaning(style: Panel, rule: str, method: str = "") -> str:
    """How to read the colours of a style, a sentence.

    Parameters
    ----------
    style
        The style.
    rule, method
        The rule or the method that made the map, as in `Attribution`.
    """
    keeps_rule = method in ("", "smoothgrad", "layer-gradient")
    is_share = method in _SHARES or (keeps_rule and rule.startswith(_SHARING_RULES))
    is_product = keeps_rule and rule == "rectgrad"  # of values and gradient, which are no shares
    # Squares of what is no gradient.
    if method in _OF_SQUARES and rule.startswith((*_SHARING_RULES, "rectgrad")):
        what = "the product of gradient and values" if rule == "rectgrad" else "the share in the score"
        return (
            f"brighter: {what} {'changes more' if method == 'vargrad' else 'is larger, whatever its sign,'} "
            "here when noise is added"
        )
    # Shares in the score, and products of gradient and values.
    if style == "diverging" and (is_share or is_product or method == "layer-grad-cam"):
        return "red: counts for the score; blue: counts against it"
    if style == "rgb" and (is_share or is_product):
        return "each colour channel: bright counts for the score, dark against it, grey neither"
    if is_product:
        return "brighter: the gradient times what is here is larger, whatever its sign"
    if is_share:
        return "brighter: a larger share in the score, for or against it"
    # Planes and gradients of an inner layer.
    if method in _PLACES:
        return "brighter: what the layer finds here counts more for the score"
    if method == "layer-gradient":
        if style == "diverging":
            return "red: more of what the layer finds here raises the score; blue: less does"
        return "brighter: a small change of the layer here moves the score more"
    # Gradients with respect to the input.
    if method == "vargrad":
        return "brighter: the gradient changes more here when noise is added"
    paths = "; only paths that raise it count" if rule in _POSITIVE_RULES else ""
    if method == "guided-grad-cam":
        paths += "; weighted with Grad-CAM"
    if style in ("overlay", "gray") or method in _UNSIGNED:
        return f"brighter: a small change here moves the score more{paths}"
    if style == "diverging":
        return f"red: brighter here raises the score; blue: darker here does{paths}"
    return f"a colour: more of it here raises the score; grey: no effect{paths}"


def key_of(drawn: Drawn, style: Panel, rule: str, look: Look, method: str = "") -> Key:
    """The colour bar of a picture.

    Parameters
    ----------
    drawn
        The picture.
    style, rule, method
        As for `meaning`.
    look
        How it was drawn.
    """
    at = f"{drawn.limit:.2g}"
    over = " and above" if look.limit is not None else f" ({look.percentile:g} % are below)"
    colours = drawn.colours
    if drawn.signed:
        return Key(colours, (f"-{at}", "0", at), meaning(style, rule, method))
    return Key(colours, ("0", "", at + over), meaning(style, rule, method))


def warning_of(unlikely: Mapping[str, str]) -> list[str]:
    """The warning that explained classes are improbable, given as {name: why}; nothing for none."""
    if not unlikely:
        return []
    names = " and ".join(f"“{name}” ({why})" for name, why in list(unlikely.items())[:2])
    more = f" and {len(unlikely) - 2} more" if len(unlikely) > 2 else ""
    return [
        f"The network does not see {names}{more} here. A map can look convincing for any class: "
        "it shows what would move the score, and is no evidence that the class is there."
    ]


def smoothing_of(drawn: Sequence[Drawn]) -> str:
    """How the maps were smoothed, in words."""
    sigmas = {one.sigma for one in drawn}
    smallest, largest = min(sigmas), max(sigmas)
    if largest == 0:
        return "maps not smoothed"
    words = " and ".join(f"{sigma:g}" for sigma in sorted(sigmas - {0.0}, reverse=True))
    return f"maps smoothed, σ = {words} pixels of the input" + (" (in colour: not)" if smallest == 0 else "")
