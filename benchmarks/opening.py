"""Opening a model that was opened before: the time of a process, and the memory of several together.

    python benchmarks/opening.py [NETWORK] [--workers 4] [--rounds 5]

The network has seeded weights and lies in a file.  Each round is a process that opens it and explains a
picture, and a whole `gbp explain`.  Figures are medians of time by the clock, and of CPU time in brackets,
which alone tells something on a busy machine.  Then some workers open it at once and explain.  Their memory
(PSS) is added up; pages that they share count once.  Only Linux tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workloads

ROUND = """
import json, os, sys, time
def now():
    return time.perf_counter(), sum(os.times()[:2])
begin = now()
import gbp.explainer
imported = now()
explainer = gbp.Explainer(sys.argv[1], preprocess="imagenet")
opened = now()
explainer.explain(sys.argv[2])
explained = now()
explainer.explain(sys.argv[2])
again = now()
if len(sys.argv) > 3:
    print("ready", flush=True)
    sys.stdin.readline()
at = begin, imported, opened, explained, again
print(json.dumps([[b - a for a, b in zip(x, y)] for x, y in zip(at, at[1:])]))
"""
STAGES = ("import", "open", "first explanation", "second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", nargs="?", default="vgg16")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, picture = folder / "model.onnx", workloads.picture_file(folder)
        model.write_bytes(workloads.network(arguments.network).SerializeToString())
        command = [sys.executable, "-c", ROUND, str(model), str(picture)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # packs, and compiles where it must
        rounds = [json.loads(subprocess.check_output(command)) for _ in range(arguments.rounds)]
        for i, stage in enumerate(STAGES):
            print(stage, _figure([each[i] for each in rounds]))
        print(
            "open and first explanation",
            _figure([[a + b for a, b in zip(*each[1:3], strict=True)] for each in rounds]),
        )
        whole = [sys.executable, "-m", "gbp", "explain", str(model), str(picture), "--preprocess", "imagenet"]
        runs = [_timed([*whole, "-o", str(folder / "map.png"), "--quiet"]) for _ in range(arguments.rounds)]
        print("gbp explain", _figure(runs))
        together, each = _memory(command, arguments.workers)
        file = model.stat().st_size / 1e6
        print(
            f"{arguments.workers} workers: {together:.0f} MB, of which {each:.0f} each alone; file {file:.0f}"
        )


def _figure(values: list[list[float]]) -> str:
    clock, cpu = (statistics.median(column) for column in zip(*values, strict=True))
    return f"{clock:.2f} s ({cpu:.2f} s)"


def _timed(command: list[str]) -> list[float]:
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return [time.perf_counter() - began, cpu]


def _memory(command: list[str], count: int) -> tuple[float, float]:
    """PSS of all workers together, and the mean of what each has alone, in MB."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, "wait"], **pipes) for _ in range(count)]  # type: ignore[call-overload]
    try:
        for worker in workers:
            worker.stdout.readline()
        tables = [Path(f"/proc/{worker.pid}/smaps_rollup").read_text() for worker in workers]
    finally:
        for worker in workers:
            worker.communicate("\n")
    return sum(_of(table, "Pss:") for table in tables), sum(_of(t, "Anonymous:") for t in tables) / count


def _of(table: str, row: str) -> float:
    (line,) = (line for line in table.splitlines() if line.startswith(row))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
