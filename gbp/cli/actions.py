"""The actions of options that may be given twice.  argparse alone would lose the first value in silence."""

from __future__ import annotations

import argparse
from typing import Any


class Once(argparse.Action):
    """Stores an option's value, and refuses a second one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        if option is not None and _is_given(namespace, self.dest):
            raise argparse.ArgumentError(self, "it is given twice.")
        setattr(namespace, self.dest, values)


class Each(argparse.Action):
    """Stores the values of an option's list, and adds to them those of the same option given again."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        before = getattr(namespace, self.dest) if _is_given(namespace, self.dest) else ()
        setattr(namespace, self.dest, tuple(dict.fromkeys((*before, *values))))


def _is_given(namespace: argparse.Namespace, option: str) -> bool:
    """Whether an option was given before; from now on it was."""
    given: set[str] = vars(namespace).setdefault("options given", set())
    was = option in given
    given.add(option)
    return was
