"""The server: its answers are the library's, its refusals are JSON, and it keeps its limits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

# ruff: noqa: E402
for _module in ("starlette", "uvicorn", "prometheus_client", "python_multipart", "httpx"):
    pytest.importorskip(_module, reason="needs the extra serve, and httpx")

import httpx

from gbp import RULES, At, Channel, Explainer, GbpError, InputError, Top, Unit, methods
from gbp.methods import METHODS
from gbp.pictures.legend import meaning
from gbp.rules import OTHER_RULES, rule_named
from gbp.serve.app import Server, application, routes_of
from gbp.serve.limits import Limits
from gbp.serve.models import Job, Served
from gbp.serve.openapi import document
from gbp.serve.requests import FORMATS, PARAMETERS, Ask, RequestError, accepted
from gbp.serve.work import BusyError, Workers

MODELS = Path(__file__).resolve().parent.parent / "models"
PHOTO = (MODELS / "demo.png").read_bytes()
EXPLAIN = "/v1/models/demo/explain"
#: With time for kernels that have to be compiled.
LIMITS = Limits(body=2**20, pixels=200_000, targets=3, queue=4, seconds=600)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(MODELS / "demo.onnx", threads=1)


@pytest.fixture(scope="module")
def app(explainer: Explainer) -> Any:
    return application([Served("demo", explainer, LIMITS)], LIMITS)


def send(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    async def sending() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=None
        ) as client:
            return await client.request(method, path, **request)

    return asyncio.run(sending())


def post(app: Any, content: bytes = PHOTO, accept: str = "*/*", **query: str) -> httpx.Response:
    return send(app, "POST", EXPLAIN, content=content, params=query, headers={"accept": accept})


def arrays(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content)) as file:
        return dict(file)


# ---------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("rule", [*RULES, "lrp-epsilon"])
@pytest.mark.parametrize(("said", "target"), [(None, None), ("star", "star"), ("3", 3), ("top3", Top(3))])
def test_the_map_is_the_librarys(
    app: Any, explainer: Explainer, rule: str, said: str | None, target: Any
) -> None:
    query = {} if said is None else {"target": said}
    answer = post(app, rule=rule, format="npz", **query)
    expected = explainer.explain(PHOTO, rule=rule, target=target)
    assert answer.headers["content-type"] == "application/x-npz"
    found = arrays(answer.content)
    assert found["map"].tobytes() == expected.map.tobytes()
    assert found["map"].shape == expected.map.shape
    assert found["target"].tolist() == expected.target.tolist()


def test_json_says_what_the_command_line_says(app: Any, explainer: Explainer) -> None:
    answer = post(app, rule="vanilla", target="star").json()
    expected = explainer.explain(PHOTO, rule="vanilla", target="star")
    assert {key: answer[key] for key in ("rule", "explained", "top", "provenance")} == expected.to_dict()
    assert answer["model"] == "demo"
    assert answer["notes"] == list(expected.notes)
    assert answer["caution"] == RULES["vanilla"].caution != ""
    assert answer["timing"]["together"] == 1
    assert post(app, method="smoothgrad", rule="guided").json()["caution"] == RULES["guided"].caution
    assert post(app, method="smoothgrad").json()["caution"] == ""
    assert "map" not in answer
    assert "input" not in answer


def test_json_holds_the_map_and_what_the_network_sees_on_request(app: Any, explainer: Explainer) -> None:
    answer = post(app, include="map,input").json()
    expected = explainer.explain(PHOTO)
    assert arrays(base64.b64decode(answer["map"]))["map"].tobytes() == expected.map.tobytes()
    seen = Image.open(io.BytesIO(base64.b64decode(answer["input"])))
    assert seen.tobytes() == expected[0].image.tobytes()


@pytest.mark.parametrize(
    ("query", "target"),
    [
        ({"at": "relu1"}, Unit("relu1")),
        ({"at": "relu1", "channel": "3"}, Channel("relu1", 3)),
        ({"at": "relu1", "unit": "3,20,30"}, Unit("relu1", 3, 20, 30)),
    ],
)
def test_a_hidden_unit_is_explained(
    app: Any, explainer: Explainer, query: dict[str, str], target: Any
) -> None:
    answer = post(app, rule="deconvnet", include="map", **query).json()
    assert answer["means"]["overlay"] == meaning("overlay", "deconvnet")
    expected = explainer.explain(PHOTO, rule="deconvnet", target=target)
    assert arrays(base64.b64decode(answer["map"]))["map"].tobytes() == expected.map.tobytes()
    assert answer["explained"] == expected.to_dict()["explained"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_librarys(app: Any, explainer: Explainer, name: str) -> None:
    options = {"layer": explainer.tensors[2].name} if METHODS[name].needs else {}
    answer = post(app, method=name, target="star", include="map", **options).json()
    assert answer["means"]["diverging"] == meaning("diverging", answer["rule"], name)
    expected = METHODS[name].call(explainer, PHOTO, target="star", **options)
    assert (answer["method"], answer["rule"]) == (name, expected.rule)
    assert answer["notes"] == list(expected.notes)
    assert arrays(base64.b64decode(answer["map"]))["map"].tobytes() == expected.map.tobytes()


def test_the_layer_and_the_rule_of_a_method_are_the_requests(app: Any, explainer: Explainer) -> None:
    layer = explainer.tensors[2].name
    answer = post(app, method="layer-gradient", layer=layer, rule="guided", format="npz")
    expected = methods.layer_gradient(explainer, PHOTO, layer=layer, rule="guided").map
    assert arrays(answer.content)["map"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("style", ["overlay", "gray", "diverging", "rgb", "strip"])
def test_a_picture_is_the_librarys(app: Any, explainer: Explainer, style: Any) -> None:
    answer = post(app, accept="image/png", style=style)
    expected = getattr(explainer.explain(PHOTO), style)()
    assert Image.open(io.BytesIO(answer.content)).tobytes() == expected.tobytes()


def test_several_classes_are_a_strip(app: Any, explainer: Explainer) -> None:
    answer = post(app, accept="image/png", target="top2")
    expected = explainer.explain(PHOTO, target=Top(2)).strip()
    assert Image.open(io.BytesIO(answer.content)).tobytes() == expected.tobytes()
    refused = post(app, accept="image/png", target="top2", style="gray")
    assert (refused.status_code, refused.json()["error"]["hint"]) == (422, "Leave the style out.")
    assert post(app, accept="image/png", target="top1", style="gray").status_code == 200


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_every_format_of_pictures(app: Any, name: str) -> None:
    by_query, by_header = post(app, format=name), post(app, accept=FORMATS[name])
    assert by_query.content == by_header.content
    assert by_query.headers["content-type"] == FORMATS[name]
    picture = Image.open(io.BytesIO(by_query.content))
    assert (picture.format, picture.size) == (name.upper(), (96, 96))


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("image/*", "png"),
        ("image/webp", "webp"),
        ("image/avif,image/webp;q=0.9,image/png;q=0.8,*/*;q=0.5", "webp"),
        ("text/html, application/json;q=0.1, image/jpeg;q=0.2", "jpeg"),
        ("application/x-npz", "npz"),
        ("image/png;q=nonsense, image/jpeg;q=0.001", "jpeg"),
        ("IMAGE/PNG", "png"),
        ("*/*, application/json;q=0", "png"),
    ],
)
def test_accept_chooses_the_format(accept: str, name: str) -> None:
    assert accepted(accept) == name


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "*/*;q=0", "video/*", "application/json;q=0"])
def test_nothing_acceptable(accept: str) -> None:
    with pytest.raises(RequestError) as refusal:
        accepted(accept)
    assert refusal.value.status == 406


@settings(max_examples=300)
@given(st.text(max_size=60) | st.text("*/;=q.,01 imagepnjson", max_size=60))
def test_any_accept_is_read_or_refused(accept: str) -> None:
    with suppress(RequestError):
        assert accepted(accept) in FORMATS


def test_a_form_an_array_and_a_body_say_the_same(app: Any, explainer: Explainer) -> None:
    body = post(app, format="npz")
    form = send(app, "POST", EXPLAIN, files={"file": ("../../x<b>.png", PHOTO)}, params={"format": "npz"})
    assert form.content == body.content
    expected = explainer.explain(PHOTO).map
    for x in (explainer.prepare(PHOTO), explainer.prepare(PHOTO)[0]):
        file = io.BytesIO()
        np.save(file, x)
        array = post(app, file.getvalue(), format="npz")
        assert arrays(array.content)["map"].tobytes() == expected.tobytes()


def test_a_score_of_several_axes_is_named_as_on_the_command_line() -> None:
    ask = Ask.read(httpx_query("target=5763:dog"), "", LIMITS)
    assert ask.target == At(5763, "dog")


def httpx_query(text: str) -> Any:
    from starlette.datastructures import QueryParams

    return QueryParams(text)


def test_alike_requests_are_one_batch_and_have_their_own_bits(explainer: Explainer) -> None:
    served, alone = Served("demo", explainer, LIMITS), []
    photos = [PHOTO, *(path.read_bytes() for path in sorted((MODELS / "scenes").glob("*.png"))[:3])]
    ask = Ask(format="npz")
    jobs = [Job(served, ask, photo, 0.0) for photo in photos]
    jobs.insert(2, Job(served, ask, b"no picture", 0.0))
    jobs.append(Job(served, Ask(format="png"), PHOTO, 0.0))
    together = served.answer(jobs)
    for job in jobs:
        alone += served.answer([job])
    assert isinstance(together[2], InputError)
    assert [str(answer) if isinstance(answer, InputError) else answer for answer in together] == [
        str(answer) if isinstance(answer, InputError) else answer for answer in alone
    ]
    assert len({job.key for job in jobs}) == 1
    assert Job(served, Ask(target=Top(2)), PHOTO, 0.0).key != Job(served, Ask(target=Top(2)), PHOTO, 0.0).key


def test_one_that_fails_in_a_batch_fails_alone(explainer: Explainer) -> None:
    narrow = io.BytesIO()
    Image.new("RGB", (1, 65000)).save(narrow, "PNG")  # decoded, but too narrow to crop
    served = Served("demo", explainer, LIMITS)
    jobs = [Job(served, Ask(format="png"), content, 0.0) for content in (PHOTO, narrow.getvalue(), PHOTO)]
    first, error, last = served.answer(jobs)
    assert isinstance(error, InputError)
    assert first == last == served.answer(jobs[:1])[0]


# --------------------------------------------------------------------------------------------- refusals


REFUSED: list[tuple[int, dict[str, Any]]] = [
    (404, {"path": "/v1/models/other/explain"}),
    (404, {"path": "/v1/models/..%2f..%2fetc%2fpasswd/explain"}),
    (404, {"path": "/nothing"}),
    (405, {"method": "GET"}),
    (405, {"method": "PUT", "content": PHOTO}),
    (406, {"headers": {"accept": "text/html"}}),
    (400, {"content": b""}),
    (400, {"headers": {"content-type": "application/json"}}),
    (415, {"headers": {"content-encoding": "gzip"}}),
    (400, {"params": {"rule": "lrp"}}),
    (400, {"params": {"method": "lime"}}),
    (400, {"params": {"method": "layer-gradient"}}),
    (400, {"params": {"channel": "1"}}),
    (400, {"params": {"at": "relu1", "channel": "x"}}),
    (400, {"params": {"at": "relu1", "channel": "1,2"}}),
    (400, {"params": {"at": "relu1", "unit": "1,2,-3"}}),
    (400, {"params": {"at": "relu1", "unit": "1,2,3", "channel": "1"}}),
    (400, {"params": {"at": "relu1", "target": "star"}}),
    (400, {"params": {"at": "relu1", "method": "smoothgrad"}}),
    (422, {"params": {"at": "/etc/passwd"}}),
    (422, {"params": {"at": "relu1", "channel": "99"}}),
    (400, {"params": {"method": "grad-cam", "rule": "guided"}}),
    (400, {"params": {"method": "smoothgrad", "layer": "conv1"}}),
    (400, {"params": {"layer": "conv1"}}),
    (422, {"params": {"method": "grad-cam", "layer": "/etc/passwd"}}),
    (400, {"params": {"style": "<b>"}}),
    (400, {"params": {"format": "gif"}}),
    (400, {"params": {"include": "labels"}}),
    (400, {"params": {"include": "map", "format": "png"}}),
    (400, {"params": {"colour": "red"}}),
    (400, {"params": [("rule", "guided"), ("rule", "vanilla")]}),
    (400, {"params": {"target": "top4"}}),
    (400, {"params": {"target": "top0"}}),
    (400, {"params": {"target": "x" * 201}}),
    (413, {"content": b"x" * (2**20 + 1)}),
    (422, {"content": b"no picture"}),
    (422, {"content": PHOTO[:500]}),
    (422, {"content": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"}),
    (422, {"params": {"target": "unicorn"}}),
    (422, {"params": {"target": "99"}}),
    (422, {"params": {"target": "-1"}}),
    (422, {"params": {"target": "9" * 150}}),
    (422, {"params": {"target": "/etc/passwd"}}),
    (422, {"params": {"target": "1:2:3"}}),
    (400, {"headers": {"content-type": "multipart/form-data"}}),
    (400, {"headers": {"content-type": "multipart/form-data; boundary=x"}}),
    (400, {"content": None, "files": {"a": PHOTO, "b": PHOTO}}),
    (400, {"content": None, "files": {"a": b""}}),
    (400, {"content": None, "files": {"a": PHOTO}, "data": {"path": "/etc/passwd"}}),
]


@pytest.mark.parametrize(("status", "request_"), REFUSED)
def test_refusals_are_json(app: Any, status: int, request_: dict[str, Any]) -> None:
    sent = {"method": "POST", "path": EXPLAIN, "content": PHOTO} | request_
    answer = send(app, sent.pop("method"), sent.pop("path"), **sent)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(error["found"])
    assert error["type"] == "InputError"
    assert "Traceback" not in answer.text
    assert "<" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_refusals_say_what_to_do(app: Any) -> None:
    def told(method: str, path: str, **more: Any) -> dict[str, Any]:
        return send(app, method, path, **more).json()["error"]

    assert told("GET", "/docs")["hint"] == "GET /openapi.json lists them."
    assert told("GET", EXPLAIN)["supported"] == "POST"
    sent = told("POST", EXPLAIN, json={"image": base64.b64encode(PHOTO).decode()})
    assert sent["found"] == "Content-Type says that the body is JSON, which holds no file."
    assert sent["hint"].startswith("Send a picture")
    assert sent["hint"].endswith("Say what it is, as image/png, or leave Content-Type out.")


def array_file(x: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 3, 96, 96), np.float32),
        np.zeros((3, 95, 96), np.float32),
        np.zeros(0, np.float32),
        np.zeros((), np.float32),
        np.full((3, 96, 96), np.nan, np.float32),
        np.zeros((3, 96, 96), "S1"),
        np.zeros((3, 96, 96), np.complex64),
    ],
)
def test_arrays_that_do_not_fit(app: Any, x: Any) -> None:
    assert post(app, array_file(x)).status_code == 422


def test_a_picture_of_too_many_pixels_is_not_decoded(app: Any) -> None:
    file = io.BytesIO()
    Image.new("1", (501, 400)).save(file, "PNG")
    answer = post(app, file.getvalue())
    assert answer.status_code == 422
    assert "501 × 400 pixels. Supported: up to 0.2 million here." in answer.json()["error"]["message"]


def test_a_model_that_takes_no_pictures_says_so(explainer: Explainer) -> None:
    bare = Explainer((MODELS / "demo.onnx").read_bytes(), threads=1)
    served = Served("bare", bare, LIMITS)
    assert served.describe()["pictures"] is False
    answer = send(application([served], LIMITS), "POST", "/v1/models/bare/explain", content=PHOTO)
    assert answer.status_code == 422
    assert "preprocess" in answer.json()["error"]["message"]


def test_labels_cannot_be_html() -> None:
    labels = ["<script>alert(1)</script>", "a & b", *(f"é{i}" for i in range(10))]
    explainer = Explainer(MODELS / "demo.onnx", labels=labels, threads=1)
    app = application([Served("<b>&", explainer, LIMITS)], LIMITS)
    answers = [
        send(app, "POST", "/v1/models/%3Cb%3E&/explain", content=PHOTO, params={"target": "0"}),
        send(app, "POST", "/v1/models/%3Cb%3E&/explain", content=PHOTO, params={"target": "<i>"}),
        send(app, "GET", "/v1/models"),
        send(app, "GET", "/openapi.json"),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 200]
    assert answers[0].json()["explained"][0]["label"] == labels[0]
    for answer in answers:
        assert answer.headers["content-type"] == "application/json"
        assert not {"<", ">", "&"} & set(answer.text)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "[::2]:80", "127.0.0.2"])
def test_a_foreign_host_is_refused(explainer: Explainer, host: str) -> None:
    hosts = ("localhost", "[::1]")
    app = application([Served("demo", explainer, LIMITS)], LIMITS, hosts=hosts)
    for known in (*hosts, "LocalHost:8000", "[::1]:8000"):
        assert send(app, "GET", "/healthz", headers={"host": known}).status_code == 200
    answer = send(app, "GET", "/healthz", headers={"host": host})
    assert answer.status_code == 400
    assert f"foreign name, '{host.removesuffix(':80')}'" in answer.json()["error"]["message"]


def test_a_request_without_a_host_is_told_so(explainer: Explainer) -> None:
    app = application([Served("demo", explainer, LIMITS)], LIMITS, hosts=("localhost",))
    answer = send(app, "GET", "/healthz", headers={"host": ""})
    assert answer.status_code == 400
    assert "no header Host" in answer.json()["error"]["message"]


def test_headers_that_come_in_one_piece_have_a_limit(app: Any) -> None:
    assert send(app, "GET", "/healthz", headers={"x": "a" * 30_000}).status_code == 200
    answer = send(app, "GET", "/healthz", headers={"x": "a" * 40_000})
    assert answer.status_code == 400
    assert "more than 32768 bytes" in answer.json()["error"]["message"]


def test_a_fault_of_the_server_shows_nothing_of_it(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(jobs: Sequence[Job]) -> Any:
        raise KeyError("secret")

    served = Served("demo", explainer, LIMITS)
    monkeypatch.setattr(served, "answer", fail)
    answer = post(application([served], LIMITS))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in caplog.text


# ----------------------------------------------------------------------------------------------- limits


class Blocked(Served):
    """Explains nothing until it is told to go on."""

    def __init__(self, explainer: Explainer, limits: Limits = LIMITS) -> None:
        super().__init__("demo", explainer, limits)
        self.started, self.go_on = threading.Semaphore(0), threading.Event()

    def answer(self, jobs: Sequence[Job]) -> list[Any]:
        self.started.release()
        assert self.go_on.wait(60)
        return super().answer(jobs)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_who_finds_the_queue_full_is_refused_at_once_and_the_others_are_answered(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gbp.serve.app.available", lambda: 1)
    model = Blocked(explainer)

    async def scene() -> tuple[list[httpx.Response], httpx.Response]:
        app = application([model], LIMITS)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=None) as client:
            first = asyncio.create_task(client.post(EXPLAIN, content=PHOTO))
            await until(lambda: model.started.acquire(blocking=False))
            rest = [asyncio.create_task(client.post(EXPLAIN, content=PHOTO)) for _ in range(LIMITS.queue)]
            waiting = "gbp_requests_waiting 4.0"
            while waiting not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.005)
            refused = await client.post(EXPLAIN, content=PHOTO)
            model.go_on.set()
            return [await task for task in (first, *rest)], refused

    answers, refused = asyncio.run(scene())
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers] == [200] * 5


def scope_of(path: str, method: str = "POST") -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("localhost", 1),
    }


def test_a_client_that_goes_away_frees_its_place(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gbp.serve.app.available", lambda: 1)
    model = Blocked(explainer)
    made: list[Server] = []
    monkeypatch.setattr("gbp.serve.app.routes_of", lambda server: made.append(server) or routes_of(server))

    async def scene() -> None:
        app = application([model], LIMITS)
        (server,) = made
        gone = asyncio.Event()
        messages: Iterator[dict[str, Any]] = iter([{"type": "http.request", "body": PHOTO}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        sent: list[dict[str, Any]] = []

        async def sending(message: dict[str, Any]) -> None:
            sent.append(message)

        first = server.workers.submit(Job(model, Ask(), PHOTO, 0.0), "first")
        await until(lambda: model.started.acquire(blocking=False))
        task = asyncio.create_task(app(scope_of(EXPLAIN), receive, sending))
        await until(lambda: len(server.workers))
        assert server.held.bytes == len(PHOTO)
        gone.set()
        await task
        assert not sent
        assert len(server.workers) == server.held.bytes == 0
        model.go_on.set()
        await asyncio.wrap_future(first)
        assert not model.started.acquire(blocking=False)  # it was not computed either

    asyncio.run(scene())


@pytest.mark.parametrize("reading", [True, False])
def test_a_request_has_its_seconds(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch, reading: bool
) -> None:
    monkeypatch.setattr("gbp.serve.app.available", lambda: 1)
    limits = Limits(seconds=1)
    model = Blocked(explainer, limits)

    async def body() -> Any:
        yield PHOTO
        while reading:
            await asyncio.sleep(0.05)
            yield b"x"

    answer = send(application([model], limits), "POST", EXPLAIN, content=body())
    model.go_on.set()
    assert answer.status_code == (408 if reading else 503)


def test_a_body_of_unknown_length_has_its_limit(app: Any) -> None:
    async def body() -> Any:
        for _ in range(17):
            yield bytes(2**16)
        raise AssertionError("it went on reading")

    assert send(app, "POST", EXPLAIN, content=body()).status_code == 413


def test_all_bodies_together_have_a_limit(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gbp.serve.limits._BODIES", 0.01)
    answer = post(application([Served("demo", explainer, LIMITS)], LIMITS))
    assert answer.status_code == 503


@pytest.mark.parametrize("name", ["body", "pixels", "targets", "queue", "seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_numbers(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Limits(**{name: value})


def test_it_is_ready_when_the_models_are(explainer: Explainer) -> None:
    ready = threading.Event()
    app = application([Served("demo", explainer, LIMITS)], LIMITS, ready=ready)
    assert send(app, "GET", "/healthz").status_code == 200
    for answer in (send(app, "GET", "/readyz"), post(app)):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    assert "kernels are being compiled" in send(app, "GET", "/readyz").text
    assert "get ready" in post(app).json()["error"]["message"]
    assert send(app, "GET", "/v1/models").json()["ready"] is False
    ready.set()
    assert send(app, "GET", "/readyz").status_code == post(app).status_code == 200
    assert send(app, "GET", "/v1/models").json()["ready"] is True


# ---------------------------------------------------------------------------------------------- workers


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 3), st.integers(1, 5))
def test_every_task_is_done_once_with_its_like_in_order(keys: list[int], threads: int, together: int) -> None:
    calls: list[list[int]] = []

    def run(tasks: Sequence[int]) -> list[int | BaseException]:
        calls.append(list(tasks))
        return [ValueError(str(task)) if task % 5 == 4 else -task for task in tasks]

    workers: Workers[int, int] = Workers(run, threads=threads, length=30)
    futures = [workers.submit(i, key, together) for i, key in enumerate(keys)]
    workers.close()
    assert sorted(chain(*calls)) == list(range(len(keys)))
    for tasks in calls:
        assert 1 <= len(tasks) <= together
        assert len({keys[task] for task in tasks}) == 1
        assert tasks == sorted(tasks)
    for i, future in enumerate(futures):
        if i % 5 == 4:
            with pytest.raises(ValueError, match=str(i)):
                future.result(0)
        else:
            assert future.result(0) == -i
    with pytest.raises(BusyError):
        workers.submit(0, 0)


def test_idle_workers_share_what_waits() -> None:
    going, calls = threading.Event(), []
    started = threading.Semaphore(0)

    def run(tasks: Sequence[int]) -> list[int | BaseException]:
        calls.append(len(tasks))
        started.release()
        assert going.wait(60)
        return list(tasks)

    workers: Workers[int, int] = Workers(run, threads=2, length=8)
    for i in range(2):
        workers.submit(i, 0, 8)
        assert started.acquire(timeout=60)
    for i in range(6):
        workers.submit(i, 0, 8)
    going.set()
    workers.close()
    assert calls[:2] == [1, 1]
    assert sum(calls) == 8


# ------------------------------------------------------------------------------------- other paths


def test_the_document_has_every_route(app: Any, explainer: Explainer) -> None:
    served = Served("demo", explainer, LIMITS)
    routes = {
        (route.path, method.lower())
        for route in routes_of(Server([served], LIMITS, None, None))
        for method in route.methods - {"HEAD"}
    }
    answer = send(app, "GET", "/openapi.json").json()
    assert answer == json.loads(json.dumps(document(["demo"], LIMITS)))
    assert {(path, method) for path, methods in answer["paths"].items() for method in methods} == routes
    assert str(LIMITS) in answer["info"]["description"]


def test_the_document_describes_the_answers(app: Any) -> None:
    found = document(["demo"], LIMITS)
    schemas = found["components"]["schemas"]
    operation = found["paths"]["/v1/models/{name}/explain"]["post"]

    def check(value: Any, schema: dict[str, Any]) -> None:
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        kinds = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int}
        kinds |= {"boolean": bool, "null": type(None)}
        if schema is True:
            return
        said = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[name]) for name in said), (value, schema)
        if isinstance(value, dict):
            properties = schema.get("properties", {})
            assert set(schema.get("required", ())) <= set(value)
            more = schema.get("additionalProperties")
            for name, part in value.items():
                check(part, properties[name] if more is None else more)
        elif isinstance(value, list):
            for part in value:
                check(part, schema["items"])

    check(post(app, include="map,input").json(), schemas["Explanation"])
    check(send(app, "GET", "/v1/models").json(), schemas["Models"])
    refused = post(app, rule="none")
    check(refused.json(), schemas["Error"])
    assert {str(status) for status, _ in REFUSED} | {"200", "408", "503"} == set(operation["responses"])
    queries = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
    assert tuple(queries) == PARAMETERS


def test_metrics_count(explainer: Explainer) -> None:
    app = application([Served("demo", explainer, LIMITS)], LIMITS)
    post(app)
    post(app, rule="vanilla", format="png")
    post(app, b"no picture")
    send(app, "GET", "/<script>")
    text = send(app, "GET", "/metrics").text
    assert 'gbp_requests_total{route="explain",status="200"} 2.0' in text
    assert 'gbp_requests_total{route="explain",status="422"} 1.0' in text
    assert 'gbp_requests_total{route="other",status="404"} 1.0' in text
    assert 'gbp_explanations_total{model="demo",rule="vanilla"} 1.0' in text
    assert 'gbp_explanation_seconds_count{model="demo"} 2.0' in text
    assert "process_resident_memory_bytes" in text
    assert "<script>" not in text


def test_the_models_are_listed(app: Any) -> None:
    answer = send(app, "GET", "/v1/models").json()
    (model,) = answer["models"]
    assert (model["name"], model["input_shape"], model["labels"]) == ("demo", [None, 3, 96, 96], 12)
    assert model["pictures"] is True
    assert [rule["name"] for rule in model["rules"]] == [*RULES, *OTHER_RULES]
    assert all(rule["caution"] == rule_named(rule["name"]).caution for rule in model["rules"])
    assert answer["limits"]["queue"] == LIMITS.queue


def test_others_do_not_wait_for_the_list_of_models(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, answered = threading.Event(), threading.Event()

    def describe(_: Served) -> bool:
        listing.set()
        return answered.wait(20)

    async def ask() -> Any:
        transport = httpx.ASGITransport(application([Served("demo", explainer, LIMITS)], LIMITS))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            listed = asyncio.ensure_future(client.get("/v1/models"))
            await until(listing.is_set)
            await client.get("/healthz")
            answered.set()
            return (await listed).json()["models"]

    monkeypatch.setattr(Served, "describe", describe)
    assert asyncio.run(ask()) == [True]


def test_errors_of_the_library_are_of_its_family() -> None:
    assert issubclass(RequestError, GbpError)
