"""Notes for the reader of a map; and the refusal of a rule that has no meaning for a network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, counted
from ..importer.subgraph import Source
from ..pictures.preprocess import Preprocess
from ..plan.plan import Plan
from ..rules import Rule

#: Every 37th number of a sample shows its range.  37 shares no factor with 3, so all channels are met where
#: they are the last axis.
_STRIDE = 37
#: At most so many are looked at first.  All of them take as long as a copy of the sample, because each is far
#: from the next one in memory.
_GLANCE = 16
#: Where prepared pictures go above this, an array of numbers from 0 to 1 has not been prepared.
_TENS = 10


def refuse_meaningless(rule: Rule, plan: Plan) -> None:
    """Raise InputError if the rule acts at rectifiers only and the network has none."""
    if rule.gradient_gate and not plan.rectifiers:
        raise InputError(
            f"the network has no rectifier, and {rule.name!r} differs from 'vanilla' at rectifiers only.",
            supported="rule='vanilla' for this network",
            hint="Its activations can serve as rectifiers: activations='clamp'."
            if plan.other_activations
            else None,
        )


def depends_on_image(plan: Plan, rule: Rule) -> bool:
    """Whether the map of a class can differ between images.

    The backward pass is the same for every image where it reads nothing of the forward run: no mask, no
    switches and no tensor.  A mask of a rectifier counts only under a rule with a forward gate.  A rule that
    finishes the gradient looks at the image itself.
    """
    return rule.finish is not None or any(
        it.saves
        or it.step.switches is not None
        or (it.has_mask and (rule.forward_gate or not it.clip.is_rectifier))
        for it in plan.instructions
    )


def unprepared(x: NDArray[np.float32], preprocess: Preprocess) -> tuple[str, ...]:
    """A note, where samples that came as an array look like pixels that nobody has prepared; else none.

    Pixels are never negative.  Their numbers are far above those of prepared pictures, as 255 is above 2.6;
    or they are from 0 to 1 where the network takes tens and hundreds, or where prepared pictures go to -1 or
    lower: a prepared picture without a number below 0 has no dark pixel.

    Parameters
    ----------
    x
        float32 (N, …).  Some numbers of the first sample are looked at.
    preprocess
        How pictures are prepared.
    """
    if x.ndim != 4:
        return ()
    some = x[0].reshape(-1)[::_STRIDE]
    if np.minimum.reduce(some[:: len(some) // _GLANCE + 1]) < 0:  # most prepared pictures end here
        return ()
    least, most = float(some.min()), float(some.max())
    ends = np.array([[0.0], [255.0]]) * preprocess.scale - np.array(preprocess.mean)
    ends = ends / np.array(preprocess.std)
    low, high = float(ends.min()), float(ends.max())
    like_bytes = most > high + (high - low)
    may_be_from_0_to_1 = high > _TENS or (low <= -1 and least < most and x[0].min() >= 0)
    if least < 0 or not (like_bytes or (0 < most <= 1 and may_be_from_0_to_1)):
        return ()
    return (
        f"The samples came as an array that holds numbers from {x.min():.3g} to {x.max():.3g}; those of "
        f"prepared pictures are from {low:.3g} to {high:.3g}. Arrays are explained as they are: prepare "
        "them as the network wants, or give pictures as files, bytes, or uint8 (H, W, 3).",
    )


def notes_of(plan: Plan, source: Source, rule: Rule, clamp: bool, tf32: bool = False) -> tuple[str, ...]:
    """The notes for the reader of a map, one sentence each.

    Parameters
    ----------
    plan, source
        The network.
    rule
        The rule that made the map.
    clamp
        Whether rules with a gradient gate clamped the gradient of activations that are no rectifiers.
    tf32
        Whether convolutions multiplied in TF32.
    """
    notes = [*source.notes, *plan.notes]
    # A Clip from 0 that is no rectifier is part of an activation.
    if plan.other_clips:
        notes.append(
            f"The true gradient is taken, under any rule, of {counted(plan.other_clips, 'Clip node')} with a "
            "minimum other than 0."
        )
    if plan.other_activations:
        kinds = ", ".join(f"{count} {kind}" for kind, count in plan.other_activations.items())
        one = sum(plan.other_activations.values()) == 1
        nodes, them = (f"{kinds} node", "it") if one else (f"{kinds} nodes", "them")
        treatment = (
            f"the gradient of {them} was clamped to its positive part first (activations='clamp')"
            if clamp and rule.gradient_gate
            else f"the true gradient of {them} is taken"
        )
        notes.append(f"{nodes}: the papers define no rule for {them}; {treatment}.")
    quantized = plan.straight_through
    if quantized:
        notes.append(
            f"{counted(quantized, 'node')} of quantization: the gradient passes straight through the "
            "rounding and stops where values saturate."
        )
    if tf32:
        notes.append(
            "Convolutions multiplied in TF32 (tf32=True), numbers of 11 bits: what a layer computes is off "
            "by about 2e-4 of its size, where float32 is by 2e-7, and rectifiers near 0 may tip."
        )
    if source.dtype not in ("FLOAT", "UINT8"):
        notes.append(f"The file computes in {source.dtype.lower()}, gbp in float32.")
    return tuple(notes)
