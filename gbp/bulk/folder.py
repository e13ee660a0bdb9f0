"""`Folder`: where a batch is written.  Files appear complete or not at all, and one run writes at a time."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None  # type: ignore[assignment]

#: The file that says what a folder was made with.
SETTINGS = "batch.json"


class Folder:
    """A folder of results.  It is pickled to other processes, which write into it too.

    Parameters
    ----------
    path
        The folder.
    part
        "" or, where several runs share the work, the name of this one's part, such as "-1-of-4".
    """

    def __init__(self, path: str, part: str = "") -> None:
        self.path, self.part = Path(path), part
        self._locks: list[int] = []
        self._is_open = False
        self._temporary = self.path / f".tmp{part}"

    def put(self, name: str, data: bytes) -> None:
        """Write a file, complete and on the disk, or raise InputError.

        Parameters
        ----------
        name
            The path within the folder; a folder that is missing is made.
        data
            The bytes of the file.
        """
        target, temporary = self.path / name, self._temporary / secrets.token_hex(8)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(temporary, target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, target)
        except OSError as error:
            raise InputError(f"cannot write {str(target)!r}: {error.strerror or error}.") from error

    def open(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or go on with it.

        Parameters
        ----------
        settings
            All that decides what the files hold, in JSON's types.

        Raises
        ------
        InputError
            Where the folder was made with other settings, holds something else or cannot be written, and
            where another run writes into it.
        """
        try:
            self._compare(settings)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock("", shared=bool(self.part))
            if self.part:
                self._lock(self.part, shared=False)
            self._is_open = True
            self._compare(settings)  # another run may have begun it meanwhile
            shutil.rmtree(self._temporary, ignore_errors=True)  # of a run that was killed
            self._temporary.mkdir()
            if not (self.path / SETTINGS).exists():
                self.put(SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        except OSError as error:
            self.close()
            raise InputError(
                f"cannot write into the folder {str(self.path)!r}: {error.strerror or error}."
            ) from error
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Remove what is temporary, and let other runs in."""
        if self._is_open:  # else it may be another run's
            shutil.rmtree(self._temporary, ignore_errors=True)
        for lock in self._locks:
            os.close(lock)
        self._locks, self._is_open = [], False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_locks": [], "_is_open": False}

    def _lock(self, part: str, shared: bool) -> None:
        """Take a lock that ends with this process at the latest, however it ends."""
        file = os.open(self.path / f".lock{part}", os.O_RDWR | os.O_CREAT, 0o666)
        self._locks.append(file)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(
                    f"another run writes into {str(self.path)!r}.",
                    hint="Wait for it, or divide the work: shard.",
                ) from None
            # Some network file systems have no locks.

    def _compare(self, settings: Mapping[str, Any]) -> None:
        """Raise InputError unless the folder is new, or was made with these settings."""
        path = self.path / SETTINGS
        try:
            before = json.loads(path.read_text())
        except FileNotFoundError:
            for name in ("index.parquet", "pictures", "arrays", "arrays.zarr"):
                if os.path.lexists(self.path / name):
                    raise InputError(
                        f"{str(self.path)!r} holds {name!r}, and no {SETTINGS} that says how it was made.",
                        hint="Name another folder.",
                    ) from None
            return
        except ValueError as error:
            raise InputError(f"cannot read {str(path)!r}: {error}.", hint="Name another folder.") from error
        differ = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if differ:
            now = "; ".join(
                f"{key} is {_said(settings.get(key))} and was {_said(before.get(key))}" for key in differ
            )
            raise InputError(
                f"{now} when {str(self.path)!r} was begun.",
                hint="Go on with the same options, or name another folder.",
            )


def _said(value: object) -> str:
    """A setting in a message: digests are cut, and nothing is "none"."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text
