"""Plans that are kept: found by the next process, never stale, never half, never more than there is room."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from numpy.typing import NDArray

from gbp import Explainer
from gbp.cli.main import main
from gbp.kernels.checksum import BLOCK, LANES, checksum
from gbp.kernels.codegen.cache import PART
from gbp.kernels.codegen.lock import only_one
from gbp.packed import digest as digests
from gbp.packed import entry, plans
from gbp.plan.plan import Plan

X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where plans are kept in a test."""
    path = tmp_path / "cache" / "packed"
    monkeypatch.setattr(plans, "FOLDER", str(path))
    monkeypatch.setattr(digests, "_SETTLED", 0)  # files of a test are new
    return path


def model(seed: int = 0) -> onnx.ModelProto:
    """A network of two MiB: convolutions, full and depthwise, and dense layers."""
    b = Builder(seed=seed)
    x = b.relu(b.conv(b.input(1, 3, 8, 8), 16))
    x = b.relu(b.conv(x, 40, pads=[1, 1, 1, 1]))
    x = b.relu(b.conv(x, 40, group=40, pads=[1, 1, 1, 1]))
    return b.model(b.gemm(b.relu(b.gemm(b.flatten(x), 400, transB=1)), 10))


def written(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    assert path.stat().st_size > plans._MIN_MODEL
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "model.onnx", model())


def kept(folder: Path) -> list[Path]:
    """The plans in a folder."""
    return sorted(p for p in folder.glob("*") if p.suffix not in (".seen", PART) and p.name != "lock")


def explain(source: Any, **options: Any) -> NDArray[np.float32]:
    return Explainer(source, **options).explain(X, target=1).map


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each plan that is built."""
    real, times = Plan.build, []

    def build(*given: Any, **options: Any) -> Plan:
        times.append(1)
        return real(*given, **options)

    monkeypatch.setattr(Plan, "build", build)
    return times


# ------------------------------------------------------------------------------------------- found and shared


@pytest.mark.parametrize("as_bytes", [False, True])
def test_the_next_explainer_builds_nothing(
    folder: Path, file: Path, built: list[int], as_bytes: bool
) -> None:
    source = file.read_bytes() if as_bytes else file
    expected = explain(file, cache=False)
    assert not folder.exists()
    for _ in range(3):
        np.testing.assert_array_equal(explain(source), expected)
    assert len(built) == 2
    assert len(kept(folder)) == 1


def test_weights_lie_in_the_file(folder: Path, file: Path) -> None:
    """Also of the process that packed them: what it packed itself nobody could share."""
    for _ in range(2):
        plan, _ = Explainer(file)._plan_for((3, 8, 8))
        arrays = entry.Pickled(plan)._arrays
        assert len(arrays) >= 4
        for array in arrays:
            assert array.readonly
            assert np.frombuffer(array, np.uint8).ctypes.data % 64 == 0
            base: Any = array.obj
            while isinstance(base, np.ndarray):
                base = base.base
            assert isinstance(base.obj, mmap.mmap)


def test_an_open_size_keeps_the_plan_of_its_first(folder: Path, tmp_path: Path, built: list[int]) -> None:
    b = Builder()
    x = b.node("GlobalAveragePool", b.relu(b.conv(b.input(1, 3, 8, 8), 40)))
    proto = b.model(b.gemm(b.relu(b.gemm(b.flatten(x), 8000, transB=1)), 10))
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    path = written(tmp_path / "open.onnx", proto)
    for _ in range(2):
        explainer = Explainer(path)
        for size in (8, 9):
            explainer.explain(np.ones((1, 3, size, size), np.float32))
    assert len(built) == 3  # the second size twice
    assert len(kept(folder)) == 1


def test_a_plan_that_keeps_inner_tensors_is_not_kept(folder: Path, file: Path) -> None:
    explainer = Explainer(file)
    expected = explainer.explain(X, target=1).map
    tensor = explainer.tensors[1].name
    with explainer.run(X, keep=[tensor]) as run:
        assert run.value(tensor).shape[0] == 1
    assert len(kept(folder)) == 1
    np.testing.assert_array_equal(explainer.explain(X, target=1).map, expected)


def test_a_file_without_a_batch_axis(folder: Path, tmp_path: Path, built: list[int]) -> None:
    """That its first axis is none is found when the plan is built, and kept with it."""
    b = Builder()
    x = b.unsqueeze(b.input(3, 8, 8), 0)
    proto = b.model(b.gemm(b.relu(b.gemm(b.flatten(x), 2000, transB=1)), 10))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    path = written(tmp_path / "alone.onnx", proto)
    found = [Explainer(path).explain(X[0], target=1) for _ in range(2)]
    assert len(built) == 1
    assert found[0].notes == found[1].notes != ()
    assert found[0].map.tobytes() == found[1].map.tobytes()


def test_what_a_plan_depends_on_is_in_its_name(folder: Path, file: Path) -> None:
    middle = onnx.load(file).graph.node[1].output[0]
    options: list[dict[str, Any]] = [
        {},
        {"algorithm": "winograd"},
        {"activations": "clamp"},
        {"output": middle},
    ]
    for count, each in enumerate(options, start=1):
        assert np.array_equal(explain(file, **each), explain(file, **each, cache=False))
        assert len(kept(folder)) == count
    Explainer(file, threads=2, memory=10**7, labels=[str(i) for i in range(10)])
    assert len(kept(folder)) == count


def test_given_values_are_in_its_name(folder: Path, tmp_path: Path) -> None:
    b = Builder()
    scale = b.constant([1.0])
    y = b.mul(b.gemm(b.relu(b.gemm(b.flatten(b.input(1, 3, 8, 8)), 2000, transB=1)), 10), scale)
    proto = b.model(y)
    proto.graph.initializer.remove(next(each for each in proto.graph.initializer if each.name == scale))
    proto.graph.input.append(onnx.helper.make_tensor_value_info(scale, onnx.TensorProto.FLOAT, [1]))
    path = written(tmp_path / "given.onnx", proto)
    maps = [explain(path, input="x", given={scale: np.array([k], np.float32)}) for k in (1, 2, 1)]
    assert len(kept(folder)) == 2
    np.testing.assert_array_equal(2 * maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_without_the_cache_nothing_is_read_or_written(folder: Path, file: Path, built: list[int]) -> None:
    explain(file)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    explain(file, cache=False)
    assert len(built) == 2
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_small_models_and_protos_are_not_kept(folder: Path, file: Path) -> None:
    b = Builder()
    small = b.model(b.gemm(b.relu(b.flatten(b.input(1, 3, 8, 8))), 10))
    explain(small.SerializeToString())
    explain(onnx.load(file))
    assert not folder.exists()


# ------------------------------------------------------------------------------------------------ never stale


def overwrite(path: Path, data: bytes) -> None:
    """Write into the file as it is, and set the time of the last change back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (
        after.st_ino,
        after.st_size,
        after.st_mtime_ns,
    )


def test_a_file_that_changed_is_read_anew(folder: Path, file: Path) -> None:
    first = explain(file)
    other = model(seed=1).SerializeToString()
    overwrite(file, other)
    np.testing.assert_array_equal(explain(file), explain(other, cache=False))
    assert not np.array_equal(explain(file), first)
    file.unlink()
    file.write_bytes(model().SerializeToString())
    np.testing.assert_array_equal(explain(file), first)
    assert len(kept(folder)) == 2


def test_weights_beside_the_model_are_its_content(folder: Path, tmp_path: Path) -> None:
    proto = model()
    path, data = tmp_path / "outside.onnx", tmp_path / "weights"
    onnx.save(proto, path, save_as_external_data=True, location="weights", size_threshold=0)
    explain(path)
    changed = bytearray(data.read_bytes())
    changed[-3] ^= 64
    overwrite(data, bytes(changed))
    np.testing.assert_array_equal(explain(path), explain(path, cache=False))
    assert len(kept(folder)) == 2


def test_a_digest_is_remembered_while_the_file_stays(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that changed just now is not: it might change once more within the same tick of the clock."""
    hashed: list[int] = []
    real = hashlib.file_digest

    def digest(*given: Any) -> Any:
        hashed.append(1)
        return real(*given)

    monkeypatch.setattr(digests.hashlib, "file_digest", digest)
    monkeypatch.setattr(digests, "_SETTLED", 10**12)
    for _ in range(2):
        Explainer(file)
    assert len(hashed) == 2
    monkeypatch.setattr(digests, "_SETTLED", 0)
    for _ in range(2):
        Explainer(file)
    assert len(hashed) == 3
    (seen,) = folder.glob("*.seen")
    whole = seen.read_bytes()
    wrong = bytearray(whole)
    wrong[-9] ^= 1  # a digit of the digest
    for damage in (b"", b"{", b"{}", b"3", b"[]", b"\xff", whole[:-5], bytes(wrong)):
        seen.write_bytes(damage)
        Explainer(file)
    assert len(hashed) == 11
    assert len(kept(folder)) == 1


def test_the_digest_is_told_with_the_maps(folder: Path, file: Path) -> None:
    """It is the SHA-256 that others compute too, and not computed twice."""
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    for source in (file, file.read_bytes()):
        explainer = Explainer(source)
        assert explainer._engine.digest == expected
        assert explainer.explain(X).provenance.to_dict()["sha256"] == expected
        assert explainer.explain(X).provenance.to_dict()["options"] == {}
    assert Explainer(file, cache=False).explain(X).provenance.to_dict()["sha256"] == expected


def test_other_sources_of_gbp_pack_anew(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain(file)
    monkeypatch.setattr(plans, "_sources", lambda: "other")
    explain(file)
    assert len(kept(folder)) == 2


# ---------------------------------------------------------------------------------------------- damaged, half


def test_where_amx_may_not_be_used_plans_have_other_names(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its instructions would end the process there."""
    for count, usable in enumerate((False, True), start=1):
        monkeypatch.setattr(plans, "is_usable", lambda usable=usable: usable)
        plans._sources.cache_clear()
        Explainer(file)
        assert len(kept(folder)) == count
    plans._sources.cache_clear()


def test_the_name_of_a_plan_does_not_depend_on_where_the_cache_is(
    folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Explainer(file)
    monkeypatch.setattr(plans, "CACHE_DIRECTORY", str(tmp_path / "other" / Path(plans.CACHE_DIRECTORY).name))
    plans._sources.cache_clear()
    Explainer(file)
    assert len(kept(folder)) == 1
    plans._sources.cache_clear()


def test_damage_at_any_byte_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short anywhere, or with any byte changed, it is told from what was written."""
    monkeypatch.setattr(entry, "_SMALL", 100)
    path = tmp_path / "kept"
    value = {"w": np.arange(30, dtype=np.float32), "b": np.ones((3, 4))}
    entry.Pickled(value).save(path, 1)
    found = entry.load(path, 1)
    assert not found["w"].flags.writeable
    for name, array in value.items():
        np.testing.assert_array_equal(found[name], array)
    good = path.read_bytes()
    for at in range(len(good)):
        flipped = good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :]
        for bad in (good[:at], flipped):
            path.write_bytes(bad)
            with pytest.raises(entry.DamagedError):
                entry.load(path, 1)
    for bad in (good + b"\0", b"\0" + good, good[64:], good + good):
        path.write_bytes(bad)
        with pytest.raises(entry.DamagedError):
            entry.load(path, 1)
    (tmp_path / "other").write_bytes(good)  # a file of another name
    with pytest.raises(entry.DamagedError):
        entry.load(tmp_path / "other", 1)


def test_a_damaged_plan_is_built_anew_with_one_line(
    folder: Path, file: Path, built: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    expected = explain(file)
    (path,) = kept(folder)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for k, at in enumerate(rng.integers(0, len(good), 4)):
        path.write_bytes(good[:at] if k % 2 else good[:at] + bytes([good[at] ^ 128]) + good[at + 1 :])
        caplog.clear()
        with caplog.at_level(logging.INFO, "gbp"):
            np.testing.assert_array_equal(explain(file), expected)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "is damaged and is built anew" in caplog.messages[0]
        assert len(built) == 2 + k
        assert path.read_bytes() == good


@pytest.mark.threads
@pytest.mark.parametrize("words", [LANES, BLOCK, BLOCK + LANES, 3 * BLOCK])
def test_a_checksum_is_the_sums_of_fletcher(words: int) -> None:
    data = np.random.default_rng(words).integers(0, 2**64, words, np.uint64)
    expected = []
    for start in range(0, words, BLOCK):
        lanes = data[start : start + BLOCK].reshape(-1, LANES)
        sums = np.cumsum(lanes, axis=0, dtype=np.uint64)
        expected += [*sums[-1], *sums.sum(axis=0, dtype=np.uint64)]
    found = [checksum(data.data, threads) for threads in (1, 3)]
    assert found == [np.array(expected, np.uint64).tobytes()] * 2


HALF = """
import os, signal, sys
from gbp.packed import entry, plans
plans.FOLDER = sys.argv[2]
real = entry._checksum

def stopped(*given):  # the weights are written, the head is not
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyboardInterrupt if sys.argv[3] == "interrupted" else OSError(28, "No space left on device")

entry._checksum = stopped
from gbp import Explainer
Explainer(sys.argv[1])
"""


@pytest.mark.parametrize("how", ["killed", "interrupted", "full"])
def test_who_is_stopped_while_writing_leaves_nothing_half(folder: Path, file: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HALF, str(file), str(folder), how],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == {"killed": -9, "interrupted": -2, "full": 0}[how], done.stderr[-2000:]
    assert not kept(folder)
    parts = list(folder.glob(f"*{PART}"))
    assert len(parts) == (how == "killed")
    np.testing.assert_array_equal(explain(file), explain(file, cache=False))
    assert len(kept(folder)) == 1
    for part in parts:  # somebody may be writing it; when it is old, nobody is
        assert part.exists()
        os.utime(part, (0, 0))
        explain(file, algorithm="direct")
        assert not part.exists()


# ----------------------------------------------------------------------------------- bounded, shared, refused


def test_what_was_used_least_lately_makes_room(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain(file)
    (first,) = kept(folder)
    size = first.stat().st_size
    monkeypatch.setattr(plans, "MAX_KEPT", 3.5 * size)
    os.utime(first, (1, 1))
    explain(file, activations="clamp")
    (second,) = set(kept(folder)) - {first}
    os.utime(second, (2, 2))
    explain(file)  # uses the first again
    explain(file, output=onnx.load(file).graph.node[-2].output[0])
    explain(file, algorithm="direct")
    left = kept(folder)
    assert first in left
    assert second not in left
    assert sum(path.stat().st_size for path in left) <= plans.MAX_KEPT
    monkeypatch.setattr(plans, "MAX_KEPT", size / 2)  # one that is larger than all there is room for
    explain(file, algorithm="winograd")
    assert kept(folder) == left


def test_a_disk_is_not_filled(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda _: plans.shutil._ntuple_diskusage(9, 9, 2**20))
    explain(file)
    assert not kept(folder)


def test_it_may_be_deleted_while_it_is_used(folder: Path, file: Path) -> None:
    explainer = Explainer(file)
    expected = explainer.explain(X).map
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    np.testing.assert_array_equal(explainer.explain(X).map, expected)
    explain(file)
    assert len(kept(folder)) == 1


def test_a_folder_that_others_may_write_to_is_not_used(
    folder: Path, file: Path, built: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    explain(file)
    folder.chmod(0o777)
    plans.refused.cache_clear()
    with caplog.at_level(logging.INFO, "gbp"):
        explain(file)
    assert len(built) == 2
    assert len(caplog.messages) == 1
    assert "packed weights are not kept in" in caplog.messages[0]


def test_only_its_owner_may_read_it(folder: Path, file: Path) -> None:
    explain(file)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners as POSIX has them")
def test_a_plan_of_somebody_else_is_not_used(
    folder: Path, file: Path, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    explain(file)
    monkeypatch.setattr(entry, "is_own", lambda _: False)
    explain(file)
    assert len(built) == 2


TWO = """
import sys, threading
from gbp.packed import plans
from gbp.plan.plan import Plan
plans.FOLDER = sys.argv[2]
real, built = Plan.build, []

def build(*given, **options):
    built.append(1)
    threading.Event().wait(1)
    return real(*given, **options)

Plan.build = build
from gbp import Explainer
sys.stdin.readline()
Explainer(sys.argv[1])
print(len(built))
"""


def test_of_two_processes_one_builds(folder: Path, file: Path) -> None:
    pytest.importorskip("fcntl")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(file), str(folder)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=120)[0] for process in processes) == ["0\n", "1\n"]


def test_who_is_interrupted_while_waiting_leaves_no_open_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl, closed, real = pytest.importorskip("fcntl"), [], os.close

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def close(file: int) -> None:
        closed.append(file)
        real(file)

    monkeypatch.setattr(fcntl, "lockf", interrupt)
    monkeypatch.setattr(os, "close", close)
    with pytest.raises(KeyboardInterrupt), only_one("a plan", str(folder)):
        pass
    assert len(closed) == 1


def test_two_threads_of_one_process(folder: Path, file: Path) -> None:
    found: list[NDArray[np.float32]] = []
    threads = [threading.Thread(target=lambda: found.append(explain(file))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len({each.tobytes() for each in found}) == 1
    assert len(kept(folder)) == 1


def test_the_command_line(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "x.npy"
    np.save(picture, X[0])
    for option, count in ("--no-cache", 0), ("--threads=1", 1):
        assert main(["explain", str(file), str(picture), "-o", str(tmp_path / "map.npz"), option]) == 0
        assert len(kept(folder)) == count


def test_a_file_with_holes_is_not_read_for_its_digest(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gibibyte that takes no room on disk would cost seconds."""
    expected = Explainer(file, cache=False).explain(X, target=1).map
    with open(file, "ab") as end:
        end.write(b"\xba\x3e\x00")  # an empty field 999, which protobuf skips
    monkeypatch.setattr(plans, "_has_holes", lambda _: True)
    monkeypatch.setattr(plans, "_digest", None)
    np.testing.assert_array_equal(Explainer(file).explain(X, target=1).map, expected)
    assert not kept(folder)


def test_a_file_with_holes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    with open(path, "wb") as file:
        file.truncate(2**30)
    assert plans._has_holes(SimpleNamespace(file=path))
    path.write_bytes(bytes(2**22))
    assert not plans._has_holes(SimpleNamespace(file=path))
    assert not plans._has_holes(SimpleNamespace(file=b"the model"))
