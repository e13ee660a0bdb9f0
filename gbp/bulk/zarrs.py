"""`Maps`: the maps of all images in one zarr group, each row in files of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .folder import Folder

NAME = "arrays.zarr"


class Maps:
    """Arrays whose first axis is the row that the index gives to an image: "map" and "scores".

    A chunk is one row, so any number of processes may write.  zarr encodes a chunk in memory, and `Folder`
    writes its file, so that it is complete or absent.  Rows of images without a result are NaN.

    Parameters
    ----------
    folder
        The folder that holds the group.
    shapes
        The shape of one row of each array.
    """

    def __init__(self, folder: Folder, shapes: dict[str, tuple[int, ...]]) -> None:
        _zarr()
        self._folder, self._shapes = folder, shapes

    def create(self, rows: int) -> None:
        """Describe the group and its arrays, where that is missing.

        Parameters
        ----------
        rows
            How many images there are.
        """
        zarr = _zarr()
        files: dict[str, Any] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(files))
        for name in self._shapes:
            self._array(group, name, rows)
        for name, content in files.items():
            if not (self._folder.path / NAME / name).exists():
                self._folder.put(f"{NAME}/{name}", content.to_bytes())

    def files(self, row: int, values: dict[str, NDArray[np.float32]]) -> dict[str, bytes]:
        """The files of one row, by their paths within the folder.  Raises InputError for other shapes."""
        zarr = _zarr()
        chunks: dict[str, Any] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(chunks))
        for name, value in values.items():
            if value.shape != self._shapes[name]:
                rows = f"rows of {NAME} {list(self._shapes[name])}"
                raise InputError(
                    f"its {name} has shape {list(value.shape)}, and {rows}.",
                    hint="Write arrays of different shapes as npz.",
                )
            self._array(group, name, 1)[0] = value
        found: dict[str, bytes] = {}
        for path, content in chunks.items():
            name, slash, chunk = path.partition("/c.0")
            if slash:
                found[f"{NAME}/{name}/c.{row}{chunk}"] = content.to_bytes()
        return found

    def _array(self, group: Any, name: str, rows: int) -> Any:
        """Make an array with a row, and a chunk, for each image; NaN where nothing is written."""
        shape = self._shapes[name]
        return group.create_array(
            name,
            shape=(rows, *shape),
            chunks=(1, *shape),
            dtype="float32",
            fill_value=np.nan,
            chunk_key_encoding={"name": "default", "separator": "."},
        )


def _zarr() -> Any:
    try:
        import zarr
    except ImportError:
        raise InputError(
            "zarr is not installed.", hint="Install gbp-explain[batch], or write arrays as npz."
        ) from None
    return zarr
