"""The last copy of an image runs forward beside the image itself, where two threads compute.

Two threads have equal shares of all copies but the last one, where the number of copies is odd.  With two
samples they are faster if each takes one than if both share one after the other.  The question to the copy,
such as the class, is known only from the image, but its forward run is the same for any question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engine.at_once import meanwhile
from ..engine.repeated import Ran, only_image
from ..explainer import Explainer
from ..inputs import Images
from ..limits import elements
from ..questions.questions import Question, is_hidden
from ..rules import Rule, rule_named
from .common import Copies, max_copies

#: Makes the copies of a sample; None where they must be asked for in order.
Make: TypeAlias = Callable[[NDArray[np.float32]], Copies | None]


@contextmanager
def last_copy_early(
    explainer: Explainer, images: Images, rule: str | Rule, target: Question, count: int, make: Make
) -> Iterator[tuple[Images, Callable[[], Copies | None]]]:
    """A context manager, inside which the image may run: its last copy runs meanwhile.

    Parameters
    ----------
    explainer, images, rule, target
        As for `explained`.
    count, make
        How many copies of a sample there are, and what makes them.

    Yields
    ------
    The images, and a function that waits, and returns the copies of the only one: None where nothing was
    begun.

    Raises
    ------
    InputError
        For what is no image.  The function raises what the copies do.
    """
    ready, begin, counts = images, None, Event()
    asks_scores = not is_hidden(target) and rule_named(rule).rewrite is None  # by the session of the image
    found = only_image(explainer, images) if count > 1 and count % 2 == 1 and asks_scores else None
    if found is not None:
        ready, session = found
        x = ready.x[0]
        most = max_copies(x.size, 1, elements(session.plan.output_shape))
        if session.at_once(most + 1, 1) == 2:  # the run of the last copy takes memory beside theirs

            def begin() -> Copies | None:
                last = slice(count - 1, count)
                with session.device.running():
                    counts.set()
                    made = make(x)
                    if made is None:
                        return None
                    ran = Ran.of(session, made(last))
                return lambda part: ran if part == last else made(part)

    with meanwhile(begin) as begun:
        if begun is not None:
            begun.add_done_callback(lambda _: counts.set())  # it may fail before it counts
            counts.wait()  # for the thread to count as a caller, so that the image's run takes no other one
        yield ready, (lambda: None) if begun is None else begun.result
