"""`Window`: kernel, stride, dilation, pads and sizes of a sliding window, computed once and used by all.

Source: ONNX operators Conv, MaxPool and AveragePool (output shape, auto_pad, ceil_mode).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

Pair = tuple[int, int]


def _same_pads(size: int, kernel: int, stride: int, dilation: int, odd_at_end: bool) -> Pair:
    """Pads that give ceil(size / stride) outputs.

    If their sum is odd, the larger one is at the end (SAME_UPPER) or at the start (SAME_LOWER).
    """
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if odd_at_end else (large, small)


@dataclass(frozen=True)
class Axis:
    """A window along one axis.

    Parameters
    ----------
    size
        Pixels of the input along this axis, without padding.
    kernel
        Taps of the window.
    stride
        Pixels between two neighbouring positions of the window.
    dilation
        Pixels between two neighbouring taps.
    begin, end
        Padded pixels before and behind the input.  Negative values crop.
    ceil_mode
        Whether a last, incomplete window counts (ONNX MaxPool, attribute ceil_mode).
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    ceil_mode: bool = False

    @property
    def is_point(self) -> bool:
        """Whether each position reads its own pixel alone."""
        return self.kernel == self.stride == 1 and self.begin == self.end == 0

    @property
    def extent(self) -> int:
        """Pixels from the first to the last tap of one window, both included."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def outputs(self) -> int:
        """Positions of the window; 0 where it does not fit."""
        room = self.size + self.begin + self.end - self.extent
        # With ceil_mode, a window that is larger than the plane by less than the stride is incomplete, too.
        count = max(0, (-(-room // self.stride) if self.ceil_mode else room // self.stride) + 1)
        # A window that starts in the end padding does not exist (ONNX MaxPool, ceil_mode).
        if self.ceil_mode and (count - 1) * self.stride >= self.size + self.begin:
            count -= 1
        return count


def resolve_axes(
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: bool = False,
) -> tuple[Axis, ...]:
    """Fix a window on axes of known size.

    Parameters
    ----------
    size, kernel, stride, dilation
        One int for each axis.
    pads
        The begins of all axes, then their ends, as in ONNX.
    auto_pad
        "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER"; all but the first replace `pads`.
    ceil_mode
        See `Axis`.
    """

    def axis(i: int) -> Axis:
        begin, end = pads[i], pads[i + len(size)]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            begin, end = _same_pads(size[i], kernel[i], stride[i], dilation[i], auto_pad == "SAME_UPPER")
        elif auto_pad == "VALID":
            begin = end = 0
        return Axis(size[i], kernel[i], stride[i], dilation[i], begin, end, ceil_mode)

    return tuple(map(axis, range(len(size))))


@dataclass(frozen=True)
class Window:
    """A two-dimensional sliding window over an (H, W) plane."""

    height: Axis
    width: Axis

    @classmethod
    def resolve(
        cls,
        size: Pair,
        kernel: Pair,
        *,
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        auto_pad: str = "NOTSET",
        ceil_mode: bool = False,
    ) -> Window:
        """Fix the window on a plane of `size` = (H, W); `pads` = (top, left, bottom, right)."""
        height, width = resolve_axes(
            size, kernel, stride=stride, dilation=dilation, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
        )
        return cls(height, width)

    @classmethod
    def over_plane(cls, axes: Sequence[Axis]) -> Window:
        """The window along the last two axes.  A single axis counts as a plane of one row."""
        height, width = (Axis(1, 1, 1, 1, 0, 0), *axes)[-2:]
        return cls(height, width)

    @property
    def size(self) -> Pair:
        """(H, W) of the input plane."""
        return self.height.size, self.width.size

    @property
    def kernel(self) -> Pair:
        return self.height.kernel, self.width.kernel

    @property
    def output(self) -> Pair:
        """(OH, OW) of the output plane."""
        return self.height.outputs, self.width.outputs

    @property
    def taps(self) -> int:
        return self.height.kernel * self.width.kernel

    @cached_property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads its own input pixel alone: one tap, stride 1, no padding."""
        return self.taps == 1 and self.is_unstrided and self.is_unpadded

    @property
    def is_unpadded(self) -> bool:
        return all(a.begin == a.end == 0 for a in (self.height, self.width))

    @property
    def is_undilated(self) -> bool:
        return self.height.dilation == self.width.dilation == 1

    @property
    def is_unstrided(self) -> bool:
        """Whether both strides are 1: then the input gradient is a convolution of the output gradient."""
        return self.height.stride == self.width.stride == 1
