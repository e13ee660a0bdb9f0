"""The ops, one file a family: what each means, and the `Step` that computes it.

`PARSERS` says which ONNX ops gbp knows: all that files of this folder list under that name.  In comes a
`Node`, out come an `Op` and later its `Step`.  May import kernels, graph, limits and errors.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from .node import Node
from .written import Rewriter


def _listed(table: str) -> dict[str, Any]:
    """What all files list in tables of that name."""
    listed: dict[str, Any] = {}
    for file in iter_modules(__path__):
        found = getattr(import_module(f"{__name__}.{file.name}"), table, {})
        if twice := listed.keys() & found.keys():
            raise ValueError(f"{file.name} has {sorted(twice)}, which another file has")
        listed |= found
    return listed


#: ONNX op → parser.  A parser returns an op, a tuple of ops applied one after another, or a list with one of
#: these for each output.
PARSERS: dict[str, Callable[[Node], Any]] = _listed("PARSERS")

#: ONNX op → what writes other nodes in its place.
REWRITERS: dict[str, Rewriter] = _listed("REWRITERS")
