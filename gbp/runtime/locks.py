"""Locks that a forked child finds free.

A child has one thread: a copy of the one that forked.  A lock that another thread held at that moment would
stay locked for ever.  So the child gets new locks, and what they protect is complete at any moment between
two of its operations.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property
from threading import Lock, RLock
from typing import Protocol
from weakref import WeakSet


class Locked(Protocol):
    """An object with a lock."""

    lock: Lock


_owners: WeakSet[Locked] = WeakSet()


def give_lock(owner: Locked) -> None:
    """Give an object its `lock`, and a new one in each forked child.

    It is a plain lock, because `with` takes and frees such a one without a moment at which Ctrl-C would leave
    it locked.
    """
    owner.lock = Lock()
    _owners.add(owner)


def _begin_anew() -> None:
    """Give a forked child new locks."""
    for owner in _owners:
        owner.lock = Lock()
    # Before Python 3.12 each cached_property has a lock, which a thread holds while it computes the value.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "gbp":
            for kind in list(vars(module).values()):
                if isinstance(kind, type):
                    _free_properties(kind)


def _free_properties(kind: type) -> None:
    for attribute in vars(kind).values():
        if isinstance(attribute, cached_property) and hasattr(attribute, "lock"):
            attribute.lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
