"""Guided explanations on a card: gbp beside torch + Captum, and both beside what the card can do.

    python benchmarks/cards.py                                       all networks, batches of 1 and 32
    python benchmarks/cards.py --networks vgg16,resnet50 --batch 32

For each network and batch: milliseconds of a forward and a guided reverse run by CUDA events, inputs and
maps on the card, the median of rounds in which gbp and its peers take turns, all warm; Captum's as the
faster of NCHW and channels last, with TF32 off, then on. Beside it gbp's with tf32=True, and the
milliseconds of a whole `Explainer.explain`, which uploads and downloads. Before anything is timed, scores
and maps are compared with gbp's on the CPU, and Captum's scores with gbp's. The card's ceilings are
measured first: multiply-adds in registers, and copying from memory to memory; and what gbp's convolution
reaches in VGG's layer of 56 × 56 × 256. At the end stands what was to be reached, and whether it was.

Needs gbp-explain[cuda12] or [cuda13], and a card; torch and captum are optional.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import peers
from measure import Row
from numba import cuda, float32
from numpy.typing import NDArray
from timing import seconds_of
from workloads import NETWORKS, network, pictures

from gbp import Explainer, GbpError
from gbp.devices.cuda import CudaDevice, cuda_device
from gbp.importer.load import build, open_model
from gbp.kernels.codegen.gate import Gate
from gbp.kernels.codegen.jit import DENSE, INT
from gbp.kernels.codegen.jit_cuda import block_kernel, tensor_cores
from gbp.kernels.conv_tiles_cuda import NOTHING, conv_of, pack
from gbp.kernels.taps import Taps
from gbp.ops.step import NO_MASK, NO_TENSOR
from gbp.runtime.memory import MemoryPool
from gbp.runtime.tape import Tape

BATCHES = (1, 32)
LARGE = 32
GUIDED = Gate(1, 1)
#: How many times gbp is to be as quick as Captum in float32.
LEAST = {
    ("vgg16", 1): 1.2,
    ("vgg16", 32): 1.3,
    ("resnet50", 1): 4,
    ("resnet50", 32): 1.3,
    ("mobilenet_v2", 32): 3,
}
#: How many times as long a whole call may take as the card's part, of a large batch.
MOST = 1.25
#: Relative distance of maps from the CPU's: 1e-6, or more where float32 tips a gate.
SAME_MAP = 0.05
_CHAINS = 16
_STEPS = 4096
_BLOCKS = 132 * 16
_THREADS = 256
_COPIED = 1 << 28  # floats


@block_kernel(DENSE, INT, threads=(_THREADS,), blocks=lambda *args: (_BLOCKS,))
def _multiply_adds(y: Any, steps: int) -> None:
    own = cuda.local.array(_CHAINS, float32)
    for i in range(_CHAINS):
        own[i] = np.float32(i)
    factor = y[0]
    for _ in range(steps):
        for i in range(_CHAINS):
            own[i] = own[i] * factor + factor
    total = np.float32(0)
    for i in range(_CHAINS):
        total += own[i]
    if total == np.float32(-1):
        y[0] = total


@block_kernel(DENSE, DENSE, threads=(_THREADS,), blocks=lambda *args: (_BLOCKS,))
def _copy(x: Any, y: Any) -> None:
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        y[i] = x[i]


def event_medians(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds of each call between CUDA events on the streams that they use, taken in turn."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(3):
            call()
    for _ in range(rounds):
        for call, seconds in zip(calls, taken, strict=True):
            cuda.synchronize()
            seconds.append(call())
    return [statistics.median(seconds) for seconds in taken]


def timed_here(device: CudaDevice, run: Callable[[], Any]) -> Callable[[], float]:
    """A call that runs on gbp's stream and returns the seconds that the card took."""
    start, stop = cuda.event(), cuda.event()

    def call() -> float:
        start.record(device.numba_stream)
        with device.running():
            run()
        stop.record(device.numba_stream)
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    return call


def timed_torch(run: Callable[[], Any]) -> Callable[[], float]:
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def call() -> float:
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    return call


def ceilings(device: CudaDevice) -> dict[str, float]:
    """10⁹ floating-point operations and 10⁹ bytes a second."""
    y, a, b = device.empty((1,)), device.empty((_COPIED,)), device.empty((_COPIED,))
    y.fill(1e-3)
    a.fill(1.0)
    runs = [timed_here(device, lambda: _multiply_adds(y, _STEPS)), timed_here(device, lambda: _copy(a, b))]
    multiply, move = event_medians(runs, 9)
    work = 2.0 * _CHAINS * _STEPS * _BLOCKS * _THREADS
    return {"fp32_gflops": 1e-9 * work / multiply, "copy_gbytes": 1e-9 * 8 * _COPIED / move}


def convolution_gflops(device: CudaDevice) -> float:
    """10⁹ floating-point operations a second of a layer of VGG at batch 32, at float32's accuracy."""
    if not tensor_cores():
        return 0.0
    shape, rng = (32, 56, 56, 256), np.random.default_rng(0)
    x, y = device.upload(rng.standard_normal(shape, np.float32)), device.empty(shape)
    weights = rng.standard_normal((256, 256, 3, 3), np.float32) / 48
    w, b = device.upload(pack(weights)), device.upload(np.zeros(256, np.float32))
    conv, taps = conv_of(tensor_cores(), 3), Taps(3, 3, top=1, left=1)
    ends = taps, 0.0, float("inf"), 1, NOTHING

    def run() -> None:
        for _ in range(8):
            conv.forward(x, w, b, NO_TENSOR, y, NO_MASK, *ends)

    (seconds,) = event_medians([timed_here(device, run)], 9)
    return 1e-9 * 8 * 2 * 9 * 256 * x.size / seconds


class OnCard:
    """A network's forward and guided reverse run of the same pictures, on the card."""

    def __init__(self, model: onnx.ModelProto, x: NDArray[np.float32], tf32: bool = False) -> None:
        self.explainer = Explainer(model, device="cuda", tf32=tf32)
        self.x = x
        plan = self.explainer._engine.sessions.of(x.shape[1:]).plan
        self.tape = Tape(plan, x, MemoryPool(), 1, cuda_device())
        self.targets = self.tape.scores.argmax(axis=1)[:, None]
        self.map = self.tape.backward(GUIDED, self.targets)[:, 0]

    def run(self) -> None:
        """The work of `Tape` between upload and download."""
        forward = self.tape._forward
        for piece in forward.pieces:  # the samples are on the card already
            piece.run()
        assert forward.backward is not None, "guided backpropagation needs no activations"
        forward.run_backward(forward.backward, forward.plan.backward, GUIDED)

    def check(self, model: onnx.ModelProto) -> NDArray[np.float64]:
        """The relative distance of each map from that of the CPU."""
        expected = Explainer(model).explain(self.x, target=self.targets)
        peers.check_scores("the card", self.tape.scores, expected.scores)
        truth = expected.map[:, 0].reshape(len(self.map), -1)
        apart = np.linalg.norm(self.map.reshape(truth.shape) - truth, axis=1)
        errors: NDArray[np.float64] = apart / np.linalg.norm(truth, axis=1)
        if not errors.max() <= SAME_MAP:
            raise RuntimeError(f"the maps of the card are {errors.max():.1e} off the CPU's")
        return errors


def captum_calls(
    model: onnx.ModelProto, x: NDArray[np.float32], scores: Any
) -> dict[str, Callable[[], float]]:
    """Captum's guided maps on the card in both layouts, each with TF32 off and on."""
    import torch
    from captum.attr import GuidedBackprop

    calls = {}
    target = torch.from_numpy(scores.argmax(axis=1)).cuda()
    for layout, module in peers.torch_networks(model).items():
        method = GuidedBackprop(module.cuda())
        picture = peers.torch_input(x, layout).cuda().requires_grad_()
        for tf32 in (False, True):

            def run(method: Any = method, picture: Any = picture, tf32: bool = tf32) -> None:
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
                method.attribute(picture, target=target)

            calls[f"captum {layout}{', TF32' if tf32 else ''}"] = timed_torch(run)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        peers.check_scores("torch", module(peers.torch_input(x, layout).cuda()).cpu().numpy(), scores)
    return calls


def measured(name: str, model: onnx.ModelProto, x: NDArray[np.float32], rounds: int, limits: Any) -> Row:
    """A row: seconds of each call, and the figures."""
    ours = OnCard(model, x)
    errors = ours.check(model)
    found = peers.available()
    calls = {"gbp": timed_here(cuda_device(), ours.run)}
    if cuda_device().has_tf32:
        calls["gbp, TF32"] = timed_here(cuda_device(), OnCard(model, x, tf32=True).run)
    if found["torch"] and found["captum"]:
        calls |= captum_calls(model, x, ours.tape.scores)
    seconds = dict(zip(calls, event_medians(list(calls.values()), rounds), strict=True))

    def whole() -> None:
        ours.explainer.explain(x)

    for _ in range(3):
        whole()
    seconds["gbp, whole"] = statistics.median(seconds_of(whole) for _ in range(rounds))
    graph = build(open_model(model), (1, *x.shape[1:]))
    macs = sum(layer.op.macs(graph.shapes[layer.output]) for layer in graph.layers)
    figures = {
        "difference of maps, median": float(np.median(errors)),
        "largest": float(errors.max()),
        "whole ÷ gbp": seconds["gbp, whole"] / seconds["gbp"],
        "direct arithmetic ÷ ceiling": 4e-9 * macs * len(x) / seconds["gbp"] / limits["fp32_gflops"],
    }
    for label in ("", ", TF32"):
        best = [
            seconds[f"captum {layout}{label}"]
            for layout in peers.LAYOUTS
            if f"captum {layout}{label}" in seconds
        ]
        if best:
            figures[f"captum{label} ÷ gbp"] = min(best) / seconds["gbp"]
    return {"network": name, "batch": len(x), "values": seconds, "figures": figures}


def bars(rows: Sequence[Row], gflops: float) -> list[str]:
    """One line for each bar and the figure that was measured."""
    lines = []
    found = {(row["network"], row["batch"]): row["figures"] for row in rows}
    for (name, batch), least in LEAST.items():
        value = found.get((name, batch), {}).get("captum ÷ gbp")
        if value is not None:
            lines.append(_verdict(f"{name} b{batch}, captum ÷ gbp", value, value >= least, f"≥ {least}"))
    for (name, batch), figures in found.items():
        if batch == LARGE:
            value = figures["whole ÷ gbp"]
            lines.append(_verdict(f"{name} b{batch}, whole ÷ gbp", value, value <= MOST, f"≤ {MOST}"))
    lines.append(_verdict("56 × 56 × 256, 10¹² operations a second", gflops / 1e3, gflops >= 65e3, "≥ 65"))
    return lines


def _verdict(what: str, value: float, holds: bool, bar: str) -> str:
    return f"{'holds' if holds else 'FAILS'}  {what}: {value:.3g} {bar}"


def line(row: Row) -> str:
    values = "  ".join(f"{name} {1e3 * value:.2f} ms" for name, value in row["values"].items())
    figures = "  ".join(f"{name} {value:.3g}" for name, value in row["figures"].items())
    return f"{row['network']:14} {row['batch']:3}  {values}\n{'':20}{figures}"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        device = cuda_device()
    except GbpError as error:
        print(f"nothing can be measured: {error}", file=sys.stderr)
        return 2
    limits = ceilings(device)
    limits["convolution_gflops"] = convolution_gflops(device)
    facts = {"card": str(cuda.get_current_device().name), **limits, "peers": peers.available()}
    print(json.dumps(facts, ensure_ascii=False), flush=True)
    rows = []
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    for name, model, x in _workloads(arguments):
        rows.append(measured(name, model, x, arguments.rounds, limits))
        print(line(rows[-1]), flush=True)
        text = json.dumps({"machine": facts, "rows": rows}, indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n")
    print("\n".join(bars(rows, limits["convolution_gflops"])))
    return 0


def _workloads(arguments: argparse.Namespace) -> Iterator[tuple[str, onnx.ModelProto, NDArray[np.float32]]]:
    for name in arguments.networks.split(","):
        model = network(name)
        for batch in map(int, arguments.batch.split(",")):
            yield name, model, pictures(batch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), metavar="NAME,…", help=", ".join(NETWORKS))
    parser.add_argument("--batch", default=",".join(map(str, BATCHES)), metavar="N,…", help="default: 1,32")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--json", type=Path, default=Path("out/cards.json"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
