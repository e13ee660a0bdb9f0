"""The ops, one file for each family: the meaning of each op, and the `Step` that computes it.

`PARSERS` lists the ONNX ops that gbp supports: all that the files of this folder list under that name.
`FACTS` lists in the same way what must be known of an op before it is parsed.  A `Node` comes in; an `Op`
comes out, and later its `Step`.  It may import kernels, graph, limits and errors.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from .facts import Fact
from .node import Node
from .written import Rewriter


def _listed(table: str) -> dict[str, Any]:
    """The tables of this name of all files in the folder, as one."""
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

#: ONNX op → what is true of it.
FACTS: dict[str, Fact] = _listed("FACTS")

_PLAIN = Fact("other")


def fact(op: str) -> Fact:
    """The facts of an ONNX op, whether or not gbp supports it."""
    return FACTS.get(op, _PLAIN)
