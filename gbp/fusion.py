"""Fusion: a sum and a rectifier move into the end of the step that made their input.

    conv → Add(·, r) → Relu        becomes        conv with residual r, clipped, in one pass over y

A tensor that anyone else reads, that has a view, or that is the result, stays.
"""

from __future__ import annotations

from dataclasses import replace

from .layout import Call
from .ops.broadcast import AddStep
from .ops.op import UNCLIPPED


def fuse(calls: list[Call], remain: set[str]) -> list[Call]:
    """The same calls with sums and rectifiers fused; `remain` are tensors that others than calls need."""
    return _fuse_clips(_fuse_residuals(calls, remain), remain)


def _read_once(calls: list[Call], remain: set[str]) -> set[str]:
    """Tensors with a single reader, which is a call."""
    counts = dict.fromkeys(remain, 2)
    for call in calls:
        for name in call.reads:
            counts[name] = counts.get(name, 0) + 1
    return {name for name, count in counts.items() if count == 1}


def _fuse_residuals(calls: list[Call], remain: set[str]) -> list[Call]:
    once = _read_once(calls, remain)
    made = {call.output: i for i, call in enumerate(calls)}
    gone: set[int] = set()
    result: dict[int, Call] = dict(enumerate(calls))
    for i, call in enumerate(calls):
        if not isinstance(call.step, AddStep) or len(call.inputs) != 2:
            continue
        # The later of the two, so that less is alive while it waits for the other.
        for name in sorted(call.inputs, key=lambda x: -made.get(x, -1)):
            maker = result.get(made.get(name, -1))
            if maker is None or name not in once or not maker.step.fuses_residual:
                continue
            if maker.residual is not None or maker.clip != UNCLIPPED:
                continue
            (other,) = (x for x in call.inputs if x != name)
            gone.add(made[name])
            result[i] = replace(maker, layers=maker.layers + call.layers, output=call.output, residual=other)
            break
    return [result[i] for i in range(len(calls)) if i not in gone]


def _fuse_clips(calls: list[Call], remain: set[str]) -> list[Call]:
    once = _read_once(calls, remain)
    made = {call.output: i for i, call in enumerate(calls)}
    result = list(calls)
    gone: set[int] = set()
    for i, call in enumerate(calls):
        source = call.inputs[0]
        if not call.has_mask or call.residual is not None or source not in once or source not in made:
            continue
        maker = result[made[source]]
        if maker.step.fuses_clip and maker.clip == UNCLIPPED:
            gone.add(i)
            merged = replace(maker, layers=maker.layers + call.layers, output=call.output, clip=call.clip)
            result[made[source]] = merged
            made[call.output] = made[source]
    return [call for i, call in enumerate(result) if i not in gone]
