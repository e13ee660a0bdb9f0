"""Imported by the process of which the programs of `forked` are forks.

It imports nothing of gbp, which reads its settings from the environment when it is imported.
"""

import numba
import numba.extending
import onnx
import onnx.reference
import PIL.Image


@numba.njit("void(float32[::1])")
def _compiled(x):
    """Numba loads what it knows of NumPy before it compiles its first function."""
    x[0] = 1


__all__ = ["PIL", "onnx"]
