"""Fetching for the next epilogue of `conv_amx`, while tiles are multiplied."""

from __future__ import annotations

from typing import Any, NamedTuple

from .codegen.jit import device_function
from .codegen.memory import ALIGNMENT
from .codegen.simd import prefetch_read, prefetch_write
from .codegen.tile import TILE_CHANNELS
from .epilogue import Run

#: Pixels whose epilogue is done between two groups of multiplications.
PIECE = 4
#: Bytes of a whole block of channels of a pixel.
BLOCK_BYTES = 4 * TILE_CHANNELS


class Beside(NamedTuple):
    """Work beside multiplications: the epilogue `end` of a run, and fetching what the next run needs.

    The next run is so many pixels and bytes ahead.  A processor does not fetch it on its own, because its
    pixels are too far apart.
    """

    end: Any
    pixels: int
    bytes: int


@device_function
def fetch_fwd(run: Run, beside: Beside) -> None:
    """Fetch what the epilogue of the next run reads and writes."""
    end = beside.end
    y = run.y + beside.pixels * end.y.pixel + beside.bytes
    r = run.r + beside.pixels * end.r.pixel + beside.bytes
    for _ in range(PIECE):
        for line in range(0, BLOCK_BYTES, ALIGNMENT):
            prefetch_write(y + line)
            if end.r.C:
                prefetch_read(r + line)
        y, r = y + end.y.pixel, r + end.r.pixel


@device_function
def fetch_bwd(run: Run, beside: Beside) -> None:
    """`fetch_fwd` of a gradient."""
    gx = run.y + beside.pixels * beside.end.gx.pixel + beside.bytes
    for _ in range(PIECE):
        for line in range(0, BLOCK_BYTES, ALIGNMENT):
            prefetch_write(gx + line)
        gx += beside.end.gx.pixel
