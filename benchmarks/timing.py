"""How a call is timed beside others: in turn, medians of several rounds.

`medians` times one call of each, after a silence and warm, as libraries are compared.  `steady` times several
calls of each in a row, after a quarter of a second of them, as calls of one library are compared: what a call
before it leaves in the caches, and where it leaves the threads, is forgotten by then.
"""

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
#: Seconds of untimed calls, and of timed ones, in each round of `steady`; and the fewest timed calls.
SETTLING, TIMED = 0.25, 0.12
LEAST_CALLS = 3


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


def steady(calls: Sequence[Instruction], rounds: int) -> list[float]:
    """Seconds of each call among calls of its own kind: the median round's median."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, taken, strict=True):
            settled_at = time.perf_counter() + SETTLING
            while time.perf_counter() < settled_at:
                call()
            seconds: list[float] = []
            while len(seconds) < LEAST_CALLS or sum(seconds) < TIMED:
                seconds.append(seconds_of(call))
            found.append(statistics.median(seconds))
    return [statistics.median(found) for found in taken]


def seconds_of(call: Instruction) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
