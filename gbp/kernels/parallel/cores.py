"""How many processors this process may use: its affinity, and the CPU quota of its control groups.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cgroup v1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ...errors import InputError

#: The environment variable that sets the number of threads.
VARIABLE = "GBP_NUM_THREADS"
MAX_THREADS = 1024


def usable_cores() -> int:
    """The default number of threads: `GBP_NUM_THREADS`, or as many as can run at once.

    Raises InputError if the variable is set and is no whole number from 1 to `MAX_THREADS`.
    """
    said = os.environ.get(VARIABLE, "").strip()
    if said:
        if not (said.isascii() and said.isdigit() and 1 <= int(said) <= MAX_THREADS):
            raise InputError(
                f"{VARIABLE} is {said!r}.", supported=f"a whole number from 1 to {MAX_THREADS}, or nothing"
            )
        return int(said)
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    # Rounded up, as other runtimes do: rounded down, a quota of 1.5 processors would leave half of one idle.
    return min(present, MAX_THREADS) if quota is None else max(1, min(present, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many processors the control groups of this process allow; None if they set no limit.

    Groups are nested, and the smallest limit of a group and all groups around it counts.  Tests set `root`,
    the folder that contains proc and sys.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return None
    found = []
    for line in groups:
        _, controllers, path = [*line.split(":", 2), "-", "-"][:3]
        unified = controllers == ""
        if not unified and "cpu" not in controllers.split(","):
            continue
        for folder in _folders(path, mounts, unified):
            bound = _bound_v2(root / folder) if unified else _bound_v1(root / folder)
            if bound is not None:
                found.append(bound)
    return min(found, default=None)


def _folders(path: str, mounts: list[str], unified: bool) -> Iterator[PurePosixPath]:
    """The folders of the group at `path` and of the groups around it, relative to the root folder."""
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" "), "", ""][:3]
        if kind != ("cgroup2" if unified else "cgroup") or not (unified or "cpu" in options.split(",")):
            continue
        shown, at = (_unescaped(field) for field in fields.split(" ")[3:5])
        mount, below = PurePosixPath(at.lstrip("/")), _below(PurePosixPath(path), shown)
        yield from (mount / part for part in (below, *below.parents))


def _below(group: PurePosixPath, shown: str) -> PurePosixPath:
    """The path of a group within a mount that shows the groups from `shown` on.

    Inside a container, the container's own group is the root of the mount, whatever `group` is outside.
    """
    if group.is_relative_to(shown) and ".." not in group.relative_to(shown).parts:
        return group.relative_to(shown)
    return PurePosixPath()


def _unescaped(field: str) -> str:
    """A path in mountinfo, which writes spaces and the like in octal."""
    parts = field.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def _bound_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # the root has none
        return None


def _bound_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
