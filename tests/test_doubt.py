"""Doubt: what measures of maps say, and what randomised weights show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import numpy_helper

from gbp import RULES, Attribution, Contrast, Explainer, InputError, Top, methods
from gbp.cli import main as cli
from gbp.compat.captum import NoiseTunnel, Saliency
from gbp.compat.xplique import SmoothGrad
from gbp.doubt.classes import class_sensitivity
from gbp.doubt.faithful import deletion, infidelity, insertion, max_sensitivity
from gbp.doubt.localise import pointing_game, relevance_mass
from gbp.doubt.randomise import Randomised, drawn_like
from gbp.doubt.result import MEASURES, MODES
from gbp.doubt.sanity import _randomised_of, sanity
from gbp.importer.subgraph import Choice
from gbp.pictures.chart import Chart, draw_charts
from gbp.pictures.figure import WARNING_PAPER as WARNING
from gbp.result.similarity import cosine, likeness, rank_correlation, ssim

MODELS = Path(__file__).parent.parent / "models"
DEMO, PICTURE = MODELS / "demo.onnx", MODELS / "demo.png"

numbers = st.floats(-1e3, 1e3, width=32)
vectors = arrays(np.float32, 12, elements=numbers)
planes = arrays(np.float32, (13, 15), elements=st.integers(-3, 3).map(float))


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ------------------------------------------------------------------------------------------------- likeness


@given(vectors, vectors, st.floats(0.125, 8))
def test_a_cosine_is_symmetric_and_knows_no_scale(a: NDArray[Any], b: NDArray[Any], scale: float) -> None:
    assert cosine(a, b) == pytest.approx(cosine(b, scale * a), abs=1e-6)
    assert abs(cosine(a, b)) <= 1
    assert cosine(a, -a) == pytest.approx(-1 if a.any() else 0)


def test_a_cosine_of_tiny_numbers_does_not_vanish() -> None:
    assert cosine(np.float64([1e-200, 0]), np.float64([1e-200, 1e-200])) == pytest.approx(math.sqrt(0.5))


@given(st.integers(2, 4), st.integers(1, 1200), st.integers(-44, 37), st.floats(0, 1))
def test_the_likeness_of_maps_is_the_smallest_cosine(k: int, size: int, power: int, share: float) -> None:
    """Also of numbers whose squares float32 does not hold, without a warning."""
    maps = share * noise(1, size) + (1 - share) * noise(k, size, seed=1)
    maps = (maps * np.float64(10) ** power).astype(np.float32)
    exact = min(cosine(maps[0], other) for other in maps[1:])
    with np.errstate(over="raise", invalid="raise"):
        assert likeness(maps) == pytest.approx(exact, abs=1e-6)


def test_once_one_map_differs_enough_the_likeness_of_others_does_not_count() -> None:
    maps = np.float32([[1, 0], [1, 1], [1, 0.5], [-1, 0]])
    assert likeness(maps) == likeness(maps, 0.7) == -1
    assert likeness(maps, 0.9) == pytest.approx(math.sqrt(0.5))


@given(arrays(np.float32, 9, elements=st.integers(0, 4).map(float)), vectors)
def test_ranks_are_mean_places(a: NDArray[Any], b: NDArray[Any]) -> None:
    b = b[:9]
    ranks = [[np.sum(v < w) + (np.sum(v == w) - 1) / 2 for w in v] for v in (a, b)]
    if np.std(ranks[0]) and np.std(ranks[1]):
        assert rank_correlation(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    else:
        assert rank_correlation(a, b) == 0


@given(planes, planes)
def test_structural_similarity_is_that_of_the_paper(a: NDArray[Any], b: NDArray[Any]) -> None:
    weight = np.outer(*[np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)] * 2)
    weight /= weight.sum()
    x, y = ((v - v.min()) / (np.ptp(v) or 1) for v in (a.astype(float), b.astype(float)))
    values = []
    for i in range(3):
        for j in range(5):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = np.sum(weight * p), np.sum(weight * q)
            vp, vq = np.sum(weight * (p - mp) ** 2), np.sum(weight * (q - mq) ** 2)
            both = np.sum(weight * (p - mp) * (q - mq))
            values.append(
                (2 * mp * mq + 1e-4) * (2 * both + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
            )
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1)


def test_planes_smaller_than_the_window_have_a_similarity() -> None:
    a, b = noise(2, 1, 7), noise(2, 1, 7, seed=1)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, b) < 0.9
    with pytest.raises(InputError, match="cannot be compared"):
        ssim(a, b[:, :, :3])


# ----------------------------------------------------------------------------- maps that say little say so

NETWORKS: dict[str, Callable[[Builder, str], str]] = {
    "relu": lambda b, x: b.relu(b.conv(x, 5)),
    "max-pool": lambda b, x: b.node("MaxPool", b.relu(b.conv(x, 5)), kernel_shape=[2, 2]),
    "average pool": lambda b, x: b.node("AveragePool", b.relu(b.conv(x, 5)), kernel_shape=[2, 2]),
    "linear": lambda b, x: b.conv(x, 5),
    "norm": lambda b, x: b.node("LRN", b.relu(b.conv(x, 5)), size=3),
    "clip": lambda b, x: b.clip(b.relu(b.conv(x, 5)), -1, 0.5),
    "bounded": lambda b, x: b.clip(b.conv(x, 5), 0, 6),
    "sigmoid": lambda b, x: b.node("Sigmoid", b.relu(b.conv(x, 5))),
    "skip": lambda b, x: b.relu(b.add(y := b.relu(b.conv(x, 3, pads=[1] * 4)), b.conv(y, 3, pads=[1] * 4))),
    "maximum": lambda b, x: b.node("Max", b.relu(b.conv(x, 5)), b.conv(x, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_map_that_is_the_same_for_any_image_says_so(name: str) -> None:
    b = Builder()
    model = b.model(b.head(NETWORKS[name](b, b.input(1, 3, 8, 8)), 3))
    explainer = Explainer(model)
    for rule in (*RULES, "input-x-gradient"):
        if name == "linear" and rule in ("deconvnet", "guided"):
            continue
        found = explainer.explain(noise(4, 3, 8, 8), rule=rule, target=1)
        same = all(np.array_equal(m, found.map[0]) for m in found.map)
        assert found.depends_on_image is not same, (name, rule)
        assert any("the same map for any image" in note for note in found.notes) is same
        assert all(bool(sample.doubts()) is same for sample in found)


def test_a_map_that_is_made_of_the_image_says_no_such_thing() -> None:
    b = Builder()
    explainer = Explainer(b.model(b.head(b.relu(b.conv(b.input(1, 3, 8, 8), 5)), 3)))
    x = noise(2, 3, 8, 8)
    same = "the same map for any image"

    def says(found: Attribution) -> bool:
        assert any(same in note for note in found.notes) is not found.depends_on_image
        return any(same in note for note in found.notes)

    rule = "deconvnet"
    assert says(explainer.explain(x, rule=rule))
    assert says(explainer.explain(x, rule=rule, target=Contrast(1, 0)))
    assert says(methods.smoothgrad(explainer, x, rule=rule, samples=2))
    assert not says(explainer.explain(x, rule=rule, score="margin"))
    assert not says(methods.integrated_gradients(explainer, x, rule=rule, steps=2))
    assert not says(methods.grad_cam(explainer, x))
    layer = {"layer": "conv0", "rule": rule}
    assert says(methods.layer_gradient(explainer, x, **layer))
    assert not says(methods.layer_gradient(explainer, x, **layer, times_activation=True))


def shared(scale: float) -> onnx.ModelProto:
    """Three classes that all read one unit, and each a little of the image as well."""
    b = Builder()
    x = b.flatten(b.relu(b.input(1, 1, 4, 4)))
    w = np.ones((16, 3)) + scale * noise(16, 3)
    return b.model(b.node("MatMul", x, b.constant(w)))


@pytest.mark.parametrize(("scale", "alike"), [(0.05, True), (5.0, False)])
def test_maps_of_several_classes_that_are_nearly_the_same_say_so(scale: float, alike: bool) -> None:
    found = Explainer(shared(scale)).explain(np.abs(noise(2, 1, 4, 4)), target=Top(3), rule="vanilla")
    assert any("nearly the same in 2 of 2 samples" in note for note in found.notes) is alike
    assert all(any("nearly the same" in d for d in sample.doubts()) is alike for sample in found)
    ground = np.array([int(WARNING[i : i + 2], 16) for i in (1, 3, 5)])
    explainer = Explainer(shared(scale), preprocess="unit")
    strip = np.asarray(
        explainer.explain(np.full((4, 4, 3), 200, np.uint8), target=Top(3), rule="vanilla").strip()
    )
    assert bool((strip == ground).all(axis=-1).any()) is alike


def test_one_class_is_not_compared() -> None:
    found = Explainer(shared(0.0)).explain(np.abs(noise(1, 1, 4, 4)), target=[[1]])
    assert not any("nearly" in note for note in found.notes)


# ----------------------------------------------------------------------------------------------- measures


def test_class_sensitivity_compares_the_best_class_with_others() -> None:
    scores = np.float32([[0, 3, 1, 2], [9, 0, 0, 0]])
    asked: list[NDArray[np.int64]] = []

    def explain(targets: NDArray[np.int64]) -> NDArray[np.float64]:
        asked.append(targets)
        return np.eye(4)[targets]

    assert np.array_equal(class_sensitivity(explain, scores, others=2), np.zeros((2, 2)))
    (targets,) = asked
    assert targets[:, 0].tolist() == [1, 0]
    assert all(len({*row}) == 3 for row in targets.tolist())
    assert class_sensitivity(lambda t: np.ones((*t.shape, 3)), scores).tolist() == [[1.0] * 3] * 2
    with pytest.raises(InputError, match="one score"):
        class_sensitivity(explain, scores[:, :1])


def test_pointing_and_mass() -> None:
    relevance = np.zeros((3, 5, 6))
    relevance[0, 1, 1], relevance[0, 3, 3], relevance[1, 0, 0] = 3, 1, 2
    mask = np.zeros((3, 5, 6), bool)
    mask[:, 3:, 3:] = True
    assert pointing_game(relevance, mask).tolist() == [False, False, False]
    assert pointing_game(relevance, mask, tolerance=math.hypot(2, 2)).tolist() == [True, False, False]
    assert relevance_mass(relevance, mask).tolist() == [0.25, 0, 0]
    with pytest.raises(InputError, match="negative"):
        relevance_mass(-relevance, mask)
    with pytest.raises(InputError, match="bool"):
        pointing_game(relevance, mask.astype(int))
    with pytest.raises(InputError, match="one shape"):
        pointing_game(relevance, mask[:, :2])


@pytest.mark.parametrize("channels_last", [False, True])
def test_deletion_and_insertion_of_a_linear_score(channels_last: bool) -> None:
    """The score of a linear model is the sum of what is left of w·x."""
    b = Builder()
    x = b.input(1, *((2, 3, 1) if channels_last else (1, 2, 3)))
    planes = b.transpose(x, 0, 3, 1, 2) if channels_last else x
    w = np.float32([[1, 6, 2, 4, 3, 5]]).T
    plane = b.node("Conv", planes, b.constant(np.ones((1, 1, 1, 1))), kernel_shape=[1, 1])
    explainer = Explainer(b.model(b.node("MatMul", b.flatten(plane), b.constant(w))))
    image = np.ones((1, 2, 3, 1) if channels_last else (1, 1, 2, 3), np.float32)
    found = explainer.explain(image, rule="vanilla")
    curve = deletion(explainer, image, found, steps=6)
    assert curve.score.tolist() == [[21, 15, 10, 6, 3, 1, 0]]
    assert curve.auc == pytest.approx([(21 / 2 + 15 + 10 + 6 + 3 + 1) / 6])
    curve = insertion(explainer, image, found, steps=3, baseline=0)
    assert curve.fraction.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert curve.score.tolist() == [[0, 11, 18, 21]]
    blurred = insertion(explainer, image, found, steps=1)
    assert blurred.score.tolist() == [[pytest.approx(21), 21]]  # a flat image blurs to itself
    with pytest.raises(InputError, match="do not fit"):
        deletion(explainer, np.concatenate([image, image]), found)
    for baseline in (np.ones(7), [[1], [1, 2]], np.inf, 1e300, "black"):
        with pytest.raises(InputError, match="broadcast"):
            deletion(explainer, image, found, baseline=baseline)


def test_deletion_measures_probabilities_where_there_are_some() -> None:
    explainer = Explainer(DEMO)
    found = explainer.explain(PICTURE)
    best, worst = (f(explainer, PICTURE, found, steps=10) for f in (insertion, deletion))
    assert 0 <= best.score.min() <= best.score.max() <= 1
    assert best.auc[0] > worst.auc[0]
    assert best.score[0, -1] == worst.score[0, 0] == pytest.approx(found.probabilities.max())
    raw = deletion(explainer, PICTURE, found, steps=1, measure=lambda scores: scores)
    assert raw.score[0, 0] == pytest.approx(found.scores.max())


def test_the_gradient_of_a_linear_score_has_no_infidelity() -> None:
    explainer = Explainer(shared(1.0))
    x = np.abs(noise(2, 1, 4, 4)) + 9
    maps = explainer.explain(x, rule="vanilla", target=[0, 2]).map
    moves = noise(2, 7, 1, 4, 4)
    assert infidelity(explainer, x, maps, [0, 2], moves) == pytest.approx([0, 0], abs=1e-6)
    off = infidelity(explainer, x, 2 * maps, [0, 2], moves)
    said = np.einsum("nsijk,nijk->ns", moves.astype(float), maps.astype(float))
    assert off == pytest.approx((said**2).mean(axis=1), rel=1e-4)
    assert infidelity(explainer, x, 2 * maps, [0, 2], moves, normalize=True) == pytest.approx(
        [0, 0], abs=1e-6
    )
    with pytest.raises(InputError, match="do not fit"):
        infidelity(explainer, x, maps, 0, moves[:1])
    wrong: tuple[Any, ...] = (99, -1, 0.5, [0, 1, 2], [[1], [1, 2]], "0", [])
    for target in wrong:
        with pytest.raises(InputError, match="target is"):
            infidelity(explainer, x, maps, target, moves)


@pytest.mark.parametrize("seed", [-1, 0.5, "1", None, True])
def test_seeds_are_checked_by_all_that_draw(seed: Any) -> None:
    x = noise(1, 3, 8, 8)
    scores = np.eye(2, 3)
    calls: list[Callable[[], object]] = [
        lambda: class_sensitivity(lambda t: t, scores, seed=seed),
        lambda: max_sensitivity(lambda x, of: x, x, seed=seed),
        lambda: Randomised(small(), Choice(), seed),
        lambda: methods.smoothgrad(Explainer(small()), x, seed=seed),
        lambda: NoiseTunnel(Saliency(small())).attribute(x, target=0, seed=seed),
        lambda: SmoothGrad(small(), seed=seed),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"seed is .*a whole number of at least 0"):
            call()


def test_sensitivity_is_the_largest_relative_change() -> None:
    x = noise(3, 2, 4) + 5
    assert max_sensitivity(lambda x, of: np.ones_like(x), x).tolist() == [0, 0, 0]
    same = max_sensitivity(lambda x, of: x, x, radius=0.5, samples=40)
    assert (same <= 0.5 * math.sqrt(8) / np.linalg.norm(x.reshape(3, -1), axis=1)).all()
    assert (same > 0.05 * math.sqrt(8) / np.linalg.norm(x.reshape(3, -1), axis=1)).all()
    asked: list[int] = []
    max_sensitivity(lambda x, of: (asked.extend(of.tolist()), x)[1], x, samples=2)
    assert asked == [0, 1, 2, 0, 0, 1, 1, 2, 2]
    with pytest.raises(InputError, match="radius"):
        max_sensitivity(lambda x, of: x, x, radius=0)


def measured_by(f: Any) -> dict[str, list[Callable[[], object]]]:
    """All measures that call a function, by its name."""
    explainer, x = Explainer(shared(1.0)), np.abs(noise(2, 1, 4, 4))
    found = explainer.explain(x, rule="vanilla")
    return {
        "measure": [
            lambda: deletion(explainer, x, found, steps=2, measure=f),
            lambda: insertion(explainer, x, found, steps=2, measure=f),
        ],
        "explain": [lambda: class_sensitivity(f, found.scores), lambda: max_sensitivity(f, x)],
    }


def test_what_a_function_raises_that_a_measure_calls_names_it() -> None:
    def fails(*_: Any) -> Any:
        raise KeyError("mine")

    def refuses(*_: Any) -> Any:
        raise InputError("mine")

    for name, calls in measured_by(fails).items():
        for call in calls:
            with pytest.raises(InputError, match=rf"^{name} failed: KeyError: 'mine'\.$"):
                call()
    for calls in measured_by(refuses).values():
        for call in calls:
            with pytest.raises(InputError, match=r"^mine$"):
                call()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda *a: None,
        lambda *a: "x",
        lambda *a: [[1], [1, 2]],
        lambda *a: 1j * a[0],
        lambda *a: a[0][:1],
        lambda *a: np.zeros(7),
    ],
)
def test_what_a_function_returns_that_a_measure_calls_is_checked(wrong: Any) -> None:
    for name, calls in measured_by(wrong).items():
        for call in calls:
            with pytest.raises(InputError, match=rf"^{name} returned .* Supported: numbers of shape \["):
                call()
    (few, _), _ = measured_by(lambda scores: scores[:, :1]).values()
    with pytest.raises(InputError, match=r"^measure returned float32 of shape \[3, 1\]. .* \[3, 3\]\.$"):
        few()


def test_maps_of_moved_samples_have_the_shape_of_the_maps() -> None:
    with pytest.raises(InputError, match=r"^explain returned float32 of shape \[5, 1\]. .* \[5, 4\]\.$"):
        max_sensitivity(lambda x, of: x if len(x) == 3 else x[:, :1], noise(3, 4), samples=5)


# ------------------------------------------------------------------------------------------------- weights


def weights_of(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


def small() -> onnx.ModelProto:
    b = Builder()
    x = b.relu(b.batchnorm(b.conv(b.input(1, 3, 8, 8), 4)))
    return b.model(b.gemm(b.flatten(b.relu(b.conv(x, 5, 1))), 6))


def test_layers_are_randomised_alike_in_any_order_and_restored() -> None:
    model = small()
    before = weights_of(model)
    random = Randomised(model, Choice())
    assert [layer.op for layer in random.layers] == ["Conv", "Conv", "Gemm"]
    assert [len(layer.tensors) for layer in random.layers] == [2, 2, 2]
    random.randomise(2)
    random.randomise(0)
    both = weights_of(random.model)
    changed = {name for name in before if before[name] != both[name]}
    assert changed == {*random.layers[0].tensors, *random.layers[2].tensors}
    other = Randomised(model, Choice())
    other.randomise(0)
    other.randomise(2)
    assert weights_of(other.model) == both
    other.randomise(0, draw=1)
    assert weights_of(other.model) != both
    assert weights_of(Randomised(model, Choice(), seed=1).model) == before == weights_of(model)
    for k in (0, 2):
        random.restore(k)
    assert weights_of(random.model) == before


def test_weights_in_files_beside_the_model_and_in_constants(tmp_path: Path) -> None:
    onnx.save(onnx.load(DEMO), tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0)
    inside, outside = Randomised(DEMO, Choice()), Randomised(tmp_path / "outside.onnx", Choice())
    for random in (inside, outside):
        random.randomise(0)
    assert weights_of(inside.model) == weights_of(outside.model)
    model, constants = onnx.load(DEMO), onnx.ModelProto()
    constants.CopyFrom(model)
    moved = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    del constants.graph.initializer[:]
    nodes = [*moved, *model.graph.node]
    del constants.graph.node[:]
    constants.graph.node.extend(nodes)
    random = Randomised(constants, Choice())
    assert random.layers == inside.layers
    random.randomise(0)
    x = noise(1, 3, 96, 96)
    assert np.array_equal(Explainer(random.model).predict(x), Explainer(inside.model).predict(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_draws_have_the_size_of_what_they_replace(dtype: type) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 10, 20_000) + (128 if dtype == np.uint8 else 0)).astype(dtype)
    drawn = drawn_like(values, rng)
    assert drawn.dtype == dtype
    centre = 128 if dtype == np.uint8 else 0
    assert drawn.astype(float).mean() == pytest.approx(centre, abs=0.5)
    assert np.abs(drawn.astype(float) - centre).max() <= 21
    assert drawn.astype(float).std() == pytest.approx(8.6, abs=0.4)  # 0.88 of it; int8 truncates


def test_layers_of_integers_are_drawn_anew_and_their_scales_are_not() -> None:
    """As quantize_dynamic and quantize_static write them, beside layers of floats."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 3, 6, 6), 4))
    q, scale, zero = b.nodes("DynamicQuantizeLinear", y, outputs=3)
    zeros, step = b.constant(b.rng.integers(0, 9, 4), np.uint8), b.constant(0.02)
    made = b.node("ConvInteger", q, b.constant(b.rng.integers(0, 99, (4, 4, 3, 3)), np.uint8), zero, zeros)
    y = b.mul(b.node("Cast", made, to=1), b.mul(scale, step))
    q = b.node("QuantizeLinear", b.flatten(y), step, zeros_point := b.constant(7, np.uint8))
    dense = b.constant(b.rng.integers(0, 99, (16, 5)), np.uint8)
    y = b.node("QLinearMatMul", q, step, zeros_point, dense, step, zeros_point, step, zeros_point)
    random = Randomised(b.model(b.node("DequantizeLinear", y, step, zeros_point)), Choice())
    assert [layer.op for layer in random.layers] == ["Conv", "ConvInteger", "QLinearMatMul"]
    assert [len(layer.tensors) for layer in random.layers[1:]] == [1, 1]
    assert random.layers[2].tensors == (dense,)


def test_a_model_without_weights_is_refused() -> None:
    b = Builder()
    with pytest.raises(InputError, match="no layer with weights"):
        Randomised(b.model(b.flatten(b.relu(b.input(1, 1, 3, 3)))), Choice())


# -------------------------------------------------------------------------------------------------- sanity


def test_guided_maps_outlast_random_weights_and_gradients_do_not() -> None:
    """As Adebayo et al. found: with the dense layers random, guided maps stay; gradients change."""
    stages: list[str] = []
    found = sanity(DEMO, PICTURE, report=stages.append)
    assert [name for name, _ in found.layers] == ["logits", "fc1", "conv4", "conv3", "conv2", "conv1"]
    assert found.every_layer
    guided, vanilla = (found.likeness["cascading"][rule] for rule in ("guided", "vanilla"))
    assert guided[1].ssim > 0.7 > vanilla[1].ssim
    assert guided[1].rank > 0.5 > vanilla[1].rank
    assert max(guided[-1].ssim, vanilla[-1].ssim) < 0.5
    assert found.class_cosine["guided"] > 0.9 > found.class_cosine["vanilla"]
    assert "hardly depends on what these layers" in found.verdicts["guided"]
    assert "hardly" not in found.verdicts["vanilla"]
    assert found.likeness["independent"]["guided"][0] == guided[0]
    assert any("cascading: fc1" in stage for stage in stages)
    told = json.loads(json.dumps(found.to_dict()))
    assert {*told} >= {*MODES, "layers", "class_cosine", "seed"}
    assert {*told["cascading"]["vanilla"]} == {*MEASURES}
    picture = found.picture()
    assert picture.width > 1000
    assert len(found.pictures["guided"]) == 6


def test_methods_are_doubted_too() -> None:
    """A method over rules, a method with a rule of its own; each map is the method's."""
    some = {"layers": 2, "seed": 3}
    noisy = sanity(
        DEMO,
        PICTURE,
        rules=["vanilla", "guided"],
        method="smoothgrad",
        method_options={"samples": 2},
        **some,  # type: ignore[arg-type]
    )
    assert [*noisy.likeness["cascading"]] == ["smoothgrad, vanilla", "smoothgrad, guided"]
    assert noisy.class_cosine.keys() == noisy.pictures.keys() == noisy.verdicts.keys()
    explainer = Explainer(DEMO)
    own = methods.smoothgrad(explainer, PICTURE, rule="guided", samples=2)[0].gray(smooth=0)
    assert noisy.pictures["smoothgrad, guided"][0][1] == own
    cam = sanity(DEMO, PICTURE, method="grad-cam", method_options={"layer": "relu4"}, **some)  # type: ignore[arg-type]
    assert [*cam.likeness["independent"]] == ["grad-cam"]
    # Weights before the layer are random in the end, and Grad-CAM sees other planes.
    last = cam.likeness["cascading"]["grad-cam"][-1]
    assert last is None or last.ssim < 0.9


def test_a_deep_network_has_fewer_stages_and_the_same_end() -> None:
    every, some = (sanity(DEMO, PICTURE, rules=["guided"], layers=k) for k in (24, 2))
    assert [name for name, _ in some.layers] == ["conv4", "conv1"]
    assert some.randomised == (3, 6)
    assert not some.every_layer
    assert some.verdicts == every.verdicts
    assert some.likeness["cascading"]["guided"][-1] == every.likeness["cascading"]["guided"][-1]


def test_a_single_stage_randomises_all_layers() -> None:
    found = sanity(DEMO, PICTURE, rules=["guided"], layers=1)
    assert found.randomised == (6,)
    assert found.likeness["cascading"]["guided"][0].ssim < 0.5  # type: ignore[union-attr]
    verdict = found.verdicts["guided"]
    assert verdict.startswith("with all, SSIM is")
    assert "hardly" not in verdict


@pytest.mark.parametrize("count", range(1, 40))
def test_the_last_stage_randomises_all_layers_and_one_about_half(count: int) -> None:
    for most in range(1, count + 2):
        randomised = _randomised_of(count, most)
        assert len(randomised) == min(most, count)
        assert [*randomised] == sorted({*randomised})
        assert randomised[-1] == count
        if count > 1 < most:
            near = min(abs(n - count / 2) for n in randomised[:-1])
            step = (count - 1) / (min(most, count) - 1)
            assert near <= (0.5 if most == 2 else step / 2 + 0.5)


def test_sanity_of_rows_of_numbers_and_of_volumes() -> None:
    b = Builder()
    rows = b.model(b.gemm(b.relu(b.gemm(b.input(1, 9), 20)), 3))
    b = Builder()
    volumes = b.model(b.gemm(b.flatten(b.relu(b.conv(b.input(1, 1, 4, 4, 4), 5))), 3))
    for model, x in ((rows, noise(1, 9)), (volumes, noise(1, 1, 4, 4, 4))):
        found = sanity(model, x, rules=["vanilla"], target=1)
        assert found.target == 1
        assert len(found.likeness["independent"]["vanilla"]) == 2
        assert found.picture().height > 100
    assert found.pictures == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": Top(2)}, "names 2 classes"),
        ({"rules": []}, "no rules"),
        ({"layers": 0}, "layers is 0"),
        ({"seed": -1}, "seed is -1.*at least 0"),
        ({"method": "best"}, "method is 'best'.*smoothgrad"),
        ({"method": "grad-cam", "rules": ["guided"]}, "'grad-cam' has a rule of its own"),
        ({"method": "saliency", "method_options": {"steps": 3}}, "steps is no argument of method 'saliency'"),
        ({"method": "layer-gradient"}, "'layer-gradient' needs layer"),
        ({"method_options": {"steps": 3}}, "no method"),
    ],
)
def test_sanity_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sanity(small(), noise(1, 3, 8, 8), **options)
    with pytest.raises(InputError, match="2 images"):
        sanity(small(), noise(2, 3, 8, 8))


def test_a_rule_without_meaning_is_left_out() -> None:
    b = Builder()
    model = b.model(b.head(b.conv(b.input(1, 3, 8, 8), 4)))
    assert [*sanity(model, noise(1, 3, 8, 8)).likeness["cascading"]] == ["vanilla"]
    with pytest.raises(InputError, match="no rectifier"):
        sanity(model, noise(1, 3, 8, 8), rules=["guided"])


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sanity.png"
    arguments = ["sanity", str(DEMO), str(PICTURE), "--layers", "2", "-o", str(out)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "guided: mean cosine with the maps of other classes 0.9" in text
    # The path of the picture is as long as it is.
    assert max(len(line) for line in text.splitlines() if not line.startswith("wrote")) <= 80
    assert out.stat().st_size > 10_000
    assert cli.main([*arguments, "--json", "--rule", "vanilla"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cascading"]["vanilla"]["ssim"][0] < 1
    assert cli.main([*arguments[:-1], str(DEMO)]) == 2
    assert "cannot tell the format" in capsys.readouterr().err
    assert cli.main(["0" if text == "2" else text for text in arguments]) == 2
    assert "--layers is 0" in capsys.readouterr().err
    assert cli.main([*arguments, "--seed", "-1"]) == 2
    assert "--seed is -1. Supported: a whole number of at least 0." in capsys.readouterr().err


def test_a_chart_draws_every_line_and_leaves_gaps() -> None:
    lines = {"one": [0.9, None, -0.9], "two": [0.1, 0.2, 0.3]}
    pictures = [
        draw_charts([Chart("t", ["a", "b", "a long name " * 9], lines)] * n, columns=2, width=800)
        for n in (1, 3)
    ]
    assert [picture.width for picture in pictures] == [800, 800]
    assert pictures[1].height > pictures[0].height
