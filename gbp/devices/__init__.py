"""Devices: where arrays are stored and kernels run.

The name of a device comes in; a `Device` comes out, which makes arrays, moves them, and runs kernels on them.
It may import kernels, limits and errors.  CUDA is imported only for the device "cuda".
"""

from __future__ import annotations

from ..errors import GbpError, InputError
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
        For another name, and for "cuda" where CUDA does not start.
    """
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise InputError(f"device is {name!r}.", supported=", ".join(map(repr, DEVICES)))
    try:
        from .cuda import cuda_device  # here, because importing CUDA is slow and needs an extra

        return cuda_device()
    except GbpError:
        raise
    except Exception as error:  # of a driver, numba-cuda and NumPy whose versions do not fit each other
        found = str(error).strip().splitlines() or [""]
        raise InputError(
            f"device is 'cuda', and CUDA does not start: {type(error).__name__}: {found[0]:.300}",
            supported="an NVIDIA card with its driver, and the extra gbp-explain[cuda12] or [cuda13]",
            hint="Install that extra again, which brings versions that fit; or leave the device out.",
        ) from error
