"""Doubts: notes on what the maps of an `Attribution` do not tell, for an image or for one class."""

from __future__ import annotations

from dataclasses import replace

from ..rules import RULES
from .attribution import Attribution
from .similarity import ALIKE, empty_maps, likeness, rounded_down

#: Methods whose map is 0 only where the gradients under the rule are; "" is the rule's map itself.
_OF_RULE = ("", "saliency", "smoothgrad", "smoothgrad-squared", "layer-gradient")


def doubted(found: Attribution, looks_at_image: bool = False) -> Attribution:
    """The same attribution with notes on the limits of its maps.

    Parameters
    ----------
    found
        The attribution.
    looks_at_image
        Whether the map was made of the image beside the backward pass, as a product with it is.
    """
    if looks_at_image and not found.depends_on_image:
        found = replace(found, depends_on_image=True)
    added = (*empty_notes(found), *likeness_notes(found))
    if not found.depends_on_image:
        same = (
            f"Under {found.rule!r} this network gives a class the same map for any image: the backward pass "
            "reads nothing of the image, such as the switches of a max-pool."
        )
        added = same, *added
    return replace(found, notes=(*found.notes, *added)) if added else found


def empty_notes(found: Attribution) -> tuple[str, ...]:
    """A note, where maps are 0 everywhere; else none."""
    maps = found.map.reshape(-1, *found.map.shape[found.target.ndim :])
    empty = empty_maps(maps)
    if not empty:
        return ()
    which = "The map is" if len(maps) == 1 else f"{empty} of {len(maps)} maps are"
    why = ""
    if found.method in ("grad-cam", "layer-grad-cam"):
        why = ": nothing in the layer speaks for the class"
    elif found.method == "vargrad":
        why = ": the maps of the copies are the same"
    elif found.method in _OF_RULE and found.rule in RULES and "question" not in found.details:
        # Other rules multiply by values, and other questions may start from a gradient of 0.
        why = (
            ": no gradient gets through: rectifiers on every way are closed, a probability is saturated, "
            "or the rule lets nothing pass"
        )
    return (f"{which} 0 everywhere{why}.",)


def likeness_notes(found: Attribution) -> tuple[str, ...]:
    """A note, where the maps of a sample's targets are nearly the same; else none."""
    if found.target.ndim < 2 or found.target.shape[1] < 2:
        return ()
    alike = [c for maps in found.map if (c := likeness(maps, ALIKE)) >= ALIKE]
    if not alike:
        return ()
    where = f" in {len(alike)} of {len(found)} samples" if len(found) > 1 else ""
    return (
        f"The maps of the {found.target.shape[1]} targets are nearly the same{where} (cosine of at least "
        f"{rounded_down(min(alike))}): they do not tell what speaks for one and not for another.",
    )
