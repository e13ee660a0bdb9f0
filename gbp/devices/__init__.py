"""Where arrays are stored and who runs the kernels on them.

In comes the name of a device, out comes a `Device`, which makes arrays, moves them, and runs what is given
to it.  May import kernels, limits and errors; nothing of CUDA is imported before it is asked for.
"""

from __future__ import annotations

from ..errors import InputError
from .base import Device
from .cpu import CPU

__all__ = ["CPU", "DEVICES", "Device", "device_named"]

DEVICES = ("cpu", "cuda")


def device_named(name: str) -> Device:
    """The device "cpu" or "cuda".  Raises InputError for others, and where there is no CUDA."""
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise InputError(f"device is {name!r}.", supported=", ".join(map(repr, DEVICES)))
    from .cuda import cuda_device  # nothing of CUDA is imported before it is asked for

    return cuda_device()
