"""Runs the application with uvicorn."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .. import InputError
from ..errors import reason_of
from .app import application
from .limits import CONNECTIONS, HEADER_BYTES, HEADER_SECONDS, KEEP_ALIVE_SECONDS, Limits
from .models import Served

#: Names by which this machine calls itself.
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Protocol(H11Protocol):
    """uvicorn's, which closes connections that begin no request in time.

    uvicorn alone would wait for ever for the headers of a request, and for the rest of a body that nobody
    reads.  Its `cycle` is the newest request whose headers are there, or None.  The time starts when the
    connection is made, and again with the first bytes that come after an answer.
    """

    _timer: asyncio.TimerHandle | None = None
    _answered: Any = None  # the request after whose answer the time was started last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and self._answered is not cycle:
            self._expect_request()
        super().data_received(data)

    def _expect_request(self) -> None:
        """Close the connection unless another request has begun in time."""
        if self._timer is not None:
            self._timer.cancel()
        self._answered = self.cycle
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_none_began, self.cycle)

    def _close_if_none_began(self, before: Any) -> None:
        if self.cycle is before:
            self.transport.abort()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.  Raises `InputError` if the address cannot be used."""
    if not 0 <= port < 2**16:  # getaddrinfo would take its last 16 bits
        raise InputError(f"port is {port}.", supported="0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(2048)
        except OSError:
            made.close()
            raise
    except (OSError, UnicodeError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise InputError(
            f"cannot listen on {host}:{port}: {reason_of(error)}.",
            hint="Choose another port; 0 is any that is free." if is_taken else None,
        ) from None
    return made


def serve(
    models: Sequence[Served],
    limits: Limits,
    listener: socket.socket,
    *,
    hosts: Sequence[str] | None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, and finish what was accepted by then.

    Parameters
    ----------
    models, limits, hosts
        As for `application`.
    listener
        The socket to listen on.
    prepare
        Is called in a thread of its own; explanations are refused until it returns.

    Raises
    ------
    Exception
        As `prepare`.
    """
    ready, failures = threading.Event(), list[Exception]()

    def get_ready() -> None:
        try:
            if prepare is not None:
                prepare()
            ready.set()
        except Exception as error:  # else explanations would be refused for ever
            failures.append(error)
            server.should_exit = True

    for name in ("uvicorn", "python_multipart"):  # not a line for each broken request
        logging.getLogger(name).setLevel(logging.ERROR)
    config = uvicorn.Config(
        application(models, limits, hosts=hosts, ready=ready),
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=round(limits.seconds) + 5,
    )
    gc.enable()  # the command line turns it off for its short life
    gc.freeze()
    server = uvicorn.Server(config)
    threading.Thread(target=get_ready, name="gbp-serve-ready", daemon=True).start()
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
