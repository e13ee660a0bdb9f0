"""`Sessions`: a session for each shape of sample, kept for later calls."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TypeAlias

from ..errors import InputError
from ..plan.plan import Rewrite
from .locks import give_lock
from .session import Session

#: Names of tensors to keep.
Kept: TypeAlias = tuple[str, ...]
#: The sizes of a sample, without the batch.
Shape: TypeAlias = tuple[int, ...]
#: The key of a plan: the shape of a sample, the kept tensors, and the rule's rewrite.
Key: TypeAlias = tuple[Shape, Kept, Rewrite | None]

#: How many plans a model of open size keeps, each with its own copy of the weights.
_MAX_SESSIONS = 4


class _Entry:
    """A session, or the lock of who makes it."""

    lock: Lock

    def __init__(self) -> None:
        give_lock(self)
        self.session: Session | None = None


class Sessions:
    """A session for each shape of sample, choice of kept tensors and rewrite, made on first use.

    Building the plan for one shape does not block those who use another.
    """

    lock: Lock

    def __init__(self, build: Callable[[Shape, Kept, Rewrite | None], Session]) -> None:
        self._build = build
        give_lock(self)
        #: In the order of use: the latest is last.
        self._entries: dict[Key, _Entry] = {}
        self._closed = False

    def of(self, shape: Shape, keep: Kept = (), rewrite: Rewrite | None = None) -> Session:
        """The session for samples of this shape.

        Parameters
        ----------
        shape
            The shape of a sample, without the batch.
        keep, rewrite
            As for `Plan.build`.

        Raises
        ------
        InputError
            After `close`.
        """
        key = shape, keep and tuple(sorted(set(keep))), rewrite
        with self.lock:
            if self._closed:
                raise InputError("the Explainer is closed.", hint="Make another one.")
            entry = self._entries.pop(key, None) or _Entry()
            self._entries[key] = entry
            while len(self._entries) > _MAX_SESSIONS:
                self._entries.pop(next(iter(self._entries)))
        with entry.lock:
            if entry.session is None:
                entry.session = self._made(key, entry)
            return entry.session

    def _made(self, key: Key, entry: _Entry) -> Session:
        """Make the session of an entry, which is dropped if that fails."""
        try:
            session = self._build(*key)
        except BaseException:
            with self.lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            raise
        # A file without a batch axis has samples of another shape than its input's other axes.
        with self.lock:
            if not self._closed:
                self._entries.setdefault((session.plan.input_shape, *key[1:]), entry)
        return session

    def last(self) -> Session | None:
        """The session that was used last; None where none is made."""
        with self.lock:
            return next((e.session for e in reversed(self._entries.values()) if e.session is not None), None)

    def close(self) -> None:
        """Drop all sessions.  Later calls of `of` raise InputError."""
        with self.lock:
            self._closed = True
            self._entries.clear()
