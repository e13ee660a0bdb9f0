"""The libraries that gbp is compared with, on the same weights and pictures; each may be absent.

onnxruntime   the forward run alone: it has no reverse
torch         the forward run, NCHW and channels last, without autograd
Captum        GuidedBackprop, NCHW and channels last; its best is the faster of the two.  It is told the
              class, which gbp finds out by itself.  Where a network has no rectifier, Saliency
Xplique       GuidedBackprop of a network that Keras made, in a process of its own (`keras_peer.py`), whose
              Python may be another
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from timing import Instruction

Floats = NDArray[np.float32]

LAYOUTS = ("NCHW", "channels last")
#: Largest allowed difference of scores, relative to their norm.
TOLERANCE = 1e-4

PEERS = ("onnxruntime", "torch", "captum")


def available() -> dict[str, str | None]:
    """Version of each peer; None where it cannot be imported."""
    found: dict[str, str | None] = {}
    for name in PEERS:
        try:
            import_module(name)
            found[name] = version(name)
        except ImportError:
            found[name] = None
    return found


def xplique_version(python: str) -> str | None:
    """The version of Xplique that a Python has; None without it or what `keras_peer` needs besides."""
    names = "tensorflow", "keras", "tf2onnx", "xplique"
    code = f"from importlib.metadata import version; print([version(n) for n in {names}][-1])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


class KerasNetwork:
    """A network of Keras in a process of its own, and the file that it exports.

    The process ends with the context.
    """

    def __init__(self, python: str, name: str, threads: int) -> None:
        self._python, self._name, self._threads = python, name, threads

    def __enter__(self) -> KerasNetwork:
        self._temporary = tempfile.TemporaryDirectory()
        self._folder = Path(self._temporary.name)
        script = Path(__file__).with_name("keras_peer.py")
        self._log = open(self._folder / "log.txt", "w+")
        command = [self._python, str(script), self._name, str(self._folder), str(self._threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, at which it ends
        self._log.close()
        self._temporary.cleanup()

    @property
    def file(self) -> Path:
        """The exported model."""
        return self._folder / "model.onnx"

    def load(self, x: Floats) -> tuple[Floats, Floats]:
        """Explain pictures (N, H, W, C): their scores and guided maps."""
        np.save(self._folder / "x.npy", x)
        self._say("load")
        return np.load(self._folder / "scores.npy"), np.load(self._folder / "map.npy")

    def explain(self) -> None:
        """Explain the loaded pictures again."""
        self._say("explain")

    def _say(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._log.seek(0)
            raise RuntimeError(f"Keras' process of {self._name} ended:\n{self._log.read()[-2000:]}")


def check_scores(who: str, scores: Floats, expected: Floats) -> None:
    """Nothing is timed that computes something else."""
    error = float(np.linalg.norm(scores.reshape(expected.shape) - expected) / np.linalg.norm(expected))
    if not error <= TOLERANCE:
        raise RuntimeError(f"the scores of {who} are {error:.1e} off gbp's")


def onnxruntime_forward(model: bytes, x: Floats, threads: int, expected: Floats) -> Instruction:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: x}

    def forward() -> Any:
        return session.run(None, inputs)[0]

    check_scores("onnxruntime", forward(), expected)
    return forward


def torch_networks(model: onnx.ModelProto) -> dict[str, Any]:
    """The network as a torch module in each memory layout."""
    import torch

    formats = (torch.contiguous_format, torch.channels_last)
    return {
        layout: torch_network(model).to(memory_format=memory)
        for layout, memory in zip(LAYOUTS, formats, strict=True)
    }


def torch_network(model: onnx.ModelProto) -> Any:
    import torch
    from torch_network import Network

    nodes = [
        (
            node.op_type,
            list(node.input),
            node.output[0],
            {a.name: helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in model.graph.node
    ]
    constants = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
    }
    return Network(nodes, constants, model.graph.input[0].name, model.graph.output[0].name)


def use_threads(threads: int) -> None:
    """Torch's number of threads, and so Captum's."""
    import torch

    torch.set_num_threads(threads)


def save(network: Any, folder: Path) -> Path:
    """A torch module as a file that `torch.load` gives back whole."""
    import torch

    file = folder / "network.pt"
    torch.save(network, file)
    return file


def torch_forward(networks: dict[str, Any], x: Floats, expected: Floats) -> dict[str, Instruction]:
    """In each memory layout, on as many threads as `use_threads` said."""
    import torch

    def call(layout: str) -> Instruction:
        network, picture = networks[layout], torch_input(x, layout)

        def forward() -> Any:
            with torch.inference_mode():
                return network(picture)

        check_scores(f"torch {layout}", forward().numpy(), expected)
        return forward

    return {f"torch {layout}": call(layout) for layout in LAYOUTS}


def captum_maps(networks: dict[str, Any], x: Floats, expected: Floats, rule: str) -> dict[str, Instruction]:
    """GuidedBackprop, or the plain gradient, of each picture's own class, as `torch_forward`."""
    import torch
    from captum.attr import GuidedBackprop, Saliency

    warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations")
    target = torch.from_numpy(expected.argmax(axis=1))

    def call(layout: str) -> Instruction:
        picture = torch_input(x, layout).requires_grad_()
        if rule == "vanilla":
            saliency = Saliency(networks[layout])
            return lambda: saliency.attribute(picture, target=target, abs=False)
        guided = GuidedBackprop(networks[layout])
        return lambda: guided.attribute(picture, target=target)

    return {f"captum {layout}": call(layout) for layout in LAYOUTS}


def torch_input(x: Floats, layout: str) -> Any:
    import torch

    memory = torch.channels_last if layout == "channels last" else torch.contiguous_format
    return torch.from_numpy(x.copy()).contiguous(memory_format=memory)
