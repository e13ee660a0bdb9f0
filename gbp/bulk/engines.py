"""The engines: who reads, explains and writes the images, here or on a cluster."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from ..arguments import at_least_one
from ..errors import GbpError, InputError
from .folder import Folder
from .index import Row
from .job import Job, Task
from .worker import Read, Worker
from .zarrs import Maps

#: Images that are explained together.
CHUNK = 16
#: Threads that read, and threads that write: they wait for the disk, and Python's lock is free meanwhile.
_READERS, _WRITERS = 2, 4
#: Threads of an actor that write: a whole chunk may wait for the disk while the next one is explained.
_ACTORS_WRITERS = CHUNK
#: Images that an actor gets at a time, where there are many: each time costs Ray some 80 ms of a processor.
_LARGE = 64


def locally(worker: Worker, tasks: Sequence[Task], writers: int = _WRITERS) -> Iterator[list[Row]]:
    """Explain in this process.  Threads read the next images and write the last ones meanwhile.

    Parameters
    ----------
    worker
        Does it.
    tasks
        The images.
    writers
        How many threads write.

    Yields
    ------
    The rows of images whose files are written, in order.
    """
    chunks = deque(tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK))
    reading: deque[list[Future[Read]]] = deque()
    writing: deque[list[Future[Row]]] = deque()
    read_by, write_by = ThreadPoolExecutor(_READERS), ThreadPoolExecutor(writers)
    try:
        while chunks or reading or writing:
            while chunks and len(reading) < 2:
                reading.append([read_by.submit(worker.read, task) for task in chunks.popleft()])
            if reading:
                explained = worker.explain([read.result() for read in reading.popleft()])
                writing.append([write_by.submit(worker.write, one) for one in explained])
            while writing and (len(writing) > 1 or not reading):
                yield [row.result() for row in writing.popleft()]
    finally:
        for pool in (read_by, write_by):
            pool.shutdown(wait=True, cancel_futures=True)


def on_ray(
    job: Job, folder: Folder, maps: Maps | None, tasks: Sequence[Task], actors: int, address: str | None
) -> Iterator[list[Row]]:
    """Explain on a Ray cluster, by a pool of actors.

    An actor uses no more processors than it asks Ray for: as many as its `Explainer` has threads, by default
    one.  So Ray may put as many actors on a node as it has processors.

    Parameters
    ----------
    job, folder, maps
        Arguments of each actor's `Worker`.
    tasks
        The images; all nodes find them under the same paths.
    actors
        How many actors there are.
    address
        The cluster's address; by default a cluster on this machine, which ends with the run.

    Yields
    ------
    The rows of images whose files are written, in any order.

    Raises
    ------
    InputError
        Where Ray is missing or does not start, and whatever an actor raises.
    """
    ray = import_ray()
    threads = threads_of(job)

    class Actor:
        """The state of each of Ray's processes.  Defined here, it takes what it needs along."""

        def __init__(self) -> None:
            options = {**job.options, "threads": threads}
            self._worker = Worker(replace(job, options=options), folder, processors=threads)
            self._worker.maps = maps

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            tasks = [Task(**json.loads(str(task))) for task in batch["task"]]
            chunks = locally(self._worker, tasks, _ACTORS_WRITERS)
            return {"row": [json.dumps(row) for rows in chunks for row in rows]}

    mine, context = not ray.is_initialized(), ray.data.DataContext.get_current()
    had_bars, began = context.enable_progress_bars, not mine
    try:
        if mine:
            cluster: dict[str, Any] = {"address": address}
            if not address:
                cluster = {"num_cpus": actors * threads, "include_dashboard": False}
            ray.init(**cluster, log_to_driver=False, logging_level=logging.ERROR)
            began = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports its progress there
        context.enable_progress_bars = False
        items = [{"task": json.dumps(asdict(replace(t, path=os.path.abspath(t.path))))} for t in tasks]
        size = min(max(CHUNK, len(items) // (8 * actors)), _LARGE)
        explained = ray.data.from_items(items, override_num_blocks=-(-len(items) // size)).map_batches(
            Actor,
            batch_size=None,  # a whole block
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=threads,
            num_gpus=1 if job.options.get("device", "cpu") != "cpu" else None,
        )
        for batch in explained.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield [json.loads(str(row)) for row in batch["row"]]
    except GbpError:
        raise
    except Exception as error:  # of many kinds, each of which may hold what an actor raised
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, GbpError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        refused = address and (not began or any(word in str(error).lower() for word in ("token", "auth")))
        hint = "If the cluster asks for a token, set RAY_AUTH_MODE=token." if refused else None
        raise (cause or InputError(f"Ray stopped: {str(error).rstrip('.')}.", hint=hint)) from error
    finally:
        context.enable_progress_bars = had_bars
        if mine:
            ray.shutdown()


def threads_of(job: Job) -> int:
    """The threads of an actor's `Explainer`, and so the processors that it asks Ray for."""
    return at_least_one("threads", job.options.get("threads")) or 1


def import_ray() -> Any:
    """The module `ray`, with `ray.data`.  Raises InputError where Ray is missing."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("Ray is not installed.", hint="Install gbp-explain[ray].") from None
    return ray
