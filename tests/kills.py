"""Kills `gbp batch` at random moments until it is done, and compares the folder with that of one quiet run.

By hand, over 2,000 small images:

    python tests/kills.py --images 2000 --kills 20
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/demo.onnx"


def make_images(folder: Path, count: int) -> None:
    """Small pictures of noise, one of which is broken."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count - 1):
        pixels = rng.integers(0, 256, (20 + i % 5, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")


def command(images: Path, out: Path, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "gbp", "batch", str(MODEL), str(images), "-o", str(out), "-q", *options]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_with_kills(
    images: Path, out: Path, options: Sequence[str], delays: Sequence[float]
) -> tuple[int, list[int]]:
    """Start the command and kill it after each delay; then let it finish, if it has not.

    Returns how many kills met a running process, and how many images were in the journal at each.
    """
    rows = []
    for delay in delays:
        process = subprocess.Popen(command(images, out, options), cwd=ROOT)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break  # it was done
        journal = out / "journal.jsonl"
        rows.append(journal.read_bytes().count(b"\n") if journal.exists() else 0)
    last = subprocess.run(command(images, out, options), cwd=ROOT, check=False)
    assert last.returncode == 1  # one image is broken
    return len(rows), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="of gbp batch, behind --")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images", arguments.images)
        start = time.monotonic()
        assert subprocess.run(
            command(root / "images", root / "quiet", arguments.options), cwd=ROOT, check=False
        ).returncode
        seconds = time.monotonic() - start
        expected = files_of(root / "quiet")
        print(f"uninterrupted: {seconds:.1f} s, {len(expected)} files")
        kills = round_ = 0
        while kills < arguments.kills:
            left = arguments.kills - kills
            # A start takes time of its own, so that kills come all over the work.
            delays = [2 + rng.random() * 2 * seconds / left for _ in range(left)]
            out = root / f"killed{round_}"
            met, rows = run_with_kills(root / "images", out, arguments.options, delays)
            kills, round_ = kills + met, round_ + 1
            found = files_of(out)
            assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
            differ = [name for name in expected if found[name] != expected[name]]
            assert not differ, differ
            print(f"killed {met} times, at {rows} rows in the journal: equal, file for file")


if __name__ == "__main__":
    main()
