"""Buffer aliasing: each tensor has memory of its own, or is a slice of another tensor's memory.

    y = x under another shape      y shares x's memory
    y = x[..., start:stop]         (Split) y is a slice of x
    y = [x_0 | x_1 | …]            (Concat) x_i is a slice of y: the step that makes x_i writes it there

Slices are cut along the innermost axis only.  There a slice is a run of elements in every row, and kernels
can read and write it in place.

Gradients are aliased as their tensors are.  If x_i is a slice of y, then what y's readers add to that part of
y's gradient is added to x_i's gradient too, because both are the same memory.  So an aliased view, Split or
Concat needs no step, neither forward nor backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from .layout import Instruction, PhysicalTensor

Tensors = Mapping[str, PhysicalTensor]


@dataclass(frozen=True)
class BufferSlice:
    """A tensor's part of a buffer: elements [start, stop) of every row.

    Parameters
    ----------
    root
        The tensor that the buffer was made for.
    row
        Elements in a row of the buffer.
    start, stop
        The elements of each row that belong to the tensor.
    """

    root: str
    row: int
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.row

    def of(self, memory: NDArray[Any]) -> NDArray[Any]:
        """The slice of `memory`, which has shape (n, rows, row)."""
        return memory[:, :, self.start : self.stop]


def alias_buffers(
    instructions: Sequence[Instruction], tensors: Tensors, views: Mapping[str, str]
) -> tuple[list[Instruction], dict[str, BufferSlice]]:
    """Alias as many tensors as possible.

    Parameters
    ----------
    instructions
        All of a plan, in order.
    tensors
        Those of the plan, by any of their names.
    views
        Tensors that share another tensor's memory under another shape: view → the tensor that owns it.

    Returns
    -------
    The instructions that still have to be computed, and the buffer slice of every tensor.
    """
    aliases = _Aliases(instructions, tensors, views)
    left = []
    for instruction in instructions:
        step, inputs, y = instruction.step, instruction.inputs, instruction.output
        if step.slice_start is not None:  # a Split
            if not aliases.add(y, inputs[0], step.slice_start):
                left.append(instruction)
        elif step.part_starts is not None:  # a Concat, which copies those parts that cannot be made in place
            parts = enumerate(zip(inputs, step.part_starts, strict=True))
            copied = [i for i, (x, start) in parts if not aliases.add(x, y, start)]
            if copied:
                x = tuple(inputs[i] for i in copied)
                left.append(replace(instruction, step=step.only(copied), inputs=x))
        else:
            left.append(instruction)
    return left, aliases.slices()


class _Aliases:
    """Tensors that are in the memory of others.  The parameters are those of `alias_buffers`."""

    def __init__(
        self, instructions: Sequence[Instruction], tensors: Tensors, views: Mapping[str, str]
    ) -> None:
        self._tensors, self._views = tensors, views
        #: Tensors that may not be slices.  A tensor with views may not, because their rows have another
        #: length.
        self._undivided = set(views.values())
        for instruction in instructions:
            if instruction.step.wants_whole:
                self._undivided |= {instruction.output, *instruction.reads}
        #: Tensor → the next larger tensor whose memory it is in, and its first element in each row of that.
        self._inside = {name: (source, 0) for name, source in views.items()}
        #: Buffer → the length of the rows that its slices are cut from.  All are cut from equal rows.
        self._rows: dict[str, int] = {}

    def add(self, part: str, whole: str, start: int) -> bool:
        """Make `part` the elements from `start` on in each row of `whole`, and return whether that can be.

        A tensor can be a slice of one Concat only.  A second Concat that reads it copies it.
        """
        if part in self._undivided or part in self._inside:
            return False
        row, buffer = self._tensors[whole].row, self._views.get(whole, whole)
        if self._rows.setdefault(buffer, row) != row:  # other slices were cut first, through another view
            return False
        self._inside[part] = whole, start
        return True

    def slices(self) -> dict[str, BufferSlice]:
        """Each tensor's slice of the outermost buffer."""
        slices: dict[str, BufferSlice] = {}
        for name in {tensor.name: None for tensor in self._tensors.values()}:
            path = [name]  # from the slice outwards; no recursion, because a file may nest thousands
            while path[-1] not in slices and path[-1] in self._inside:
                path.append(self._inside[path[-1]][0])
            host = path.pop()
            row = self._rows.get(host, self._tensors[host].row)
            at = slices.setdefault(host, BufferSlice(host, row, 0, row))
            for part in reversed(path):
                if part not in self._views:
                    start = at.start + self._inside[part][1]
                    at = replace(at, start=start, stop=start + self._tensors[part].row)
                slices[part] = at
        return slices


def mask_slices(
    instructions: Sequence[Instruction], tensors: Tensors, slices: Mapping[str, BufferSlice]
) -> dict[str, BufferSlice]:
    """For each tensor that has a mask, its bytes of the mask of its buffer.

    A mask has one bit for each element.  The mask of a buffer has the buffer's rows, and a tensor that is a
    slice uses a part of it, if the slice begins at a whole byte.  Otherwise the output of a rectifier has a
    mask of its own.
    """
    masks = {}
    for name, at in slices.items():
        root, row = tensors[at.root].row, tensors[name].row
        # A view's rows have another length than the buffer's: then no row may end within a byte.
        if at.row == root and at.stop - at.start == row and at.start % 8 == 0:
            masks[name] = BufferSlice(at.root, -(-root // 8), at.start // 8, -(-at.stop // 8))
        elif at.is_whole and root % 8 == row % 8 == 0:  # the same bits in rows of another length
            masks[name] = BufferSlice(at.root, root // 8, 0, root // 8)
    masked = [instruction.output for instruction in instructions if instruction.has_mask]
    for name in masked:
        row = -(-tensors[name].row // 8)
        masks.setdefault(name, BufferSlice(name, row, 0, row))
    roots = {masks[name].root for name in masked}
    return {name: at for name, at in masks.items() if at.root in roots}
