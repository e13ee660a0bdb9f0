"""multiprocessing with spawn: an Explainer is pickled as its arguments, so each worker opens the model.

The first to open it keeps the packed weights on the disk.  All workers map that file and share its memory.

python examples/spawned_workers.py model.onnx cat.jpg dog.jpg
"""

import multiprocessing
import sys

from gbp import Explainer

in_worker: dict[str, Explainer] = {}


def begin(explainer: Explainer) -> None:
    """Run in each worker before its first picture."""
    in_worker["explainer"] = explainer


def label_of(image: str) -> str | None:
    return in_worker["explainer"].explain(image).label()


def main(model: str, *images: str) -> None:
    # One thread a worker: the workers are as many as the processors are to be.
    arguments = (Explainer(model, threads=1),)
    with multiprocessing.get_context("spawn").Pool(2, begin, arguments) as pool:
        for image, label in zip(images, pool.map(label_of, images), strict=True):
            print(image, label)


if __name__ == "__main__":
    main(*sys.argv[1:])
