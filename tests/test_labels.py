"""Names of classes in every form in which they are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gbp import Explainer, InputError
from gbp.pictures.labels import SHIPPED, read_labels
from gbp.pictures.sidecar import read_sidecar

MODEL = Path(__file__).resolve().parent.parent / "models" / "demo.onnx"
FORMS = {
    "a.txt": "cat\ndog\nfish\n",
    "list.json": json.dumps(["cat", "dog", "fish"]),
    "indices.json": json.dumps({"2": "fish", "0": "cat", "1": "dog"}),
    "names.json": json.dumps({"fish": 2, "cat": 0, "dog": 1}),
    "keras.json": json.dumps({"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "fish"]}),
    "config.json": json.dumps({"model_type": "x", "id2label": {"0": "cat", "1": "dog", "2": "fish"}}),
    "one.csv": "cat\ndog\nfish\n",
    "two.csv": "2,fish\n0,cat\n1,dog\n",
    "turned.csv": "fish,2\ncat,0\ndog,1\n",
    "head.csv": "index,label\n1,dog\n0,cat\n2,fish\n",
    "audio.csv": "index,mid,display_name\n0,/m/1,cat\n1,/m/2,dog\n2,/m/3,fish\n",
    "tab.tsv": "name\tindex\nfish\t2\ncat\t0\ndog\t1\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name])
    assert read_labels(tmp_path / name) == ("cat", "dog", "fish")


def test_a_comma_in_a_name_is_kept_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('0,"lion, king of beasts"\n1,dog\n')
    assert read_labels(tmp_path / "a.csv") == ("lion, king of beasts", "dog")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"cat": 0, "dog": 2}', "indices"),
        ("a.json", '{"cat": 1, "dog": 1}', "indices"),
        ("a.json", '{"0": ["n1", 2], "1": "dog"}', "list of class names"),
        ("a.json", '{"id2label": {"1": "cat"}}', "indices"),
        ("a.csv", "a,b\nc,d\n", "2 columns"),
        ("a.csv", "0,cat\n0,dog\n", "twice"),
        ("a.csv", "0,cat\n1\n", "shorter"),
        ("a.csv", "", "list of class names"),
        ("a.csv", "index,label\n", "list of class names"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_labels(tmp_path / name)
    assert name in str(error.value)


def test_shipped_names() -> None:
    counts = {name: len(read_labels(name) or ()) for name in SHIPPED}
    assert counts == {"imagenet": 1000, "cifar10": 10, "mnist": 10, "imagenet1001": 1001}
    names = read_labels("imagenet") or ()
    for index, name in ((0, "tench"), (291, "lion"), (281, "tabby"), (999, "toilet tissue")):
        assert names[index].startswith(name)
    assert (read_labels("imagenet1001") or ())[1:] == names
    with pytest.raises(InputError, match=r"imagenet.*cifar10.*mnist"):
        read_labels("imagenet2")


def test_a_sidecar_names_them(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text('labels = "cifar10"')
    assert (read_sidecar(tmp_path / "net.onnx").labels or ())[3] == "cat"


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="10 labels and 12 scores"):
        Explainer(MODEL, labels="cifar10").explain(MODEL.with_suffix(".png"))
