"""One family of errors: everything gbp refuses, it refuses with a `GbpError`."""

from __future__ import annotations

_LONGEST = 8000  # characters of a message


class GbpError(Exception):
    """Anything gbp refuses to do.

    The message says what was found, what is supported and what to do about it, and names the node and
    the op where there is one.  The command line prints it on one line and exits with code 2.
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
    """On one line, as a terminal can show it: names come from files, and may hold anything.

    White space of any kind becomes a space; control characters, and others without a shape of their own, such
    as marks that turn the direction of writing, become U+FFFD; the middle of a long text is left out.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - _LONGEST // 4]} … {text[-_LONGEST // 4 :]}"
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


class ModelError(GbpError, ValueError):
    """The file is not a model, is damaged, or contradicts itself."""


class UnsupportedError(ModelError, NotImplementedError):
    """The model is valid but holds something that gbp does not do."""


class InputError(GbpError, ValueError):
    """An image, an array, a target, an option or an output path cannot be used."""


class OutOfMemoryError(InputError, MemoryError):
    """A device has not the memory that so many samples at once take."""
