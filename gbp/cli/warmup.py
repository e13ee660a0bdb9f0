"""`gbp warmup`: compiles all kernels that models need, before they are used."""

from __future__ import annotations

import argparse
import shlex
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import counted
from .options import add_cache, add_device, add_ends, ends_of, print_line, size


def add_command(commands: Any) -> None:
    """Add `warmup` to the parser's commands."""
    command = commands.add_parser(
        "warmup",
        help="compile all kernels that models need, for a container say",
        description="Compile all kernels that models need, under any rule, so that no later process waits. "
        "They are kept in GBP_CACHE_DIR, by default ~/.cache/gbp.",
    )
    command.set_defaults(run=warmup)
    command.add_argument("models", metavar="MODEL.onnx", nargs="+", help="trained networks")
    model, computing = (command.add_argument_group(name) for name in ("model", "computing"))
    add_ends(model)
    add_device(computing)
    add_cache(computing)
    model.add_argument("--size", type=size, metavar="N|HxW", help="image size, where a model leaves it open")


def warmup(arguments: argparse.Namespace) -> int:
    """Run the command.  Returns the exit code."""
    from .. import Explainer
    from ..kernels.codegen.cache import CACHE_DIRECTORY, ROOT
    from ..kernels.codegen.jit import compiled
    from .compiling import compile_together
    from .progress import compiling_shown

    for model in arguments.models:
        before = len(compiled)
        with compiling_shown():
            chosen = {"device": arguments.device, "tf32": arguments.tf32, "cache": arguments.cache}
            explainer, began = Explainer(model, **ends_of(arguments), **chosen), time.perf_counter()
            compile_together(explainer, arguments.size)
            explainer.warmup(arguments.size)
        seconds = time.perf_counter() - began if len(compiled) > before else 0.0
        print_line(f"{model}: {counted(len(compiled) - before, 'kernel')} compiled in {seconds:.1f} s")
    print_line(f"All are kept in {CACHE_DIRECTORY}")
    if _is_roots_alone(CACHE_DIRECTORY):
        print_line(f"Only root may read them. To let other users run them: chmod -R a+rX {shlex.quote(ROOT)}")
    return 0


def _is_roots_alone(folder: str) -> bool:
    """Whether root owns what others may not read in a folder, as where root builds an image for another."""
    for path in (Path(folder), *Path(folder).rglob("*")):
        with suppress(FileNotFoundError):  # another process may have ended the writing of a temporary file
            status = path.stat()
            if status.st_uid == 0 and not status.st_mode & stat.S_IROTH:
                return True
    return False
