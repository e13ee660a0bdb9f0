"""The turns of a loop at once, where kernels of a card run as plain Python (`make cudasim`).

Half of that time went to copies of tiles, turn by turn, and most of what they copy are zeros.  No turn needs
another.  So the functions that copy get vectors of numbers, and run once for all turns.  Their code is the
kernels' own: only `a and b`, `a if b else c` and `range` get the meaning that they need for vectors.  Turn by
turn they still run in `test_turns_at_once_change_no_bit` and for the lanes of `tests/kernels/test_lanes.py`.
"""

from __future__ import annotations

import ast
import inspect
import operator
from functools import reduce
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from gbp.kernels import conv_tensor_cuda, conv_tiles_cuda, gemm_tensor_cuda
from gbp.kernels.codegen.jit_cuda import CudaKernel


def all_memory(nbytes: int, kind: str) -> Any:
    """The memory of this process from this address on: nothing is at address 0."""
    described = {"data": (nbytes, False), "shape": (2**47 // nbytes,), "typestr": kind, "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=described))


MEMORY = {4: all_memory(4, "<i4"), 8: all_memory(8, "<i8"), 16: all_memory(16, "<c16")}


def copy(to: Any, source: Any, nbytes: Any, whole: int) -> None:
    """Copy so many bytes where `nbytes` says so; the others become 0."""
    to, source, nbytes = np.broadcast_arrays(to, source, nbytes)
    some = nbytes > 0
    assert (nbytes[some] == whole).all()
    MEMORY[whole][to // whole - 1] = 0
    MEMORY[whole][to[some] // whole - 1] = MEMORY[whole][source[some] // whole - 1]


def store_place(address: Any, place: Any, h: Any, w: Any) -> None:
    MEMORY[8][address // 8 - 1] = place
    MEMORY[4][address // 4 + 1], MEMORY[4][address // 4 + 2] = h, w


#: What functions call, for vectors.
OF_VECTORS: dict[str, Any] = {
    "_all": lambda *conditions: reduce(operator.and_, conditions),
    "_where": np.where,
    "_same": lambda value: value,
    "_least": np.minimum,
    "_most": np.maximum,
    "_turns": lambda *ends: [np.arange(*ends)],
    "below": lambda a, b: (a >= 0) & (a < b),
    "copy_4": lambda to, source, nbytes: copy(to, source, nbytes, 4),
    "copy_16": lambda to, source, nbytes: copy(to, source, nbytes, 16),
    "load_place": lambda at: (MEMORY[8][at // 8 - 1], MEMORY[4][at // 4 + 1], MEMORY[4][at // 4 + 2]),
    "store_place": store_place,
}
INSTEAD = {"int32": "_same", "int64": "_same", "min": "_least", "max": "_most"}


class OfVectors(ast.NodeTransformer):
    """Replaces what is for single numbers."""

    def __init__(self, instead: dict[str, str]) -> None:
        self.instead = instead

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.instead.get(node.id, node.id), node.ctx)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        assert isinstance(node.op, ast.And)
        return ast.Call(ast.Name("_all", ast.Load()), node.values, [])

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return ast.Call(ast.Name("_where", ast.Load()), [node.test, node.body, node.orelse], [])


def at_once(function: Any, names: dict[str, Any], loops: bool = True) -> Any:
    """A function of a kernel with these global names, which is run once for all turns of a loop.

    Without `loops`, those that it has stay as they are: it is called with vectors.
    """
    instead = INSTEAD | ({"range": "_turns"} if loops else {})
    tree = OfVectors(instead).visit(ast.parse(inspect.getsource(function)))
    module = compile(ast.fix_missing_locations(tree), f"<{function.__name__}, at once>", "exec")
    (code,) = (each for each in module.co_consts if getattr(each, "co_name", "") == function.__name__)
    return FunctionType(code, names, function.__name__)


def copy_at_once(kernel: CudaKernel, *functions: Any, lines: Any = None) -> None:
    """Have a kernel call these by vectors, and `lines`, which they call in their turn."""
    names = kernel.function.__globals__
    names.update(OF_VECTORS)
    names.update({each.__name__: at_once(each, names) for each in functions})
    if lines:
        names[lines.__name__] = at_once(lines, names, loops=False)


def install() -> None:
    """For all kernels that let a thread stand for a warp."""
    tensor = conv_tensor_cuda
    for products in (3, 1):
        for pair in conv_tiles_cuda.conv_of("simulated", products).kernels.values():
            for kernel in pair:
                copy_at_once(kernel, tensor._locate, tensor._copy_columns, tensor._find)
    for pair in gemm_tensor_cuda.KERNELS.values():
        for kernel in pair:
            copy_at_once(kernel, gemm_tensor_cuda._fetch, lines=gemm_tensor_cuda._copy_line)
