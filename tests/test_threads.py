"""The same bits for any number of threads, in any batch, from any Python thread, on every threading layer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gbp import RULES, Explainer, InputError, Top

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


def fork_after_use() -> None:
    """A forked child explains as well, or says that it cannot; it does not die."""
    explainer = Explainer(DEMO)
    x = images(1)
    expected = explainer.explain(x).map.tobytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if explainer.explain(x).map.tobytes() == expected else 3
        except InputError as error:
            code = 0 if "fork" in str(error) else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


LAYERS = ["omp", "workqueue", *(["tbb"] if importlib.util.find_spec("tbb") else [])]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("what", ["share_one_explainer", "fork_after_use"])
def test_layers(layer: str, what: str) -> None:
    if what == "fork_after_use" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    done = subprocess.run(
        [sys.executable, "-c", f"import test_threads; test_threads.{what}()"],
        cwd=Path(__file__).parent,
        env=os.environ | {"NUMBA_THREADING_LAYER": layer},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"Numba has no {layer} layer here")
    assert done.returncode == 0, done.stderr
