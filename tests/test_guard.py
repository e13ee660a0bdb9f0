"""guard.py finds what it looks for; and some cases of each run between its pages.  All do in `make guard`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("pages without access, as Linux has them", allow_module_level=True)

from guard import FILL, GuardError, _Between, _shape_of, between_pages, guarded

WRONG = """
import ctypes, sys
import numpy as np
from guard import guarded

def call(x):
    at = x.ctypes.data + {offset}
    (ctypes.c_uint8 * 1).from_address(at)[0]{what}

guarded("wrong", call, [np.zeros(5, np.float32)], {end!r})
"""


@pytest.mark.parametrize("what", ["", " = 1"])
@pytest.mark.parametrize(("end", "offset"), [("end", 20), ("end", 4000), ("start", -1), ("start", -4000)])
def test_what_lies_beyond_is_a_segmentation_fault(what: str, end: str, offset: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRONG.format(offset=offset, what=what, end=end)],
        cwd=Path(__file__).parent,
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("end", ["end", "start"])
def test_what_is_written_beside_is_found(end: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)

    def beside(view: np.ndarray) -> None:
        np.lib.stride_tricks.as_strided(view, (3, 3), view.strides)[0, 2] = 1

    with pytest.raises(GuardError, match="between the elements"):
        guarded("wrong", beside, [x[:, :2]], end)

    def outside(view: np.ndarray) -> None:
        step = 4 if end == "start" else -4
        np.lib.stride_tricks.as_strided(view, (13,), (step,))[12] = 1

    with pytest.raises(GuardError, match="outside"):
        guarded("wrong", outside, [x.reshape(-1) if end == "start" else x.reshape(-1)[:12]], end)


@pytest.mark.parametrize("end", ["end", "start"])
def test_what_is_right_arrives(end: str) -> None:
    memory = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    x, y = memory[:, :, :2], memory[:, :, 2:]
    empty, fixed = np.zeros((0, 3), np.float32), np.arange(5.0)
    fixed.flags.writeable = False

    def add(arrays: tuple[np.ndarray, ...], n: int, fixed: np.ndarray) -> None:
        a, b, none = arrays
        assert none.shape == (0, 3)
        assert not fixed.flags.writeable
        b += a * n + fixed[1]

    expected = y + x * 3 + 1
    guarded("add", add, [(x, y, empty), 3, fixed], end)
    assert np.array_equal(memory[:, :, 2:], expected)
    assert np.array_equal(memory[:, :, :2], np.arange(24).reshape(2, 3, 4)[:, :, :2])


def test_calls_are_alike_where_sizes_and_overlaps_are() -> None:
    memory = np.zeros((4, 6), np.float32)
    call = memory[:, :3], memory[:, 3:], (memory[0], 2), 1.5
    assert _shape_of(call) == _shape_of((memory[:, :3], memory[:, 3:], (memory[0], 2), 1.5))
    others = [
        (memory[:, :3], memory[:, 3:].copy(), (memory[0], 2), 1.5),
        (memory[:, :3], memory[:, 3:], (memory[1], 2), 1.5),  # reads another row of them
        (memory[:, :3], memory[:, 3:].astype(np.float64), (memory[0], 2), 1.5),
        (memory[:, :3], memory[:, 2:5], (memory[0], 2), 1.5),
        (memory[:, :3], memory[:, 3:], (memory[0], 3), 1.5),
        (memory[:, :3], memory[:, 3:], (memory[0], 2), 1),
    ]
    assert all(_shape_of(call) != _shape_of(other) for other in others)
    apart = np.zeros(3), np.ones(3)
    assert _shape_of(apart) == _shape_of((np.ones(3), np.zeros(3)))
    assert _shape_of(apart) != _shape_of((apart[0], apart[0]))


def test_what_is_written_beside_an_arena_is_found() -> None:
    memory = between_pages((5,), np.uint8)
    start = memory.ctypes.data
    (between,) = (b for b in _Between.all if 0 <= start - b.region.address < b.region.room)
    between.check()
    np.lib.stride_tricks.as_strided(memory, (6,), (1,))[5] = FILL - 1
    with pytest.raises(GuardError, match="beside an arena"):
        between.check()


SOME = ("--first", "7", "--every", "60", "--frame", "between rectifiers")


def test_some_cases() -> None:
    """Each call is tried at both ends, as in `make guard`."""
    done = subprocess.run(
        [sys.executable, "guard.py", "--target", "host", *SOME],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout
    assert int(re.findall(r"guarded at the end and start: (\d+) of ", done.stdout)[0]) > 0
