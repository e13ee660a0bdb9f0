"""Measures whole processes: memory at its peak, a cold start, the first compilation.

The parent's side is on top; below are the workers, this file run with a worker's name and its arguments.
They import what a user's process would and nothing more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MEGABYTE = 1e6


# ------------------------------------------------------------------------------------------ the parent


def extra_memory(who: str, network_file: Path, batch: int, threads: int) -> float:
    """Megabytes (10⁶ bytes) that explaining `batch` pictures takes at its peak.

    It is the memory beyond that of a process that has loaded the network and explained one picture.
    `who`: "gbp" with an ONNX file, or "captum NCHW" or "captum channels last" with a saved torch module.
    """
    return float(_run(_worker("memory", who, network_file, batch, threads)))


def command_line(network_file: Path, picture: Path, out: Path) -> list[str]:
    """`gbp explain`, as a whole process."""
    options = ["--preprocess", "imagenet", "-o", str(out)]
    return [sys.executable, "-m", "gbp", "explain", str(network_file), str(picture), *options]


def captum_script(network_file: Path, picture: Path, out: Path) -> list[str]:
    """The same explanation by a script with torch and Captum, as a whole process."""
    return _worker("captum", network_file, picture, out)


def run_command(command: list[str]) -> Callable[[], str]:
    return lambda: _run(command)


def compile_seconds(command: list[str]) -> float:
    """Wall time of `command` on an empty kernel cache."""
    from timing import seconds_of

    with tempfile.TemporaryDirectory() as empty:
        return seconds_of(lambda: _run(command, GBP_CACHE_DIR=empty))


def _worker(*arguments: object) -> list[str]:
    return [sys.executable, __file__, *map(str, arguments)]


def _run(command: list[str], **environment: str) -> str:
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    # Installed packages are bytecode already; a checkout's must be allowed to become it.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command,
        env=inherited | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


# ----------------------------------------------------------------------------------------- the workers


def _memory(who: str, network_file: str, batch: str, threads: str) -> None:
    from workloads import pictures

    one, many = pictures(1), pictures(int(batch))
    explain = _gbp(network_file, int(threads)) if who == "gbp" else _captum(who, network_file, int(threads))
    explain(one)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = _resident("VmRSS")
    explain(many)
    print((_resident("VmHWM") - before) / MEGABYTE)


def _gbp(network_file: str, threads: int) -> Callable[[Any], Any]:
    from gbp import Explainer

    return Explainer(network_file, threads=threads).explain


def _captum(who: str, network_file: str, threads: int) -> Callable[[Any], Any]:
    import torch
    from captum.attr import GuidedBackprop
    from peers import torch_input

    torch.set_num_threads(threads)
    method, layout = GuidedBackprop(_loaded(network_file)), who.removeprefix("captum ")
    return lambda x: method.attribute(torch_input(x, layout).requires_grad_(), target=0)


def _resident(what: str) -> int:
    """Bytes of VmRSS (resident now) or VmHWM (at the peak)."""
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def _explain_with_captum(network_file: str, picture: str, out: str) -> None:
    import numpy as np
    import torch
    from captum.attr import GuidedBackprop
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("RGB").resize((224, 224)), np.float32) / 255
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    x = (pixels - mean) / std
    network = _loaded(network_file)
    batch = torch.from_numpy(x.transpose(2, 0, 1)[None].copy()).requires_grad_()
    with torch.inference_mode():
        target = network(batch).argmax(dim=1)
    heat = GuidedBackprop(network).attribute(batch, target=target).abs().amax(dim=1)[0].detach().numpy()
    Image.fromarray(np.uint8(255 * heat / heat.max())).save(out)


def _loaded(network_file: str) -> Any:
    import torch

    return torch.load(network_file, weights_only=False)


if __name__ == "__main__":
    worker, *rest = sys.argv[1:]
    if worker == "memory":
        _memory(*rest)
    else:
        _explain_with_captum(*rest)
