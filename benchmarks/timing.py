"""How a call is timed beside others: in turn, each after a silence and warm, medians of several rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Instruction = Callable[[], Any]

#: Seconds of silence and then of untimed calls before each timed call.  The threads of one library go on
#: spinning for a while and would take a core from the other's; and threads that slept wake late, or on the
#: busy core until the scheduler's next tick, which within a network happens once and not at every layer.
IDLE = 0.01
WARM = 0.01
#: A call of this many seconds warms itself.
LONG = 1.0
LEAST_ROUNDS = 3


def medians(calls: Sequence[Instruction], rounds: int, budget: float = math.inf) -> list[float]:
    """Seconds of each call, taken in turn so that a noisy moment meets them all.

    At most `rounds` rounds, and no new one once `budget` seconds are spent and `LEAST_ROUNDS` are done.
    """
    taken: list[list[float]] = [[] for _ in calls]
    is_long = [seconds_of(call) > LONG for call in calls]
    started = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - started > budget:
            break
        for call, long, seconds in zip(calls, is_long, taken, strict=True):
            time.sleep(IDLE)
            warm_until = time.perf_counter() + (0 if long else WARM)
            while time.perf_counter() < warm_until:
                call()
            seconds.append(seconds_of(call))
    return [statistics.median(seconds) for seconds in taken]


def seconds_of(call: Instruction) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
