"""The measurements.

Each gives a row: what was measured, the seconds of each call, and the figures that bars are put on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import peers
import processes
from numpy.typing import NDArray
from timing import Instruction, medians
from workloads import for_batch, network, picture_file, pictures, rule_of

from gbp import Attribution, Explainer, Top
from gbp.graph.graph import Graph
from gbp.importer.load import build, open_model
from gbp.ops.conv.conv import Conv
from gbp.ops.gemm import Dense

#: `section`, `network`, `batch`, `threads`, `all_threads` (whether no row has more), `values` (seconds of
#: each call; megabytes in the section memory) and `figures`.
Row = dict[str, Any]

#: Relative difference of maps under one rule: 1e-7, or up to 1e-2 where float32 tips a gate or two.
SAME_RULE = 0.05

SECTIONS = ("speed", "keras", "scaling", "memory", "start")

CAPTUM_BEST = "captum ÷ gbp"
RUNTIME = "onnxruntime forward ÷ gbp"
XPLIQUE = "xplique ÷ gbp"
AS_TORCH = "torch's export ÷ Keras' export"
TORCH_BEST = "torch forward ÷ gbp"
OF_PEAK = "direct arithmetic ÷ peak ÷ time"
OF_READING = "dense weights twice ÷ bandwidth ÷ time"
MAPS_DIFFER = "difference of maps"
FIVE_TARGETS = "five targets ÷ one"
MORE_THREADS = "1 thread ÷ all"
MEMORY = "captum ÷ gbp, extra memory"
COMMAND_LINE = "captum ÷ gbp, process"
COMPILE = "seconds on an empty cache"


class Selection(NamedTuple):
    """The measurements of one network."""

    section: str
    network: str
    batches: tuple[int, ...]


class Setting(NamedTuple):
    """How everything is measured."""

    threads: tuple[int, ...]
    rounds: int
    #: Seconds after which a row begins no new round, once it has its least.
    budget: float
    #: Versions of the peers, None where one is absent.
    found: Mapping[str, str | None]
    #: The machine's limits by number of threads: 10⁹ operations, and 10⁹ bytes read, a second.
    peak_gflops: Mapping[int, float]
    read_gbytes: Mapping[int, float]
    #: The Python that has Keras and Xplique.
    keras: str


class Workload:
    """One network in every library that is there; made when first asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rule = rule_of(name)
        self._explainers: dict[int, Explainer] = {}

    @cached_property
    def model(self) -> onnx.ModelProto:
        return network(self.name)

    def explainer(self, threads: int) -> Explainer:
        if threads not in self._explainers:
            self._explainers[threads] = Explainer(self.model, threads=threads)
        return self._explainers[threads]

    @cached_property
    def torch_networks(self) -> dict[str, Any]:
        return peers.torch_networks(self.model)

    @cached_property
    def operations(self) -> int:
        """Additions and multiplications of one picture's forward and reverse, done directly and densely.

        The gradient of a layer's input costs what its output did; no gradient of weights is computed.
        """
        layers = (layer for layer in self._graph.layers if isinstance(layer.op, (Conv, Dense)))
        return 2 * 2 * sum(layer.op.macs(self._graph.shapes[layer.output]) for layer in layers)

    @cached_property
    def dense_bytes(self) -> int:
        """Bytes of the dense layers' weights, which a batch has to read once forward and once in reverse."""
        return sum(4 * layer.op.parameters for layer in self._graph.layers if isinstance(layer.op, Dense))

    @cached_property
    def _graph(self) -> Graph:
        return build(open_model(self.model), pictures(1).shape)


def measure(selection: Selection, work: Workload, setting: Setting) -> Iterator[Row]:
    """The rows of one selection.  `work` is the workload of its network."""
    match selection.section:
        case "speed":
            for batch in selection.batches:
                for threads in setting.threads:
                    yield speed(work, batch, threads, setting)
        case "keras":
            for batch in selection.batches:
                for threads in setting.threads:
                    yield keras(work, batch, threads, setting)
        case "scaling":
            yield scaling(work, setting)
        case "memory":
            for batch in selection.batches:
                yield memory(work, batch, setting)
        case "start":
            yield start(work, setting)


def speed(work: Workload, batch: int, threads: int, setting: Setting) -> Row:
    """A whole guided explanation, and the forward run alone, beside the peers."""
    x, explainer = pictures(batch), work.explainer(threads)
    first = explainer.explain(x, rule=work.rule)
    figures: dict[str, float] = {}
    calls: dict[str, Instruction] = {
        "gbp guided": lambda: explainer.explain(x, rule=work.rule),
        "gbp forward": lambda: explainer.predict(x),
    }
    if setting.found["onnxruntime"]:
        calls["onnxruntime"] = peers.onnxruntime_forward(
            for_batch(work.model, len(x)), x, threads, first.scores
        )
    if setting.found["torch"]:
        peers.use_threads(threads)
        calls |= peers.torch_forward(work.torch_networks, x, first.scores)
    if setting.found["captum"]:
        figures[MAPS_DIFFER] = _checked_maps(work, x[:1], first)
        calls |= peers.captum_maps(work.torch_networks, x, first.scores, work.rule)
    seconds = dict(zip(calls, medians(list(calls.values()), setting.rounds, setting.budget), strict=True))
    for figure, peer in ((CAPTUM_BEST, "captum"), (RUNTIME, "onnxruntime"), (TORCH_BEST, "torch")):
        taken = [value for name, value in seconds.items() if name.startswith(peer)]
        if taken:
            figures[figure] = min(taken) / seconds["gbp guided"]
    guided = seconds["gbp guided"]
    figures[OF_PEAK] = 1e-9 * work.operations * batch / setting.peak_gflops[threads] / guided
    figures[OF_READING] = 1e-9 * 2 * work.dense_bytes / setting.read_gbytes[threads] / guided
    return _row("speed", work, batch, setting, seconds, figures, threads)


def keras(work: Workload, batch: int, threads: int, setting: Setting) -> Row:
    """A network as Keras exports it, beside Xplique on Keras' own, and beside the export from torch."""
    figures: dict[str, float] = {}
    with peers.KerasNetwork(setting.keras, work.name, threads) as network_of_keras:
        explainer = Explainer(network_of_keras.file, threads=threads, cache=False)
        size = explainer.input_shape[1]
        assert size is not None
        x = pictures(batch, size)
        other = Explainer(network(work.name, size), threads=threads)
        nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        scores, maps = network_of_keras.load(nhwc)
        first = explainer.explain(nhwc, rule=work.rule)
        peers.check_scores("Keras", scores, first.scores)
        figures[MAPS_DIFFER] = _difference("Xplique", work, maps, first.map)
        calls: dict[str, Instruction] = {
            "gbp guided": lambda: explainer.explain(nhwc, rule=work.rule),
            "gbp forward": lambda: explainer.predict(nhwc),
            "gbp guided, torch's export": lambda: other.explain(x, rule=work.rule),
            "xplique": network_of_keras.explain,
        }
        if setting.found["onnxruntime"]:
            model = network_of_keras.file.read_bytes()
            calls["onnxruntime"] = peers.onnxruntime_forward(model, nhwc, threads, first.scores)
        seconds = dict(zip(calls, medians(list(calls.values()), setting.rounds, setting.budget), strict=True))
    guided = seconds["gbp guided"]
    figures[XPLIQUE] = seconds["xplique"] / guided
    figures[AS_TORCH] = seconds["gbp guided, torch's export"] / guided
    if "onnxruntime" in seconds:
        figures[RUNTIME] = seconds["onnxruntime"] / guided
    return _row("keras", work, batch, setting, seconds, figures, threads)


def scaling(work: Workload, setting: Setting) -> Row:
    """One picture: five targets beside one, and one thread beside all."""
    x, threads = pictures(1), max(setting.threads)
    many, one = work.explainer(threads), work.explainer(1)
    calls: dict[str, Instruction] = {
        "one target": lambda: many.explain(x, rule=work.rule),
        "five targets": lambda: many.explain(x, rule=work.rule, target=Top(5)),
        "one thread": lambda: one.explain(x, rule=work.rule),
    }
    seconds = dict(zip(calls, medians(list(calls.values()), setting.rounds, setting.budget), strict=True))
    figures = {FIVE_TARGETS: seconds["five targets"] / seconds["one target"]}
    if threads > 1:
        figures[MORE_THREADS] = seconds["one thread"] / seconds["one target"]
    return _row("scaling", work, 1, setting, seconds, figures)


def memory(work: Workload, batch: int, setting: Setting) -> Row:
    """Extra megabytes at the peak; Captum's best is the layout that takes less."""
    threads = max(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = _saved(work, Path(folder))
        values = {"gbp": processes.extra_memory("gbp", file, batch, threads)}
        if setting.found["captum"]:
            for layout in peers.LAYOUTS:
                torch_file = peers.save(work.torch_networks[layout], Path(folder))
                who = f"captum {layout}"
                values[who] = processes.extra_memory(who, torch_file, batch, threads)
    best = [value for name, value in values.items() if name != "gbp"]
    figures = {MEMORY: min(best) / values["gbp"]} if best else {}
    return _row("memory", work, batch, setting, values, figures)


def start(work: Workload, setting: Setting) -> Row:
    """Whole processes from the picture's file to a picture of the map, on warm and empty caches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture, out = picture_file(folder), folder / "out.png"
        command = processes.command_line(_saved(work, folder), picture, out)
        calls = {"gbp": processes.run_command(command)}
        if setting.found["captum"]:
            torch_file = peers.save(work.torch_networks["NCHW"], folder)
            calls["captum"] = processes.run_command(processes.captum_script(torch_file, picture, out))
        seconds = dict(zip(calls, medians(list(calls.values()), setting.rounds, setting.budget), strict=True))
        figures = {COMPILE: processes.compile_seconds(command)}
    if "captum" in seconds:
        figures[COMMAND_LINE] = seconds["captum"] / seconds["gbp"]
    return _row("start", work, 1, setting, seconds, figures)


def _saved(work: Workload, folder: Path) -> Path:
    file = folder / f"{work.name}.onnx"
    onnx.save(work.model, file)
    return file


def _checked_maps(work: Workload, x: NDArray[np.float32], expected: Attribution) -> float:
    """How far, in relative L2 distance, Captum's maps of one picture are from gbp's."""
    captum = peers.captum_maps(work.torch_networks, x, expected.scores[:1], work.rule)
    maps = (call().detach().numpy() for call in captum.values())
    return max(_difference("Captum", work, map_, expected.map[:1]) for map_ in maps)


def _difference(who: str, work: Workload, map_: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The relative L2 distance of a map from gbp's; an error if it is another map."""
    off = float(np.linalg.norm(map_ - expected) / np.linalg.norm(expected))
    if not off <= SAME_RULE:
        raise RuntimeError(f"{who}'s map of {work.name} is {off:.1e} off gbp's")
    return off


def _row(
    section: str,
    work: Workload,
    batch: int,
    setting: Setting,
    values: Mapping[str, float],
    figures: Mapping[str, float],
    threads: int | None = None,
) -> Row:
    most = max(setting.threads)
    return {
        "section": section,
        "network": work.name,
        "batch": batch,
        "threads": threads or most,
        "all_threads": threads in (None, most),
        "values": dict(values),
        "figures": dict(figures),
    }
