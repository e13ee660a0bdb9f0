"""A service under gunicorn: the parent opens the model once, and the workers, its forks, share its memory.

MODEL=model.onnx gunicorn --preload --workers 4 --pythonpath examples forked_service:application
curl --data-binary @cat.jpg http://127.0.0.1:8000/ -o map.png
"""

import io
import os
from collections.abc import Callable, Iterable
from typing import Any

from gbp import Explainer, GbpError

MOST_BYTES = 32 * 2**20

explainer = Explainer(os.environ["MODEL"])
explainer.warmup()  # compiles before the fork what each worker would compile for itself


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI: a picture in the body of the request, and its explanation as the answer."""
    status, kind, answer = answer_to(environ)
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(answer)))])
    return [answer]


def answer_to(environ: dict[str, Any]) -> tuple[str, str, bytes]:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if not 0 < length <= MOST_BYTES:
        return "413 Content Too Large", "text/plain", b"Send one picture of at most 32 MiB.\n"
    try:
        result = explainer.explain(environ["wsgi.input"].read(length))
    except GbpError as error:  # the picture's fault
        return "422 Unprocessable Content", "text/plain; charset=utf-8", f"{error}\n".encode()
    picture = io.BytesIO()
    result.save(picture, format="png")
    return "200 OK", "image/png", picture.getvalue()
