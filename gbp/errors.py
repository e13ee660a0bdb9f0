"""The family of errors: whatever gbp refuses, it raises a `GbpError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

_MAX_MESSAGE = 8000  # characters


class GbpError(Exception):
    """The base of all errors that gbp raises.

    The command line prints the message on one line and exits with code 2.

    Parameters
    ----------
    found
        The fact that gbp refuses, as a sentence.
    node, op
        The name and the ONNX op of the node, where there is one.
    supported
        The values that are supported.
    hint
        The next thing for the user to do, as a sentence.
    """

    def __init__(
        self,
        found: str,
        *,
        node: str | None = None,
        op: str | None = None,
        supported: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.found = found
        self.node = node
        self.op = op
        self.supported = supported
        self.hint = hint
        where = " ".join(part for part in (op, f"{node!r}" if node else None) if part)
        message = f"{where}: {found}" if where else found
        if supported:
            message += f" Supported: {supported}."
        if hint:
            message += f" {hint}"
        super().__init__(shown(message))


def shown(text: str) -> str:
    """The text on one line, as a terminal can show it.  Names come from files and may hold anything.

    White space of any kind becomes a space.  Control characters, and others without a shape of their own,
    such as marks that turn the direction of writing, become U+FFFD.  The middle of a long text is left out.
    """
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE - _MAX_MESSAGE // 4]} … {text[-_MAX_MESSAGE // 4 :]}"
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def readable_bytes(bytes_: float) -> str:
    """The number of bytes with a unit, such as 1.5 GiB, 12 MiB or 40.1 KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:.3g} {name}"
    return f"{bytes_ / 2**10:.3g} KiB"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun: "1 image", "2 images"; `many` is the plural of a noun that takes no s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def reason_of(error: Exception) -> str:
    """The reason of an error, without the number and the name of a file, and without a full stop."""
    reason = error.strerror if isinstance(error, OSError) else None
    return (reason or str(error)).rstrip(".")


class ModelError(GbpError, ValueError):
    """The file is no model, is damaged, or contradicts itself."""


class UnsupportedError(ModelError, NotImplementedError):
    """The model is valid, but gbp does not support all of it."""


class InputError(GbpError, ValueError):
    """An image, an array, a target, an option or an output path cannot be used."""


class OutOfMemoryError(InputError, MemoryError):
    """The device has too little memory for so many samples at once."""


_Error = TypeVar("_Error", bound=GbpError)


def without_frames(error: _Error) -> _Error:
    """The error, without the frames that it came through.

    An error that a frame holds is in a cycle with that frame.  So all arrays of a failed attempt would stay
    until Python looks for cycles.
    """
    error.__traceback__ = error.__context__ = None
    return error


@contextmanager
def calling(what: str, supported: str = "") -> Iterator[None]:
    """Around a call of a user's own function: what it raises becomes an InputError that names the function.

    Errors of gbp, which it may use, stay as they are.  A MemoryError is named too, because it is the function
    that needs the memory.  `supported`: what is said of it besides.
    """
    try:
        yield
    except GbpError:
        raise
    except Exception as error:
        # It keeps the name of a file, unlike `reason_of`, because the sentence names none.
        reason = ": ".join(filter(None, (type(error).__name__, str(error).rstrip("."))))
        raise InputError(f"{what} failed: {reason}.", supported=supported) from error
