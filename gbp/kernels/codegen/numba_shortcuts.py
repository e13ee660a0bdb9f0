"""Takes Numba's place, while it compiles a kernel, where it does again what it has done.

The private parts of Numba that kernels need are in `numba_private.py`, which says what holds for all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from numba.core import event, ir
from numba.core.imputils import builtin_registry
from numba.core.postproc import PostProcessor
from numba.core.targetconfig import TargetConfig
from numba.core.transforms import canonicalize_cfg
from numba.core.types.functions import BaseFunction
from numba.core.typing.templates import _TemplateTargetHelperMixin

_OPERATORS = {each for each in vars(operator).values() if callable(each)} | {bool, max, min}
#: The signatures of operators, by function and types of arguments.
_signatures: dict[Any, Any] = {}


_look_up = BaseFunction.get_call_type


def _remembered(self: Any, context: Any, args: Any, kws: Any) -> Any:
    """The signature of a call."""
    if kws or self.typing_key not in _OPERATORS:
        return _look_up(self, context, args, kws)
    key = self, *args
    if key not in _signatures:
        _signatures[key] = _look_up(self, context, args, kws)
    return _signatures[key]


@cache
def _size_of(context: Any, kind: Any) -> int:
    size: int = kind.get_abi_size(context.target_data)
    return size


@cache
def _defaults(flags: Any) -> dict[str, Any]:
    """The options of a class of Numba's flags, by name, as they are where none is set."""
    return {name: option.default for name, option in flags.options.items()}


def _options(flags: Any) -> dict[str, Any]:
    kind: Any = type(flags)
    return _defaults(kind) | flags._values


@cache
def _kind_of(kind: type) -> type | None:
    """Which of the classes that hold variables of Numba's IR a class is; None for another."""
    holders = ir.Var, ir.Inst, dict, list, tuple
    return next((each for each in holders if issubclass(kind, each)), None)


def _variables(self: Any, part: Any) -> list[Any]:
    """The variables in a part of a statement."""
    own: Any = type(part)
    kind = _kind_of(own)
    if kind is None:
        return []
    if kind is ir.Var:
        return [part]
    if kind is ir.Inst:
        return part.list_vars()
    found = []
    for each in part.values() if kind is dict else part:
        found += _variables(self, each)
    return found


_finish = PostProcessor.run


def _finish_ir(self: Any, emit_dels: bool = False, **options: Any) -> None:
    """Finish Numba's IR.  How long variables live is found only for those who ask."""
    if emit_dels or self.func_ir.is_generator:
        _finish(self, emit_dels, **options)
    else:
        self.func_ir.blocks = canonicalize_cfg(self.func_ir.blocks)
        self.func_ir.generator_info = None


@contextmanager
def repeats_left_out(context: Any) -> Iterator[None]:
    """Leave out what Numba does again for each call, each variable, each pass and each call of LLVM."""
    replaced: list[tuple[Any, str, Any]] = [
        # It would try a dozen templates at every `a + b`, and write down why each did not match.
        (BaseFunction, "get_call_type", _remembered),
        # It would look for new extensions of Numba first.  They are loaded.
        (_TemplateTargetHelperMixin, "_get_target_registry", lambda *_: builtin_registry),
        # LLVM would parse a module for the size of each variable, which debuggers want.
        (type(context), "get_abi_sizeof", _size_of),
        # It would tell who measures it, which it does itself for each function.
        (event, "start_event", lambda *_, **__: None),
        (event, "end_event", lambda *_, **__: None),
        # It would find how long each variable lives after each pass, for those who count references.
        (PostProcessor, "run", _finish_ir),
        # It would ask five times what each part of a statement is.
        (ir.Inst, "_rec_list_vars", _variables),
        # It would read options one by one, to compare them at each call of an overload.
        (TargetConfig, "values", _options),
    ]
    usual = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, function in replaced:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name, _), function in zip(replaced, usual, strict=True):
            setattr(owner, name, function)
