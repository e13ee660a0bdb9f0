"""What can be asked besides classes: hidden units, contrasts, scores; in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from agreement import assert_close
from builder import Builder
from numpy.typing import NDArray

from gbp import Channel, Contrast, Explainer, InputError, Several, Top, Unit
from gbp.cli.main import main
from gbp.questions.head import Head
from gbp.questions.score import of_classes, of_function
from gbp.questions.targets import Classes

MODELS = Path(__file__).parents[1] / "models"
DEMO = MODELS / "demo.onnx"
LABELS = ("cat", "dog, hound", "hen", "cow")


def model() -> Any:
    b = Builder(seed=1)
    x = b.relu(b.conv(b.input(3, 3, 6, 7), 5, 3))
    return b.model(b.node("Softmax", b.head(b.conv(x, 4, 1)), axis=1))


X = np.random.default_rng(0).standard_normal((3, 3, 6, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(model(), labels=LABELS)


@pytest.fixture(scope="module")
def truth() -> oracle.Run:
    run = oracle.Run(model(), X)
    assert run.margin > 1e-5
    return run


def units(truth: oracle.Run, chosen: NDArray[np.bool_], activation: bool) -> NDArray[np.float64]:
    value = truth.values["relu1"]
    seed = chosen * (value if activation else 1.0)
    return truth.reverse("deconvnet", "relu1", seed)


@pytest.mark.parametrize("seed", ["one", "activation"])
def test_a_unit_a_channel_and_the_strongest(explainer: Explainer, truth: oracle.Run, seed: Any) -> None:
    value = truth.values["relu1"]
    n = np.arange(3)
    chosen = np.zeros((4, *value.shape), np.bool_)
    chosen[0, :, 2, 1, 3] = True
    flat = value.reshape(3, -1)
    chosen[1].reshape(3, -1)[n, flat.argmax(axis=1)] = True
    planes = value[:, 4].reshape(3, -1)
    chosen[2][:, 4].reshape(3, -1)[n, planes.argmax(axis=1)] = True
    chosen[3, :, 4] = True
    asked = Several(
        Unit("relu1", 2, 1, 3, seed=seed),
        Unit("relu1", seed=seed),
        Channel("relu1", 4, seed=seed),
        Channel("relu1", 4, "sum", seed=seed),
    )
    found = explainer.explain(X, target=asked, rule="deconvnet")
    for k in range(4):
        assert_close(found.map[:, k], units(truth, chosen[k], seed == "activation"), str(k))
        total = (chosen[k] * value).reshape(3, -1).sum(axis=1)
        np.testing.assert_allclose(found.details["value"][:, k], total, rtol=1e-5)
    place = ":".join(map(str, np.unravel_index(int(flat[1].argmax()), value.shape[1:])))
    assert list(found.details["question"][1]) == [
        "relu1 2:1:3",
        f"relu1 {place}",
        found.details["question"][1, 2],
        "relu1 channel 4",
    ]
    alone = explainer.explain(X, target=Unit("relu1", seed=seed), rule="deconvnet", batch_size=1)
    assert alone.map.tobytes() == found.map[:, 1].tobytes()
    assert alone[1].label() == f"relu1 {place}"
    assert (alone.target == alone.scores.argmax(axis=1)).all()


def test_the_scores_are_a_tensor_too(explainer: Explainer) -> None:
    name = explainer.tensors[-1].name
    found = explainer.explain(X, target=Unit(name, 2), rule="guided")
    assert found.map.tobytes() == explainer.explain(X, target=2).map.tobytes()


def test_a_unit_that_is_dead_is_told_of(explainer: Explainer) -> None:
    with explainer.run(X[:1], ["relu1"]) as run:
        place = np.argwhere(run.value("relu1")[0] == 0)[0]
    found = explainer.explain(X[:1], target=Unit("relu1", *place))
    assert "1 of 1 explained units are 0: nothing in the image excites them." in found.notes


@pytest.mark.parametrize("rule", ["vanilla", "guided"])
def test_a_contrast_goes_back_as_one_seed(explainer: Explainer, truth: oracle.Run, rule: str) -> None:
    seed = np.zeros((3, 4))
    seed[:, 1], seed[:, 3] = 1, -1
    found = explainer.explain(X, target=Contrast("hound", 3), rule=rule)
    name = truth._logits()
    assert_close(found.map, truth.reverse(rule, name, seed.reshape(truth.values[name].shape)), rule)
    np.testing.assert_allclose(found.details["value"], found.scores[:, 1] - found.scores[:, 3], rtol=1e-6)
    assert found[0].label() == "dog, hound - cow"


def test_several_classes_are_those_of_indices(explainer: Explainer) -> None:
    expected = explainer.explain(X, target=[[2, 0]] * 3)
    found = explainer.explain(X, target=Several("hen", 0))
    assert found.map.tobytes() == expected.map.tobytes()
    assert "question" not in found.details
    mixed = explainer.explain(X, target=Several("hen", 0, Unit("relu1")))
    assert [one.caption() for one in mixed[0].each_target()][:2] == [
        f"hen: {found.scores[0, 2]:.3g}",
        f"cat: {found.scores[0, 0]:.3g}",
    ]
    np.testing.assert_array_equal(mixed.map[:, :2], expected.map)
    assert [row["label"] for row in found[0].to_dict()["explained"]] == ["hen", "cat"]


HEADS = [
    Head("Softmax", (6,), (0,)),
    Head("LogSoftmax", (2, 3), (1,)),
    Head("Softmax", (2, 3), (0, 1)),
    Head("Sigmoid", (6,)),
]


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("name", ["logit", "probability", "log-probability", "margin"])
def test_a_score_has_the_gradient_of_its_value(head: Head, name: Any) -> None:
    scores = 3 * np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)
    targets = np.array([0, 3, 5, 1])
    found = of_classes(name, scores, targets, head, Classes(head.shape))

    def score(s: NDArray[np.float64]) -> tuple[Any, Any]:
        each = of_classes(name, s.astype(np.float64), targets, head, Classes(head.shape))  # type: ignore[arg-type]
        return each.value, each.gradient

    of_function(score, scores, check=True)
    p = head.probabilities(scores)[np.arange(4), targets]
    if name == "probability":
        np.testing.assert_allclose(found.value, p, rtol=1e-5)
    if name == "log-probability":
        np.testing.assert_allclose(found.value, np.log(p), rtol=1e-5)


def test_a_margin_is_over_the_classes_of_the_same_box() -> None:
    scores = np.float32([[[5, 1, 9], [2, 7, 3]]])  # (1, classes, boxes)
    flat = scores.reshape(1, -1)
    cases: list[tuple[Classes, Head | None, int, int]] = [
        (Classes((2, 3), ("cat", "dog")), None, 0, 3),  # class 0 of box 0: against class 1 of box 0
        (Classes((2, 3), ("cat", "dog")), None, 4, 1),
        (Classes((2, 3)), Head("Softmax", (2, 3), (0,)), 5, 2),
        (Classes((1, 6, 1)), None, 0, 2),  # a single axis: the highest of all others
        (Classes((2, 3), tuple("abcdef")), None, 2, 4),  # labels that name all scores
    ]
    for classes, head, target, runner in cases:
        found = of_classes("margin", flat, np.array([target]), head, classes)
        expected = np.zeros((1, 6))
        expected[0, target], expected[0, runner] = 1, -1
        np.testing.assert_array_equal(found.gradient, expected)
        assert found.value[0] == flat[0, target] - flat[0, runner]
    for head in (None, Head("Sigmoid", (2, 3))):
        with pytest.raises(InputError, match="nothing says which axis holds the classes"):
            of_classes("margin", flat, np.array([0]), head, Classes((2, 3)))


def test_scores_go_back_as_their_gradient(explainer: Explainer) -> None:
    targets = np.array([1, 0, 2])
    vanilla = explainer.explain(X, rule="vanilla", target=np.tile(np.arange(4), (3, 1)))
    p = vanilla.probabilities
    mean = (p[:, :, None, None, None] * vanilla.map).sum(axis=1)
    chosen = vanilla.map[np.arange(3), targets]
    found = explainer.explain(X, rule="vanilla", target=targets, score="log-probability")
    np.testing.assert_allclose(found.map, chosen - mean, rtol=1e-3, atol=1e-6)
    summed = explainer.explain(X, rule="vanilla", target=Top(4), score="sum")
    np.testing.assert_allclose(summed.map, vanilla.map.sum(axis=1), rtol=1e-3, atol=1e-6)
    plain = explainer.explain(X, target=1)
    assert explainer.explain(X, target=1, score="logit").map.tobytes() == plain.map.tobytes()


def test_a_function_of_the_scores(explainer: Explainer) -> None:
    def energy(s: NDArray[np.float64]) -> tuple[Any, Any]:
        return (s * s).sum(axis=1) / 2, s

    found = explainer.explain(X, rule="guided", score=energy)
    with explainer.run(X) as run:
        assert found.map.tobytes() == run.vjp(run.scores, "guided").tobytes()
    assert found[0].label() == "energy"

    def wrong(s: NDArray[np.float64]) -> tuple[Any, Any]:
        return (s * s).sum(axis=1), s

    with pytest.raises(InputError, match="the gradient that the score 'wrong' returns is not"):
        explainer.explain(X, score=wrong)
    with pytest.raises(InputError, match=r"returned shapes \[\] and \[3, 4\]"):
        explainer.explain(X, score=lambda s: (s.sum(), s))
    with pytest.raises(InputError, match="failed: "):
        explainer.explain(X, score=lambda s: 3)
    with pytest.raises(InputError, match="failed: IndexError: index 99 is out of bounds"):
        explainer.explain(X, score=lambda s: (s[:, 99], s))
    with pytest.raises(InputError, match="failed: TypeError: it returned complex128"):
        explainer.explain(X, score=lambda s: (s.sum(axis=1) * 1j, np.ones_like(s)))
    with pytest.raises(InputError, match="Leave the target out"):
        explainer.explain(X, target=1, score=energy)


def test_scores_that_are_probabilities_may_be_0() -> None:
    scores, targets, head = np.array([[1, 0]], np.float32), np.array([1]), Head("", (2,))
    found = of_classes("probability", scores, targets, head, Classes(head.shape))
    assert found.value.tolist() == [0]
    assert found.gradient.tolist() == [[0, 1]]
    with pytest.raises(InputError, match="has no logarithm"):
        of_classes("log-probability", scores, targets, head, Classes(head.shape))


def test_what_cannot_be_asked(explainer: Explainer) -> None:
    headless = Explainer(DEMO, output="relu_fc")
    x = np.zeros((1, *headless.input_shape[1:]), np.float32)
    for target, score, message in [
        (Unit("relu1", 5, 0, 0), None, r"'relu1' has shape \[5, 4, 5\], and no unit 5,0,0"),
        (Unit("relu1", 1), None, r"shape \[5, 4, 5\]"),
        (Channel("relu1", 5), None, "no channel 5 along axis 0"),
        (Unit("relu9"), None, "no tensor .* is called 'relu9'"),
        (Unit("relu1"), "margin", "a hidden unit has no score"),
        (Contrast(1, "fox"), None, "no class is called 'fox'"),
        (Contrast(Top(2), 1), None, "a contrast holds"),
        (1, "odds", "score is 'odds'. Supported: logit, "),
        (1, np.array([1, 2]), "score is array"),
        ([Unit("relu1")] * 3, None, "target is"),
    ]:
        with pytest.raises(InputError, match=message):
            explainer.explain(X, target=target, score=score)
    with pytest.raises(InputError, match="has no head that makes probabilities"):
        headless.explain(x, score="probability")
    for make in (
        lambda: Unit("a", -1),
        lambda: Unit("a", seed="two"),  # type: ignore[arg-type]
        lambda: Channel("a", 1.5),  # type: ignore[arg-type]
        lambda: Channel("a", 1, "mean"),  # type: ignore[arg-type]
        Several,
    ):
        with pytest.raises(InputError):
            make()


def test_questions_compare_by_what_they_ask() -> None:
    assert Unit("a", 1) == Unit("a", 1) != Unit("a", 2)
    assert len({Channel("a", 1), Channel("a", 1), Channel("a", 1, "sum"), Contrast(1, 2), Several(1)}) == 4
    assert repr(Several(Unit("a", 1), Contrast("x", 2))) == "Several(Unit('a', 1), Contrast('x', 2))"


# --- On the command line ------------------------------------------------------------------------------------


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    file = str(tmp_path / "a.png")
    assert main(["explain", str(DEMO), str(MODELS / "demo.png"), "-o", file, "--json", *options]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert Path(file).stat().st_size > 1000
    return dict(image)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (("--at", "relu3", "--unit", "17,7,13"), ["relu3 17:7:13"]),
        (("--at", "relu3", "--channel", "17"), ["relu3 17:7:13"]),
        (("--at", "relu3", "--channel", "17", "--sum", "--activation"), ["relu3 channel 17"]),
        (("--target", "ring,key"), ["ring", "key"]),
        (("--target", "ring, 3"), ["ring", "heart"]),
        (("--target", "ring", "--against", "key"), ["ring - key"]),
        (("--top", "2"), ["ring", "key"]),
        (("--target", "top3"), ["ring", "key", "moon"]),
        (("--score", "margin"), ["margin of ring"]),
        (("--top", "2", "--score", "sum"), ["ring + key"]),
    ],
)
def test_the_command_line_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], labels: list[str]
) -> None:
    image = run(tmp_path, capsys, *options)
    assert [row["label"] for row in image["explained"]] == labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "1", "--at", "relu3"), "--target and --at ask different questions."),
        (("--channel", "1"), "--channel, --unit, --sum and --activation belong to --at."),
        (("--at", "relu3", "--channel", "1", "--unit", "1"), "--channel and --unit ask different questions."),
        (("--at", "relu3", "--sum"), "--sum belongs to --channel."),
        (("--against", "key"), "--against needs --target."),
        (("--at", "relu3", "--score", "margin"), "--score is of classes"),
        (("--at", "relu3", "--unit", "a"), "--unit is 'a'."),
        (("--at", "relu3", "--unit", "1,2"), "and no unit 1,2."),
        (("--target", "5,6", "--against", "7"), "--target is '5,6'. Supported: with --against, one class"),
        (("--target", "5", "--against", "6,7"), "--against is '6,7'. Supported: with --against, one class"),
        (("--score", "margin", "--method", "smoothgrad"), "--method explains logits."),
        (("--target", "ring,key", "--rule", "all"), "several rules draw one target."),
        (("--target", "ring,key", "--style", "overlay"), "several targets are drawn as a strip."),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "a.png"
    assert main(["explain", str(DEMO), str(MODELS / "demo.png"), "-o", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_output_is_found_as_other_tensors_are() -> None:
    x = np.zeros((1, 3, 96, 96), np.float32)
    exact = Explainer(DEMO, output="relu_fc").predict(x)
    assert Explainer(DEMO, output="RELU_FC").predict(x).tobytes() == exact.tobytes()
    with pytest.raises(InputError, match=r"'relu' is a part of 5 tensors' names: 'relu1', "):
        Explainer(DEMO, output="relu")
    with pytest.raises(InputError, match=r"no tensor is called 'rleu_fc'.* Did you mean 'relu_fc'"):
        Explainer(DEMO, output="rleu_fc")
