"""How many images a second `gbp batch --engine ray` explains with one actor and with two.

    python benchmarks/actors.py models/demo.onnx --images 640

Runs take turns.  A rate is counted over the last two thirds of the images,
so that it holds no start of Ray and no loading of the model.  The files of all runs are compared.

An actor reads and writes in threads beside the one that computes, and Ray has processes of its own:
one actor uses more than one core.  `taskset -c 0 python benchmarks/actors.py …` holds all of it to one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kills import files_of, make_images

import gbp


def rate(model: str, images: Path, out: Path, **options: object) -> float:
    """Images a second."""
    times: list[tuple[float, int]] = []
    gbp.batch(
        model,
        images,
        out,
        style="gray",
        bare=True,
        progress=lambda done, total: times.append((time.perf_counter(), done)),
        **options,  # type: ignore[arg-type]
    )
    start, before = next((t, done) for t, done in times if done >= times[-1][1] / 3)
    end, done = times[-1]
    return (done - before) / (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preprocess")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {"one actor": [], "two actors": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images", arguments.images)
        results = []
        for turn in range(arguments.rounds):
            for i, name in enumerate(rates):
                out = root / f"{turn}-{i}"
                options = {"preprocess": arguments.preprocess, "engine": "ray", "actors": i + 1}
                rates[name].append(rate(arguments.model, root / "images", out, **options))
                results.append(files_of(out))
                load = os.getloadavg()[0]
                print(f"{name}: {rates[name][-1]:.1f} images a second, load {load:.1f}", flush=True)
        assert all(result == results[0] for result in results)
    for name, found in rates.items():
        print(f"{name}: median {statistics.median(found):.1f} images a second")
    ratios = [two / one for one, two in zip(rates["one actor"], rates["two actors"], strict=True)]
    print(f"two actors ÷ one: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; the same files in all runs")


if __name__ == "__main__":
    main()
