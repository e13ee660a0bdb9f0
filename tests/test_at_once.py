"""Slices of copies that several threads compute at once: the same bits, in order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from builder import Builder
from numpy.typing import NDArray

from gbp import Explainer, Top, Unit, methods
from gbp.devices.base import GeneratedSamples
from gbp.devices.cpu import CpuDevice
from gbp.engine.at_once import InTurn, in_order, meanwhile
from gbp.errors import InputError, ModelError
from gbp.kernels.parallel.threads import is_alone
from gbp.methods.common import _even, _left_over, add_each
from gbp.runtime.session import Session
from gbp.runtime.tape import Tape

Floats = NDArray[np.float32]


def model(scale: float = 1) -> onnx.ModelProto:
    """Two convolutions and a max-pool on 3 × 8 × 9 pixels times `scale`, and 9 classes."""
    b = Builder()
    x = b.mul(b.input(1, 3, 8, 9), b.constant(np.float32([scale])))
    y = b.relu(b.conv(x, 6, pads=[1, 1, 1, 1]))
    y = b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return b.model(b.head(b.relu(b.conv(y, 5, pads=[1, 1, 1, 1])), 9))


@pytest.fixture(scope="module")
def x() -> Floats:
    return np.random.default_rng(0).standard_normal((2, 3, 8, 9), np.float32)


@pytest.fixture
def small_works() -> Iterator[None]:
    """Works of any size are computed at once."""
    with mock.patch.object(Session, "at_once", lambda session, samples, targets: session.threads):
        yield


# ---------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_works_are_taken_when_they_are_needed(workers: int) -> None:
    taken: list[int] = []
    later = [threading.Event() for _ in range(12)]

    def work(i: int) -> int:
        if workers > 1 and i % 2 == 0:
            assert later[i + 1].wait(30)  # the next one is done first
        later[i].set()
        return i

    def works() -> Iterator[Callable[[], int]]:
        for i in range(12):
            taken.append(i)
            yield partial(work, i)

    for i, found in enumerate(in_order(works(), workers)):
        assert found == i
        assert len(taken) <= i + workers + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_in_order_is_raised_and_nothing_is_begun_after_it(workers: int) -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i in (2, 3):
            raise InputError(f"work {i}")
        return i

    found: list[int] = []
    with pytest.raises(InputError, match="work 2"):
        found.extend(in_order((partial(work, i) for i in range(100)), workers))
    assert found == [0, 1]
    assert len(begun) <= 3 + 2 * workers
    assert not [each for each in threading.enumerate() if each.name == "gbp work"]


def test_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    found = in_order((partial(int, i) for i in range(1000)), 3)
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("most", [0, 1, 2])
def test_where_the_system_gives_fewer_threads_the_work_is_done(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = threading.Thread.start, list[threading.Thread]()

    def some(thread: threading.Thread) -> None:
        if len(begun) == most:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", some)
    assert list(in_order((partial(int, i) for i in range(20)), 4)) == [*range(20)]
    assert len(begun) == most


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_taken_in_order_whatever_order_they_are_brought_in(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cuts = np.arange(12) * 10, [0, *sorted(rng.choice(range(1, 12), 5, replace=False)), 12]
    taken: list[tuple[int, list[int], list[int]]] = []
    turns = InTurn(lambda first, a, b: taken.append((first, a.tolist(), b.tolist())))
    for i in rng.permutation(6):
        part = rows[cuts[i] : cuts[i + 1]].copy()
        turns.bring(cuts[i], part, -part)
        part[:] = 7  # its memory serves the next part
    assert [first for first, _, _ in taken] == cuts[:-1]
    assert [row for _, a, _ in taken for row in a] == rows.tolist()
    assert [row for _, _, b in taken for row in b] == (-rows).tolist()


@pytest.mark.threads
def test_parts_that_threads_bring_are_taken_one_at_a_time() -> None:
    taken, within = list[int](), threading.Lock()

    def take(first: int, rows: Floats) -> None:
        assert within.acquire(blocking=False)
        taken.append(first)
        within.release()

    turns = InTurn(take)
    works = (partial(turns.bring, i, np.zeros(1)) for i in range(500))
    assert len(list(in_order(works, 4))) == 500
    assert taken == [*range(500)]


def test_copies_are_written_where_a_run_reads_them_and_their_map_is_added_there(
    x: Floats, small_works: None
) -> None:
    explainer, seen = Explainer(model(), threads=1), list[bool]()

    def added(total: Any, terms: Any) -> None:
        seen.extend(term.base is not None for term in terms)
        add_each(total, terms)

    expected = methods.smoothgrad(explainer, x, samples=5).map
    with (
        mock.patch.object(GeneratedSamples, "__array__", side_effect=AssertionError("an array was made")),
        mock.patch("gbp.runtime.tape.Tape._backward", side_effect=Tape._backward, autospec=True) as backward,
        mock.patch("gbp.methods.common.add_each", added),
    ):
        assert methods.smoothgrad(explainer, x, samples=5).map.tobytes() == expected.tobytes()
    assert len(seen) == 10
    assert all(call.args[-1] is not None for call in backward.call_args_list)  # no map is copied out


def test_samples_that_are_written_later_are_arrays_where_one_is_needed() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)

    def write(part: slice, to: Floats) -> None:
        to[...] = rows[part]

    later = GeneratedSamples(rows.shape, write)
    np.testing.assert_array_equal(np.asarray(later), rows)
    np.testing.assert_array_equal(np.asarray(later[2:5][1:]), rows[3:5])
    assert len(later[2:5][1:]) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_whose_map_overflows_is_an_error(threads: int, small_works: None) -> None:
    b = Builder()
    y = b.relu(b.mul(b.input(1, 3, 8, 9), b.constant(np.float32([1e20]))))
    explainer = Explainer(b.model(b.head(b.mul(y, b.constant(np.float32([1e20]))), 4)), threads=threads)
    x = np.full((1, 3, 8, 9), -1, np.float32)
    noise = np.zeros((4, 3, 8, 9), np.float32)
    assert not methods.smoothgrad(explainer, x, noise=noise).map.any()
    noise[2, 0, 0, 0] = np.float32(1 + 1e-7)  # a tiny number, and so a finite score
    for method in (methods.smoothgrad, methods.vargrad):
        with pytest.raises(ModelError, match="NaN or infinity"):
            method(explainer, x, noise=noise)


def test_works_begin_no_threads_of_their_own(x: Floats, small_works: None) -> None:
    explainer, most = Explainer(model(), threads=3), [0]

    def backward(tape: Tape, *args: Any) -> Floats:
        most.append(sum(each.name == "gbp work" for each in threading.enumerate()))
        assert is_alone() == (threading.current_thread().name == "gbp work")
        return original(tape, *args)

    original = Tape._backward
    with mock.patch.object(Tape, "_backward", backward):
        methods.smoothgrad(explainer, x[:1], samples=8, target=Top(8))
    assert max(most) == 3


@pytest.mark.parametrize(("threads", "samples", "shared"), [(2, 7, 1), (2, 8, 0), (3, 7, 1), (4, 7, 0)])
def test_copies_left_over_from_equal_shares_are_computed_by_all_threads(
    threads: int, samples: int, shared: int, x: Floats, small_works: None
) -> None:
    explainer, alone = Explainer(model(), threads=threads), list[bool]()

    def backward(tape: Tape, *args: Any) -> Floats:
        alone.extend([is_alone()] * tape.n)
        return original(tape, *args)

    original = Tape._backward
    with mock.patch.object(Tape, "_backward", backward):
        methods.smoothgrad(explainer, x[:1], samples=samples)
    assert (alone.count(True), alone.count(False)) == (samples - shared, shared)


ONE_IMAGE: dict[str, Callable[[Explainer, Floats], Floats]] = {
    "smoothgrad": lambda e, x: methods.smoothgrad(e, x, samples=7, target=Top(2)).map,
    "blocks": lambda e, x: methods.smoothgrad(e, x, samples=9).map,
    "vargrad": lambda e, x: methods.vargrad(e, x, samples=3, rule="guided").map,
    "given": lambda e, x: methods.smoothgrad(e, x, noise=np.stack([x[0], -x[0], x[0] ** 2])).map,
    "input-x-gradient": lambda e, x: methods.smoothgrad(e, x, samples=5, rule="input-x-gradient").map,
}


@pytest.mark.threads
@pytest.mark.parametrize("question", ONE_IMAGE)
def test_of_two_threads_one_runs_the_last_copy_while_the_other_runs_the_image(
    question: str, x: Floats, small_works: None
) -> None:
    ask, explainer = ONE_IMAGE[question], Explainer(model(), threads=2)
    expected, together = ask(Explainer(model(), threads=1), x[:1]), threading.Barrier(2)
    runs, order = list[tuple[int, bool]](), itertools.count()

    def run(session: Session, samples: Any, *args: Any) -> Tape:
        runs.append((len(samples), is_alone()))
        if next(order) < 2:
            together.wait(30)  # for the other thread
        return original(session, samples, *args)

    original = Session.run
    with mock.patch.object(Session, "run", run):
        for _ in range(2):  # recorded, and repeated
            runs.clear()
            order = itertools.count()
            assert ask(explainer, x[:1]).tobytes() == expected.tobytes()
            assert sorted(runs[:2]) == [(1, False), (1, True)]
            assert all(alone for _, alone in runs[2:])


@pytest.mark.parametrize(
    ("threads", "images", "options"),
    [
        (3, 1, {}),
        (2, 2, {}),
        (2, 1, {"samples": 6}),
        (2, 1, {"rule": "lrp-epsilon"}),
        (2, 1, {"target": Unit("relu2", 0, 1, 1)}),
        (2, 1, {"seed": 3}),
    ],
)
def test_no_copy_runs_beside_the_image_elsewhere(
    threads: int, images: int, options: dict[str, Any], x: Floats, small_works: None
) -> None:
    options = {"samples": 5, **options}
    expected = methods.smoothgrad(Explainer(model(), threads=1), x[:images], **options).map
    with (
        mock.patch("gbp.methods.noise._MAX_DRAWN", 0 if "seed" in options else 2**25),  # then in order
        mock.patch("gbp.engine.repeated.Ran.of", side_effect=AssertionError("a copy ran")),
    ):
        found = methods.smoothgrad(Explainer(model(), threads=threads), x[:images], **options).map
    assert found.tobytes() == expected.tobytes()


def test_what_is_wrong_with_the_image_or_the_noise_is_said_where_a_copy_runs_beside_it(
    x: Floats, small_works: None
) -> None:
    explainer = Explainer(model(), threads=2)
    with pytest.raises(InputError, match="noise has shape"):
        methods.smoothgrad(explainer, x[:1], noise=np.zeros((3, 8, 9)))
    odd = np.where(np.arange(9) == 4, np.float32(np.nan), x[:1])
    with pytest.raises(InputError, match="NaN"):
        methods.smoothgrad(explainer, odd, samples=3)
    assert not [each for each in threading.enumerate() if each.name == "gbp work"]


def test_nobody_waits_for_a_thread_that_could_not_begin(x: Floats, small_works: None) -> None:
    def running(device: CpuDevice, threads: int = 1) -> Any:
        if threading.current_thread().name == "gbp work":
            raise MemoryError
        return original(device, threads)

    original = CpuDevice.running
    with mock.patch.object(CpuDevice, "running", running), pytest.raises(MemoryError):
        methods.smoothgrad(Explainer(model(), threads=2), x[:1], samples=3)


@pytest.mark.parametrize("begin", [lambda: list(in_order([int] * 3, 2)), lambda: meanwhile(int).__enter__()])
def test_no_thread_is_left_where_one_is_interrupted_as_it_begins(begin: Callable[[], Any]) -> None:
    """It would wait for work forever, and Python would wait for it at its end."""
    begun = []

    def start(thread: threading.Thread) -> None:
        original(thread)
        begun.append(thread)
        raise KeyboardInterrupt

    original = threading.Thread.start
    with mock.patch.object(threading.Thread, "start", start), pytest.raises(KeyboardInterrupt):
        begin()
    (thread,) = begun
    thread.join(30)
    assert not thread.is_alive()


# ------------------------------------------------------------------------------------------------ same bits


QUESTIONS: dict[str, Callable[[Explainer, Floats], Floats]] = {
    "smoothgrad": lambda e, x: methods.smoothgrad(e, x, samples=7, target=Top(2)).map,
    "vargrad": lambda e, x: methods.vargrad(e, x, samples=5, rule="guided").map,
    "smoothgrad, input-x-gradient": lambda e, x: (
        methods.smoothgrad(e, x, samples=5, rule="input-x-gradient").map
    ),
    "smoothgrad, lrp": lambda e, x: methods.smoothgrad(e, x, samples=5, rule="lrp-epsilon").map,
    "integrated gradients": lambda e, x: methods.integrated_gradients(e, x, steps=9).map,
}


@pytest.mark.threads
@pytest.mark.parametrize("question", QUESTIONS)
def test_any_number_of_threads_gives_the_same_bits(question: str, x: Floats, small_works: None) -> None:
    ask = QUESTIONS[question]
    alone, seen = ask(Explainer(model(), threads=1), x), set[int]()

    def backward(tape: Tape, *args: Any) -> Floats:
        seen.add(threading.get_ident())
        return original(tape, *args)

    original = Tape._backward
    for threads in (2, 3, 4):
        with mock.patch.object(Tape, "_backward", backward):
            explainer = Explainer(model(), threads=threads)
            for _ in range(3):  # recorded, and repeated
                assert ask(explainer, x).tobytes() == alone.tobytes()
    helped = seen - {threading.get_ident()}
    assert helped


def test_small_works_large_weights_and_little_memory_are_not_worth_a_thread() -> None:
    session = Explainer(model(), threads=4)._engine.sessions.of((3, 8, 9))
    plan = session.plan
    many = next(n for n in range(1, 10_000) if plan.nbytes(n, 1) >= 2**22)
    assert session.at_once(many - 1, 1) == 1
    assert session.at_once(many, 1) == 4
    room = 3 * (plan.nbytes(many, 1) + session.scratch_bytes)
    assert replace(session, memory=room).at_once(many, 1) == 3
    assert replace(session, memory=room - 1).at_once(many, 1) == 2
    assert replace(session, plan=replace(plan, weights=plan.nbytes(many, 1))).at_once(many, 1) == 1


@pytest.mark.threads
def test_noise_that_is_not_kept_is_drawn_in_the_order_of_the_copies(x: Floats, small_works: None) -> None:
    kept = methods.smoothgrad(Explainer(model(), threads=1), x, samples=7).map
    explainer = Explainer(model(), threads=3)
    with mock.patch("gbp.methods.noise._MAX_DRAWN", 0):
        found = [methods.smoothgrad(explainer, x, samples=7).map for _ in range(3)]
    assert {each.tobytes() for each in found} == {kept.tobytes()}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("size", [1, 999, 1000, 70_000])
def test_terms_are_added_one_after_another(size: int, order: tuple[int, ...]) -> None:
    terms = np.random.default_rng(0).standard_normal((4, 3, size, 2), np.float32)
    terms = terms.transpose(0, *(1 + axis for axis in order))
    total = np.ones_like(terms[0], np.float64)
    expected = (((total + terms[0]) + terms[1]) + terms[2]) + terms[3]
    add_each(total, [*terms[:3], np.array(terms[3], order="C")])
    assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_no_copy_is_left_over_where_more_than_half_of_the_threads_would_compute(workers: int) -> None:
    for count in range(1, 60):
        left = _left_over(count, workers)
        assert left in (0, count % workers)
        assert left == 0 or ((count - left) % workers == 0 < count - left and 2 * left <= workers)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_slices_are_of_at_most_the_size_and_shares_nearly_equal(workers: int) -> None:
    for count in range(1, 60):
        for most in (1, 2, 3, 5, 8):
            size = _even(count, most, workers)
            assert 1 <= size <= most
            sizes = [min(size, count - start) for start in range(0, count, size)]
            shares = [sum(sizes[i::workers]) for i in range(workers)]
            assert max(shares) <= -(-count // workers) + size - 1
