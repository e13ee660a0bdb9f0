"""The scale of a sample, if digits suit it: `amx_digits` needs that before it splits values."""

from __future__ import annotations

from numba import float32

from .codegen.emit import LANES
from .codegen.jit import device_function
from .codegen.simd import (
    above,
    fma,
    load,
    load_scalar,
    load_some,
    prefetch_read,
    select,
    store,
    store_scalar,
    sum_lanes,
    zeros,
)
from .epilogue import Plane

#: Floats of the facts about a row of x.
FACTS = 4 * LANES
#: The largest value and the largest weight are between these, so that no square is infinite or 0.
LEAST, MOST = 2.0**-50, 2.0**50
#: The largest whole number.  The two lower digits are signed and reach half of what the digit above counts,
#: so it is half a digit below 256, less the rounding of the scale.
_MOST_VALUE = 255.49 * 2**16
#: Pixels, or a few more, whose mean square counts on its own; and a mean square above all others.
_RUN, NONE = 16, 3e38
#: How many bytes of x are fetched ahead.
_AHEAD = 2**11


@device_function
def gather_facts(x: Plane, n: int, h: int, to: int, balance: int) -> None:
    """Write the largest values, the least and the sums of squares of row h, a vector each, to `to`.

    Values are multiplied by the number of their channel at `balance`.  Behind these facts: the least mean
    square of a run of pixels, of those that are not 0; `NONE` if all are.  It is 0 if the squares of a run
    are too small for float32.  Runs that follow a negative value are left out: digits do not suit its sample.
    """
    highest, least, squares = zeros(), zeros(), zeros()
    least_power = float32(NONE)
    line = x.address + n * x.image + h * x.line
    runs = max(1, x.W // _RUN)
    for run in range(runs):
        count = x.W * (run + 1) // runs - x.W * run // runs
        here, top = zeros(), zeros()
        for _ in range(count):
            for c in range(0, x.C, LANES):
                prefetch_read(line + 4 * c + _AHEAD)
                v = load_some(line + 4 * c, x.C - c) * load(balance + 4 * c)
                top = select(above(v, top), v, top)
                least = select(above(least, v), v, least)
                here = fma(v, v, here)
            line += x.pixel
        squares = squares + here
        highest = select(above(top, highest), top, highest)
        mean = sum_lanes(here) / float32(count * x.C)
        if sum_lanes(top) > 0:
            least_power = min(least_power, mean)
        if above(zeros(), least) != 0:
            break
    store(to, highest)
    store(to + 4 * LANES, least)
    store(to + 8 * LANES, squares)
    store_scalar(to + 12 * LANES, least_power)


@device_function
def leave_out_facts(to: int) -> None:
    """Write to `to` the facts of a row that changes nothing."""
    for k in range(FACTS // LANES):
        store(to + 4 * LANES * k, zeros())
    store_scalar(to + 12 * LANES, float32(NONE))


@device_function
def least_power_in(facts: int) -> float:
    """The least mean square of a run in the facts about a row."""
    return load_scalar(facts + 12 * LANES)


@device_function
def largest_in(facts: int) -> float:
    """The largest value in the facts about a row."""
    largest = load_scalar(facts)
    for lane in range(1, LANES):
        largest = max(largest, load_scalar(facts + 4 * lane))
    return largest


@device_function
def exceeds(largest: float, least_power: float, max_crest: float) -> bool:
    """Whether the crest factor of a sample (`scale_from`) is above a limit.

    Where it is so for some rows, it is so for all: more rows have no smaller maximum and no larger minimum.
    """
    return largest * largest > max_crest * max_crest * least_power


@device_function
def scale_from(facts: int, rows: int, max_crest_3: float, max_crest_4: float) -> float:
    """The scale of a sample, from the facts about its rows.  Overwrites those of the first row.

    The crest factor of a sample is its largest value ÷ the least root mean square of a run of pixels.  Up to
    `max_crest_3` three levels are exact enough.  Up to `max_crest_4` four are, and the scale is negative.
    Above it the scale is 0, and for a sample with a value that is negative or not finite.
    """
    highest, least, squares = zeros(), zeros(), zeros()
    least_power = float32(NONE)
    for h in range(rows):
        at = facts + h * 4 * FACTS
        v, low = load(at), load(at + 4 * LANES)
        highest = select(above(v, highest), v, highest)
        least = select(above(least, low), low, least)
        squares = squares + load(at + 8 * LANES)
        least_power = min(least_power, least_power_in(at))
    negative = sum_lanes(least) < 0
    store(facts, highest)
    largest = largest_in(facts)
    if negative or not sum_lanes(squares) < MOST * MOST:
        return float32(0)
    if largest == 0:
        return float32(1)
    if largest < LEAST or exceeds(largest, least_power, max_crest_4):
        return float32(0)
    scale = float32(_MOST_VALUE) / largest
    return -scale if exceeds(largest, least_power, max_crest_3) else scale
