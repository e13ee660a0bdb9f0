"""Devices: where arrays are stored and kernels run.

The name of a device comes in; a `Device` comes out, which makes arrays, moves them, and runs kernels on them.
It may import kernels, limits and errors.  CUDA is imported only for the device "cuda".
"""

from __future__ import annotations

from ..errors import InputError
from .base import Device
from .cpu import CPU

__all__ = ["CPU", "DEVICES", "Device", "device_named"]

DEVICES = ("cpu", "cuda")


def device_named(name: str) -> Device:
    """Look a device up by its name.

    Parameters
    ----------
    name
        "cpu" or "cuda".

    Raises
    ------
    InputError
        For another name, and for "cuda" on a machine without CUDA.
    """
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise InputError(f"device is {name!r}.", supported=", ".join(map(repr, DEVICES)))
    from .cuda import cuda_device  # here, because importing CUDA is slow and needs an extra

    return cuda_device()
