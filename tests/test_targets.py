"""Which score is meant, and what it is called: labels, and indices along the axes of a detector's scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gbp import At, Contrast, Explainer, InputError, Top
from gbp.bulk.folder import Folder
from gbp.cli.main import main
from gbp.cli.options import in_options
from gbp.cli.options import target as target_of
from gbp.errors import counted, readable_bytes
from gbp.kernels.parallel.threads import thread_count
from gbp.pictures.preprocess import Preprocess
from gbp.questions.targets import Classes
from gbp.serve.limits import Limits

IMAGENET = (
    *("bullfrog, Rana catesbeiana", "polecat, fitch", "catamaran", "tabby, tabby cat", "tiger cat"),
    *("Egyptian cat", "lion, king of beasts", "crane", "crane, bird", "lotion"),
)


def detector(*shape: int) -> onnx.ModelProto:
    """A sample's scores have this shape."""
    b = Builder()
    y = b.gemm(b.flatten(b.relu(b.conv(b.input(1, 3, 6, 6), 4))), int(np.prod(shape)))
    return b.model(b.reshape(y, 0, *shape))


def image(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((1, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("cat", "'tabby, tabby cat' or 'tiger cat' or 'Egyptian cat'"),
        ("beasts", "'lion, king of beasts'"),
        ("cata", "'catamaran'"),
        ("tabbi", "'tabby, tabby cat'"),
        ("lino", "'lion, king of beasts'"),
        ("loin", "'lion, king of beasts' or 'lotion'"),
        ("oleca", "'polecat, fitch'"),
        ("c++", None),
    ],
)
def test_what_was_meant(said: str, hint: str | None) -> None:
    with pytest.raises(InputError, match=f"no class is called '{said[0]}") as caught:
        Classes((len(IMAGENET),), IMAGENET).labelled(said, np.zeros((1, len(IMAGENET)), np.float32))
    assert caught.value.hint == (hint and f"Did you mean {hint}?")


def test_labels_of_several_targets_of_each_image() -> None:
    explainer = Explainer(detector(3), labels=["cat", "dog", "bird"])
    two = np.concatenate([image(), image(1)])
    assert explainer.explain(image(), target=[["bird", "cat"]]).target.tolist() == [[2, 0]]
    assert explainer.explain(two, target=[["bird", 1], [At("cat"), "dog"]]).target.tolist() == [
        [2, 1],
        [0, 1],
    ]
    assert explainer.explain(two, target=["bird", 1]).target.tolist() == [2, 1]
    for target in (["bird", "cat"], [2, 0], ("bird", 0)):
        with pytest.raises(InputError, match=r"give gbp\.Several\(('bird'|2), ('cat'|0)\)\."):
            explainer.explain(image(), target=target)
    with pytest.raises(InputError, match=r"\('cat', 'cat', 'cat', 'cat', 'cat', …\)\.$"):
        explainer.explain(image(), target=["cat"] * 40)
    with pytest.raises(InputError, match=r"target is \['cat', \['dog', 'bird'\]\]\."):  # as it was given
        explainer.explain(two, target=["cat", ["dog", "bird"]])


@pytest.mark.parametrize("labels", [IMAGENET, None])
def test_the_command_line_s_word_for_the_highest_scores_is_explained(labels: tuple[str, ...] | None) -> None:
    with pytest.raises(InputError, match=r"For the highest scores give gbp\.Top\(5\)"):
        Classes((len(IMAGENET),), labels).labelled("top5", np.zeros((1, len(IMAGENET)), np.float32))


def test_a_label_may_name_several_classes() -> None:
    scores = np.zeros((1, len(IMAGENET)), np.float32)
    assert Classes((len(IMAGENET),), IMAGENET).labelled("tabby", scores) == 3
    assert Classes((len(IMAGENET),), IMAGENET).labelled("Crane", scores) == 7
    with pytest.raises(InputError, match="names 2 classes"):
        Classes((2,), ("crane, bird", "crane, machine")).labelled("crane", scores[:, :2])


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_a_position_means_the_score_that_it_names(shape: list[int], data: st.DataObject) -> None:
    classes = Classes(tuple(shape))
    number = data.draw(st.integers(0, classes.count - 1))
    assert classes.number(At(*map(int, np.unravel_index(number, shape)))) == number
    said = target_of(classes.position(number))
    assert (classes.number(said) if isinstance(said, At) else said) == number


def test_labels_name_the_axis_that_is_as_long() -> None:
    boxes = Classes((1, 7, 3), ("cat", "dog", "cow"))
    assert boxes.name(10) == "dog (3:1)"
    assert boxes.number(At(3, "dog")) == boxes.number(At(0, 3, "dog")) == boxes.number(At(3, 1)) == 10
    pixels = Classes((3, 7, 8), ("cat", "dog", "cow"))
    assert pixels.name(60) == "dog (1:0:4)"
    assert pixels.number(At("dog", 0, 4)) == 60
    assert Classes((1000, 1, 1)).name(7) == "class 7"
    assert Classes((2, 2), tuple("abcd")).name(2) == "c"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (At(7, 1), r"At\(7, 1\): there is no 7 along axis 0 of the scores. Supported: 0 to 6"),
        (At(1), r"has 1 indices, and the scores have shape \[7, 3\]"),
        (At(1, 1, 1), r"has 3 indices, and the scores have shape \[7, 3\]"),
        (At("dog", 1), "has a label along axis 0, which has none"),
        (At(1, "dug"), "no class is called 'dug'. Did you mean 'dog'"),
        ("dug", "no class is called 'dug'. Did you mean 'dog'"),
        (Contrast("dog", "dug"), "no class is called 'dug'"),
        (21, "target 21 is no class. Supported: 0 to 20"),
    ],
)
def test_what_is_no_score_is_refused(target: Any, message: str) -> None:
    explainer = Explainer(detector(7, 3), labels=["cat", "dog", "cow"])
    with pytest.raises(InputError, match=message):
        explainer.explain(image(), rule="vanilla", target=target)


@pytest.mark.parametrize("indices", [(), (-1,), (1.5,), (True,), (None,)])
def test_what_is_no_index_is_refused(indices: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="At"):
        At(*indices)


def test_labels_that_fit_no_axis_are_refused() -> None:
    with pytest.raises(InputError, match=r"2 labels and scores of shape \[7, 3\]"):
        Explainer(detector(7, 3), labels=["cat", "dog"]).explain(image())


def test_a_score_by_its_position_is_that_score() -> None:
    explainer = Explainer(detector(7, 3), labels=["cat", "dog", "cow"])
    by_number = explainer.explain(image(), rule="vanilla", target=16)
    for target in (At(5, 1), At(5, "dog"), [At(5, 1)]):
        result = explainer.explain(image(), rule="vanilla", target=target)
        assert result.map.tobytes() == by_number.map.tobytes()
        assert result.label() == "dog (5:1)"
    best = explainer.explain(image(), target=Top(3))[0]
    assert (
        best.only(At(*map(int, best._classes.position(int(best.target[1])).split(":")))).target
        == best.target[1]
    )
    row = result.to_dict()["explained"][0]
    assert (row["class"], row["position"], row["label"]) == (16, "5:1", "dog (5:1)")


def test_a_label_of_many_scores_is_the_highest_of_them_in_each_image() -> None:
    labels = ["cat", "dog", "cow"]
    explainer = Explainer(detector(7, 3), labels=labels)
    x = np.concatenate([image(seed) for seed in range(4)])
    scores = explainer.predict(x).reshape(4, 7, 3)
    boxes = scores[:, :, 1].argmax(axis=1)
    assert len(set(boxes.tolist())) > 1
    for batch_size in (None, 1):
        found = explainer.explain(x, rule="vanilla", target="dog", batch_size=batch_size)
        assert found.target.tolist() == (boxes * 3 + 1).tolist()
    named = explainer.explain(x, target=["dog", "cat", "cow", "dog"], batch_size=3).target
    assert named.tolist() == [3 * int(scores[i, :, k].argmax()) + k for i, k in enumerate((1, 0, 2, 1))]
    best = [[f"{label} ({box}:{labels.index(label)})" for label in ("dog", "cow")] for box in boxes]
    contrast = explainer.explain(x, target=Contrast("dog", "cow"))
    assert contrast.details["question"].tolist() == [" - ".join(names) for names in best]
    with pytest.raises(InputError, match=r"target has shape \[3\] for 4 image"):
        explainer.explain(x, target=["dog", "cat", "cow"])


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("7", 7),
        ("5763:1", At(5763, 1)),
        ("5763:dog", At(5763, "dog")),
        ("tiger cat", "tiger cat"),
        ("Star Wars: A New Hope", "Star Wars: A New Hope"),
        (":1", ":1"),
    ],
)
def test_the_command_line_reads(said: str, meant: Any) -> None:
    assert target_of(said) == meant


def test_counts_and_sizes_in_sentences() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "copy", "copies") for n in (1, 2)] == ["1 copy", "2 copies"]
    assert [readable_bytes(2.0**n) for n in (9, 19, 21, 31)] == ["0.5 KiB", "512 KiB", "2 MiB", "2 GiB"]
    with pytest.raises(InputError, match=r"^no class is called '3'\. An index is an integer"):
        Classes((2,), ("cat", "dog")).labelled("3", np.zeros((1, 2), np.float32))
    one = Classes((2,), ("cat",))
    with pytest.raises(InputError, match=r"^1 label and 2 scores do not fit together"):
        one.check_labels()
    with pytest.raises(
        InputError, match=r"^2 labels and 1 score do not .* name what a high score stands for"
    ):
        Classes((1,), ("cat", "dog")).check_labels()


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> str:
    """The message of what the library refuses."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("target At(5763, 'dog'): there is no", "--target 5763:dog: there is no"),
        ("Say which one: target=At(0, 'dog'), for example.", "Say which one: --target 0:dog, for example."),
        ("target 'cat' names 5 classes", "--target 'cat' names 5 classes"),
        ("target 9 is no class.", "--target 9 is no class."),
        ("input 'x' has shape [1].", "input 'x' has shape [1]."),
        ("Say it: size=(H, W).", "Say it: --size HxW."),
        ("labels are not known. Give labels.", "labels are not known. Give --labels."),
        (refusal(Preprocess, size=(0, 0)), "--size is 0x0. Supported: N or HxW, of at least 1."),
        (refusal(Preprocess, mean=(1.0, 2.0)), "--mean is 1,2. Supported: 1 or 3 numbers."),
        (refusal(Preprocess, std=(0.0,)), "--std is 0. Supported: numbers above 0."),
        (refusal(Preprocess, crop=3.0), "--crop is 3.0. Supported: a number from 0.01 to 1, or auto."),
        (refusal(Preprocess, scale=0.0), "--scale is 0.0. Supported: a number other than 0."),
        (refusal(thread_count, 0), "--threads is 0. Supported: a whole number from 1 to 1024."),
        (refusal(Limits, body=0), "--max-body is 0. Supported: numbers of at least 1."),
        (refusal(Limits, pixels=0), "--max-pixels is 0. Supported: numbers of at least 1."),
        (refusal(Limits, targets=0), "--max-targets is 0. Supported: numbers of at least 1."),
        (refusal(Limits, queue=0), "--queue is 0. Supported: numbers of at least 1."),
        (refusal(Limits, seconds=0), "--seconds is 0. Supported: numbers of at least 1."),
        ("port is 99999. Supported: 0 to 65535.", "--port is 99999. Supported: 0 to 65535."),
        ("classes is 0. Supported: 1 to 20.", "--classes is 0. Supported: 1 to 20."),
        ("Leave the device out to compute on the CPU.", "Leave --device out to compute on the CPU."),
        ("size is (5, 5), the network takes (8, any).", "--size is 5x5, the network takes 8xany."),
        (
            "preprocess asks for size (5, 5), the network takes (8, 8).",
            "preprocess asks for size 5x5, the network takes 8x8.",
        ),
        (
            "'a.toml': preprocess size is (0, 0), wanted it.",
            "'a.toml': preprocess size is (0, 0), wanted it.",
        ),
    ],
)
def test_the_command_line_speaks_its_own_language(said: str, shown: str) -> None:
    assert in_options(said) == shown


def test_all_settings_of_a_folder_are_options(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.open({"rule": "guided", "model": "a", "max_side": None, "output": None})
    folder.close()
    said = refusal(folder.open, {"rule": "vanilla", "model": "b", "max_side": 9, "output": None})
    assert in_options(said).startswith(
        "--rule is vanilla and was guided; model is b and was a; --max-side is 9 and was none when "
    )


def test_a_detector_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(detector(7, 3), "net.onnx")
    Image.new("RGB", (6, 6), "red").save("red.png")
    Path("labels.txt").write_text("cat\ndog\ncow\n")
    command = ["explain", "net.onnx", "red.png", "--preprocess", "unit", "--rule", "vanilla"]
    command += ["--labels", "labels.txt"]
    assert main([*command, "--target", "5:dog"]) == 0
    assert "explained by vanilla: dog (5:1)\n" in capsys.readouterr().out
    assert main([*command, "--target", "5:1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"][0]["explained"]
    assert (row["class"], row["position"]) == (16, "5:1")
    assert main([*command, "--target", "dog"]) == 0  # the best dog of all boxes
    assert "explained by vanilla: dog (4:1)\n" in capsys.readouterr().out
