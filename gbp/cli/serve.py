"""`gbp serve`: explains over HTTP, and shows a page."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import GbpError, InputError
from ..errors import shown
from .options import add_explainer, add_preprocessing, explainer_options, in_options, memory, print_line

if TYPE_CHECKING:
    from ..serve.limits import Limits
    from ..serve.models import Served

#: Modules of the extra → the names of their distributions.
_NEEDED = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}

#: How pictures become possible.
_HOW = "Give --preprocess, or write a .toml file beside it, as gbp init does."


def add_command(commands: Any) -> None:
    """Add `serve` to the parser's commands."""
    command = commands.add_parser(
        "serve",
        help="explain over HTTP, and on a page in the browser",
        description="Serve explanations of pictures over HTTP, and a page on which a photo can be dropped, "
        "until Ctrl-C. Nothing is explained before all kernels are compiled, unless --no-warmup is given or "
        "the model leaves its size open. It needs gbp-explain[serve].",
    )
    command.set_defaults(run=serve)
    command.add_argument(
        "models",
        metavar="[NAME=]MODEL.onnx",
        nargs="+",
        help="the name is part of the path; default: the file's, without its suffix",
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    command.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any that is free")
    command.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that requests may call the server by, besides localhost; with another --host any may",
    )
    command.add_argument(
        "--no-warmup",
        action="store_true",
        help="be ready at once; the first requests then compile the kernels that are not stored yet",
    )
    limits = command.add_argument_group("limits", "requests beyond them are refused")
    limits.add_argument("--max-body", type=memory, metavar="BYTES", default="32M", help="default: 32M")
    limits.add_argument("--max-pixels", type=memory, metavar="N", help="of a picture; default: 50 million")
    limits.add_argument("--max-targets", type=int, metavar="N", default=5, help="of a request; default: 5")
    limits.add_argument("--queue", type=int, metavar="N", default=64, help="requests that wait; default: 64")
    limits.add_argument("--seconds", type=float, metavar="S", default=30, help="of a request; default: 30")
    add_preprocessing(command)
    add_explainer(command)


def serve(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    missing = _missing()
    if missing:
        raise InputError(
            f"gbp serve needs {', '.join(missing)}.",
            hint="Install the extra: pip install 'gbp-explain[serve]'.",
        )
    from ..serve.limits import Limits
    from ..serve.server import LOOPBACK, listening
    from ..serve.server import serve as run

    limits = Limits(
        body=arguments.max_body,
        pixels=Limits.pixels if arguments.max_pixels is None else arguments.max_pixels,
        targets=arguments.max_targets,
        queue=arguments.queue,
        seconds=arguments.seconds,
    )
    models = _opened(arguments, limits)
    listener = listening(arguments.host, arguments.port)
    host, port = listener.getsockname()[:2]
    is_loopback = host.startswith("127.") or host == "::1"
    in_url = f"[{host}]" if ":" in host else host
    print_line(f"gbp: serving {', '.join(model.name for model in models)} at http://{in_url}:{port}/")
    print_line(f"gbp: limits: {limits}")
    for model in models:
        if model.explainer.preprocess is None and len(model.explainer.input_shape) == 4:
            text = f"gbp: {model.name} takes arrays alone: nothing says how it wants pictures. {_HOW}"
            print(shown(text), file=sys.stderr)
    sys.stdout.flush()
    # Beyond this machine, any name may be right: a proxy's, say.
    hosts = (*LOOPBACK, in_url, *(name.lower() for name in arguments.allow_host)) if is_loopback else None
    prepare = None if arguments.no_warmup else partial(_warm_up, models)
    run(models, limits, listener, hosts=hosts, prepare=prepare)
    return 0


def _opened(arguments: argparse.Namespace, limits: Limits) -> list[Served]:
    """Open the models that the command names."""
    from .. import Explainer
    from ..serve.models import TOGETHER_ON_A_CARD, Served

    together = 1 if arguments.device == "cpu" else TOGETHER_ON_A_CARD
    models = []
    for name, path in _named(arguments.models).items():
        # Options such as --mean change the preprocessing in the file beside the model: they need its path.
        options = explainer_options(argparse.Namespace(**vars(arguments), model=path))
        models.append(Served(name, Explainer(path, **options), limits, together))
    return models


def _warm_up(models: Sequence[Served]) -> None:
    """Compile the kernels of all models, and print when that is done."""
    from ..engine.warming import NotKeptError
    from .compiling import compile_together
    from .progress import compiling_shown

    began = time.perf_counter()
    with compiling_shown():
        for model in models:
            try:
                compile_together(model.explainer)
                model.explainer.warmup()
            except GbpError as error:  # pictures may be explained all the same
                state = "is warmed up, but" if isinstance(error, NotKeptError) else "is not warmed up:"
                print(shown(f"gbp: {model.name} {state} {in_options(str(error))}"), file=sys.stderr)
    with suppress(OSError):  # nobody reads it any more
        print_line(f"gbp: ready after {time.perf_counter() - began:.0f} s")
        sys.stdout.flush()


def _missing() -> list[str]:
    """The distributions of the extra that are not installed."""
    from importlib.util import find_spec

    return [name for module, name in _NEEDED.items() if find_spec(module) is None]


def _named(models: Sequence[str]) -> dict[str, str]:
    """Name → path, of NAME=PATH or of a path alone.

    Raises InputError for a name that two models have, and for one that cannot be part of a URL's path.
    """
    named: dict[str, str] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not equals or os.path.exists(text):
            name, path = Path(text).stem, text
        if name in named:
            raise InputError(
                f"two models are called {name!r}: {named[name]!r} and {path!r}.",
                hint=f"Name one: other={path}.",
            )
        if not name or "/" in name:
            raise InputError(f"the name of a model is {name!r}.", supported="a name without '/'")
        named[name] = path
    return named
