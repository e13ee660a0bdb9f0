"""`Limits`: what one request, and all of them together, may cost the server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .. import InputError
from ..errors import counted, readable_bytes

#: Bodies of the largest size that are held at a time, read or being read.
_BODIES = 8
#: Seconds in which the headers of a request must arrive.
HEADER_SECONDS = 10
#: Seconds that a connection may wait between two requests: longer than most Retry-After say.
KEEP_ALIVE_SECONDS = 30
#: Bytes of a request's line and headers.
HEADER_BYTES = 2**15
#: Connections at a time.
CONNECTIONS = 1000


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Parameters
    ----------
    body
        Bytes of a request's body.
    pixels
        Pixels of a picture.  gbp's own limits for each format come on top.
    targets
        Targets that one request may have explained.
    queue
        Requests that wait.  Further ones are refused at once.
    seconds
        Time from a request's headers to the end of its answer.

    Raises
    ------
    InputError
        For a limit below 1.
    """

    body: int = 32 * 2**20
    pixels: int = 50_000_000
    targets: int = 5
    queue: int = 64
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 1 <= value < 2**40:
                raise InputError(f"{field.name} is {value!r}.", supported="numbers of at least 1")

    @property
    def held(self) -> int:
        """Bytes of all bodies that are held at a time."""
        return _BODIES * self.body

    def __str__(self) -> str:
        return (
            f"{readable_bytes(self.body)} a body, {self.pixels / 1e6:g} million pixels a picture, "
            f"{counted(self.targets, 'target')} and {self.seconds:g} s a request, "
            f"{counted(self.queue, 'request')} waiting"
        )
