"""The examples run, and say of each picture what an Explainer says."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from gbp import Explainer

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
MODEL, PICTURE = ROOT / "models" / "demo.onnx", ROOT / "models" / "demo.png"
NAMES = ("thread_pool", "event_loop", "spawned_workers")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("name", NAMES)
def test_example(tmp_path: Path, name: str) -> None:
    images = [tmp_path / f"{i}.png" for i in range(3)]
    with Image.open(PICTURE) as picture:
        for image, made in zip(
            images, (picture, ImageOps.mirror(picture), ImageOps.invert(picture)), strict=True
        ):
            made.save(image)
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", MODEL, *images],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    explainer = Explainer(MODEL)
    assert done.stdout == "".join(f"{image} {explainer.explain(image).label()}\n" for image in images)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
def test_service_whose_workers_are_forks() -> None:
    """Forked workers answer with the pictures that this process makes; what is no picture is refused."""
    pytest.importorskip("gunicorn", reason="the example is for gunicorn, which is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    documented = (EXAMPLES / "forked_service.py").read_text(encoding="utf-8").splitlines()[2].split()
    assert documented[:2] == ["MODEL=model.onnx", "gunicorn"]
    command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--timeout", "120", *documented[2:]]
    server = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=ENVIRONMENT | {"MODEL": str(MODEL.relative_to(ROOT))},  # as from a shell
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(port, server)
        expected = io.BytesIO()
        Explainer(MODEL).explain(PICTURE).save(expected, format="png")
        for body, status, start in (
            (PICTURE.read_bytes(), 200, b"\x89PNG"),
            (b"no picture", 422, b"what was given"),
            (b"", 413, b"Send one"),
        ) * 3:
            found, answer = post(port, body)
            assert (found, answer[: len(start)]) == (status, start)
            if status == 200:
                assert answer == expected.getvalue()
    finally:
        server.terminate()
        output, _ = server.communicate(timeout=60)
    assert server.returncode == 0, output
    assert output.count("Booting worker") == 4, output


def wait_for(port: int, server: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        assert server.poll() is None, server.communicate()[0]
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server did not begin")


def post(port: int, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_all_examples_are_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NAMES, "forked_service"}
