"""Where each tensor lies: in memory of its own, or in another's.

    y = x under another shape      lies where x does
    y = x[..., start:stop]         (Split) lies in x
    y = [x_0 | x_1 | …]            (Concat) x_i lies in y: the step that makes x_i writes it there

Along the innermost axis only: there a part is a run of every row, which kernels take as it lies.

A gradient lies as its tensor does.  What the readers of y contribute to a part of y's gradient is what they
contribute to x_i's, so where several tensors lie, the contributions of all their readers just add up: such a
view, Split or Concat has nothing left to do in either direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from .layout import Call, Physical
from .ops.concat import ConcatStep, TakeStep

Tensors = Mapping[str, Physical]


@dataclass(frozen=True)
class Place:
    """Elements [start, stop) of every row of `row` elements in the memory of tensor `root`."""

    root: str
    row: int
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.row

    def of(self, memory: NDArray[Any]) -> NDArray[Any]:
        """What lies here in the memory (n, rows, row)."""
        return memory[:, :, self.start : self.stop]


def place(
    calls: Iterable[Call], tensors: Tensors, views: Mapping[str, str]
) -> tuple[list[Call], dict[str, Place]]:
    """The calls that are left to do, and the place of every tensor.

    A part lies in one whole only; a second Concat copies it.
    """
    undivided = set(views.values())  # whose rows may be others under another shape
    for call in calls:
        if call.step.wants_whole:
            undivided |= {call.output, *call.reads}
    inside = {name: (source, 0) for name, source in views.items()}  # tensor → in which, from which element
    rows: dict[str, int] = {}  # of memories that hold parts: one length for all of them

    def holds_parts(name: str) -> bool:
        row = tensors[name].row
        return rows.setdefault(views.get(name, name), row) == row

    left = []
    for call in calls:
        step, copied = call.step, call.inputs
        if isinstance(step, TakeStep) and step.along_rows:
            if call.output not in undivided and holds_parts(call.inputs[0]):
                inside[call.output] = call.inputs[0], step.start
                copied = ()
        elif isinstance(step, ConcatStep) and step.in_place and step.along_rows and holds_parts(call.output):
            which = []
            for i, (name, start) in enumerate(zip(call.inputs, step.starts, strict=True)):
                if name in undivided or name in inside:
                    which.append(i)
                else:
                    inside[name] = call.output, start
            step, copied = step.only(which), tuple(call.inputs[i] for i in which)
        if copied:
            left.append(replace(call, step=step, inputs=copied))
    return left, _resolved(inside, rows, tensors, views)


def _resolved(
    inside: Mapping[str, tuple[str, int]], rows: Mapping[str, int], tensors: Tensors, views: Mapping[str, str]
) -> dict[str, Place]:
    """Places in roots, given those in the next larger tensor."""
    places: dict[str, Place] = {}
    for name in {tensor.name: None for tensor in tensors.values()}:
        path = [name]  # from the part outwards; a file may nest thousands
        while path[-1] not in places and path[-1] in inside:
            path.append(inside[path[-1]][0])
        host = path.pop()
        row = rows.get(host, tensors[host].row)
        at = places.setdefault(host, Place(host, row, 0, row))
        for part in reversed(path):
            if part not in views:
                start = at.start + inside[part][1]
                at = replace(at, start=start, stop=start + tensors[part].row)
            places[part] = at
    return places


def places_in_masks(calls: Iterable[Call], tensors: Tensors, places: Mapping[str, Place]) -> dict[str, Place]:
    """Which bytes of their memory's mask speak of tensors, where there is a mask and they are whole bytes.

    A mask has the rows of its root.  A rectifier's output that does not fit into that has a mask of its own.
    """
    masks = {}
    for name, at in places.items():
        root, row = tensors[at.root].row, tensors[name].row
        if at.row == root and at.stop - at.start == row and at.start % 8 == 0:
            masks[name] = Place(at.root, -(-root // 8), at.start // 8, -(-at.stop // 8))
        elif at.is_whole and root % 8 == row % 8 == 0:  # the same bits in rows of another length
            masks[name] = Place(at.root, root // 8, 0, root // 8)
    made = [call.output for call in calls if call.has_mask]
    for name in made:
        row = -(-tensors[name].row // 8)
        masks.setdefault(name, Place(name, row, 0, row))
    roots = {masks[name].root for name in made}
    return {name: at for name, at in masks.items() if at.root in roots}
