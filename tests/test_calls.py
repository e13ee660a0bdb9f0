"""What an explanation costs beside its kernels, counted: Python functions, and entries into native code.

Seconds cannot be tested on a busy machine.  These counts rise where work comes back into each call that a
plan, a rule or a session has settled.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
from builder import Builder

from gbp import Explainer
from gbp.graph.geometry import Window
from gbp.kernels.parallel import program
from gbp.ops.conv.algorithms import ColumnsBackward
from gbp.ops.conv.choice import _backward

#: Calls of Python functions in one explanation of a small network by its array.
MOST_CALLS = 100


@pytest.fixture(scope="module")
def lenet() -> Explainer:
    """Two convolutions with max-pools, and two dense layers behind a Flatten."""
    b = Builder()
    x = b.input(1, 1, 28, 28)
    for channels in (20, 50):
        x = b.node("MaxPool", b.conv(x, channels, kernel=5), kernel_shape=[2, 2], strides=[2, 2])
    x = b.gemm(b.relu(b.gemm(b.flatten(x), 500)), 10)
    return Explainer(b.model(x), threads=1)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The names of Python functions that are called inside."""
    names: list[str] = []

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)

    before = sys.getprofile()
    gc.disable()  # it would call what was registered for garbage of other tests
    sys.setprofile(count)
    try:
        yield names
    finally:
        sys.setprofile(before)
        gc.enable()


def test_an_explanation_enters_native_code_once_in_each_direction(
    lenet: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 28, 28), np.float32)
    first = lenet.explain(x, target=3)
    entries: list[int] = []
    run: Callable[[int, int, int], None] = program.run

    def watched(start: int, stop: int, threads: int) -> None:
        entries.append(start)
        run(start, stop, threads)

    monkeypatch.setattr(program, "run", watched)
    second = lenet.explain(x, target=3)
    assert len(entries) == 2
    np.testing.assert_array_equal(first.map, second.map)


@pytest.mark.parametrize("target", [3, None])
def test_an_explanation_calls_few_python_functions(lenet: Explainer, target: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 28, 28), np.float32)
    lenet.explain(x, target=target)
    with counted() as names:
        lenet.explain(x, target=target)
    assert len(names) <= MOST_CALLS, "\n".join(names)


def test_small_kernels_run_at_once_and_large_ones_leave_room_for_ctrl_c() -> None:
    most, limit = program._AT_ONCE, program._ELEMENTS_AT_ONCE
    few, many = limit // (4 * most), limit // 2 + 1
    assert list(program._spans([few] * 3 * most)) == [(0, 3 * most)]
    assert list(program._spans([many] * 2 * most)) == [(0, most), (most, 2 * most)]
    assert list(program._spans([few] * most + [limit, few])) == [(0, most), (most, most + 2)]
    assert list(program._spans([limit + 1])) == [(0, 1)]


def test_notes_are_found_once_for_a_rule(lenet: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros((1, 1, 28, 28), np.float32)
    for rule in ("guided", "vanilla"):
        lenet.explain(x, rule=rule, target=0)
    with counted() as names:
        for rule in ("guided", "vanilla"):
            lenet.explain(x, rule=rule, target=0)
    assert "notes_of" not in names
    assert "depends_on_image" not in names


@pytest.mark.parametrize(("O", "C", "size", "kernel"), [(20, 1, 28, 5), (50, 20, 12, 5), (64, 3, 56, 3)])
def test_the_reverse_into_few_channels_or_of_large_windows_on_small_planes_takes_columns(
    O: int, C: int, size: int, kernel: int
) -> None:
    class Cpu:
        name, algorithm, tf32 = "cpu", "auto", False

        def constant(self, values: Any) -> Any:
            return values

    window = Window.resolve((size, size), (kernel, kernel), pads=(kernel // 2 if C == 3 else 0,) * 4)
    assert isinstance(_backward(np.ones((O, C, kernel, kernel)), window, Cpu()), ColumnsBackward)
