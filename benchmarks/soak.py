"""`gbp serve` under load: a soak, then ten times as many clients, on loopback.

    python benchmarks/soak.py                         SqueezeNet with seeded weights, 64 clients, 60 seconds
    python benchmarks/soak.py model.onnx --seconds 15 --preprocess imagenet

Each client has a picture of its own and asks again as soon as it has its answer, an .npz file, whose hash
must be that of the library's.  Refused with 503, it waits as long as Retry-After says.  Beside the server's
rate is that of a bare loop over `Explainer` on the same pictures, before and after; the processor time that
an explanation takes, of server and clients and of the loop, which says more on a machine with other work; and
the server's memory in the second half of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import workloads
import zoo
from PIL import Image

from gbp import Explainer

RULE = "guided"
#: Pixels of a side of the clients' pictures.
SIDE = 320


@dataclass
class Tally:
    """The answers that clients got."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    refused_after: list[float] = field(default_factory=list)


def photo(seed: int) -> bytes:
    """A JPEG, another for each seed."""
    x = np.uint8(np.clip(128 + 48 * zoo.picture(seed)[0].transpose(1, 2, 0), 0, 255))
    file = io.BytesIO()
    Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def expected(explainer: Explainer, content: bytes) -> str:
    """The hash of the library's answer."""
    file = io.BytesIO()
    explainer.explain(content, rule=RULE).save(file, format="npz")
    return hashlib.sha256(file.getvalue()).hexdigest()


def bare(explainer: Explainer, photos: list[bytes], seconds: float) -> tuple[float, float]:
    """Explanations a second of a loop over the library, and milliseconds of processor time of each."""
    began, worked = time.perf_counter(), time.process_time()
    for done, content in enumerate(itertools.cycle(photos)):
        if time.perf_counter() >= began + seconds:
            return done / (time.perf_counter() - began), 1e3 * (time.process_time() - worked) / done
        explainer.explain(content, rule=RULE)
    raise AssertionError


async def client(
    port: int, path: str, content: bytes, answer: str, until: float, tally: Tally, start: float
) -> None:
    """Ask until the time is over."""
    await asyncio.sleep(start)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    connection: Any = None
    while time.perf_counter() < until:
        began = time.perf_counter()
        try:
            connection = connection or await asyncio.open_connection("127.0.0.1", port, limit=2**20)
            reader, writer = connection
            writer.write(head + content)
            text = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            body = await reader.readexactly(int(re.findall(r"content-length: (\d+)", text)[0]))
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.statuses[type(error).__name__] += 1
            connection = None
            await asyncio.sleep(0.1)
            continue
        took = time.perf_counter() - began
        status = text.split()[1]
        tally.statuses[status] += 1
        if status == "200":
            tally.seconds.append(took)
            tally.wrong += hashlib.sha256(body).hexdigest() != answer
        elif status == "503":
            tally.refused_after.append(took)
            wait = float(re.findall(r"retry-after: (\d+)", text)[0])
            await asyncio.sleep(min(wait * random.uniform(1, 1.5), max(0, until - time.perf_counter())))
    if connection is not None:
        connection[1].close()


def worked(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def memory(pid: int, until: float, found: list[tuple[float, int]]) -> None:
    """Resident bytes of the server."""
    with suppress(OSError):
        while time.perf_counter() < until:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            found.append((time.perf_counter(), pages * 4096))
            await asyncio.sleep(0.25)


async def soak(
    pid: int, port: int, path: str, photos: list[bytes], answers: list[str], clients: int, seconds: float
) -> tuple[Tally, float, list[tuple[float, int]]]:
    tally, used = Tally(), list[tuple[float, int]]()
    began = time.perf_counter()
    until = began + seconds
    asked = [
        client(port, path, photos[i % len(photos)], answers[i % len(photos)], until, tally, i / clients / 2)
        for i in range(clients)
    ]
    await asyncio.gather(memory(pid, until, used), *asked)
    return tally, time.perf_counter() - began, used


def summary(tally: Tally, seconds: float) -> dict[str, Any]:
    """The figures of a tally."""
    in_order = sorted(tally.seconds) or [float("nan")]
    refused = sorted(tally.refused_after)
    return {
        "statuses": dict(tally.statuses),
        "wrong": tally.wrong,
        "a second": round(len(tally.seconds) / seconds, 1),
        "median ms": round(1e3 * statistics.median(in_order)),
        "p99 ms": round(1e3 * in_order[int(0.99 * (len(in_order) - 1))]),
        "longest ms": round(1e3 * in_order[-1]),
        "p99 ms of refusals": round(1e3 * refused[int(0.99 * (len(refused) - 1))]) if refused else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="default: SqueezeNet with seeded weights")
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            model = f"{folder}/squeezenet.onnx"
            Path(model).write_bytes(workloads.network("squeezenet").SerializeToString())
        measure(model, arguments)


def measure(model: str, arguments: argparse.Namespace) -> None:
    explainer = Explainer(model, preprocess=arguments.preprocess)
    explainer.warmup()
    photos = [photo(seed) for seed in range(arguments.clients)]
    answers = [expected(explainer, content) for content in photos]
    serve = (sys.executable, "-m", "gbp", "serve", f"m={model}", "--preprocess", arguments.preprocess)
    server = subprocess.Popen([*serve, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(re.findall(r":(\d+)/", server.stdout.readline())[0])
        for _ in range(2):  # its limits, and that it is ready
            print(server.stdout.readline().strip())
        path, each = f"/v1/models/m/explain?rule={RULE}&format=npz", arguments.seconds

        def soaked(clients: int, seconds: float) -> Any:
            return asyncio.run(soak(server.pid, port, path, photos, answers, clients, seconds))

        soaked(arguments.clients, min(5, each / 3))
        loops = [bare(explainer, photos, each / 6)]
        before = worked(server.pid), time.process_time()
        tally, took, used = soaked(arguments.clients, each)
        spent = worked(server.pid) - before[0], time.process_time() - before[1]
        loops.append(bare(explainer, photos, each / 6))
        second_half = [size / 2**20 for when, size in used if when >= used[-1][0] - took / 2]
        middle = statistics.median(second_half)
        found = summary(tally, took)
        print("soak     ", json.dumps(found))
        rate, alone = (statistics.mean(column) for column in zip(*loops, strict=True))
        print("bare loop", [round(rate, 1) for rate, _ in loops])
        print(f"server ÷ bare loop: {found['a second'] / rate:.2f}")
        mine, theirs = (1e3 * seconds / len(tally.seconds) for seconds in spent)
        print(f"processor time: server {mine:.1f} ms, clients {theirs:.1f} ms, bare loop {alone:.1f} ms")
        off = max(abs(size / middle - 1) for size in second_half)
        print(f"memory in the second half: {middle:.0f} MiB ± {off:.1%}")
        tally, took, _ = soaked(10 * arguments.clients, each / 3)
        print("overload ", json.dumps(summary(tally, took)))
    finally:
        server.terminate()
        print("exit code", server.wait(60))


if __name__ == "__main__":
    main()
