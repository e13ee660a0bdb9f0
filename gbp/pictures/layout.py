"""The meaning of the axes of a network's input, and maps as planes of pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .preprocess import ChannelOrder

#: The axes of the network's input: images, rows of numbers, series (either axis may be time), more axes.
Layout = Literal["NCHW", "NHWC", "NC", "NCL", "ND"]


def channels_first(
    m: NDArray[np.float32], layout: Layout, channels: ChannelOrder, leading: int
) -> NDArray[np.float32]:
    """A map (…, C, H, W), colours red first, of a map with `leading` axes before those of a sample.

    A series is one channel of a plane, (1, C, L), and a row of numbers a plane of one row.  Raises InputError
    where a sample has more axes or fewer.
    """
    if layout == "ND":
        raise InputError("the network's input is not an image.", hint="Use the array `map` itself.")
    if m.ndim - leading != len(layout) - 1:
        raise InputError(
            f"a sample's map has shape {list(m.shape[leading:])}.",
            supported=f"an axis for each of {', '.join(layout[1:])}",
            hint="Use the array `map` itself.",
        )
    if layout == "NC":
        return m[..., None, None, :]
    if layout == "NCL":
        return m[..., None, :, :]
    m = np.moveaxis(m, -1, -3) if layout == "NHWC" else m
    return m[..., ::-1, :, :] if channels == "BGR" else m
