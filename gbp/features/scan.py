"""`Scan`: looks at every image, and writes down how far it came."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from .. import Explainer, GbpError, InputError, Tensor
from ..bulk.folder import Folder
from ..bulk.job import name_of
from .strongest import Strongest

#: The file with the state of the scan and its results.
STATE = "features.json"
#: Images that are run at a time, and seconds between two writes of the state.
CHUNK, _OFTEN = 16, 20.0


class Scan:
    """The scan of images for the strongest units of some channels.

    Parameters
    ----------
    explainer
        The model.
    tensor
        The layer.
    folder
        Where the state is written, and read where an earlier run left it.
    files
        The images.
    channels, top
        As for `Strongest`.

    Raises
    ------
    InputError
        Where the state that was left is of other images, or some of them have changed.
    """

    def __init__(
        self,
        explainer: Explainer,
        tensor: Tensor,
        folder: Folder,
        files: Sequence[str],
        channels: tuple[int, ...],
        top: int,
    ) -> None:
        self.explainer, self.tensor, self.folder, self.files = explainer, tensor, folder, files
        #: How many images were looked at; and why some could not be read, by name.
        self.done, self.failed = 0, dict[str, str]()
        self.strongest = Strongest(channels, top)
        #: The digest of the identities of the images that were looked at, in order.
        self._digest = hashlib.sha256()
        try:
            before = json.loads((folder.path / STATE).read_text())
        except (OSError, ValueError):
            return
        digest = hashlib.sha256()
        for file in files[: before["done"]]:
            digest.update(_identity(file))
        if digest.hexdigest() != before["images"]:
            raise InputError(
                f"{str(folder.path)!r} was begun for other images, or some have changed since.",
                hint="Name another folder.",
            )
        self.done, self.failed, self._digest = before["done"], before["failed"], digest
        self.strongest = Strongest.from_dict(before["channels"], top)

    def run(self) -> Iterator[int]:
        """Go through the images that are left.  Yields how many are done."""
        last = monotonic()
        while self.done < len(self.files):
            part = self.files[self.done : self.done + CHUNK]
            self._look(part)
            for file in part:
                self._digest.update(_identity(file))
            self.done += len(part)
            if monotonic() - last > _OFTEN:
                self._write()
                last = monotonic()
            yield self.done
        self._write()

    def _look(self, part: Sequence[str]) -> None:
        """Run some images, those of one size together, and add what is strongest in them."""
        names: list[str] = []
        samples: list[NDArray[np.float32]] = []
        for file in part:
            try:
                samples.append(self.explainer.prepare([file]))
                names.append(file)
            except GbpError as error:  # one of a million images may be broken
                self.failed[name_of(file)] = str(error)
        groups: dict[tuple[int, ...], list[int]] = {}
        for k, sample in enumerate(samples):
            groups.setdefault(sample.shape, []).append(k)
        for group in groups.values():
            x = np.concatenate([samples[k] for k in group])
            for run in self.explainer.runs(x, [self.tensor.name]):
                values = run.value(self.tensor.name)
                planes = np.moveaxis(values, 1 + (self.tensor.channels or 0), 1)
                self.strongest.add(planes, [names[k] for k in group[run.samples]])

    def _write(self) -> None:
        """Write the state: how far the scan is, of which images, and its results so far."""
        saved = {
            "layer": self.tensor.name,
            "done": self.done,
            "images": self._digest.hexdigest(),
            "failed": self.failed,
            "channels": self.strongest.to_dict(),
        }
        text = json.dumps(saved, indent=1, ensure_ascii=True)
        self.folder.put(STATE, text.encode())


def _identity(file: str) -> bytes:
    """An image's name, size and time, by which a change of it is noticed."""
    try:
        status = os.stat(file)
    except OSError:
        return f"{name_of(file)}\n".encode()
    return f"{name_of(file)} {status.st_size} {status.st_mtime_ns}\n".encode()
