"""How many images a second `gbp batch --engine ray` explains with one actor and with two.

    python benchmarks/actors.py models/demo.onnx --images 640

Runs take turns.  A rate is counted from a third of the images to five sixths of them, so that it holds no
start of Ray, no loading of the model and no end, when one actor may have no more to do.  Beside it are the
processor time that an image takes, of actors and of Ray's other processes (on Linux), and how many processors
one actor used.  The files of all runs are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kills import files_of, make_images

import gbp


@dataclass(frozen=True)
class Moment:
    """A moment of a run.

    Parameters
    ----------
    done
        Images that were explained by then.
    time
        Seconds on a clock.
    actors, others
        Seconds of processor time that actors took, and all other processes of this run.
    """

    done: int
    time: float
    actors: float
    others: float


def now(done: int) -> Moment:
    actors = others = 0.0
    parents, worked = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, fields = (folder / "cmdline").read_bytes(), (folder / "stat").read_text().rpartition(")")
            parents[folder.name] = fields[2].split()[1]
            seconds = sum(map(int, fields[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
            worked[folder.name] = seconds, b"MapWorker" in command
    for process, (seconds, is_actor) in worked.items():
        ancestor = process
        while ancestor in parents and ancestor != str(os.getpid()):
            ancestor = parents[ancestor]
        if ancestor in parents:
            actors, others = (actors + seconds, others) if is_actor else (actors, others + seconds)
    return Moment(done, time.perf_counter(), actors, others)


def run(model: str, images: Path, out: Path, **options: object) -> tuple[Moment, Moment]:
    """Explain images.  Returns the moments after a third and after five sixths of them."""
    moments: list[Moment] = []

    def progress(done: int, total: int) -> None:
        if len(moments) < 2 and done >= total * (1 / 3, 5 / 6)[len(moments)]:
            moments.append(now(done))

    gbp.batch(
        model,
        images,
        out,
        style="gray",
        bare=True,
        progress=progress,
        engine="ray",
        **options,  # type: ignore[arg-type]
    )
    first, last = moments
    return first, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preprocess")
    given = parser.parse_args()
    rates: list[list[float]] = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images", given.images)
        results = []
        for turn in range(given.rounds):
            for actors, found in enumerate(rates, 1):
                out = root / f"{turn}-{actors}"
                first, last = run(
                    given.model, root / "images", out, preprocess=given.preprocess, actors=actors
                )
                results.append(files_of(out))
                done, seconds = last.done - first.done, last.time - first.time
                mine, others = last.actors - first.actors, last.others - first.others
                found.append(done / seconds)
                print(
                    f"{actors} actor(s): {done / seconds:.1f} images a second, processor time of an image "
                    f"{1e3 * mine / done:.1f} ms and Ray's {1e3 * others / done:.1f} ms; "
                    f"an actor used {mine / seconds / actors:.2f} processors; load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
        assert all(result == results[0] for result in results)
    for actors, found in enumerate(rates, 1):
        print(f"{actors} actor(s): median {statistics.median(found):.1f} images a second")
    ratios = [two / one for one, two in zip(*rates, strict=True)]
    print(f"two actors ÷ one: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; the same files in all runs")


if __name__ == "__main__":
    main()
