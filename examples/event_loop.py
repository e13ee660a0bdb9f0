"""asyncio: explanations run in an executor, and the event loop goes on meanwhile.

python examples/event_loop.py model.onnx cat.jpg dog.jpg
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from gbp import Attribution, Explainer


class Service:
    def __init__(self, model: str) -> None:
        self._explainer = Explainer(model)
        self._pool = ThreadPoolExecutor(2)

    async def explain(self, image: str) -> Attribution:
        # A caller that is cancelled, by wait_for say, no longer waits; an explanation that runs is finished.
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._explainer.explain, image)


async def main(model: str, *images: str) -> None:
    service = Service(model)
    results = await asyncio.gather(*(asyncio.wait_for(service.explain(image), 60) for image in images))
    for image, result in zip(images, results, strict=True):
        print(image, result.label())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
