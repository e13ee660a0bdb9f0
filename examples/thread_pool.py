"""A thread pool: all threads share one Explainer, and its callers share the processors.

python examples/thread_pool.py model.onnx cat.jpg dog.jpg
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from gbp import Explainer


def main(model: str, *images: str) -> None:
    explainer = Explainer(model)
    with ThreadPoolExecutor(4) as pool:  # one thread reads a picture while another one explains
        for image, result in zip(images, pool.map(explainer.explain, images), strict=True):
            print(image, result.label())


if __name__ == "__main__":
    main(*sys.argv[1:])
