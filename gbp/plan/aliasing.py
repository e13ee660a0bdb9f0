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

from .layout import Instruction, PhysicalTensor

Tensors = Mapping[str, PhysicalTensor]


@dataclass(frozen=True)
class BufferSlice:
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


def alias_buffers(
    instructions: Iterable[Instruction], tensors: Tensors, views: Mapping[str, str]
) -> tuple[list[Instruction], dict[str, BufferSlice]]:
    """The calls that are left to do, and the place of every tensor.

    A part lies in one whole only; a second Concat copies it.
    """
    undivided = set(views.values())  # whose rows may be others under another shape
    for instruction in instructions:
        if instruction.step.wants_whole:
            undivided |= {instruction.output, *instruction.reads}
    inside = {name: (source, 0) for name, source in views.items()}  # tensor → in which, from which element
    rows: dict[str, int] = {}  # of memories that hold parts: one length for all of them

    def holds_parts(name: str) -> bool:
        row = tensors[name].row
        return rows.setdefault(views.get(name, name), row) == row

    left = []
    for instruction in instructions:
        step, copied = instruction.step, instruction.inputs
        if step.slice_start is not None:
            if instruction.output not in undivided and holds_parts(instruction.inputs[0]):
                inside[instruction.output] = instruction.inputs[0], step.slice_start
                copied = ()
        elif step.part_starts is not None and holds_parts(instruction.output):
            which = []
            for i, (name, start) in enumerate(zip(instruction.inputs, step.part_starts, strict=True)):
                if name in undivided or name in inside:
                    which.append(i)
                else:
                    inside[name] = instruction.output, start
            step, copied = step.only(which), tuple(instruction.inputs[i] for i in which)
        if copied:
            left.append(replace(instruction, step=step, inputs=copied))
    return left, _resolved(inside, rows, tensors, views)


def _resolved(
    inside: Mapping[str, tuple[str, int]], rows: Mapping[str, int], tensors: Tensors, views: Mapping[str, str]
) -> dict[str, BufferSlice]:
    """Places in roots, given those in the next larger tensor."""
    slices: dict[str, BufferSlice] = {}
    for name in {tensor.name: None for tensor in tensors.values()}:
        path = [name]  # from the part outwards; a file may nest thousands
        while path[-1] not in slices and path[-1] in inside:
            path.append(inside[path[-1]][0])
        host = path.pop()
        row = rows.get(host, tensors[host].row)
        at = slices.setdefault(host, BufferSlice(host, row, 0, row))
        for part in reversed(path):
            if part not in views:
                start = at.start + inside[part][1]
                at = replace(at, start=start, stop=start + tensors[part].row)
            slices[part] = at
    return slices


def mask_slices(
    instructions: Iterable[Instruction], tensors: Tensors, slices: Mapping[str, BufferSlice]
) -> dict[str, BufferSlice]:
    """Which bytes of their memory's mask speak of tensors, where there is a mask and they are whole bytes.

    A mask has the rows of its root.  A rectifier's output that does not fit into that has a mask of its own.
    """
    masks = {}
    for name, at in slices.items():
        root, row = tensors[at.root].row, tensors[name].row
        if at.row == root and at.stop - at.start == row and at.start % 8 == 0:
            masks[name] = BufferSlice(at.root, -(-root // 8), at.start // 8, -(-at.stop // 8))
        elif at.is_whole and root % 8 == row % 8 == 0:  # the same bits in rows of another length
            masks[name] = BufferSlice(at.root, root // 8, 0, root // 8)
    made = [instruction.output for instruction in instructions if instruction.has_mask]
    for name in made:
        row = -(-tensors[name].row // 8)
        masks.setdefault(name, BufferSlice(name, row, 0, row))
    roots = {masks[name].root for name in made}
    return {name: at for name, at in masks.items() if at.root in roots}
