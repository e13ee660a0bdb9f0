"""VGG16's convolutions beside oneDNN (torch, channels last): forward, forward with ReLU, and input gradient.

Each pair does the same work.  gbp's figures include laying out the padding, and with ReLU the mask that the
reverse pass needs, in one pass over the output; torch applies its ReLU in place.  Interleaved in one process,
medians, ratio torch ÷ gbp (above 1: gbp is faster).  torch is no dependency of gbp: install it for the
comparison, and its ratios appear.

    python benchmarks/convolutions.py --batch 1 --threads 2
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from timing import Instruction, medians

from gbp.devices.base import LoweringTarget
from gbp.devices.cpu import CPU
from gbp.graph.geometry import Window
from gbp.graph.shapes import innermost
from gbp.kernels.codegen.memory import aligned
from gbp.kernels.parallel.threads import parallel
from gbp.ops.conv.conv import Conv, ConvStep
from gbp.ops.step import NO_TENSOR, UNCLIPPED, Clipped, Context, GradientSlot

try:
    import torch
except ImportError:
    torch = None  # its columns stay empty

CALLS = ("forward", "with ReLU", "reverse")

#: (input channels, output channels, height and width)
VGG16 = (
    (3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56),
    (256, 512, 28), (512, 512, 28), (512, 512, 14),
)  # fmt: skip


def gbp_calls(C: int, O: int, size: int, N: int, threads: int) -> list[Instruction]:
    """The step on random data, as in `CALLS`."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((O, C, 3, 3)) / (3 * C**0.5)
    window = Window.resolve((size, size), (3, 3), pads=(1, 1, 1, 1))
    op = Conv(w, np.zeros(O), window, 1)
    step = op.lower(((N, C, size, size),), (N, O, size, size), innermost(1, 4), LoweringTarget(CPU))
    assert isinstance(step, ConvStep)
    fixed, each = step.scratch(threads)
    x, y = aligned((N, size, size, C)), aligned((N, size, size, O))
    gy, gx = aligned(y.shape), aligned(x.shape)
    x[:], gy[:] = rng.standard_normal(x.shape), rng.standard_normal(y.shape)
    mask = np.empty((N, size, size, -(-O // 8)), np.uint8)
    plain = Context(threads, aligned((fixed + N * each,)))
    saved = Context(threads, plain.scratch, mask=mask)
    relu = Clipped(0.0, np.inf, is_rectifier=True)
    return [
        lambda: step.forward((x,), NO_TENSOR, y, UNCLIPPED, plain),
        lambda: step.forward((x,), NO_TENSOR, y, relu, saved),
        lambda: step.vjp(gy, (GradientSlot(gx, accumulate=False),), plain),
    ]


def torch_calls(C: int, O: int, size: int, N: int) -> list[Instruction]:
    """The same in torch."""
    conv = torch.nn.Conv2d(C, O, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(N, size, size, C).permute(0, 3, 1, 2)
    gy = torch.randn(N, size, size, O).permute(0, 3, 1, 2)
    w = conv.weight.detach()

    def reverse() -> Any:
        return torch.ops.aten.convolution_backward(
            gy, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
        )

    return [lambda: conv(x), lambda: torch.relu_(conv(x)), reverse]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if torch is not None:
        torch.set_num_threads(arguments.threads)
        torch.set_grad_enabled(False)
    rows = []
    for C, O, size in VGG16:
        calls = [*gbp_calls(C, O, size, arguments.batch, arguments.threads)]
        if torch is not None:
            calls += torch_calls(C, O, size, arguments.batch)
        with parallel():
            seconds = medians(calls, arguments.rounds)
        gflop = 2e-9 * 9 * C * O * size * size * arguments.batch
        row: dict[str, Any] = {"layer": f"{C}→{O} at {size}"}
        line = f"{row['layer']:16s}"
        for i, name in enumerate(CALLS):
            row[name] = {"ms": 1e3 * seconds[i], "gflops": gflop / seconds[i]}
            line += f"  {name} {row[name]['ms']:6.2f} ms {row[name]['gflops']:4.0f} GFLOP/s"
            if torch is not None:
                row[name]["ratio"] = seconds[i + len(CALLS)] / seconds[i]
                line += f" ×{row[name]['ratio']:.2f}"
        rows.append(row)
        print(line, flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"batch": arguments.batch, "threads": arguments.threads, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
