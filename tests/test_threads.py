"""The same bits for any number of threads, in any batch, thread and child; and how many threads there are."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builder import Builder
from cases import CASES, Case
from forked import Forked
from numba.np.ufunc import parallel
from numpy.typing import NDArray

from gbp import RULES, Explainer, InputError, Top
from gbp.kernels.codegen.atomics import load_word, pause, store_word
from gbp.kernels.codegen.jit import DENSE, INT, kernel
from gbp.kernels.codegen.packing import Share
from gbp.kernels.codegen.simd import address_of
from gbp.kernels.parallel import cores, threads
from gbp.kernels.parallel import team as native

pytestmark = pytest.mark.threads

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo.onnx"


def images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((count, 3, 96, 96), dtype=np.float32)


@pytest.mark.parametrize("rule", RULES)
def test_threads_do_not_change_a_bit(rule: str) -> None:
    x = images(3)
    one, two, many = (Explainer(DEMO, threads=n).explain(x, rule=rule) for n in (1, 2, 7))
    assert one.map.tobytes() == two.map.tobytes() == many.map.tobytes()
    assert one.scores.tobytes() == two.scores.tobytes() == many.scores.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_the_batch_does_not_change_a_bit(rule: str) -> None:
    x = images(8)
    explainer = Explainer(DEMO)
    whole = explainer.explain(x, rule=rule)
    sliced = explainer.explain(x, rule=rule, batch_size=3)
    assert whole.map.tobytes() == sliced.map.tobytes()
    for i in (0, 5, 7):
        assert explainer.explain(x[i : i + 1], rule=rule).map.tobytes() == whole.map[i].tobytes()


def test_several_targets_are_the_single_ones() -> None:
    x = images(2)
    explainer = Explainer(DEMO)
    five = explainer.explain(x, target=Top(5))
    assert five.map.shape == (2, 5, 3, 96, 96)
    assert five.map.any(axis=(2, 3, 4)).all()
    for k in range(5):
        assert explainer.explain(x, target=five.target[:, k]).map.tobytes() == five.map[:, k].tobytes()


def in_a_process(what: str, **environment: str) -> None:
    """Call a function of this file in a process of its own."""
    code = f"import test_threads; test_threads.{what}()"
    process = Forked(
        ("-c", code), Path(__file__).parent, os.environ | {"PYTHONPATH": str(ROOT)} | environment
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def share_one_explainer() -> None:
    """Eight Python threads, mixed rules and batches, against the same calls one after another."""
    explainer = Explainer(DEMO)
    x = images(4)
    calls = [(rule, n) for n in (1, 4, 2) for rule in RULES] * 3

    def run(call: tuple[str, int]) -> bytes:
        rule, n = call
        return explainer.explain(x[:n], rule=rule).map.tobytes()

    alone = list(map(run, calls))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, calls)) == alone


def explain_in_forked_children() -> None:
    """A child explains with helpers of its own, and so does its child."""
    explainer = Explainer(DEMO, threads=3)
    x = images(2)
    expected = explainer.explain(x).map.tobytes()

    def forked(generations: int) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(3):
                    assert explainer.explain(x).map.tobytes() == expected
                if generations > 1:
                    forked(generations - 1)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    forked(generations=2)
    assert explainer.explain(x).map.tobytes() == expected


def fork_beside_a_thread_that_explains() -> None:
    """Whatever another thread holds when a child is made, the child explains."""
    explainer = Explainer(DEMO, threads=3)
    x = images(4)
    expected = explainer.explain(x).map.tobytes()
    stop = threading.Event()

    def explain_on() -> None:
        while not stop.is_set():
            explainer.explain(x)

    other = threading.Thread(target=explain_on)
    other.start()
    children = []
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0 if explainer.explain(x).map.tobytes() == expected else 1)
        children.append(child)
    stop.set()
    other.join()
    assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)


def start_no_more_than_asked_for() -> None:
    """One thread starts no other; helpers are asleep between calls, and nothing around them is changed."""
    mask, environment = signal.pthread_sigmask(signal.SIG_BLOCK, ()), dict(os.environ)
    x = images(1)
    # BLAS, too, may start threads when it is first called.
    Explainer(DEMO, threads=1).explain(x)
    before = threads_of_process()
    Explainer(DEMO, threads=1).explain(x)
    assert threads_of_process() == before
    explainer = Explainer(DEMO, threads=3)
    for _ in range(3):
        explainer.explain(x)
    assert threads_of_process() == before + 2
    asleep = wait_until_others_sleep()
    time.sleep(0.2)
    assert wait_until_others_sleep() == asleep, "a helper woke up between calls"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert dict(os.environ) == environment
    assert not parallel._is_initialized, "Numba's own threads were started"


def threads_of_process() -> int:
    return len(os.listdir("/proc/self/task"))


def wait_until_others_sleep() -> dict[str, str]:
    """How often each other thread of this process was switched, once all of them sleep."""
    for _ in range(1000):
        others = {
            task.name: (task / "status").read_text()
            for task in Path("/proc/self/task").iterdir()
            if task.name != str(threading.get_native_id())
        }
        if all("State:\tS" in status for status in others.values()):
            return {name: status.partition("voluntary_ctxt_switches:")[2] for name, status in others.items()}
        time.sleep(0.02)
    raise AssertionError(f"helpers do not sleep: {others}")


#: More threads than most processors, so that they meet in every order.
MANY = {"GBP_NUM_THREADS": "4"}


def test_python_threads_share_an_explainer() -> None:
    in_a_process("share_one_explainer", **MANY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("what", ["explain_in_forked_children", "fork_beside_a_thread_that_explains"])
def test_fork(what: str) -> None:
    in_a_process(what, **MANY)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
def test_no_more_threads_than_asked_for() -> None:
    in_a_process("start_no_more_than_asked_for", **MANY)


def test_callers_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers make way for other callers, and come back."""
    monkeypatch.setattr(threads, "available", lambda: 4)
    team, members = threads._Team(), []
    monkeypatch.setattr(team, "_run", lambda first, stop, count: members.append(count))
    monkeypatch.setattr(threads._functions(), "run_alone", lambda first, stop: members.append(1))
    for callers in (1, 2, 3, 4, 8, 1):
        team.callers = set(range(callers))
        team.run(0, 0, threads=8)
    assert members == [4, 3, 2, 1, 1, 4]
    with team.free:  # somebody has the helpers
        team.run(0, 0, threads=8)
    assert members[-1] == 1


def test_callers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more explain at once than twice the processors; a turn is given back whatever happens."""
    monkeypatch.setattr(threads, "available", lambda: 1)
    monkeypatch.setattr(threads, "_turns", cache(threads._turns.__wrapped__))
    inside, most = [], []

    def explain(fails: bool) -> None:
        with threads.turn():
            inside.append(None)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
            if fails:
                raise ValueError

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(explain, k % 3 == 0) for k in range(16)]
    assert sum(future.exception() is not None for future in done) == 6
    assert max(most) == 2
    assert threads._turns().qsize() == 2


def test_helpers_stay_awake_longer_while_somebody_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its runs.  Afterwards, and while the caller itself waits for a helper, it is as ever."""
    team = threads._Team()
    monkeypatch.setattr(threads, "_team", team)
    team._begin()
    own, helpers = team.words[native.SPINS // 8], threads._HELPERS_SPINS
    assert team.words[helpers] == own > 0
    with threads.turn():
        assert team.words[helpers] > own
        assert team.words[native.SPINS // 8] == own
    assert team.words[helpers] == own


def test_an_interrupt_before_a_block_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come after a context manager was entered, and before its block, which then never ends."""
    monkeypatch.setattr(threads, "available", lambda: 1)
    monkeypatch.setattr(threads, "_turns", cache(threads._turns.__wrapped__))
    monkeypatch.setattr(threads, "_team", threads._Team())
    for _ in range(3):  # three times, and none is left
        threads.turn().__enter__()
        threads.parallel().__enter__()
    assert threads._turns().qsize() == 2
    with threads.turn(), threads.parallel():
        pass
    assert not threads._team.callers


def test_helpers_are_called_before_a_run_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wake while the caller prepares the run; helpers that it will not have sleep on."""
    called: list[int] = []
    monkeypatch.setattr(threads, "available", lambda: 4)
    monkeypatch.setattr(threads._functions(), "call", lambda _, members: called.append(members))
    team = threads._Team()
    monkeypatch.setattr(threads, "_team", team)
    with threads.parallel(4):
        assert called == []  # there are no helpers yet
    team._helpers = 2
    for wanted in (1, 2, 4):
        with threads.parallel(wanted):
            pass
    assert called == [2, 3]
    team.callers = {-1, -2, -3}  # beside this one
    with threads.parallel(4):
        pass
    assert called == [2, 3]


def test_a_busy_machine_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had to wait for helpers twice in a row works without them, each time longer, until it goes well."""
    monkeypatch.setattr(threads, "available", lambda: 2)
    clock = {"now": 100.0, "cpu": 0.0, "slow": 0.05, "work": 0.0}
    fake = SimpleNamespace(
        monotonic=lambda: clock["now"], perf_counter=lambda: clock["now"], thread_time=lambda: clock["cpu"]
    )
    monkeypatch.setattr(threads, "time", fake)
    team, ways = threads._Team(), []

    def run_team(*_: int) -> None:
        ways.append("together")
        clock["now"] += clock["work"] + clock["slow"]
        clock["cpu"] += clock["work"]

    monkeypatch.setattr(team, "_hire", lambda helpers: None)
    monkeypatch.setattr(threads._functions(), "run_team", run_team)
    monkeypatch.setattr(threads._functions(), "run_alone", lambda first, stop: ways.append("alone"))

    def run_after(seconds: float) -> str:
        clock["now"] += seconds
        team.run(0, 0, threads=2)
        return ways[-1]

    def runs_after(*seconds: float) -> str:
        return " ".join(run_after(s) for s in seconds)

    def set_run(work: float, wait: float) -> None:
        clock["work"], clock["slow"] = work, wait

    for _ in range(3):  # a single wait in a row: the other runs could have waited and did not
        for run in ((0.0, 0.05), (0.002, 1e-4)):
            set_run(*run)
            assert run_after(0) == "together"
    set_run(0.0, 0.05)
    assert runs_after(0, 0, 0.01) == "together together alone"
    assert runs_after(0.06, 0.06, 0.06) == "together alone together"
    assert runs_after(0.15, 0.06) == "alone together"
    set_run(0.002, 1e-4)
    assert runs_after(2, 0, 0) == "together together together"
    for run, way in (
        ((0.0025, 0.02), "together"),
        ((0.0003, 1e-5), "together"),  # too short to say anything
        ((0.0025, 0.02), "together"),  # so this is the second in a row
        ((0.0003, 1e-5), "alone"),
    ):
        set_run(*run)
        assert run_after(0) == way
    set_run(0.002, 1e-4)
    assert runs_after(2, 0) == "together together"
    set_run(0.0, 0.05)
    assert runs_after(0, 0, 0.01) == "together together alone"  # as at first


#: A team with a helper, which lives as long as the process, as the helper does.
PAIR = threads._Team()


@kernel(DENSE, DENSE, INT)
def note_slots(slots: Any, came: Any, parts: int, share: Share) -> None:
    """Write who computes each part.  Each waits in its first part until the other member has one too."""
    store_word(address_of(came) + 8 * share.slot, 1)
    while load_word(address_of(came) + 8 * (1 - share.slot)) == 0:
        pause()
    for t in range(share.first, share.last):
        slots[t] = share.slot


def test_members_begin_at_opposite_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """So each reads again what it wrote before."""
    monkeypatch.setattr(threads, "available", lambda: 2)
    monkeypatch.setattr(threads, "_team", PAIR)
    monkeypatch.setattr(threads, "_LEAST_WAIT", float("inf"))  # it never works alone
    parts = note_slots.split * 2
    for _ in range(20):
        slots, came = np.full(parts, -1, np.float32), np.zeros(4, np.float32)
        note_slots(slots, came, 2)
        assert (slots[0], slots[-1]) == (0, 1)
        assert sorted(slots) == list(slots)


# --------------------------------------------------------------------------- what is prepared stays right


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_prepared_run_serves_other_images(case: Case) -> None:
    """An Explainer that has explained others gives the bits of a new one: nothing of them was kept."""
    b = Builder(case.opset, 0)
    y = case.net(b, b.relu(b.input(*case.shape)))
    model = b.model(y if case.ends else b.head(y))
    rng = np.random.default_rng(0)
    # Mostly positive: logarithms of what a rectifier let through have to be finite.
    others, x = rng.standard_normal((2, 2, *case.shape[1:]), np.float32) + np.float32(1.5)
    x[1] *= rng.random(x[1].shape) < 0.5  # by what values there are, other kernels may be chosen
    used, new = Explainer(model, threads=2), Explainer(model, threads=1)
    for rule in ("vanilla", "guided"):
        for rows in (slice(None), slice(1, 2)):
            for each in (others, others * 2, others / 2):
                used.explain(each[rows], rule=rule, target=0)
            found, expected = (explainer.explain(x[rows], rule=rule, target=0) for explainer in (used, new))
            assert found.map.tobytes() == expected.map.tobytes()
            assert found.scores.tobytes() == expected.scores.tobytes()


# ------------------------------------------------------------------------------------- how many there are


def test_threads_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GBP_NUM_THREADS", "3")
    assert cores.usable_cores() == 3
    monkeypatch.setenv("GBP_NUM_THREADS", "")
    assert cores.usable_cores() >= 1
    for wrong in ("0", "-1", "two", "1025", "1.5", "²"):
        monkeypatch.setenv("GBP_NUM_THREADS", wrong)
        with pytest.raises(InputError, match="GBP_NUM_THREADS"):
            cores.usable_cores()


def test_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GBP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5, 7}, raising=False)
    for quota, expected in ((None, 4), (1.0, 1), (0.2, 1), (1.5, 2), (2.0, 2), (16.0, 4)):
        monkeypatch.setattr(cores, "cpu_quota", lambda quota=quota: quota)
        assert cores.usable_cores() == expected


V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
    "33 31 0:30 {shown} /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n"
)
V1_GROUPS = "4:memory:{path}\n3:cpuset:/\n2:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/\n"
DOCKER = "/docker/0123abcd"


def quota_files(folder: str, quota: str) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


#: Files as systems show them, and the processors that they allow.
RECORDED: dict[str, tuple[dict[str, str], float | None]] = {
    "no Linux": ({}, None),
    "v2, a host without bounds": (
        {
            "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/user.slice/user-1000.slice/cpu.max": "max 100000\n",
        },
        None,
    ),
    "v2, docker run --cpus 1, its own namespace": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        },
        1.0,
    ),
    "v2, the bound is that of a group around": (
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod1.slice/crio-1.scope\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/kubepods.slice/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/crio-1.scope/cpu.max": "max 100000\n",
        },
        1.5,
    ),
    "v2, outside of the namespace that is mounted": (
        {
            "proc/self/cgroup": "0::/../..\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
        },
        0.5,
    ),
    "v1, docker, the host's path and the group as the root of the mount": (
        {
            "proc/self/cgroup": V1_GROUPS.format(path=DOCKER),
            "proc/self/mountinfo": V1.format(shown=DOCKER),
            **quota_files("sys/fs/cgroup/cpu,cpuacct", "200000"),
        },
        2.0,
    ),
    "v1, a service within a group": (
        {
            "proc/self/cgroup": V1_GROUPS.format(path="/system.slice/app.service"),
            "proc/self/mountinfo": V1.format(shown="/"),
            **quota_files("sys/fs/cgroup/cpu,cpuacct", "-1"),
            **quota_files("sys/fs/cgroup/cpu,cpuacct/system.slice", "-1"),
            **quota_files("sys/fs/cgroup/cpu,cpuacct/system.slice/app.service", "120000"),
        },
        1.2,
    ),
    "v1 without bounds beside an empty v2": (
        {
            "proc/self/cgroup": V1_GROUPS.format(path="/"),
            "proc/self/mountinfo": V1.format(shown="/")
            + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            **quota_files("sys/fs/cgroup/cpu,cpuacct", "-1"),
        },
        None,
    ),
    "a mount with a space in its name": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2.replace("/sys/fs/cgroup", "/sys/c\\040g"),
            "sys/c g/cpu.max": "100000 100000\n",
        },
        1.0,
    ),
    "files that say nothing": (
        {
            "proc/self/cgroup": "nonsense\n0::/\n",
            "proc/self/mountinfo": "nonsense\n" + V2,
            "sys/fs/cgroup/cpu.max": "\n",
        },
        None,
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_quota_of_recorded_files(name: str, tmp_path: Path) -> None:
    files, expected = RECORDED[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert cores.cpu_quota(tmp_path) == expected
