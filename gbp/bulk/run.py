"""`batch`: explains images in any number, and goes on where a run stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ..arguments import at_least_one
from ..errors import InputError
from ..files import absolute, is_address
from ..kernels.parallel.threads import available
from ..pictures.files import check_writable
from ..pictures.labels import read_labels
from ..pictures.paths import find_images
from ..questions.questions import Question, Score, checked_score
from .engines import import_ray, locally, on_ray, threads_of
from .folder import SETTINGS, Folder
from .index import Index
from .job import Job, Task, digest_of, name_of
from .worker import Worker


@dataclass(frozen=True)
class BatchSummary:
    """The result of a run.

    Parameters
    ----------
    explained, before
        How many images this run explained, and how many were explained before.
    failed
        How many images could not be explained, now or before; the index says why.
    index
        The path of the index.
    notes
        Remarks for the reader of the maps, one sentence each; those that hold for one image are in its files.
    """

    explained: int
    before: int
    failed: int
    index: Path
    notes: tuple[str, ...] = ()


def batch(
    model: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    rule: str | None = None,
    target: Question = None,
    score: Score | None = None,
    method: str | None = None,
    method_options: Mapping[str, Any] | None = None,
    style: str = "strip",
    format: str = "png",
    look: Mapping[str, Any] | None = None,
    bare: bool = False,
    arrays: Literal["npz", "zarr"] | None = None,
    shard: tuple[int, int] | None = None,
    retry: bool = False,
    engine: Literal["local", "ray"] = "local",
    actors: int | None = None,
    ray_address: str | None = None,
    stdin: IO[bytes] | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> BatchSummary:
    """Explain images in any number, into a folder with an index (extra gbp-explain[batch]).

    A run that was killed at any moment goes on where it stopped when it is started again with the same
    arguments.  A file is there complete or not at all, and a row of the index only after its files.  An image
    that cannot be explained is a row with an error.

    Parameters
    ----------
    model
        The path of the model.
    images
        Paths of pictures or .npy files, folders of them, patterns such as "photos/**/*.jpg", and "@list.txt",
        a file that lists paths; one or several of these.
    out
        The folder for "pictures", "arrays" and "index.parquet"; it is made where it is missing.
    rule
        The name of a rule, or "all" for "vanilla", "deconvnet" and "guided" in one picture; by default
        "guided", or the method's.
    target
        One for all images: None for each one's own best class, a class index, a label, `Top(5)`, `At`,
        `Unit`, `Channel`, `Contrast`, or `Several` of these.
    score
        The name of what is explained of a class, as for `Explainer.explain`.
    method, method_options
        The name of a method in `gbp.methods`, as the command line has it, and its arguments.
    style, format
        "strip", "overlay", "diverging", "gray", "rgb", or "none" for no pictures; "png", "jpg", "webp" or
        "svg".
    look, bare
        As for `Sample.save`; `look` has the arguments of `Sample.gray` by name.
    arrays
        "npz" for a file of arrays for each image; "zarr" for one group with the maps of all.
    shard
        (i, n), i from 1 to n: explain the i-th of n parts, and index it in "index-i-of-n.parquet".  A run
        without `shard` brings all parts together.
    retry
        Whether to try again what failed before.
    engine
        "local" for this process; "ray" for actors of Ray Data (extra gbp-explain[ray]).
    actors
        How many actors Ray runs, each on one processor or on `threads`, an argument of `Explainer`; by
        default as many as fit on this machine.  Needed where `device` is a card: each actor takes one.
    ray_address
        The address of a Ray cluster; by default one is started on this machine for the run.
    stdin
        The file that "-" among the images names: a list of paths.
    progress
        A function of (images done, images in all), called at the start and whenever some are done.  An error
        that it raises stops the run and reaches the caller as it is.
    options
        As for `Explainer`.

    Returns
    -------
    A `BatchSummary`.

    Raises
    ------
    InputError
        For arguments that cannot be used, a folder that was begun with other ones, and a disk that is full.
    ModelError, UnsupportedError
        As `Explainer`.
    """
    for name, path in (("model", model), ("out", out)):
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise InputError(f"{name} is {path!r}.", supported="a path")
        if is_address(path):
            raise InputError(f"{name} is {path!r}.", supported="a path of this machine")
    check_writable(os.path.join(os.fsdecode(out), SETTINGS))
    actors = at_least_one("actors", actors)
    _check_engine(engine, actors, ray_address, options.get("device", "cpu"))
    names = [images] if isinstance(images, (str, os.PathLike)) else images
    job = Job(
        model=absolute(model),
        out=absolute(out),
        rule=rule,
        target=target,
        score=checked_score(score),
        method=method,
        method_options=method_options or {},
        style=style,
        format=format,
        look=look or {},
        bare=bare,
        arrays=arrays,
        options=options | {"labels": read_labels(options.get("labels"))},
    )
    folder = Folder(job.out, _part(shard))
    tasks = _tasks(names, stdin, job.out)
    worker = Worker(job, folder)
    notes = worker.probe(tasks)
    settings = job.settings(worker.explainer)
    if worker.maps is not None:
        tasks = _in_rows(tasks)
        settings["images"] = f"{len(tasks)}: {digest_of(chr(0).join(task.name for task in tasks))[:16]}"
    own = [task for task in tasks if shard is None or _is_of(shard, task)]
    index = Index(folder)
    folder.open(settings)
    try:
        if worker.maps is not None:
            worker.maps.create(len(tasks))
        done = index.done()
        left = [task for task in own if task.name not in done or (retry and not done[task.name])]
        before = sum(done.get(task.name, False) for task in own)
        explained, failed = 0, len(own) - len(left) - before
        if progress is not None:
            progress(before + failed, len(own))
        if engine == "ray" and left:
            count = actors or max(1, available() // threads_of(job))
            parts = on_ray(job, folder, worker.maps, left, count, ray_address)
        else:
            parts = locally(worker, left)
        for part in parts:
            index.append(part)
            errors = sum(row["error"] is not None for row in part)
            explained, failed = explained + len(part) - errors, failed + errors
            if progress is not None:
                progress(before + explained + failed, len(own))
        index.finish(settings)
    finally:
        folder.close()
    return BatchSummary(explained, before, failed, index.path, notes)


def _check_engine(engine: str, actors: int | None, ray_address: str | None, device: str) -> None:
    """Raise InputError for an engine that is none or not installed, and for arguments of the other one."""
    if engine not in ("local", "ray"):
        raise InputError(f"engine is {engine!r}.", supported="local, ray")
    if engine == "ray":
        import_ray()
        if actors is None and device != "cpu":
            raise InputError(
                "each actor takes a card of its own, so their number is not guessed.",
                hint="Say actors=N, at most as many as there are cards.",
            )
        return
    for name, value in (("actors", actors), ("ray_address", ray_address)):
        if value is not None:
            raise InputError(f"{name} is {value!r}, and engine is {engine!r}.", supported="with engine 'ray'")


def _part(shard: tuple[int, int] | None) -> str:
    """The name of a part, as `Folder` takes it.  Raises InputError for what is no shard."""
    if shard is None:
        return ""
    i, n = shard
    if not (isinstance(i, int) and isinstance(n, int) and 1 <= i <= n):
        raise InputError(f"shard is {shard!r}.", supported="(i, n) with i from 1 to n")
    return f"-{i}-of-{n}"


def _tasks(names: Sequence[str | os.PathLike[str]], stdin: IO[bytes] | None, out: str) -> list[Task]:
    """The images of these names, without what a batch has written.

    Raises InputError if all of them are in the folder that is written to.
    """
    inside = os.path.join(out, "")
    found = find_images(names, stdin)
    paths = [path for path in found if not os.path.abspath(path).startswith(inside)]
    if found and not paths:
        raise InputError("all images are in the folder that is written to.", hint="Name another folder.")
    return [Task(path, name_of(path)) for path in paths]


def _in_rows(tasks: Sequence[Task]) -> list[Task]:
    """The same tasks in the order of their names, each with its row of the arrays.

    A row is a place in this list, so the list must not change from run to run.
    """
    by_name = sorted(tasks, key=lambda task: task.name)
    return [Task(task.path, task.name, row) for row, task in enumerate(by_name)]


def _is_of(shard: tuple[int, int], task: Task) -> bool:
    """Whether a task belongs to shard (i, n).  The digest of its name decides, on every machine alike."""
    i, n = shard
    return int(digest_of(task.name)[:16], 16) % n == i - 1
