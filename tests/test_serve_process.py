"""`gbp serve` as a process: what it prints, real sockets, hostile requests, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

# ruff: noqa: E402
for _module in ("starlette", "uvicorn", "prometheus_client", "python_multipart", "httpx"):
    pytest.importorskip(_module, reason="needs the extra serve, and httpx")

import httpx
import uvicorn
from builder import Builder
from hostile_requests import MODELS, attack, fault_of

from gbp import Explainer
from gbp.cli import serve as command
from gbp.cli.main import main
from gbp.engine.warming import NotKeptError
from gbp.errors import InputError
from gbp.serve import server as serving
from gbp.serve.app import application
from gbp.serve.limits import HEADER_BYTES, Limits
from gbp.serve.models import Served

PHOTO = (MODELS / "demo.png").read_bytes()
DEMO = str(MODELS / "demo.onnx")


@contextmanager
def served(*options: str) -> Any:
    """A server, its address and the lines that it prints first."""
    arguments = (sys.executable, "-m", "gbp", "serve", DEMO, *options, "--port", "0")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            address = re.findall(r"http://\S+", lines[0])[0]
            yield process, address, lines
        finally:
            process.kill()


def test_it_says_where_it_is_and_its_limits() -> None:
    with served("--max-body", "2M", "--queue", "7", "--seconds", "12", "--max-targets", "2") as (
        _,
        address,
        lines,
    ):
        assert re.fullmatch(r"gbp: serving demo at http://127\.0\.0\.1:\d+/\n", lines[0])
        assert lines[1] == (
            "gbp: limits: 2 MiB a body, 50 million pixels a picture, 2 targets and 12 s a request, "
            "7 requests waiting\n"
        )
        limits = httpx.get(f"{address}v1/models").json()["limits"]
        assert limits == {"body": 2**21, "pixels": 50_000_000, "targets": 2, "queue": 7, "seconds": 12.0}
        # From elsewhere it cannot be reached: it listens on loopback alone.
        port = int(address.rstrip("/").rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # which sends nothing, and tells this machine's own address
            outside = probe.getsockname()[0]
            with socket.socket() as client:
                assert client.connect_ex((outside, port)) != 0


def test_sigterm_finishes_what_was_accepted() -> None:
    with served("--queue", "64", "--seconds", "600") as (process, address, _), ExitStack() as stack:
        with httpx.Client(timeout=None) as client:
            while client.get(f"{address}readyz").status_code != 200:
                pass
            form = {"content-type": "multipart/form-data; boundary=x"}  # which the body is not
            broken = client.post(f"{address}v1/models/demo/explain", content=PHOTO, headers=form)
            assert broken.status_code == 400
        where = urlsplit(address)
        asking = [
            stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=600))
            for _ in range(8)
        ]
        for connection in asking:
            connection.sendall(
                b"POST /v1/models/demo/explain?method=smoothgrad HTTP/1.1\r\nHost: localhost\r\n"
                b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PHOTO)
            )
        for connection in asking:  # a sent body may wait where the server has not accepted the connection
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            connection.sendall(PHOTO)
        waiting = ""
        with httpx.Client(timeout=None) as client:
            while not re.search(r'route="explain"|gbp_requests_waiting [1-9]', waiting):
                waiting = client.get(f"{address}metrics").text
        process.send_signal(signal.SIGTERM)
        assert [connection.recv(12) for connection in asking] == [b"HTTP/1.1 200"] * 8
        for connection in asking:
            while connection.recv(2**16):
                pass
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert process.stderr.read() == ""


def test_hostile_requests_are_refused_and_honest_ones_answered() -> None:
    """A few; `python tests/hostile_requests.py 0 5000` sends more."""
    statuses, faults = attack(first=100_000, count=60, slow=20)
    assert faults == []
    assert statuses["200"]
    assert statuses["400"]


@pytest.fixture(scope="module")
def port() -> Any:
    """A server within this process, in which connections must send their headers within a moment."""
    explainer, limits = Explainer(DEMO, threads=1), Limits()
    app = application([Served("demo", explainer, limits)], limits)
    patch = pytest.MonkeyPatch()
    patch.setattr(serving, "HEADER_SECONDS", 0.2)
    config = uvicorn.Config(
        app,
        http=serving.Protocol,
        log_config=None,
        lifespan="on",
        ws="none",
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    listener = serving.listening("127.0.0.1", 0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()
    patch.undo()


START = b"POST /v1/models/demo/explain HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("start", [b"", b"G", START, START + b"X: "])
def test_who_sends_no_headers_is_cut_off(port: int, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(start)
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""


def test_who_sends_no_headers_after_an_answer_is_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he")
        answer = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(1000):
                answer += piece
        assert answer.count(b"HTTP/1.1 200") == 1


def test_who_goes_on_with_a_body_after_the_answer_is_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 404"
        with suppress(ConnectionError):
            while True:
                connection.sendall(b"x")
                threading.Event().wait(0.05)


def test_a_slow_body_is_no_idle_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(START + b"Content-Length: %d\r\n\r\n" % len(PHOTO))
        for i in range(0, len(PHOTO), 4000):
            connection.sendall(PHOTO[i : i + 4000])
            threading.Event().wait(0.1)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_headers_have_a_limit(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(ConnectionError):
            connection.sendall(START + b"X: " + b"a" * (2 * HEADER_BYTES))
        answer = b""
        with suppress(ConnectionError):
            answer = connection.recv(1000)
    assert answer in (b"",) or answer.startswith(b"HTTP/1.1 400")
    assert fault_of(answer) is None


# --------------------------------------------------------------------------------------- command line


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("gbp: error: ")
    return captured.err


def test_what_is_refused_at_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "two models are called 'demo'" in refused(capsys, DEMO, DEMO)
    assert "supported: a name without '/'" in refused(capsys, f"a/b={DEMO}").lower()
    assert "--queue is 0" in refused(capsys, DEMO, "--queue", "0")
    assert "--max-pixels is 0" in refused(capsys, DEMO, "--max-pixels", "0")
    assert "nowhere.onnx" in refused(capsys, str(tmp_path / "nowhere.onnx"))
    assert "--port is 99999" in refused(capsys, DEMO, "--port", "99999")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = f"127.0.0.1:{port}: Address already in use. Choose another port; 0 is any that is free."
        assert told in refused(capsys, DEMO, "--port", port)
    monkeypatch.setattr(command, "_NEEDED", {"no_such_module": "no-such-module"})
    message = refused(capsys, DEMO)
    assert "no-such-module" in message
    assert "pip install 'gbp-explain[serve]'" in message


def open_model(folder: Path) -> Path:
    """A model for pictures of any size."""
    b = Builder()
    model = b.model(b.gemm(b.flatten(b.node("GlobalAveragePool", b.input(1, 3, 8, 8))), 4))
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "any"
    path = folder / "open.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_names_of_models(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.onnx"
    odd.write_bytes(b"")
    assert command._named([DEMO, f"other={DEMO}", str(odd)]) == {"demo": DEMO, "other": DEMO, "a=b": str(odd)}
    with pytest.raises(InputError):
        command._named([f"={DEMO}"])


@pytest.mark.parametrize("error", [InputError("there is no memory."), BrokenPipeError("nobody reads it")])
def test_a_warmup_that_fails_ends_it(error: Exception) -> None:
    def prepare() -> None:
        raise error

    limits = Limits()
    models = [Served("demo", Explainer(DEMO, threads=1), limits)]
    with pytest.raises(type(error), match=str(error)):
        serving.serve(models, limits, serving.listening("127.0.0.1", 0), hosts=None, prepare=prepare)


def test_it_gets_ready_before_it_explains(tmp_path: Path) -> None:
    """The kernels are compiled first; a model whose size nobody says is served without that."""
    with served(f"open={open_model(tmp_path)}") as (process, address, _):
        assert re.fullmatch(r"gbp: ready after \d+ s\n", process.stdout.readline())
        assert httpx.get(f"{address}readyz").status_code == 200
        process.terminate()
        told = process.stderr.read()
        assert "gbp: open takes arrays alone: nothing says how it wants pictures." in told
        assert "gbp: open is not warmed up" in told


def test_what_is_said_while_it_gets_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Why a model is not warmed up, or that this is lost; and nobody need read that it is ready."""

    def get_ready(_: object, __: object, listener: socket.socket, *, prepare: Any, **___: object) -> None:
        listener.close()
        prepare()

    def not_kept(_: object) -> None:
        raise NotKeptError("kernels cannot be kept.", hint="Name a folder.")

    def closed(text: str) -> None:
        if "ready" in text:
            raise BrokenPipeError

    monkeypatch.setattr(serving, "serve", get_ready)
    monkeypatch.setattr(command, "print_line", closed)
    assert main(["serve", str(open_model(tmp_path)), "--port", "0"]) == 0
    hint = "the model leaves the image size open. Say it: --size HxW."
    alone, not_warm = capsys.readouterr().err.splitlines()
    assert alone.startswith(
        "gbp: open takes arrays alone: nothing says how it wants pictures. Give --preprocess"
    )
    assert not_warm == f"gbp: open is not warmed up: {hint}"
    monkeypatch.setattr(Explainer, "warmup", not_kept)
    assert main(["serve", DEMO, "--port", "0"]) == 0
    assert capsys.readouterr().err == "gbp: demo is warmed up, but kernels cannot be kept. Name a folder.\n"


def test_the_answer_of_curl() -> None:
    """As docs/serve.md says."""
    with served("--no-warmup") as (_, address, _):
        answer = httpx.post(
            f"{address}v1/models/demo/explain",
            content=PHOTO,
            headers={"content-type": "application/x-www-form-urlencoded"},
            timeout=None,
        )
    assert json.loads(answer.text)["explained"][0]["label"] == "ring"
