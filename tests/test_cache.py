"""Kernels that processes compiled apart, in different orders, work together when they come from the cache.

Numba names machine code by a function's qualified name and a number that counts functions within the process.
Of two functions with one name, made by a factory, the linker takes either.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMPILE = """
import numba
from gbp.kernels import conv_direct
for i in range({before}):  # move the count
    numba.njit(lambda x: x + i)(0)
{kernel}.compile()
"""

CHECK = """
import numpy as np
import naive
from gbp.devices import CPU
from gbp.devices.base import LoweringTarget
from gbp.graph.geometry import Window
from gbp.graph.shapes import CHANNELS_LAST
from gbp.kernels.codegen.memory import aligned
from gbp.ops.conv.conv import Conv
from gbp.ops.step import NO_TENSOR, UNCLIPPED, Context, GradientSlot

rng = np.random.default_rng(0)
for width in range(1, 16):
    w = rng.standard_normal((9, 40, 3, 3))
    step = Conv(w, np.zeros(9), Window.resolve((3, width), (3, 3), pads=(1, 1, 1, 1)), 1).lower(
        ((1, 40, 3, width),), (1, 9, 3, width), CHANNELS_LAST, LoweringTarget(CPU)
    )
    x, gy = rng.standard_normal((1, 40, 3, width)), rng.standard_normal((1, 9, 3, width))
    y, gx = np.empty((1, 3, width, 9), np.float32), np.empty((1, 3, width, 40), np.float32)
    fixed, each = step.scratch(1)
    context = Context(1, aligned((fixed + each,)))
    step.forward((x.transpose(0, 2, 3, 1).astype(np.float32, order="C"),), NO_TENSOR, y, UNCLIPPED, context)
    step.vjp(gy.transpose(0, 2, 3, 1).astype(np.float32, order="C"), (GradientSlot(gx, False),), context)
    for found, expected in (
        (y, naive.conv_fwd(x, w, pads=(1, 1, 1, 1))),
        (gx, naive.conv_bwd(gy, w, x.shape, pads=(1, 1, 1, 1))),
    ):
        expected = expected.transpose(0, 2, 3, 1)
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected), width
"""


def run(code: str, cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"GBP_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_kernels_of_different_processes(tmp_path: Path) -> None:
    run(COMPILE.format(before=0, kernel="conv_direct.conv_fwd"), tmp_path)
    run(COMPILE.format(before=1, kernel="conv_direct.conv_bwd"), tmp_path)
    run(CHECK, tmp_path)
