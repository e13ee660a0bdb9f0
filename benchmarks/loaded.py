"""Beside other work: explanations on a machine whose processors are busy, and callers that explain at once.

    python benchmarks/loaded.py                        SqueezeNet with seeded weights
    python benchmarks/loaded.py model.onnx --busy 16

An explanation and onnxruntime's forward run are timed in turns in one process, first as the machine is, then
with so many busy processes beside.  Printed is how many times slower each becomes, and gbp's slow-down as a
multiple of onnxruntime's.  Then: explanations a second of several Python threads that share one Explainer, as
a multiple of what one caller reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from peers import onnxruntime_forward
from timing import Instruction, medians
from workloads import NETWORKS, SEED, for_batch, network

from gbp import Explainer

THREADS = (1, 2)
SETTLE = 0.5


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(SETTLE)
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def pair(model: onnx.ModelProto, x: NDArray[np.float32], threads: int) -> list[Instruction]:
    """An explanation, and the forward run of onnxruntime."""
    explainer = Explainer(model, threads=threads)
    forward = onnxruntime_forward(for_batch(model, len(x)), x, threads, explainer.predict(x))
    return [lambda: explainer.explain(x), forward]


def throughput(explainer: Explainer, x: NDArray[np.float32], callers: int, seconds: float) -> float:
    """Explanations a second of so many Python threads."""
    until = time.perf_counter() + seconds

    def explain_on(_: int) -> int:
        count = 0
        while time.perf_counter() < until:
            explainer.explain(x)
            count += 1
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        count = sum(pool.map(explain_on, range(callers)))
    return count / (time.perf_counter() - began)


def measure(model: onnx.ModelProto, arguments: argparse.Namespace) -> dict[str, Any]:
    shape = [n.dim_value or 224 for n in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(SEED).standard_normal((1, *shape), np.float32)
    calls = {threads: pair(model, x, threads) for threads in THREADS}
    load, _, _ = os.getloadavg()
    seconds: dict[str, list[list[float]]] = {}
    seconds["as it is"] = [medians(each, arguments.rounds) for each in calls.values()]
    with busy(arguments.busy):
        seconds["busy"] = [medians(each, arguments.rounds) for each in calls.values()]
    rows = []
    for threads, before, after in zip(THREADS, seconds["as it is"], seconds["busy"], strict=True):
        slower = [b / a for a, b in zip(before, after, strict=True)]
        rows.append(
            {
                "threads": threads,
                "ms": {
                    name: [1e3 * v for v in pair_] for name, pair_ in (("as it is", before), ("busy", after))
                },
                "slower": slower,
                "ratio": slower[0] / slower[1],
            }
        )
        print(
            f"{threads} threads: explain {1e3 * before[0]:.2f} → {1e3 * after[0]:.2f} ms, ×{slower[0]:.1f};"
            f"  onnxruntime forward {1e3 * before[1]:.2f} → {1e3 * after[1]:.2f} ms, ×{slower[1]:.1f};"
            f"  ratio {rows[-1]['ratio']:.2f}"
        )
    explainer = Explainer(model, threads=max(THREADS))
    explainer.explain(x)
    turns: dict[int, list[float]] = {1: [], arguments.callers: []}
    for _, (callers, found) in zip(range(2 * arguments.turns), _in_turns(turns), strict=False):
        found.append(throughput(explainer, x, callers, arguments.seconds))
    one, many = (float(np.median(found)) for found in turns.values())
    print(
        f"{arguments.callers} callers: {many:.1f} explanations a second,"
        f" one with {max(THREADS)} threads {one:.1f};"
        f"  ratio {many / one:.2f}"
    )
    at_once = {"callers": arguments.callers, "one": one, "many": many, "ratio": many / one}
    return {"load": load, "busy": arguments.busy, "rows": rows, "callers": at_once}


def _in_turns(turns: dict[int, list[float]]) -> Iterator[tuple[int, list[float]]]:
    for items in repeat(list(turns.items())):
        yield from items


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", default="squeezenet", help=f"a file, or one of {', '.join(NETWORKS)}"
    )
    parser.add_argument("--busy", type=int, default=16, metavar="N", help="busy processes beside")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--callers", type=int, default=8, metavar="N")
    parser.add_argument("--turns", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of each turn of the callers")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    model = network(arguments.model) if arguments.model in NETWORKS else onnx.load(arguments.model)
    result = measure(model, arguments)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
