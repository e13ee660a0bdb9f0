"""`Explainer.run`: values and gradients of any tensor, compared with the oracle in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import oracle
import pytest
from agreement import RULES, assert_close
from builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_graphs import REPRODUCIBLE, Network, networks, poisoned, safe_run

from gbp import Explainer, InputError, ModelError, Rule, Run
from gbp.devices import cpu as device
from gbp.errors import calling
from gbp.graph.tensors import Tensor, find
from gbp.ops.tap import TapStep

DEMO = Path(__file__).parents[1] / "models" / "demo.onnx"
Net = Callable[[Builder, str], str]
#: Networks in which tensors share memory, steps and gates.
NETS: dict[str, Net] = {
    "a rectifier's output with two readers": lambda b, x: residual(b, b.relu(b.conv(x, 8, 1))),
    "a chain": lambda b, x: b.relu(b.batchnorm(b.conv(b.relu(b.conv(x, 8, 3)), 8, 3))),
    "parts of a whole": lambda b, x: b.concat(b.relu(b.conv(x, 8, 1)), b.relu(b.conv(x, 5, 1)), x),
    "wholes in one another": lambda b, x: dense(b, b.relu(b.conv(x, 4, 1))),
    "a split": lambda b, x: b.concat(*b.split(b.relu(b.conv(x, 9, 1)), (4, 5))[::-1], x),
    "views": lambda b, x: b.reshape(b.relu(b.reshape(b.relu(b.conv(x, 8, 1)), 0, 4, 2, -1)), 0, 8, 1, -1),
    "a clip": lambda b, x: b.clip(b.conv(b.clip(b.conv(x, 8, 1), 0, 1), 8, 1), -0.5, 0.5),
    "a max-pool": lambda b, x: b.node("MaxPool", b.relu(b.conv(x, 8, 1)), kernel_shape=[2, 2]),
    "layers that change nothing": lambda b, x: unchanged(b, b.relu(b.conv(x, 8, 1))),
    "a product": lambda b, x: b.mul(b.relu(b.conv(x, 8, 1)), b.node("Sigmoid", b.conv(x, 8, 1))),
}


def residual(b: Builder, x: str) -> str:
    y = b.relu(b.add(b.conv(b.relu(b.conv(x, 8, 1)), 8, 1), x))
    return b.relu(b.add(y, b.conv(y, 8, 1)))


def dense(b: Builder, x: str) -> str:
    for _ in range(3):
        x = b.concat(x, b.relu(b.conv(x, 3, 1)))
    return x


def unchanged(b: Builder, x: str) -> str:
    """The same tensor by four names, of which two are read beside it."""
    rows = tuple(map(b.constant, ([0], [6], [2])))
    same, also = b.node("Slice", x, *rows), b.node("Slice", x, *rows)
    return b.mul(b.add(x, same), b.node("Slice", also, *rows))


def built(net: Net, seed: int = 0) -> onnx.ModelProto:
    b = Builder(seed=seed)
    return b.model(b.head(net(b, b.input(2, 3, 6, 7))))


def noise(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def safe(net: Net) -> tuple[onnx.ModelProto, oracle.Run]:
    for seed in range(20):
        model = built(net, seed)
        run = oracle.Run(model, noise((2, 3, 6, 7), seed))
        if run.margin > 1e-5:
            return model, run
    raise AssertionError("every seed is near a gate")


def check_tensor(run: Any, truth: oracle.Run, tensor: Tensor, rule: str) -> None:
    """Value, gradient with respect to it, and gradient of it, with two seeds a sample."""
    name = tensor.name
    shape = truth.values[name].shape
    assert (len(run), *tensor.shape) == shape
    assert_close(run.value(name), truth.values[name], f"value of {name}")
    scores = truth._logits()
    seed = noise(run.scores.shape, 1)
    found = run.vjp(seed, rule, wrt=name)
    expected = truth.reverse(rule, scores, seed.reshape(truth.values[scores].shape), name)
    assert_close(found, expected, f"{rule} gradient at {name}")
    if name == scores:
        return
    seeds = noise((shape[0], 2, *shape[1:]), 2)
    found = run.vjp(seeds, rule, of=name)
    expected = np.stack([truth.reverse(rule, name, seeds[:, k]) for k in range(2)], axis=1)
    assert_close(found, expected, f"{rule} gradient of {name}")


def check(model: onnx.ModelProto, truth: oracle.Run, rule: str, device: str = "cpu", most: int = 99) -> None:
    explainer = Explainer(model, device=device)
    scores = truth._logits()
    tensors = [t for t in explainer.tensors if t.name != scores][:most]
    with explainer.run(truth.values[truth.image].astype(np.float32), [t.name for t in tensors]) as run:
        assert_close(run.scores, truth.values[scores].reshape(len(run), -1), "scores")
        for tensor in tensors:
            check_tensor(run, truth, tensor, rule)


@pytest.mark.parametrize("name", NETS)
def test_values_and_gradients_at_every_tensor(name: str) -> None:
    model, truth = safe(NETS[name])
    for rule in RULES:
        check(model, truth, rule)


@pytest.mark.parametrize("name", NETS)
def test_one_kept_tensor_leaves_the_others_fused(name: str) -> None:
    """Each tensor alone is right too: what surrounds it is folded and fused."""
    model, truth = safe(NETS[name])
    explainer = Explainer(model)
    x = truth.values[truth.image].astype(np.float32)
    for tensor in explainer.tensors:
        if tensor.name != truth._logits():
            with explainer.run(x, [tensor.name]) as run:
                check_tensor(run, truth, tensor, "guided")


@given(net=networks(), rule=st.sampled_from(RULES))
@settings(REPRODUCIBLE, max_examples=40)
def test_of_any_network(net: Network, rule: str) -> None:
    truth = safe_run(net)
    with mock.patch.object(device, "aligned", poisoned):
        check(net.model, truth, rule)


@pytest.mark.parametrize("name", NETS)
def test_between_two_inner_tensors(name: str) -> None:
    model, truth = safe(NETS[name])
    explainer = Explainer(model)
    kept = [t.name for t in explainer.tensors if t.name != truth._logits()]
    x = truth.values[truth.image].astype(np.float32)
    with mock.patch.object(device, "aligned", poisoned), explainer.run(x, kept) as run:
        for of in kept:
            seed = noise(truth.values[of].shape, 3)
            for wrt in kept:
                found = run.vjp(seed, "guided", of=of, wrt=wrt)
                expected = truth.reverse("guided", of, seed, wrt)
                assert_close(found, expected, f"{of} to {wrt}")


# --- What a run costs, and its errors -----------------------------------------------------------------------


def test_a_run_without_kept_tensors_is_that_of_explain() -> None:
    explainer, x = Explainer(built(residual_net)), noise((3, 3, 6, 7))
    result = explainer.explain(x, rule="guided", target=[[0, 1]] * 3)
    with explainer.run(x) as run:
        assert run.scores.tobytes() == result.scores.tobytes()
        seeds = np.zeros((3, 2, 4), np.float32)
        seeds[:, 0, 0] = seeds[:, 1, 1] = 1
        assert run.vjp(seeds, "guided").tobytes() == result.map.tobytes()
        assert run.vjp(seeds[:, 1], "guided").tobytes() == result.map[:, 1].tobytes()
    assert len(explainer._engine.sessions._entries) == 1


def residual_net(b: Builder, x: str) -> str:
    return residual(b, b.relu(b.conv(x, 8, 1)))


def test_kept_tensors_change_no_map_and_leave_the_plan_of_others_alone() -> None:
    explainer, x = Explainer(built(residual_net)), noise((2, 3, 6, 7))
    before = explainer.explain(x, rule="guided")
    plan, _ = explainer._plan_for((3, 6, 7))
    nbytes = plan.nbytes(1, 1)
    with explainer.run(x, ["relu1"]) as run:
        seed = np.eye(4, dtype=np.float32)[before.target]
        np.testing.assert_allclose(run.vjp(seed, "guided"), before.map, rtol=1e-4, atol=1e-6)
        assert run.value("relu1").min() == 0
    assert explainer._plan_for((3, 6, 7))[0] is plan
    assert plan.nbytes(1, 1) == nbytes
    assert explainer.explain(x, rule="guided").map.tobytes() == before.map.tobytes()


@pytest.mark.threads
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_has_the_bits_of_its_samples(threads: int) -> None:
    explainer, x = Explainer(built(residual_net), threads=threads), noise((5, 3, 6, 7))
    seeds = noise((5, 3, 4), 1)
    with explainer.run(x, ["relu1"]) as run:
        value, gradient = run.value("relu1"), run.vjp(seeds, "deconvnet", wrt="relu1")
        maps = run.vjp(value, "guided", of="relu1")
    for n in range(5):
        with explainer.run(x[n : n + 1], ["relu1"]) as one:
            assert one.value("relu1").tobytes() == value[n].tobytes()
            found = one.vjp(seeds[n : n + 1, 2], "deconvnet", wrt="relu1")
            assert found.tobytes() == gradient[n, 2].tobytes()
            assert one.vjp(value[n : n + 1], "guided", of="relu1").tobytes() == maps[n].tobytes()


@pytest.mark.parametrize("name", NETS)
def test_a_run_that_never_goes_back_to_the_input_gives_the_same_bits(name: str) -> None:
    explainer, x = Explainer(built(NETS[name])), noise((2, 3, 6, 7))
    names = [tensor.name for tensor in explainer.tensors[:-1]]
    for at, wrt in enumerate(names):
        behind = names[at + 1 : at + 2]
        found = []
        for to_input in (True, False):
            with mock.patch.object(device, "aligned", poisoned):
                for run in explainer.runs(x, [wrt, *behind], to_input=to_input):
                    gradients = [run.vjp(noise((2, 3, 4)), rule, wrt=wrt) for rule in RULES]
                    seeds = [(of, noise(run.value(of).shape)) for of in behind]
                    gradients += [run.vjp(seed, "guided", of=of, wrt=wrt) for of, seed in seeds]
                    found.append([run.scores, run.value(wrt), *gradients])
                    if not to_input:
                        with pytest.raises(InputError, match="goes back to kept tensors only"):
                            run.vjp(noise((2, 4)))
        for a, b in zip(*found, strict=True):
            assert a.tobytes() == b.tobytes()


def test_a_run_that_never_goes_back_to_the_input_writes_masks_behind_the_kept_tensor_alone() -> None:
    """And the convolution writes the kept tensor itself, without a copy."""
    explainer, x = Explainer(built(NETS["a chain"])), noise((1, 3, 6, 7))
    for run in explainer.runs(x, ["relu1"], to_input=False):
        runs = run._tape._forward.bound
        assert not any(isinstance(each.instruction.step, TapStep) for each in runs)
        written = [each.instruction.output for each in runs if each.context.mask.size]
    wanted = [each.instruction.output for each in runs if each.instruction.has_mask]
    assert wanted == ["relu1/kept", "relu4"]
    assert written == ["relu4"]


def test_many_seeds_are_computed_in_parts_that_fit_into_memory() -> None:
    x, seeds = noise((2, 3, 6, 7)), noise((2, 9, 4), 1)
    model = built(residual_net)
    with Explainer(model).run(x, ["relu1"]) as run:
        whole = run.vjp(seeds, "guided")
    explainer = Explainer(model, memory=1)
    with pytest.raises(InputError, match="2 images do not fit into one run; 1 do"):
        explainer.run(x, ["relu1"]).__enter__()
    parts = [(run.samples, run.vjp(seeds[run.samples], "guided")) for run in explainer.runs(x, ["relu1"])]
    assert [samples for samples, _ in parts] == [slice(0, 1), slice(1, 2)]
    assert np.concatenate([part for _, part in parts]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("rule", ["vanilla", "guided", "lrp-epsilon", "rectgrad"])
def test_gradients_of_tiny_seeds_are_those_of_others_times_a_power_of_two(rule: str) -> None:
    """Where AMX computes, too: it takes what is below 2⁻¹²⁶ as 0."""
    b = Builder()
    y = b.relu(b.conv(b.input(1, 64, 12, 12), 64, 3, pads=(1, 1, 1, 1)))
    model = b.model(b.head(b.relu(b.conv(y, 64, 3, pads=(1, 1, 1, 1)))))
    x, seeds = noise((2, 64, 12, 12)), noise((2, 3, 4), 1)
    tiny = seeds.copy()
    tiny[:, 1] *= np.float32(2.0**-100)
    tiny[1, 2] = 0
    with Explainer(model).run(x, keep=["relu3"]) as run:
        for wrt in (None, "relu3"):
            expected = run.vjp(seeds, rule, wrt=wrt)
            expected[:, 1] *= np.float32(2.0**-100)
            expected[1, 2] = 0
            np.testing.assert_array_equal(run.vjp(tiny, rule, wrt=wrt), expected)
            reduced = run.vjp(tiny, rule, wrt=wrt, reduce=lambda g: g.max(axis=(2, 3)))
            np.testing.assert_array_equal(reduced, expected.max(axis=(2, 3)))


@pytest.mark.parametrize("rule", ["vanilla", "input-x-gradient"])
def test_numpy_s_settings_do_not_reach_gradients_that_underflow(rule: str) -> None:
    x, seeds = noise((1, 3, 6, 7)), noise((1, 4)) * np.float32(2.0**-140)
    with np.errstate(all="raise"), Explainer(built(residual_net)).run(x) as run:
        assert run.vjp(seeds, rule).shape == x.shape


def test_what_is_reduced_in_the_run_s_memory_is_what_a_copy_gives() -> None:
    model = built(NETS["a rectifier's output with two readers"])
    explainer = Explainer(model)
    names = [tensor.name for tensor in explainer.tensors[:-1]]
    scores, seeds = explainer.tensors[-1].name, noise((2, 3, 4))
    seen: list[bool] = []

    def planes(x: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(x.flags.owndata)
        return x[..., 0] + x.sum(axis=-1)

    in_parts = mock.patch("gbp.plan.plan.Plan.max_targets", return_value=2)
    with in_parts, explainer.run(noise((2, 3, 6, 7)), keep=names) as run:
        for name in (*names, scores, model.graph.input[0].name):
            np.testing.assert_array_equal(run.value(name, reduce=planes), planes(run.value(name)))
        seen.clear()
        got = [run.value(name, reduce=np.asarray) for name in names]  # an array that would change
        for rule in ("guided", "input-x-gradient", "lrp-epsilon"):
            for wrt in (None, *names[-1:]):
                full = run.vjp(seeds, rule, wrt=wrt)
                np.testing.assert_array_equal(run.vjp(seeds, rule, wrt=wrt, reduce=planes), planes(full))
                one = run.vjp(seeds[:, 0], rule, wrt=wrt, reduce=planes)
                np.testing.assert_array_equal(one, planes(full[:, :1])[:, 0])
        run.vjp(seeds, reduce=planes)
        assert not any(seen[-3:])
        for name, values in zip(names, got, strict=True):
            np.testing.assert_array_equal(values, run.value(name))
        last, first = names[-1], names[0]
        same = noise(run.value(last).shape)
        np.testing.assert_array_equal(run.vjp(same, of=last, wrt=last, reduce=planes), planes(same))
        assert not run.vjp(noise(run.value(first).shape), of=first, wrt=last, reduce=planes).any()
        with pytest.raises(ModelError, match="NaN or infinity"):
            run.vjp(np.full_like(seeds, 3e38), reduce=lambda x: 1e3 * planes(x))


def test_runs_are_of_all_images_in_order() -> None:
    explainer, x = Explainer(built(residual_net)), noise((70, 3, 6, 7))
    scores, lengths = [], []
    for run in explainer.runs(x, batch_size=32):
        scores.append(run.scores)
        lengths.append(len(run))
        assert run.x.tobytes() == x[run.samples].tobytes()
    assert lengths == [24, 23, 23]
    assert np.concatenate(scores).tobytes() == explainer.predict(x).tobytes()


def test_tensors_are_listed_and_found_by_parts_of_their_names() -> None:
    explainer = Explainer(DEMO)
    tensors = {tensor.name: tensor for tensor in explainer.tensors}
    assert tensors["relu1"].op == "Relu"
    assert tensors["relu1"].shape == (16, 96, 96)
    x = np.zeros((1, *explainer.input_shape[1:]), np.float32)
    with explainer.run(x, keep=["RELU3"]) as run:
        assert run.value("relu3").tobytes() == run.value("Relu3").tobytes()
        assert run.value("image").tobytes() == x.tobytes()
        with pytest.raises(InputError, match=r"'relu1' was not kept. Say keep=\['relu1'\]"):
            run.value("relu1")
        with pytest.raises(InputError, match=r"no tensor .* is called 'rleu3'. Did you mean 'relu3'"):
            run.value("rleu3")
    for ask in (lambda: run.value("relu3"), lambda: run.value("image"), lambda: run.vjp(run.scores)):
        with pytest.raises(InputError, match="the run is closed"):
            ask()
    with pytest.raises(InputError, match=r"'relu' is a part of 5 tensors' names: 'relu1', "):
        explainer.run(x, keep=["relu"]).__enter__()
    with pytest.raises(InputError, match="keep holds 3"):
        explainer.run(x, keep=[3]).__enter__()  # type: ignore[list-item]


@pytest.mark.parametrize(
    "wrong", [lambda g: None, lambda g: g.sum(), lambda g: g[0], lambda g: [[1], [1, 2]]]
)
@pytest.mark.parametrize("rule", ["vanilla", "input-x-gradient"])
def test_a_reduce_that_returns_something_else_is_refused(rule: str, wrong: Any) -> None:
    explainer, x = Explainer(built(residual_net)), noise((2, 3, 6, 7))
    with explainer.run(x) as run:
        with pytest.raises(InputError, match="reduce returned"):
            run.vjp(run.scores, rule, reduce=wrong)
        assert run.vjp(run.scores, rule, reduce=lambda g: g.sum(axis=(2, 3))).shape == (2, 7)


@pytest.mark.parametrize("wrong", [lambda v: None, lambda v: [[1], [1, 2]], lambda v: "x", lambda v: 1j * v])
def test_a_function_of_values_returns_numbers_of_any_shape(wrong: Any) -> None:
    explainer, x = Explainer(built(residual_net)), noise((2, 3, 6, 7))
    with explainer.run(x, keep=["relu1"]) as run:
        for name in ("relu1", "x", run.scores_name):
            with pytest.raises(InputError, match=r"^reduce returned .* Supported: numbers of shape \[…\]"):
                run.value(name, wrong)
            assert np.array_equal(run.value(name, lambda v: v[0].tolist()), run.value(name)[0])
            assert run.value(name, np.max).shape == ()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("it ends."), "f failed: ValueError: it ends."),
        (StopIteration(), "f failed: StopIteration."),
        (MemoryError(), "f failed: MemoryError."),
        (
            FileNotFoundError(2, "No such file", "a.txt"),
            "f failed: FileNotFoundError: [Errno 2] No such file: 'a.txt'.",
        ),
    ],
)
def test_the_error_of_a_users_function_is_one_sentence(error: Exception, said: str) -> None:
    with pytest.raises(InputError) as caught, calling("f"):
        raise error
    assert str(caught.value) == said
    assert caught.value.__cause__ is error


def test_what_a_users_function_raises_names_it_and_leaves_all_as_it_was() -> None:
    def fails(*_: Any) -> Any:
        raise KeyError("mine")

    def refuses(*_: Any) -> Any:
        raise InputError("mine")

    explainer, x = Explainer(built(residual_net)), noise((2, 3, 6, 7))
    before = explainer.explain(x)

    def calls(run: Run, f: Any) -> dict[str, Callable[[], Any]]:
        return {
            "reduce": lambda: run.vjp(run.scores, reduce=f),
            "reduce ": lambda: run.vjp(run.scores, "input-x-gradient", wrt="relu1", reduce=f),
            "reduce  ": lambda: run.value("relu1", f),
            "the finish of 'own'": lambda: explainer.explain(x, rule=Rule("own", True, True, "", finish=f)),
            "the rewrite of a rule": lambda: explainer.explain(
                x, rule=Rule("own", True, True, "", rewrite=f)
            ),
            "the score 'fails'": lambda: explainer.explain(x, score=f),
        }

    with explainer.run(x, keep=["relu1"]) as run:
        for name, call in calls(run, fails).items():
            with pytest.raises(InputError, match=rf"^{name.strip()} failed: KeyError: 'mine'") as caught:
                call()
            assert isinstance(caught.value.__cause__, KeyError)
            assert explainer.explain(x).map.tobytes() == before.map.tobytes()
        for call in calls(run, refuses).values():
            with pytest.raises(InputError, match=r"^mine$"):
                call()


def test_a_run_outlives_the_session_that_others_crowd_out() -> None:
    explainer, x = Explainer(built(residual_net), threads=1), noise((1, 3, 6, 7))
    with explainer.run(x) as run:
        right = run.vjp(run.scores, "guided")
        for keep in [[], *([each.name] for each in explainer.tensors[:5])]:
            explainer.run(x, keep=keep).__enter__().close()
        assert run.vjp(run.scores, "guided").tobytes() == right.tobytes()


def test_a_part_that_is_a_word_counts_more() -> None:
    def tensor(name: str) -> Tensor:
        return Tensor(f"{name}:0", f"{name}/Relu", "Relu", (1,))

    tensors = [tensor("block/relu_1"), tensor("block/relu_10"), tensor("relu_1")]
    assert find(tensors, "relu_10") is tensors[1]
    assert find(tensors, "relu_1/Relu") is tensors[2]
    assert find(tensors, "relu_1:0") is tensors[2]
    assert find(tensors, "block/relu_1") is tensors[0]
    with pytest.raises(InputError, match="a part of 2 tensors' names"):
        find(tensors, "relu_1")


def test_seeds_of_other_shapes_and_of_the_input_are_refused() -> None:
    explainer, x = Explainer(built(residual_net)), noise((2, 3, 6, 7))
    with explainer.run(x, ["relu1"]) as run:
        for seed in (np.ones(4), np.ones((1, 4)), np.ones((2, 5)), np.ones((2, 0, 4)), "a", [[1], [1, 2]]):
            with pytest.raises(InputError, match=r"supported: numbers of shape \[2, 4\]|Supported"):
                run.vjp(seed)
        for wrong in (np.nan, 1e39):
            with pytest.raises(InputError, match="NaN"):
                run.vjp(np.full((2, 4), wrong))
        with pytest.raises(InputError, match="the input"):
            run.vjp(np.ones((2, 3, 6, 7)), of="x")
        with pytest.raises(InputError, match="the scores"):
            run.vjp(np.ones((2, 4)), wrt=explainer.tensors[-1].name)
        with pytest.raises(ModelError, match="the gradient holds NaN or infinity"):
            run.vjp(np.full((2, 8, 6, 7), 3e38), of="relu1")
        assert np.isfinite(run.vjp(np.ones((2, 4)))).all()


@pytest.mark.parametrize("keep", [5, None])
def test_names_to_keep_are_names(keep: Any) -> None:
    explainer, x = Explainer(built(residual_net)), noise((2, 3, 6, 7))
    with pytest.raises(InputError, match=f"keep is {keep}"), explainer.run(x, keep):
        pass
    with pytest.raises(InputError, match=f"keep is {keep}"):
        next(explainer.runs(x, keep))


def test_a_map_of_ones_own_fits_its_target() -> None:
    explainer, x = Explainer(built(residual_net)), noise((3, 3, 6, 7))
    for run in explainer.runs(x, batch_size=2):
        n = len(run)
        own = run.attribution(np.ones(run.x.shape), [1] * n)  # type: ignore[arg-type]
        assert own.map.dtype == np.float32
        assert own.target.tolist() == [1] * n
        several = run.attribution(np.ones((n, 2, *x.shape[1:]), np.float32), np.zeros((n, 2), np.int64))
        assert several.map.shape == (n, 2, *x.shape[1:])
        for map, target, message in [
            (np.ones((n + 1, 3, 6, 7)), [0] * n, "the map has shape"),
            (np.ones((n, 3, 6, 7)), [[0, 1]] * n, "the map has shape"),
            (np.ones((n, 3, 6, 7)), 0, "the target"),
            (["a"] * n, [0] * n, "the map has shape"),
            (run.x, [0.5] * n, "the target"),
            (run.x, [4] * n, "target 4 is no class"),
        ]:
            with pytest.raises(InputError, match=message):
                run.attribution(map, target)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="the map has shape"):
            run.attribution(np.ones((n, 3, 0, 7)), [0] * n)
        for shape in ((n, 6, 7), (n, 7), (n, 2, 3, 6, 7)):  # which may be kept, but not read as an image
            found = run.attribution(np.ones(shape), [0] * n)
            for ask in (found.reduce, found[0].gray, found[0].draw):
                with pytest.raises(
                    InputError, match=r"a sample's map has shape .*an axis for each of C, H, W"
                ):
                    ask()


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path, x = tmp_path / "net.onnx", noise((1, 3, 6, 7))
    onnx.save(built(residual_net), path)
    explainer = Explainer(path)
    with explainer.run(x, ["relu1"]) as run:
        assert run.value("relu1").shape == (1, 8, 6, 7)
    onnx.save(built(NETS["a chain"]), path)
    with explainer.run(x, ["relu1"]) as run:  # is planned already
        assert run.value("relu1").shape == (1, 8, 6, 7)
    with pytest.raises(InputError, match="has changed since it was loaded"):
        explainer.run(x, ["relu3"]).__enter__()


def test_weights_beside_the_model_that_changed_are_refused(tmp_path: Path) -> None:
    path, data, x = tmp_path / "net.onnx", tmp_path / "weights", noise((1, 3, 6, 7))
    onnx.save(built(residual_net), path, save_as_external_data=True, location="weights", size_threshold=0)
    explainer = Explainer(path)
    with explainer.run(x, ["relu1"]) as run:
        assert run.value("relu1").shape == (1, 8, 6, 7)
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(InputError, match="weights' has changed since it was loaded"):
        explainer.run(x, ["relu3"]).__enter__()
    data.unlink()
    with pytest.raises(InputError, match="weights' has changed since it was loaded"):
        explainer.run(x, ["relu3"]).__enter__()


def test_open_sizes_are_listed_once_they_are_known() -> None:
    b = Builder()
    x = b.input(1, 3, 6, 7)
    y = b.relu(b.conv(x, 8, 1))
    model = b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", y)), 4))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].ClearField("dim_value")
    explainer = Explainer(model)
    with pytest.raises(InputError, match="size"):
        _ = explainer.tensors
    with explainer.run(noise((1, 3, 5, 5)), [y]) as run:
        assert run.value(y).shape == (1, 8, 5, 5)
    assert next(t for t in explainer.tensors if t.name == y).shape == (8, 5, 5)
    assert next(t for t in Explainer(model, preprocess={"preset": "unit", "size": (4, 9)}).tensors).shape == (
        8,
        4,
        9,
    )


def test_inside_a_rectifier_in_parts_there_is_no_tensor() -> None:
    b = Builder()
    x = b.conv(b.input(2, 3, 6, 7), 8, 1)
    above = b.node("Greater", x, b.constant(0.0))
    y = b.node("Where", above, x, b.constant(np.zeros(1)))
    model = b.model(b.head(b.conv(y, 4, 1)))
    explainer = Explainer(model)
    names = [tensor.name for tensor in explainer.tensors]
    assert above not in names
    assert {x, y} <= set(names)


def test_the_demo_model_at_two_tensors() -> None:
    """All twenty of them agree too, which takes the oracle minutes."""
    model, explainer = onnx.load(DEMO), Explainer(DEMO)
    truth = oracle.Run(model, explainer.prepare(str(DEMO.with_suffix(".png"))))
    tensors = [tensor for tensor in explainer.tensors if tensor.name in ("bn3", "relu4")]
    with explainer.run(truth.values[truth.image].astype(np.float32), ["bn3", "relu4"]) as run:
        for tensor in tensors:
            check_tensor(run, truth, tensor, "guided")


def test_a_seed_that_only_gets_other_names_is_no_backward_pass() -> None:
    b = Builder()
    y = b.relu(b.conv(b.input(2, 3, 6, 7), 5))
    turned = b.node("Transpose", y, perm=[0, 2, 3, 1])
    scores = b.flatten(turned)
    explainer, x = Explainer(b.model(scores), output=scores), noise((2, 3, 6, 7))
    seed = noise((2, 3, 4 * 5 * 5), 1)
    found = []
    for kept in (y, turned):  # where both are kept, one is a copy of the other
        with (
            explainer.run(x, keep=[kept]) as run,
            mock.patch("gbp.runtime.tape.Tape._backward", side_effect=AssertionError("it is one")),
        ):
            found.append(run.vjp(seed, wrt=kept))
            less = run.vjp(seed[:, 0], wrt=kept, reduce=np.negative)
            assert less.tobytes() == (-found[-1][:, 0]).tobytes()
    planes, last = found
    np.testing.assert_array_equal(last, seed.reshape(2, 3, 4, 5, 5))
    np.testing.assert_array_equal(planes, np.moveaxis(last, -1, 2))
    assert not np.shares_memory(last, seed)
