"""The arithmetic of `taps.py` on a card, and how the kernels of windows share their work.

To find the windows of a pixel takes many divisions, so a thread computes several channels of the pixel.  They
are a strand: every ⌈C/4⌉-th channel.  So neighbouring threads read and write neighbouring channels.
"""

from __future__ import annotations

from typing import Any

from . import taps
from .codegen.jit_cuda import device_function, device_function_of

#: Channels of a strand, at most.
_STRAND = 4

floor_div = device_function_of(taps.floor_div)
common_divisor = device_function_of(taps.common_divisor)
inside = device_function_of(taps.inside, floor_div=floor_div)
taps_down = device_function_of(taps.taps_down, inside=inside)
taps_across = device_function_of(taps.taps_across, inside=inside)
_reading = device_function_of(taps.windows_that_read, floor_div=floor_div, common_divisor=common_divisor)
windows_down = device_function_of(taps.windows_down, windows_that_read=_reading)
windows_across = device_function_of(taps.windows_across, windows_that_read=_reading)


@device_function
def strands(C: int) -> Any:
    """How many strands a pixel has; strand i are the channels i, i + strands, i + 2 · strands and so on."""
    return (C + _STRAND - 1) // _STRAND


def strands_of(y: Any) -> int:
    """Units of work of a kernel that has one for each strand of an array (N, H, W, C)."""
    N, H, W, C = y.shape
    return int(N * H * W * (-(-C // _STRAND)))
