"""`Worker`: explains images for a `Job`, in three steps that may overlap: read, explain, write.

Whatever is wrong with an image becomes the error in its row.  Whatever is wrong with the job, or with the
disk, is raised.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.notes import unprepared
from ..errors import GbpError, OutOfMemoryError
from ..explainer import Explainer
from ..inputs import Batch, together
from ..pictures.image import NamedBytes, content_of, is_array_file, read_image, read_sample
from ..result.attribution import Attribution
from ..result.strips import save_rules
from .folder import Folder
from .index import COLUMNS, Row
from .job import Job, Task
from .zarrs import Maps


@dataclass(frozen=True)
class Read:
    """An image that was read, or why it was not.

    Parameters
    ----------
    task
        The image.
    row
        The known part of its row in the index.
    batch
        The image as the network takes it; None where there is an error.
    """

    task: Task
    row: Row
    batch: Batch | None = None


@dataclass(frozen=True)
class Explained:
    """An image with its attributions, one for each rule; none where there is an error."""

    task: Task
    row: Row
    attributions: tuple[Attribution, ...] = ()


class Processors:
    """The processors that the threads of a worker share: each thread holds some while it computes.

    Parameters
    ----------
    count
        How many there are; None for any number, so that nobody waits.
    """

    def __init__(self, count: int | None) -> None:
        self._count = count
        self._free = threading.Semaphore(count or 0)

    @contextmanager
    def held(self, count: int | None = None) -> Iterator[None]:
        """Wait for so many processors, by default all of them, and hold them.

        Only one thread may ask for several.  Two such threads could each hold some and wait for the rest for
        ever.
        """
        held = 0 if self._count is None else count or self._count
        for _ in range(held):
            self._free.acquire()
        try:
            yield
        finally:
            for _ in range(held):
                self._free.release()


class Worker:
    """Explains images.  Threads may call `read` and `write` while another one calls `explain`.

    Parameters
    ----------
    job
        How each image is explained and written.
    folder
        Where files are written.
    processors
        How many processors these threads use at a time; None for any number.  A thread that waits for the
        disk uses none.
    """

    def __init__(self, job: Job, folder: Folder, processors: int | None = None) -> None:
        self.job, self.folder = job, folder
        self.explainer = Explainer(job.model, **job.options)
        self.maps: Maps | None = None
        self._processors = Processors(processors)

    def probe(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """Explain and draw noise as the job says, so that what is wrong with the job is raised at once.

        Arrays of all maps are made here, because now their shapes are known.

        Parameters
        ----------
        tasks
            The images, which decide whether the noise is a picture or an array.

        Returns
        -------
        The notes that hold for any image.  Where notes may depend on the image, these are the notes that two
        samples of noise share.

        Raises
        ------
        GbpError
            Whatever `Explainer.explain` raises.
        """
        notes: list[tuple[str, ...]] = []
        for sample in self._noise(tasks)[: 2 if self.job.is_of_one else 1]:
            attributions = self.job.explain(self.explainer, sample)
            notes.append(tuple(dict.fromkeys(note for found in attributions for note in found.notes)))
            if len(notes) == 1:
                self._picture(attributions)
                one = attributions[0]
                if self.job.arrays == "zarr":
                    self.maps = Maps(self.folder, {"map": one.map.shape[1:], "scores": one.scores.shape[1:]})
        return tuple(note for note in notes[0] if note in notes[-1]) if notes else ()

    def _noise(self, tasks: Sequence[Task]) -> list[Any]:
        """Two samples of noise as `Explainer.explain` takes images.

        Where nothing but the arrays says how large a sample is, the first one that can be read stands for
        noise; none where there is none, which the rows will say.
        """
        shape, rng = self.explainer.input_shape[1:], np.random.default_rng(0)
        if not all(is_array_file(task.path) for task in tasks):
            return [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2)]
        if None not in shape:
            return [rng.standard_normal((1, *(n or 1 for n in shape)), np.float32) for _ in range(2)]
        for task in tasks:
            if (batch := self.read(task).batch) is not None:
                return [batch]
        return []

    def read(self, task: Task) -> Read:
        """Read and preprocess one image."""
        row: Row = dict.fromkeys(COLUMNS)
        row |= {"path": task.name, "method": self.job.method, "row": task.row}
        row["rule"] = "all" if self.job.rule == "all" else self.job.rules[0]
        try:
            data = content_of(task.path)
            with self._processors.held(1):
                row |= {"hash": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                if is_array_file(task.path):
                    sample = read_sample(data, len(self.explainer.input_shape), task.path)
                    return Read(task, row, self.explainer._engine.ready(sample))
                image = read_image(NamedBytes(data, task.path))
                row |= {"width": image.width, "height": image.height}
                return Read(task, row, self.explainer._engine.ready(image).from_file(task.path))
        except GbpError as error:
            return Read(task, row | {"error": _said(error, task)})

    def explain(self, reads: Sequence[Read]) -> list[Explained]:
        """Explain images, those of one shape together; each alone where that fails.  The order stays.

        So is an array that looks as if nobody has prepared it: the note that says so is about a whole batch.
        """
        explained: dict[int, Explained] = {}
        groups: dict[Any, list[int]] = {}
        for i, read in enumerate(reads):
            if read.batch is None:
                explained[i] = Explained(read.task, read.row)
            else:
                is_alone = self.job.is_of_one or self._looks_unprepared(read.batch)
                alike = i if is_alone else (read.batch.x.shape, read.batch.pictures is None)
                groups.setdefault(alike, []).append(i)
        with self._processors.held():
            for group in groups.values():
                explained.update(zip(group, self._group([reads[i] for i in group]), strict=True))
        return [explained[i] for i in range(len(reads))]

    def _looks_unprepared(self, batch: Batch) -> bool:
        preprocess = self.explainer.preprocess
        return preprocess is not None and batch.photos is None and bool(unprepared(batch.x, preprocess))

    def write(self, explained: Explained) -> Row:
        """Draw one image and write its files.  Returns its row.  Raises InputError if it cannot write."""
        if not explained.attributions:
            return explained.row
        try:
            with self._processors.held(1):
                row, files = self._files(explained)
        except GbpError as error:
            return explained.row | {"error": _said(error, explained.task)}
        for name, content in files.items():
            self.folder.put(name, content)
        return row

    def _files(self, explained: Explained) -> tuple[Row, dict[str, bytes]]:
        """The row of an image, and its files by their paths in the folder."""
        task, attributions = explained.task, explained.attributions
        report = attributions[0][0].to_dict()
        row = explained.row | {"top": _valid(report["top"]), "target": _valid(report["explained"])}
        files: dict[str, bytes] = {}
        picture = self._picture(attributions)
        if picture is not None:
            row["file"] = task.file("pictures", self.job.format)
            files[row["file"]] = picture
        if self.job.arrays == "npz":
            row["arrays"] = task.file("arrays", "npz")
            files[row["arrays"]] = _bytes(lambda to: attributions[0].save(to, format="npz"))
        elif self.maps is not None and task.row is not None:
            values = {"map": attributions[0].map[0], "scores": attributions[0].scores[0]}
            files |= self.maps.files(task.row, values)
        return row, files

    def _group(self, reads: Sequence[Read]) -> list[Explained]:
        """Explain images of one shape."""
        try:
            batch = together([read.batch for read in reads if read.batch])
            attributions = self.job.explain(self.explainer, batch)
        except OutOfMemoryError:  # it is no fault of the images
            raise
        except GbpError as error:
            if len(reads) == 1:
                (read,) = reads
                return [Explained(read.task, read.row | {"error": _said(error, read.task)})]
            return [explained for read in reads for explained in self._group([read])]
        return [
            Explained(read.task, read.row, tuple(attribution.alone(i) for attribution in attributions))
            for i, read in enumerate(reads)
        ]

    def _picture(self, attributions: Sequence[Attribution]) -> bytes | None:
        """The picture of one image as a file's bytes, or None where none is drawn."""
        style: Any = self.job.style
        if style == "none":
            return None
        format, look = self.job.format, self.job.look
        samples = [attribution[0] for attribution in attributions]
        if len(samples) > 1:
            chosen = None if style == "strip" else style
            return _bytes(lambda to: save_rules(samples, to, chosen, format=format, **look))
        return _bytes(lambda to: samples[0].save(to, style, format=format, bare=self.job.bare, **look))


def _said(error: GbpError, task: Task) -> str:
    """An error as the index has it: with the image's name in the index, not the path on this machine."""
    return str(error).replace(repr(task.path), repr(task.name))


def _bytes(fill: Callable[[io.BytesIO], object]) -> bytes:
    """The bytes that a function writes into a file."""
    to = io.BytesIO()
    fill(to)
    return to.getvalue()


def _valid(classes: list[Row]) -> list[Row]:
    """Classes with labels that are valid Unicode: those of a JSON file may hold half a character."""
    return [c | {"label": c["label"].encode("utf-8", "backslashreplace").decode()} for c in classes]
