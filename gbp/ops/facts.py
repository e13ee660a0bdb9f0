"""`Fact`: what is known of an op without parsing a node: for the importer, `verify` and Grad-CAM.

Each file of ops lists the facts of its own ops as `FACTS`, beside `PARSERS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import counted
from .folded import Folds


@dataclass(frozen=True)
class Fact:
    """Facts of one ONNX op.  The defaults hold for most ops.

    Parameters
    ----------
    planes
        Whether the op makes, keeps or reads planes, for methods that look for the last ones.  "made": it
        slides weights over them.  "kept": it computes each pixel at its place, or puts planes together; so it
        ends a layer, as an activation, a normalisation or a sum.  "read": it reads whole planes, or windows
        that may be as large, and what is computed behind it is no plane of scores.  "other": all else.
    operands
        The least and the most inputs of an op that ONNX dropped or never had.  None where ONNX's registry
        knows the op and its operands.
    optional
        Which of the least inputs may be left out by an empty name.
    since
        The opset of an op that files of earlier opsets may have as well, because onnxruntime writes it there;
        else 0.
    is_head
        Whether the op turns scores into probabilities when it ends a classifier.
    keeps_values
        Whether the op changes the shape, the type or the precision of a result and not the result itself.
    reads_planes
        Whether the op reads a tensor with four axes as (N, C, H, W).
    is_pixelwise
        Whether the op treats the pixels of an image alike and leaves each one in its place, or moves all of
        them together.  So it does not say which axis holds the channels.
    slides
        Whether the output at a pixel depends on the values in its window and not on the window's position.
    averages
        Whether the op takes the mean of its first input, which then must hold a number.
    folds
        Bounds the cost of a node whose inputs are all constant.  None if such a node is refused.
    """

    planes: Literal["made", "kept", "read", "other"]
    operands: tuple[int, int] | None = None
    optional: tuple[int, ...] = ()
    since: int = 0
    is_head: bool = False
    keeps_values: bool = False
    reads_planes: bool = False
    is_pixelwise: bool = False
    slides: bool = False
    averages: bool = False
    folds: Folds | None = None

    def misfit(self, inputs: Sequence[str], outputs: Sequence[str]) -> str | None:
        """Say what contradicts `operands` in a node's inputs and outputs, or None."""
        if self.operands is None:
            return None
        least, most = self.operands
        if not least <= len(inputs) <= most or not outputs:
            expected = counted(most, "input") if least == most else f"{least} to {most} inputs"
            return f"it has not {expected} and one output."
        missing = (i for i in range(least) if not inputs[i] and i not in self.optional)
        return next((f"input {i} is missing." for i in missing), None)
