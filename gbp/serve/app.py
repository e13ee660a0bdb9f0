"""`application`: the routes of the server, and what guards all of them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import GbpError, InputError, __version__
from ..kernels.codegen.jit import compiled
from ..kernels.parallel.threads import available
from .limits import HEADER_BYTES, Limits
from .metrics import MEDIA_TYPE, Metrics
from .models import Answer, Job, Served, as_json
from .openapi import document
from .page import page, policy
from .requests import Ask, Body, Held, RequestError
from .work import BusyError, Workers

_log = logging.getLogger("gbp.serve")

#: Seconds after which a client may try again while models are prepared.
_NOT_READY = 5
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Server:
    """The state behind the routes.

    Parameters
    ----------
    models
        The models; their names differ.
    limits
        Limits of requests.
    hosts
        The names that requests may call the server by, or None for any.
    ready
        Explanations are refused until it is set; None where the models are ready.
    """

    def __init__(
        self,
        models: Sequence[Served],
        limits: Limits,
        hosts: Sequence[str] | None,
        ready: threading.Event | None,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.limits, self.hosts = limits, hosts
        self.held = Held(limits.held)
        self._ready = ready
        self.workers: Workers[Job, Answer] = Workers(
            lambda jobs: jobs[0].model.answer(jobs),
            threads=available(),
            length=limits.queue,
        )
        self.metrics = Metrics(lambda: len(self.workers))

    async def explain(self, request: Request) -> Response:
        """`POST /v1/models/{name}/explain`."""
        received = time.perf_counter()
        name = request.path_params["name"]
        model = self.models.get(name)
        if model is None:
            raise RequestError(404, f"no model is called {name!r:.80}.", supported=", ".join(self.models))
        ask = Ask.read(request.query_params, request.headers.get("accept", ""), self.limits)
        if not self._is_ready:
            raise BusyError(_NOT_READY, "the models get ready")
        self.workers.check_room()
        with Body(self.held) as body:
            content = await body.read(request, self.limits)
            request.state.read = True
            answer = await self._answered(request, Job(model, ask, content, received))
        self.metrics.explanation(name, ask.rule, time.perf_counter() - received)
        return Response(answer.content, media_type=answer.media_type)

    async def _answered(self, request: Request, job: Job) -> Answer:
        """The answer, unless the client goes away first."""
        future = self.workers.submit(job, job.key, job.model.together)
        answer = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _ClientGoneError
            return answer.result()
        finally:
            gone.cancel()
            if not answer.done():
                self.workers.leave(future)
                answer.cancel()

    @property
    def _is_ready(self) -> bool:
        return self._ready is None or self._ready.is_set()

    async def list_models(self, _: Request) -> Response:
        """`GET /v1/models`."""
        # It may wait for a plan, and others must not wait for it.
        models = await asyncio.to_thread(lambda: [model.describe() for model in self.models.values()])
        limits = dataclasses.asdict(self.limits)
        progress = {"ready": self._is_ready, "compiled": len(compiled)}
        return _Json({"models": models, "limits": limits, "version": __version__, **progress})

    async def healthz(self, _: Request) -> Response:
        """`GET /healthz`: the process lives."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        """`GET /readyz`: the models are ready."""
        if self._is_ready:
            return PlainTextResponse("ready\n")
        text = f"kernels are being compiled, once on this machine: {len(compiled)} so far\n"
        return PlainTextResponse(text, 503, {"retry-after": str(_NOT_READY)})

    async def metrics_text(self, _: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.text(), headers={"content-type": MEDIA_TYPE})

    async def openapi(self, _: Request) -> Response:
        """`GET /openapi.json`."""
        return _Json(document(tuple(self.models), self.limits))

    async def page(self, _: Request) -> Response:
        """`GET /`."""
        return Response(page(), media_type="text/html", headers={"content-security-policy": policy()})


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return as_json(content)


class _ClientGoneError(Exception):
    """Nobody waits for the answer."""


async def _gone(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def application(
    models: Sequence[Served],
    limits: Limits,
    *,
    hosts: Sequence[str] | None = None,
    ready: threading.Event | None = None,
) -> ASGIApp:
    """The server as an ASGI application.

    Parameters
    ----------
    models
        The models; their names differ.
    limits
        Limits of requests.
    hosts
        The names that requests may call the server by, in their header Host; None for any.
    ready
        Explanations are refused until it is set; None where the models are ready.
    """
    server = Server(models, limits, hosts, ready)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.workers.close)

    handlers: Any = dict.fromkeys((HTTPException, GbpError, BusyError, MemoryError, Exception), _refuse)
    app = Starlette(routes=routes_of(server), lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, server)


def routes_of(server: Server) -> list[Route]:
    """The routes, which `openapi.py` describes."""
    return [
        Route("/v1/models/{name}/explain", server.explain, methods=["POST"]),
        Route("/v1/models", server.list_models),
        Route("/healthz", server.healthz),
        Route("/readyz", server.readyz),
        Route("/metrics", server.metrics_text),
        Route("/openapi.json", server.openapi),
        Route("/", server.page),
    ]


class Guard:
    """Guards all routes: the host's name, the length of headers, the time, headers of answers, and counting.

    Parameters
    ----------
    app
        The routes.
    server
        Their state.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            try:
                await send(message)
            except Exception as error:  # uvicorn's connection takes no more
                raise _ClientGoneError from error

        scope.setdefault("state", {})["read"] = False
        try:
            async with asyncio.timeout(self._server.limits.seconds):
                hosts, host = self._server.hosts, _host_of(scope)
                refused = None if hosts is None or host in hosts else _foreign(host)
                if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
                    refused = _LONG  # uvicorn bounds only headers that come in several pieces
                await (self._app if refused is None else _refusal(refused))(scope, receive, sending)
        except TimeoutError:
            if not status:  # else the answer is cut, and the connection is closed
                late = BusyError(1) if scope["state"]["read"] else _LATE
                await _refusal(late)(scope, receive, sending)
        except _ClientGoneError:
            status = 499  # nginx's word for it; nothing is sent
        except Exception:
            _log.exception("a request failed")
        route = getattr(scope.get("endpoint"), "__name__", "other")
        self._server.metrics.request(route, status)


_LONG = RequestError(400, f"the headers have more than {HEADER_BYTES} bytes.")
_LATE = RequestError(408, "the body did not arrive in time.")


def _foreign(host: str) -> RequestError:
    if not host:
        return RequestError(400, "the request has no header Host.", hint="Send the server's name in it.")
    found = f"the request calls the server by a foreign name, {host!r:.80}."
    return RequestError(400, found, hint="The server's --allow-host permits a name.")


def _host_of(scope: Scope) -> str:
    """The name in the header Host, without the port; "" if there is none."""
    for name, value in scope["headers"]:
        if name == b"host":
            text: str = value.decode("latin-1").lower()
            return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]
    return ""


async def _refuse(_: Request, error: Exception) -> Response:
    """Starlette's handler of exceptions."""
    if isinstance(error, _ClientGoneError):
        raise error
    return _refusal(error)


def _refusal(error: Exception) -> Response:
    """The answer to a request that is refused: JSON, and never a traceback."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        status = error.status_code
        headers.update(error.headers or {})
        if status == 404:
            error = InputError("there is no such path.", hint="GET /openapi.json lists them.")
        else:
            error = InputError(f"{error.detail}.".lower(), supported=headers.get("Allow"))
    elif isinstance(error, BusyError):
        status, headers["retry-after"] = 503, str(error.seconds)
        error = InputError(f"{error.why}.", hint=f"Try again in {error.seconds} s.")
    elif isinstance(error, MemoryError):
        status, headers["retry-after"] = 503, "1"
        error = (
            error if isinstance(error, GbpError) else InputError("the server has no memory left for this.")
        )
    elif isinstance(error, RequestError):
        status = error.status
    elif isinstance(error, GbpError):
        status = 422
    else:
        status, error = 500, InputError("the server failed.", hint="Its log says why.")
    fields = {name: getattr(error, name, None) for name in ("found", "supported", "hint", "node", "op")}
    kind = "InputError" if isinstance(error, RequestError) else type(error).__name__
    content = {"error": {"type": kind, "message": str(error), **fields}}
    return _Json(content, status, headers)
