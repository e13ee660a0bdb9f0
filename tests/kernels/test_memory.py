"""Aligned memory: where it begins, that it is released, and what happens where there is none."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from gbp.kernels.codegen import memory
from gbp.kernels.codegen.memory import ALIGNMENT, aligned

MIB = 2**20


@pytest.mark.parametrize("floats", [1, 1000, MIB - 1, MIB, 3 * MIB + 5])
def test_an_array_is_aligned_and_its_own(floats: int) -> None:
    x, y = aligned((floats,)), aligned((floats,))
    x[:], y[:] = 1, 2
    assert x.flags.c_contiguous
    assert not x.ctypes.data % ALIGNMENT
    assert (x == 1).all()
    assert (y == 2).all()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 5, 6)])
def test_the_address_is_the_one_that_numpy_says(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.zeros((2, *shape), np.float32)
    fixed = x.copy()
    fixed.flags.writeable = False
    kept = np.memmap(tmp_path / "kept", np.float32, "w+", shape=(2, *(shape if x.size else ())))
    for each in (x, fixed, x[1:], x[::-1], x.T, kept, kept[1:]):
        assert memory.address_of(each) == each.ctypes.data


def mapped() -> int:
    """KiB of this process's address space."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are Linux's")
def test_a_large_array_has_pages_of_its_own_which_go_with_it() -> None:
    before = mapped()
    x = aligned((16, MIB))
    assert not x.ctypes.data % memory._LARGE_PAGE
    view = x[3:]
    del x
    gc.collect()
    assert mapped() - before >= 64 * 1024
    assert view.sum() == 0
    del view
    gc.collect()
    assert mapped() - before < 32 * 1024


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are Linux's")
@pytest.mark.parametrize(("filled", "pages"), [(0.6, 0), (0.7, 1), (1.3, 1), (1.9, 2), (4, 4)])
def test_large_pages_are_those_that_an_array_fills(filled: float, pages: int) -> None:
    size = memory._LARGE_PAGE
    with mock.patch.object(mmap, "mmap", wraps=mmap.mmap) as mapped:
        x = aligned((int(filled * size),), np.uint8)
    assert mapped.called == (pages > 0)
    if pages:  # else it lies in memory of NumPy, of which other arrays may have asked for large pages
        assert asked_for(x.ctypes.data) == pages * size


def asked_for(address: int) -> int:
    """Bytes of the mapping at this address, if it is to have large pages, else 0."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    begins = [i for i, line in enumerate(lines) if line.split(maxsplit=1)[0].count("-") == 1]
    for i, following in zip(begins, [*begins[1:], len(lines)], strict=True):
        first, last = (int(end, 16) for end in lines[i].split(maxsplit=1)[0].split("-"))
        if first <= address < last:
            flags = next(line for line in lines[i:following] if line.startswith("VmFlags"))
            return last - first if "hg" in flags.split() else 0
    raise AssertionError("no mapping")


def test_where_the_system_gives_none_numpy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    x = aligned((2, MIB), np.float64)
    x[:] = 3
    assert not x.ctypes.data % ALIGNMENT
    assert (x == 3).all()


@pytest.mark.parametrize("floats", [2**50, 2**60])
def test_too_much_is_a_memory_error(floats: int) -> None:
    with pytest.raises(MemoryError):
        aligned((floats,))
