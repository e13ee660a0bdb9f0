"""Warming up: compiles what a model will need, before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ..arguments import array_of
from ..errors import GbpError, InputError
from ..kernels.codegen.cache import CACHE_DIRECTORY
from ..kernels.codegen.jit import Native, compiled, not_kept
from ..kernels.parallel.program import only_named
from ..limits import computing
from ..plan.plan import Plan
from ..rules import RULES
from ..runtime.memory import MemoryPool
from ..runtime.tape import Tape
from .engine import GATES, Engine


class NotKeptError(InputError):
    """All kernels are compiled, but the next process has to compile them again."""


def warm_up(engine: Engine, size: tuple[int, int] | None) -> int:
    """Compile every kernel that the model needs.  Arguments, result and errors are `Explainer.warmup`'s."""
    plan, noise = _noise(engine, size)
    before = len(compiled)
    # Some kernels run for some values only, so they are compiled here; explaining noise compiles the others.
    for instruction in plan.instructions:
        for kernel in instruction.step.kernels:
            kernel.compile()
    for rule in RULES.values():
        if plan.rectifiers or not rule.gradient_gate:
            engine.explain(noise, rule, None, None)
    if not engine.settings.device.is_host:  # dense layers have other kernels for many samples there
        engine.explain(np.repeat(noise, 16, axis=0), RULES["vanilla"], None, None)
    if not_kept:
        raise NotKeptError(
            f"kernels cannot be kept in {CACHE_DIRECTORY!r}: {not_kept[-1]}.",
            hint="Name a folder that can be written in GBP_CACHE_DIR.",
        )
    return len(compiled) - before


def kernels_of(engine: Engine, size: tuple[int, int] | None) -> list[Native]:
    """The kernels that `warm_up` compiles on the CPU, found without running one.

    Each is behind those that it calls.  Steps whose choice of kernels depends on values that other kernels
    would have written may choose otherwise here, so some kernels may be missing.

    Parameters
    ----------
    engine
        The model.
    size
        (H, W) where the model leaves it open.

    Raises
    ------
    InputError
        Where a size is missing.
    """
    plan, noise = _noise(engine, size)
    named = {kernel: None for each in plan.instructions for kernel in each.step.kernels}
    errors = GbpError, ArithmeticError, LookupError, ValueError
    with only_named() as run, np.errstate(all="ignore"), suppress(*errors), computing():
        tape = Tape(plan, noise, MemoryPool(), engine.settings.threads)
        for rule in RULES.values():
            tape.backward(GATES[rule.forward_gate, rule.gradient_gate], np.zeros((1, 1), np.int64))
    found = dict[Native, None]()
    for kernel in (*named, *run):
        if isinstance(kernel, Native):
            found.update(dict.fromkeys(kernel.with_callees()))
    return list(found)


def _noise(engine: Engine, size: tuple[int, int] | None) -> tuple[Plan, NDArray[np.float32]]:
    """The plan for samples of the model's size, or of this one where it is open, and such a sample."""
    preprocess, input_shape = engine.inputs.preprocess, engine.source.input_shape
    if size is not None:
        _check_size(size, input_shape, _plane(engine))
    sizes = size or (preprocess and preprocess.size) or ()
    given = dict(zip(_plane(engine), sizes, strict=False))
    shape = tuple(n or given.get(axis, 0) for axis, n in enumerate(input_shape))[1:]
    if 0 in shape:
        raise InputError("the model leaves the image size open.", hint="Say it: size=(H, W).")
    noise = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    return engine.sessions.of(shape).plan, noise


def _plane(engine: Engine) -> tuple[int, ...]:
    """The axes of height and width; of what is no image, the axes that the model leaves open."""
    shape = engine.source.input_shape
    if len(shape) == 4:
        return (1, 2) if engine.inputs.layout(shape) == "NHWC" else (2, 3)
    return tuple(axis for axis, n in enumerate(shape) if axis and n is None)


def _check_size(size: tuple[int, int], shape: Sequence[int | None], plane: tuple[int, ...]) -> None:
    """Raise `InputError` for a size that is none, or that is not the size of a model which fixes its own."""
    given = array_of(size)
    if given.shape != (2,) or given.dtype.kind not in "iu" or given.min() < 1:
        raise InputError(f"size is {size!r}.", supported="two whole numbers of at least 1")
    if any(shape[axis] not in (None, n) for axis, n in zip(plane, size, strict=False)):
        takes = ", ".join("any" if shape[axis] is None else str(shape[axis]) for axis in plane)
        raise InputError(f"size is {tuple(size)}, the network takes ({takes}).")
