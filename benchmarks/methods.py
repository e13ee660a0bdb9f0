"""Measures methods, as multiples of one explanation or one forward run.

    python benchmarks/methods.py                      SqueezeNet with seeded weights, one picture
    python benchmarks/methods.py --network resnet18 --threads 1
    python benchmarks/methods.py --model model.onnx

Calls are timed in one process, several of a kind in a row after a quarter of a second of the same, and the
kinds in turns, so that a noisy moment meets them all (`timing.steady`).  Printed are the medians and their
ratios.  The bars: SmoothGrad of 25 copies costs at most 20 explanations, Grad-CAM 1.15 forward runs,
five targets 2.5 explanations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from timing import steady
from workloads import NETWORKS, SEED, network

from gbp import Explainer, Top, methods

SAMPLES = 25
#: Names of calls → which call they are measured by, and the most that the ratio may be.
BARS = {
    "smoothgrad of 25": ("explanation, vanilla", 25 * 0.8),
    "grad-cam": ("forward run", 1.15),
    "five targets, vanilla": ("explanation, vanilla", 2.5),
    "five targets, guided": ("explanation, guided", 2.5),
}


def calls_of(explainer: Explainer, x: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, Callable[[], Any]]:
    """The timed calls, by name."""
    return {
        "forward run": lambda: explainer.predict(x),
        "explanation, vanilla": lambda: explainer.explain(x, rule="vanilla"),
        "explanation, guided": lambda: explainer.explain(x),
        "five targets, vanilla": lambda: explainer.explain(x, rule="vanilla", target=Top(5)),
        "five targets, guided": lambda: explainer.explain(x, target=Top(5)),
        "smoothgrad of 25": lambda: methods.smoothgrad(explainer, x, samples=SAMPLES),
        "vargrad of 25": lambda: methods.vargrad(explainer, x, samples=SAMPLES),
        "integrated gradients, 50 points": lambda: methods.integrated_gradients(explainer, x, steps=50),
        "grad-cam": lambda: methods.grad_cam(explainer, x),
        "guided-grad-cam": lambda: methods.guided_grad_cam(explainer, x),
        "saliency": lambda: methods.saliency(explainer, x),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="squeezenet")
    parser.add_argument("--model", help="a file instead")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="*", help="names of calls; the others are left out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = onnx.load(arguments.model) if arguments.model else network(arguments.network)
    explainer = Explainer(model, preprocess="imagenet", threads=arguments.threads)
    shape = [n or 224 for n in explainer.input_shape[1:]]
    x = np.random.default_rng(SEED).standard_normal((1, *shape), np.float32)
    calls = calls_of(explainer, x)
    if arguments.only:
        calls = {name: call for name, call in calls.items() if name in arguments.only}
    for call in calls.values():
        call()
    seconds = dict(zip(calls, steady([*calls.values()], arguments.rounds), strict=True))
    if arguments.json:
        print(json.dumps(seconds, indent=2))
        return
    for name, took in seconds.items():
        line = f"{name:32s} {1000 * took:9.2f} ms"
        if name in BARS and BARS[name][0] in seconds:
            unit, most = BARS[name]
            line += f"   {took / seconds[unit]:6.2f} × {unit} (bar {most:g})"
        print(line)


if __name__ == "__main__":
    main()
