"""`gbp batch`: files and index, going on after a kill, shards, retries, refusals, Ray."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from kills import MODEL, ROOT, files_of, make_images, run_with_kills
from PIL import Image

import gbp
from gbp import Channel, Contrast, Explainer, InputError, Several, Top, methods
from gbp.bulk import run as run_module
from gbp.bulk import worker as worker_module
from gbp.bulk.engines import locally
from gbp.bulk.folder import Folder
from gbp.bulk.job import Job, Task, name_of
from gbp.bulk.run import BatchSummary
from gbp.bulk.worker import Worker
from gbp.cli import main as cli

pq = pytest.importorskip("pyarrow.parquet", reason="gbp batch needs the extra batch: pyarrow")

IMAGES = 40
#: Pictures that are quickly drawn.
PLAIN: dict[str, Any] = {"style": "gray", "bare": True}
#: The arguments of a `Job`, but the output folder.
JOB: dict[str, Any] = {
    **dict.fromkeys(("rule", "target", "score", "method", "arrays")),
    **{"model": str(MODEL), "method_options": {}, "format": "png", "look": {}, "options": {}, **PLAIN},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bulk") / "photos"
    make_images(folder, IMAGES)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows_of(out: Path, name: str = "index.parquet") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / name).to_pylist()
    return rows


@pytest.fixture(scope="module")
def quiet(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed, with pictures and arrays."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    summary = gbp.batch(MODEL, photos, out, arrays="npz", **PLAIN)
    assert (summary.explained, summary.before, summary.failed) == (IMAGES - 1, 0, 1)
    return out


# ------------------------------------------------------------------------------------------ what is written


def test_the_index_and_the_files(photos: Path, quiet: Path) -> None:
    rows = rows_of(quiet)
    assert [row["path"] for row in rows] == sorted(str(photos / p) for p in os.listdir(photos))
    files = files_of(quiet)
    named = {row[column] for row in rows for column in ("file", "arrays")} - {None}
    assert files.keys() == named | {"index.parquet", "batch.json", ".lock"}
    explainer = Explainer(MODEL)
    for row in (rows[0], rows[17]):
        result = explainer.explain(row["path"])
        drawn, saved = io.BytesIO(), io.BytesIO()
        result.save(drawn, "gray", bare=True, format="png")
        result.save(saved, format="npz")
        assert files[row["file"]] == drawn.getvalue()
        assert files[row["arrays"]] == saved.getvalue()
        assert row["hash"] == hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
        assert (row["width"], row["height"]) == Image.open(row["path"]).size
        assert row["bytes"] == os.path.getsize(row["path"])
        assert (row["rule"], row["error"]) == ("guided", None)
        report = result[0].to_dict()
        for column, key in (("top", "top"), ("target", "explained")):
            assert [(c["class"], c["label"]) for c in row[column]] == [
                (c["class"], c["label"]) for c in report[key]
            ]
            for found, wanted in zip(row[column], report[key], strict=True):
                assert found["score"] == wanted["score"]
                assert found["probability"] == pytest.approx(wanted["probability"], rel=1e-6)


def test_an_error_is_a_row(quiet: Path) -> None:
    (broken,) = [row for row in rows_of(quiet) if row["error"] is not None]
    assert broken["path"].endswith("broken.jpg")
    assert "is not an image" in broken["error"]
    assert broken["file"] is broken["arrays"] is broken["top"] is None
    assert broken["bytes"] == len(b"no picture")


def test_a_second_run_has_nothing_to_do(photos: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(quiet)
    monkeypatch.setattr(Worker, "read", None)
    summary = gbp.batch(MODEL, photos, quiet, arrays="npz", **PLAIN)
    assert (summary.explained, summary.before, summary.failed) == (0, IMAGES - 1, 1)
    assert files_of(quiet) == before


def test_top_five_with_zarr(photos: Path, out: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="--arrays zarr needs the extra batch")
    gbp.batch(MODEL, photos, out, target=Top(2), style="none", arrays="zarr")
    group = zarr.open_group(str(out / "arrays.zarr"), mode="r")
    explainer = Explainer(MODEL)
    assert group["map"].shape[:2] == (IMAGES, 2)
    for row in rows_of(out):
        if row["error"] is not None:
            assert np.isnan(group["map"][row["row"]]).all()
            continue
        result = explainer.explain(row["path"], target=Top(2))
        assert (group["map"][row["row"]] == result.map[0]).all()
        assert (group["scores"][row["row"]] == result.scores[0]).all()
        assert [c["class"] for c in row["target"]] == result.target[0].tolist()
    with pytest.raises(InputError, match="images is"):  # a row is a place in the list
        gbp.batch(MODEL, [photos / "0.png"], out, target=Top(2), style="none", arrays="zarr")


def test_array_files_and_all_rules(photos: Path, out: Path, tmp_path: Path) -> None:
    explainer = Explainer(MODEL)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", explainer.prepare(photos / f"{i}.png")[0])
    np.save(tmp_path / "wrong.npy", np.zeros((3, 8, 9), np.float32))
    np.save(tmp_path / "two.npy", np.zeros((2, *explainer.input_shape[1:]), np.float32))
    np.save(tmp_path / "number.npy", np.zeros((), np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "0.npy").read_bytes()[:1000])
    summary = gbp.batch(MODEL, [tmp_path, photos / "3.png"], out, rule="all", format="jpg")
    assert (summary.explained, summary.failed) == (4, 4)
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert "has shape" in rows["wrong.npy"]["error"]
    assert "has shape []" in rows["number.npy"]["error"]
    assert "2 samples" in rows["two.npy"]["error"]
    assert "cannot read the array" in rows["cut.npy"]["error"]
    assert rows["0.npy"]["width"] is None
    assert Image.open(out / rows["0.npy"]["file"]).format == "JPEG"
    assert rows["3.png"]["rule"] == "all"


@pytest.mark.parametrize(
    ("options", "explain"),
    [
        (
            {"method": "smoothgrad", "method_options": {"samples": 3}, "style": "overlay", "bare": True},
            lambda explainer, path: methods.smoothgrad(explainer, path, samples=3),
        ),
        (
            {"method": "grad-cam", "target": 3, "look": {"palette": "gray", "canvas": "network"}},
            lambda explainer, path: methods.grad_cam(explainer, path, target=3),
        ),
        (
            {"method": "integrated-gradients", "method_options": {"steps": 4}, "rule": "vanilla"},
            lambda explainer, path: methods.integrated_gradients(explainer, path, steps=4),
        ),
        ({"target": Top(2), "format": "svg"}, lambda explainer, path: explainer.explain(path, target=Top(2))),
        ({"format": "webp", "bare": True, "style": "gray"}, lambda explainer, path: explainer.explain(path)),
    ],
)
def test_an_image_has_the_files_that_it_has_alone(
    options: dict[str, Any], explain: Any, photos: Path, out: Path
) -> None:
    """Bytes, notes too, whatever else is explained with it."""
    gbp.batch(MODEL, [photos / f"{i}.png" for i in range(2)], out, arrays="npz", **options)
    explainer, files = Explainer(MODEL), files_of(out)
    for row in rows_of(out):
        result = explain(explainer, row["path"])
        saved = [io.BytesIO(), io.BytesIO()]
        look = {"bare": options.get("bare", False)} | options.get("look", {})
        result.save(saved[0], options.get("style", "strip"), format=options.get("format", "png"), **look)
        result.save(saved[1], format="npz")
        assert files[row["file"]] == saved[0].getvalue()
        assert files[row["arrays"]] == saved[1].getvalue()
        assert row["method"] == options.get("method")


def test_images_that_fail_only_when_they_are_computed(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of sixteen overflows: the others are explained."""
    explain, bad = Explainer.explain, Explainer(MODEL).prepare(photos / "5.png")

    def some(self: Explainer, images: Any, **options: Any) -> Any:
        if hasattr(images, "x") and any((x == bad[0]).all() for x in images.x):
            raise gbp.ModelError("the map holds NaN or infinity.")
        return explain(self, images, **options)

    monkeypatch.setattr(Explainer, "explain", some)
    summary = gbp.batch(MODEL, photos, out, **PLAIN)
    assert summary.failed == 2
    (row,) = [row for row in rows_of(out) if row["path"].endswith("/5.png")]
    assert row["error"] == "the map holds NaN or infinity."
    assert row["hash"] is not None


# ----------------------------------------------------------------------------------------- killed, going on


def test_killed_at_random_moments(photos: Path, quiet: Path, out: Path) -> None:
    options = ["--arrays", "npz", "--style", "gray", "--bare"]
    rng = random.Random(os.getpid())
    run_with_kills(photos, out, options, [1 + 2 * rng.random() for _ in range(2)])
    assert files_of(out) == files_of(quiet)


#: Runs a batch that kills itself as it renames or removes a file, before it does so or after.
DRIVER = """
import itertools, os, pathlib, signal, sys
import gbp
which, when, file, model, images, out = sys.argv[1:]
owner, name = {"replace": (os, "replace"), "unlink": (pathlib.Path, "unlink")}[which]
call, calls = getattr(owner, name), itertools.count()
def deadly(*arguments):
    last = str(arguments[-1]).endswith(file) and next(calls) == (9 if file == ".npz" else 0)
    try:
        if not last or when == "after":
            call(*arguments)
    finally:
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, deadly)
gbp.batch(model, images, out, arrays="npz", style="gray", bare=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9 on Windows")
@pytest.mark.parametrize(
    ("which", "when", "file"),
    [
        ("replace", "before", "batch.json"),
        ("replace", "after", ".npz"),  # a few files, and no row
        ("replace", "before", "index.parquet"),  # all rows, and no index
        ("unlink", "before", "journal.jsonl"),  # the index, and the journal too
    ],
)
def test_killed_at_the_worst_moments(
    which: str, when: str, file: str, photos: Path, quiet: Path, out: Path
) -> None:
    arguments = [which, when, file, str(MODEL), str(photos), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", DRIVER, *arguments], check=False, env=environment)
    assert killed.returncode == -9
    gbp.batch(MODEL, photos, out, arrays="npz", **PLAIN)
    assert files_of(out) == files_of(quiet)


def test_a_row_that_was_cut_is_made_again(photos: Path, quiet: Path, out: Path) -> None:
    class Stopped(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise Stopped

    with pytest.raises(Stopped):
        gbp.batch(MODEL, photos, out, arrays="npz", **PLAIN, progress=stop)
    journal = out / "journal.jsonl"
    content = journal.read_bytes()
    assert content.count(b"\n") == 16
    first = json.loads(content.splitlines()[0])
    os.utime(out / first["file"], (0, 0))  # what is done is not done again
    journal.write_bytes(content[: -len(content) // 40])
    gbp.batch(MODEL, photos, out, arrays="npz", **PLAIN)
    assert os.path.getmtime(out / first["file"]) == 0
    assert files_of(out) == files_of(quiet)


@pytest.mark.parametrize("content", [b"", b"half of a li"])
def test_a_journal_without_a_whole_line(content: bytes, photos: Path, quiet: Path, out: Path) -> None:
    shutil.copytree(quiet, out)
    for name in ("index.parquet", ".lock"):
        (out / name).unlink()
    (out / "journal.jsonl").write_bytes(content)
    gbp.batch(MODEL, photos, out, arrays="npz", **PLAIN)
    assert files_of(out) == files_of(quiet)


def test_more_images_come_later(photos: Path, quiet: Path, out: Path) -> None:
    for part in ([str(photos / "1*.png")], [photos]):
        gbp.batch(MODEL, part, out, arrays="npz", **PLAIN)
    assert files_of(out) == files_of(quiet)


def test_shards_in_any_order_make_the_same(photos: Path, quiet: Path, out: Path) -> None:
    counts = []
    for i in (3, 1, 2):
        summary = gbp.batch(MODEL, photos, out, arrays="npz", **PLAIN, shard=(i, 3))
        assert summary.index.name == f"index-{i}-of-3.parquet"
        counts.append(len(rows_of(out, summary.index.name)))
    assert sum(counts) == IMAGES
    assert min(counts) > 0
    summary = gbp.batch(MODEL, photos, out, arrays="npz", **PLAIN)
    assert (summary.explained, summary.before) == (0, IMAGES - 1)
    wanted, found = files_of(quiet), files_of(out)
    assert found == wanted | {f".lock-{i}-of-3": b"" for i in (1, 2, 3)}


def test_retry(photos: Path, out: Path, tmp_path: Path) -> None:
    late = tmp_path / "late.png"
    (tmp_path / "list.txt").write_text(f"{late}\n{photos / '1.png'}\n")
    names = [f"@{tmp_path / 'list.txt'}"]
    assert gbp.batch(MODEL, names, out).failed == 1
    shutil.copy(photos / "2.png", late)
    assert gbp.batch(MODEL, names, out).failed == 1  # what failed is done, too
    summary = gbp.batch(MODEL, names, out, retry=True)
    assert (summary.explained, summary.before, summary.failed) == (1, 1, 0)
    assert [row["error"] for row in rows_of(out)] == [None, None]


# ------------------------------------------------------------------------------------------------- refused


def test_other_options_than_before_are_refused(photos: Path, quiet: Path) -> None:
    before = files_of(quiet)
    with pytest.raises(InputError) as error:
        gbp.batch(MODEL, photos, quiet, rule="vanilla", target=3, arrays="npz", algorithm="direct")
    said = str(error.value)
    for part in (
        "rule is vanilla and was guided",
        "target is 3 and was none",
        "style is strip and was gray",
    ):
        assert part in said
    assert "algorithm is direct and was auto" in said
    assert "arrays is" not in said
    assert files_of(quiet) == before


def test_threads_and_memory_are_no_other_options(photos: Path, quiet: Path) -> None:
    gbp.batch(MODEL, photos, quiet, arrays="npz", **PLAIN, threads=2, memory=2**26)


def test_another_model_or_its_labels_are_noticed(photos: Path, out: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    shutil.copy(MODEL, model)
    shutil.copy(MODEL.with_suffix(".toml"), tmp_path / "net.toml")
    gbp.batch(model, photos / "1.png", out)
    model.write_bytes(model.read_bytes() + b"\x7a\x00")  # a field that says nothing
    with pytest.raises(InputError, match="model is"):
        gbp.batch(model, photos / "1.png", out)
    shutil.copy(MODEL, model)
    with pytest.raises(InputError, match="labels is"):
        gbp.batch(model, photos / "1.png", out, labels=[f"c{i}" for i in range(12)])


@pytest.mark.parametrize("argument", ["model", "out"])
@pytest.mark.parametrize("value", ["", None, 3])
def test_what_is_no_path_is_refused(
    argument: str, value: Any, photos: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^{argument} is {value!r}\. +Supported: a path"):
        gbp.batch(**{"model": MODEL, "images": photos, "out": out, argument: value})
    assert not list(tmp_path.iterdir())


def test_images_in_the_folder_that_is_written_to(photos: Path) -> None:
    before = files_of(photos)
    with pytest.raises(InputError, match="all images are in the folder that is written to"):
        gbp.batch(MODEL, photos, photos, preprocess="unit")
    assert files_of(photos) == before


def test_a_folder_of_something_else_is_left_alone(photos: Path, out: Path) -> None:
    (out / "pictures").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds 'pictures', and no batch\.json"):
        gbp.batch(MODEL, photos, out)
    assert [path.name for path in out.iterdir()] == ["pictures"]


@pytest.mark.skipif(os.name == "nt", reason="there are no locks there")
def test_two_runs_at_once_are_refused_unless_they_share(photos: Path, out: Path) -> None:
    one = photos / "1.png"

    def meanwhile(done: int, total: int) -> None:
        before = sorted(out.rglob("*"))
        for shard in (None, (1, 2)):
            with pytest.raises(InputError, match="another run writes into"):
                gbp.batch(MODEL, one, out, shard=shard)
        assert sorted(out.rglob("*")) == before
        gbp.batch(MODEL, one, out, shard=(2, 2))

    gbp.batch(MODEL, one, out, shard=(1, 2), progress=meanwhile)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "unicorn"}, "no class is called"),
        ({"target": [1, 2]}, "one for all images"),
        ({"rule": "best"}, "rule is 'best'"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"method": "grad-cam", "rule": "guided"}, "has a rule of its own"),
        ({"method": "grad-cam", "method_options": {"steps": 3}}, "steps is no argument of method 'grad-cam'"),
        ({"method": "layer-gradient"}, "needs layer"),
        ({"look": {"alpha": 2}}, "alpha is 2"),
        ({"bare": True}, "one picture"),
        ({"format": "pdf"}, "format is 'pdf'"),
        ({"rule": "all", "arrays": "npz"}, "one target"),
        ({"target": Top(3), "style": "gray"}, "drawn as a strip"),
        ({"style": "none"}, "nothing to write"),
        ({"style": "plain"}, "style is 'plain'"),
        ({"format": "gif"}, "format is 'gif'"),
        ({"arrays": "hdf5"}, "arrays is 'hdf5'"),
        ({"shard": (0, 2)}, "shard is"),
        ({"engine": "spark"}, "engine is 'spark'"),
        ({"engine": "ray", "actors": 0}, "actors is 0"),
        ({"actors": 2}, "actors is 2, and engine is 'local'"),
        ({"ray_address": "auto"}, "ray_address is 'auto'"),
        ({"labels": ["a"]}, "1 label and 12 scores do not fit"),
    ],
)
def test_what_is_wrong_for_all_images_is_refused_at_once(
    options: dict[str, Any], says: str, photos: Path, out: Path
) -> None:
    with pytest.raises(InputError, match=says):
        gbp.batch(MODEL, photos, out, **options)
    assert not out.exists()


def test_a_missing_extra_is_named(photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ray", "zarr", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
        given: dict[str, Any] = {"ray": {"engine": "ray"}, "zarr": {"arrays": "zarr"}}.get(module, {})
        with pytest.raises(InputError, match=r"Install gbp-explain\[(ray|batch)\]"):
            gbp.batch(MODEL, photos, out, **given)
        assert not out.exists()


def test_what_ray_cannot_do_is_refused_where_nothing_is_left_to_do_too(
    photos: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"arrays": "npz", **PLAIN, "engine": "ray"}
    with pytest.raises(InputError, match="actors is 0"):
        gbp.batch(MODEL, photos, quiet, **given, actors=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="Ray is not installed"):
        gbp.batch(MODEL, photos, quiet, **given)
    monkeypatch.setattr(run_module, "import_ray", lambda: None)
    with pytest.raises(InputError, match="Say actors=N"):
        gbp.batch(MODEL, photos, quiet, **given, device="cuda")


def test_a_full_disk_stops_the_run(photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"cannot write .*No space left on device"):
            gbp.batch(MODEL, photos, out, **PLAIN)
    assert gbp.batch(MODEL, photos, out, **PLAIN).explained == IMAGES - 1


# -------------------------------------------------------------------------------------------- names of files


@pytest.mark.parametrize(
    ("path", "name", "stem"),
    [
        ("./a//b c.png", "a/b c.png", "b_c"),
        ("../x.jpg", "../x.jpg", "x"),
        ("...png", "...png", "png"),
        ("..", "..", "_"),
        ("\x1b[2J\n.png", "\x1b[2J\n.png", "__2J_"),
        ("a\udcff.png", "a\\xff.png", "a_xff"),
        ("ж" * 300 + ".png", "ж" * 300 + ".png", "ж" * 40),
    ],
)
def test_names(path: str, name: str, stem: str) -> None:
    task = Task(path, name_of(path))
    assert task.name == name
    folder, part, file = task.file("pictures", "png").split("/")
    assert folder == "pictures"
    assert file == f"{stem}-{file[-20:-4]}.png"
    assert file[-20:].startswith(part)
    assert len(os.fsencode(file)) < 255


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_no_text(photos: Path, out: Path, tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    try:
        shutil.copy(os.fsencode(photos / "1.png"), odd)
    except OSError:
        pytest.skip("this file system takes text alone")
    assert gbp.batch(MODEL, os.fsdecode(odd), out).explained == 1
    assert rows_of(out)[0]["path"].endswith("\\xff.png")
    assert gbp.batch(MODEL, os.fsdecode(odd), out).before == 1


def test_labels_that_are_no_text(photos: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps([f"c{i}\ud800\x1b" for i in range(12)]))
    gbp.batch(MODEL, photos / "1.png", out, labels=tmp_path / "labels.json", **PLAIN)
    assert rows_of(out)[0]["top"][0]["label"].endswith("\\ud800\x1b")


def test_what_a_batch_wrote_is_not_explained(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for _ in range(2):
        summary = gbp.batch(MODEL, tmp_path / "photos", tmp_path / "photos" / "maps", **PLAIN)
        assert summary.explained + summary.before == IMAGES - 1


# ----------------------------------------------------------------------------------------- the command line


def test_the_command_takes_any_rule_and_any_number_of_classes(photos: Path, out: Path) -> None:
    options = ["--rule", "lrp-epsilon", "--target", "top2", "--style", "none", "--arrays", "npz"]
    assert cli.main(["batch", str(MODEL), str(photos / "1.png"), "-o", str(out), *options]) == 0
    (path,) = out.rglob("*.npz")
    with np.load(path) as arrays:
        assert arrays["map"].shape[:2] == (1, 2)
        assert str(arrays["rule"]) == "lrp-epsilon"


def test_the_command_asks_for_hidden_units_contrasts_and_scores(photos: Path, tmp_path: Path) -> None:
    """As `explain` does; each image its own notes and values."""
    explainer, photo = Explainer(MODEL), str(photos / "1.png")
    cases: list[tuple[list[str], dict[str, Any]]] = [
        (["--at", "relu3", "--channel", "3", "--sum"], {"target": Channel("relu3", 3, "sum")}),
        (["--target", "1", "--against", "4"], {"target": Contrast(1, 4)}),
        (["--target", "1,2"], {"target": Several(1, 2)}),
        (["--score", "probability"], {"score": "probability"}),
    ]
    for i, (options, asked) in enumerate(cases):
        out = tmp_path / str(i)
        plain = ["--style", "none", "--arrays", "npz"]
        assert cli.main(["batch", str(MODEL), photo, "-o", str(out), *options, *plain]) == 0
        expected, (row,), (path,) = explainer.explain(photo, **asked), rows_of(out), out.rglob("*.npz")
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["map"], expected.map)
        for told, row_of in zip(expected[0].explained_rows(), row["target"], strict=True):
            assert (told["class"], told["label"]) == (row_of["class"], row_of["label"])
            assert row_of["score"] == pytest.approx(told["score"])
    other = ["--at", "relu3", "--channel", "3", "--sum", "--activation", *plain]
    assert cli.main(["batch", str(MODEL), photo, "-o", str(tmp_path / "0"), *other]) == 2
    with pytest.raises(InputError, match="method, which explains logits"):
        gbp.batch(MODEL, photo, tmp_path / "9", method="saliency", score="margin")


def test_the_command(
    photos: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.BytesIO(f"{photos / '1.png'}\n{photos / 'broken.jpg'}\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines))
    options = [
        "--target",
        "top5",
        "--shard",
        "1/1",
        "--format",
        "jpg",
        "--method",
        "vargrad",
        "--samples",
        "2",
    ]
    assert cli.main(["batch", str(MODEL), "-", "-o", str(out), *options]) == 1
    printed = capsys.readouterr().out
    assert "explained 1; 1 failed: column error of the index says why" in printed
    assert f"wrote {out / 'index-1-of-1.parquet'}" in printed
    assert cli.main(["batch", str(MODEL), str(photos / "1.png"), "-o", str(out), "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["explained"], report["before"], report["failed"]) == (0, 1, 0)
    assert cli.main(["batch", str(MODEL), str(photos), "-o", str(out), "--rule", "guided"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "gbp: error: --rule is guided and was vanilla; --target is none and was Top(k=5)"
    )
    assert (
        "; --method is none and was vargrad; --samples is none and was 2; --format is png and" in captured.err
    )


def test_a_label_of_the_models_own_file_may_hold_a_comma(
    photos: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where scikit-learn's converters have put the labels into the model."""
    b = Builder()
    model = b.model(b.node("Softmax", b.gemm(b.flatten(b.relu(b.input(1, 3, 8, 8))), 3)))
    scores = model.graph.output[0].name
    names = ["chow, chow-chow", "top7", "cat"]
    model.graph.node.add(op_type="ArgMax", input=[scores], output=["best"])
    model.graph.node.append(
        onnx.helper.make_node("ZipMap", [scores], ["table"], domain="ai.onnx.ml", classlabels_strings=names)
    )
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    model.graph.output.pop()
    model.graph.output.add(name="best").type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.output.add(name="table").type.map_type.key_type = onnx.TensorProto.STRING
    path = tmp_path / "own.onnx"
    path.write_bytes(model.SerializeToString())
    targets: list[Any] = []

    def batch(*_: object, target: Any, **__: object) -> BatchSummary:
        targets.append(target)
        return BatchSummary(0, 0, 0, out)

    monkeypatch.setattr("gbp.batch", batch)
    for text in (*names, "cat,top7", "top2"):
        assert cli.main(["batch", str(path), str(photos), "-o", str(out), "--target", text]) == 0
    assert targets == [*names, Several("cat", "top7"), Top(2)]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b"])
def test_shards_are_written_as_a_fraction(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["batch", str(MODEL), "x.png", "-o", "out", "--shard", text])
    assert "invalid shard value" in capsys.readouterr().err


def test_progress_is_counted(photos: Path, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    gbp.batch(MODEL, photos, out, **PLAIN, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, IMAGES), (16, IMAGES), (32, IMAGES), (IMAGES, IMAGES)]


def test_an_error_of_progress_stops_the_run_and_passes(photos: Path, out: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        gbp.batch(MODEL, photos, out, **PLAIN, progress=stop)


def test_reading_explaining_and_writing_overlap(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written before the second chunk is explained and an image of the third one is read."""
    paths = sorted(map(str, photos.iterdir()))
    explain, write, read = Worker.explain, Worker.write, Worker.read
    was_explained, was_read = threading.Event(), threading.Event()
    waited = []

    def reading(self: Worker, task: Task) -> Any:
        if task.path == paths[35]:
            was_read.set()
        return read(self, task)

    def explaining(self: Worker, reads: Any) -> Any:
        explained = explain(self, reads)
        if paths[20] in {read.task.path for read in reads}:
            was_explained.set()
        return explained

    def writing(self: Worker, one: Any) -> Any:
        waited.append(was_explained.wait(60) and was_read.wait(60))
        return write(self, one)

    for name, method in (("read", reading), ("explain", explaining), ("write", writing)):
        monkeypatch.setattr(Worker, name, method)
    gbp.batch(MODEL, paths, out, **PLAIN)
    assert len(waited) == IMAGES
    assert all(waited)


class Entered:
    """Counts the threads that are in some functions at the same time, and each as `weight` of them."""

    def __init__(self) -> None:
        self._lock, self._now = threading.Lock(), 0
        self.most = self.calls = 0

    def watch(self, function: Any, weight: int = 1) -> Any:
        def watched(*given: Any, **named: Any) -> Any:
            with self._lock:
                self._now += weight
                self.calls += 1
                self.most = max(self.most, self._now)
            time.sleep(0.002)  # others would come in meanwhile
            try:
                return function(*given, **named)
            finally:
                with self._lock:
                    self._now -= weight

        return watched


@pytest.mark.parametrize("processors", [1, 2, None])
def test_a_worker_uses_as_many_processors_as_it_is_given(
    processors: int | None, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = Entered()
    for owner, name, weight in (
        (worker_module, "read_image", 1),
        (Worker, "_group", processors or 1),
        (Worker, "_files", 1),
    ):
        monkeypatch.setattr(owner, name, entered.watch(getattr(owner, name), weight))
    job = Job(**JOB, out=str(out))
    folder = Folder(out)
    folder.open({})
    tasks = [Task(str(path), path.name) for path in sorted(photos.iterdir())]
    rows = [row for rows in locally(Worker(job, folder, processors), tasks) for row in rows]
    folder.close()
    assert sum(row["error"] is None for row in rows) == IMAGES - 1
    assert entered.calls > 2 * IMAGES
    assert entered.most == processors if processors else entered.most > 2


def test_a_note_on_one_array_is_not_said_of_others(photos: Path, out: Path, tmp_path: Path) -> None:
    prepared = Explainer(MODEL).prepare(photos / "0.png")[0]
    for name, array in (("a", prepared - prepared.min() + 100), ("b", prepared), ("c", prepared)):
        np.save(tmp_path / f"{name}.npy", array)
    worker = Worker(Job(**JOB, out=str(out)), Folder(out), processors=1)
    reads = [worker.read(Task(str(tmp_path / f"{name}.npy"), name)) for name in "abc"]
    asked = [
        any("prepare them as" in note for note in e.attributions[0].notes) for e in worker.explain(reads)
    ]
    assert asked == [True, False, False]


def test_who_waits_for_the_disk_keeps_no_processor(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written before the second chunk is explained."""
    group, put = Worker._group, Folder.put
    explained, waited, second = [], [], threading.Event()

    def explaining(self: Worker, reads: Any) -> Any:
        result = group(self, reads)
        explained.append(len(result))
        if len(explained) == 2:
            second.set()
        return result

    def putting(self: Folder, name: str, data: bytes) -> None:
        waited.append(second.wait(60))
        put(self, name, data)

    monkeypatch.setattr(Worker, "_group", explaining)
    worker = Worker(Job(**JOB, out=str(out)), folder := Folder(out), processors=1)
    folder.open({})
    monkeypatch.setattr(Folder, "put", putting)
    tasks = [Task(str(path), path.name) for path in sorted(photos.iterdir())]
    assert len([row for rows in locally(worker, tasks) for row in rows]) == IMAGES
    folder.close()
    assert waited == [True] * (IMAGES - 1)


# ------------------------------------------------------------------------------------------------------ Ray


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_what_cannot_be_written_stops_the_run(engine: Any, photos: Path, out: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="--engine ray needs the extra ray")
    gbp.batch(MODEL, photos / "1.png", out, **PLAIN)
    shutil.rmtree(out / "pictures")
    (out / "pictures").write_bytes(b"no folder")
    actors = 1 if engine == "ray" else None
    with pytest.raises(InputError, match="cannot write"):
        gbp.batch(MODEL, photos, out, **PLAIN, engine=engine, actors=actors)


@pytest.mark.parametrize(("actors", "threads"), [(2, None), (1, 2)])
def test_ray_makes_the_same_files(
    actors: int, threads: int | None, photos: Path, quiet: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="--engine ray needs the extra ray")
    import ray.data

    asked = []
    map_batches = ray.data.Dataset.map_batches

    def mapping(*given: Any, **named: Any) -> Any:
        asked.append(named["num_cpus"])
        return map_batches(*given, **named)

    monkeypatch.setattr(ray.data.Dataset, "map_batches", mapping)
    summary = gbp.batch(
        MODEL, photos, out, arrays="npz", **PLAIN, engine="ray", actors=actors, threads=threads
    )
    assert summary.explained == IMAGES - 1
    assert files_of(out) == files_of(quiet)
    assert asked == [threads or 1]
