"""Hostile requests against `gbp serve`, and what may not come back.

    python tests/hostile_requests.py FIRST COUNT

Starts a server whose labels are HTML, sends so many requests on raw sockets, beside connections that begin a
request and do not go on, and looks at every answer: no status of 500 and up but 503, no traceback,
nothing that was sent or is a label comes back as HTML.  At the end an honest request must be answered, the
server must have closed the slow connections, and end when it is told to.  Its memory is printed.
"""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
from damage import damaged_bytes
from hostile_images import bases, hostile

MODELS = Path(__file__).resolve().parent.parent / "models"
#: Seconds after which an answer is missed, and that the server gives a request.
PATIENCE, SECONDS = 120, 5
#: Looks like HTML wherever it comes back as it is.
MARK = "<gbp-mark>"
TRICKS = (
    MARK,
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "/etc/passwd",
    "file:///etc/passwd",
    "\\\\host\\share",
    "C:\\boot.ini",
    "demo/../demo",
    "demo%2e",
    "dem\N{CYRILLIC SMALL LETTER O}",
    "\N{RIGHT-TO-LEFT OVERRIDE}omed",
    "\N{FULLWIDTH LATIN SMALL LETTER D}emo",
    "demo\N{COMBINING ACUTE ACCENT}",
    "\ud800",
    "a" * 5000,
    "';DROP TABLE maps;--",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "\r\nX-Injected: yes",
    "1e999",
    "-0",
    "٣",
    "9" * 400,
    "::::",
    "0:" * 90,
    "top99999",
    "",
)
PARAMETERS = (
    "rule",
    "method",
    "layer",
    "target",
    "style",
    "format",
    "include",
    "path",
    "model",
    "labels",
    MARK,
)
VALUES = (
    *("guided", "vanilla", "smoothgrad", "grad-cam", "star", "3", "top3", "overlay", "strip", "png", "json"),
    *("npz", "map,input", "webp"),
)
ACCEPTS = (
    "*/*",
    "image/png",
    "text/html",
    ";;;",
    "image/*;q=",
    "a" * 3000,
    MARK,
    "*/*;q=1e400",
    ",".join("x/y" * 99),
)


def array_file(dice: random.Random) -> bytes:
    """An .npy file that is not what it should be."""
    header = dice.choice(
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 96, 96)}",
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<f8', 'fortran_order': True, 'shape': (3, 96, 96)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 999999999, 999999999)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 96, 96)}",
            "{'descr': '<U999999', 'fortran_order': False, 'shape': ()}",
            "{'descr': [('" + MARK + "', '<f4')], 'fortran_order': False, 'shape': (9,)}",
            "__import__('os').system('true')",
            "(" * 3000,
            "{" + "'a': {" * 90,
        )
    )
    version = dice.choice((b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
    text = header.encode() + b"\n"
    length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    numbers = np.random.default_rng(dice.randrange(99)).standard_normal(3 * 96 * 96).astype(np.float32)
    return b"\x93NUMPY" + version + length + text + numbers.tobytes()[: dice.choice((0, 100, 110592))]


def body_of(dice: random.Random) -> bytes:
    """A picture, an array or neither."""
    kind = dice.randrange(6)
    if kind == 0:
        return (MODELS / "demo.png").read_bytes()
    if kind == 1:
        return array_file(dice)
    if kind == 2:
        return dice.randbytes(dice.randrange(3000))
    if kind == 3:
        return dice.choice(
            (b"", b"{}", b"[" * 9999, MARK.encode(), b"<svg/>", b"%PDF-1.4", b"PK\3\4", b"\0" * 99)
        )
    return hostile(dice.randrange(10**6))[1]


def form_of(dice: random.Random, content: bytes) -> tuple[bytes, bytes]:
    """A form, mostly broken, and the value of its header Content-Type."""
    boundary = dice.choice((b"x", b"-" * 70, b"b" * 300, b"", b"\xff", b'"quoted;"', MARK.encode()))
    name = dice.choice((b"file", b"", b"\0", MARK.encode(), b"a" * 9999, "Ünï".encode()))
    shown = dice.choice(("x.png", "../../x", "C:\\x", MARK, "\r\nA: b", "\ud83d", "x" * 9999))
    filename = shown.encode("utf-8", "surrogatepass")
    head = dice.choice(
        (
            b'Content-Disposition: form-data; name="%s"; filename="%s"\r\n' % (name, filename),
            b'Content-Disposition: form-data; filename="%s"\r\n' % filename,
            b"Content-Disposition: form-data; name*=UTF-8''%s\r\n" % name,
            b"Content-Disposition\r\n",
            b"A" * 40000 + b": b\r\n",
            b"A: b\r\n" * 3000,
            b"",
        )
    )
    part = b"--" + boundary + b"\r\n" + head + b"\r\n" + content + b"\r\n"
    form = part * dice.choice((1, 1, 1, 2, 40)) + dice.choice((b"--" + boundary + b"--\r\n", b"", b"--"))
    if dice.random() < 0.5:
        form = damaged_bytes(form, dice)
    kind = dice.choice(
        (b"multipart/form-data", b"multipart/mixed", b"multipart/form-data; charset=utf-7", b"multipart/")
    )
    return form, kind + dice.choice(
        (b"; boundary=", b"; boundary=x; boundary=", b"; BOUNDARY=", b";")
    ) + boundary


def path_of(dice: random.Random, odd_name: bool, odd_query: bool) -> bytes:
    """A path with a query."""

    def odd(text: str) -> bytes:
        raw = text.encode("utf-8", "surrogatepass")
        return quote_from_bytes(raw).encode() if dice.random() < 0.8 else re.sub(rb"[\s\x80-\xff]", b"%", raw)

    path = b"/v1/models/demo/explain"
    if odd_name:
        name = odd(dice.choice(TRICKS))
        path = dice.choice((b"/v1/models/" + name + b"/explain", b"/" + name, path + b"/" + name))
    if not odd_query:
        return path + dice.choice((b"", b"?rule=vanilla", b"?target=star&format=png", b"?target=top2"))
    pairs = [
        odd(dice.choice(PARAMETERS)) + b"=" + odd(dice.choice(VALUES if dice.random() < 0.5 else TRICKS))
        for _ in range(dice.choice((1, 1, 1, 2, 3)))
    ]
    return path + b"?" + b"&".join(pairs)


def request_of(seed: int) -> bytes:
    """The bytes of one hostile request: one part of it is odd, or several are."""
    dice = random.Random(seed)
    parts = ("body", "form", "name", "query", "query", "http", "headers")
    is_odd = (
        {part: dice.random() < 0.3 for part in parts} if dice.random() < 0.1 else {dice.choice(parts): True}
    )
    method = b"POST"
    content = body_of(dice) if is_odd.get("body") else (MODELS / "demo.png").read_bytes()
    kind = b"image/png"
    if is_odd.get("form"):
        content, kind = form_of(dice, content)
    accept = b"*/*"
    if is_odd.get("headers"):
        kind = dice.choice((b"text/html", b"application/json", MARK.encode()))
        accept = dice.choice(ACCEPTS).encode()
    headers = [b"Host: localhost", b"Content-Type: " + kind, b"Accept: " + accept]
    length, version = b"Content-Length: %d" % len(content), b"HTTP/1.1"
    if is_odd.get("http"):
        method, version, length, content = _odd_http(dice, headers, content)
    start = method + b" " + path_of(dice, "name" in is_odd, "query" in is_odd) + b" " + version
    whole = start + b"\r\n" + b"\r\n".join((*headers, length)) + b"\r\n\r\n" + content
    return damaged_bytes(whole, dice) if dice.random() < 0.05 else whole


def _odd_http(dice: random.Random, headers: list[bytes], content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Method, version, the header of the length, and the body.  Other headers are changed."""
    method, version, length = b"POST", b"HTTP/1.1", b"Content-Length: %d" % len(content)
    match dice.randrange(12):
        case 0:
            sizes = (b"-1", b"1e3", b"99999999999999999999", b"0x10", b"%d" % (len(content) - 9), b"")
            length = b"Content-Length: " + dice.choice(sizes)
        case 1:  # more is announced than comes
            length = b"Content-Length: %d" % (len(content) + 9)
        case 2:
            headers.append(b"Content-Length: 5")
        case 3:
            length = b"Transfer-Encoding: chunked"
            content = dice.choice((b"zz\r\n", b"f" * 16 + b"\r\n", b"5\r\nabc")) + content
        case 4:
            content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
            length = b"Transfer-Encoding: chunked" + dice.choice((b"", b"\r\nContent-Length: 3"))
        case 5:
            headers.append(b"X: " + b"a" * dice.choice((10**4, 10**5)))
        case 6:
            headers += [b"X-%d: y" % i for i in range(dice.choice((200, 3000)))]
        case 7:
            hosts = (
                b"evil",
                b"",
                MARK.encode(),
                b"localhost\r\nHost: x",
                b"localhost@evil",
                b"[::1",
                b"a" * 9999,
            )
            headers[0] = b"Host: " + dice.choice(hosts)
        case 8:
            upgrades = (
                b"Upgrade: websocket\r\nConnection: Upgrade",
                b"Upgrade: h2c",
                b"Expect: 100-continue",
            )
            headers.append(dice.choice(upgrades))
        case 9:
            others = (b"Range: bytes=0-1", b"Content-Encoding: gzip", b"X-Forwarded-For: " + MARK.encode())
            headers.append(dice.choice(others))
        case 10:
            headers.append(dice.choice((b"A : b", b" folded", b"\0: x", b"A: \xff\xfe", b": x", b"A\tB: c")))
        case _:
            method = dice.choice((b"GET", b"PUT", b"TRACE", b"CONNECT", b"X" * 99, MARK.encode(), b""))
            version = dice.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"ftp", b""))
    return method, version, length, content


def answer_to(port: int, request: bytes) -> bytes:
    """The first answer, or what there is of it when the server closes."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        with suppress(ConnectionError):
            while piece := connection.recv(2**16):
                found += piece
                head, _, content = found.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                if length and len(content) >= int(length[1]):
                    break
    return found


def fault_of(answer: bytes) -> str | None:
    """What is wrong with an answer, or None.  It may be empty, where the request was no HTTP."""
    for head in re.findall(rb"HTTP/1\.1 (\d{3})", answer):
        if head >= b"500" and head != b"503":
            return f"status {head.decode()}"
    head, _, content = answer.partition(b"\r\n\r\n")
    if b"Traceback" in answer or b'File "' in answer:
        return "a traceback"
    if b"x-injected" in head.lower():
        return "a header of the client"
    if b"text/html" in head.lower():
        return "HTML"
    if re.search(rb"root:[^:]*:0:", answer):
        return "a file of the host"
    is_text = b"json" in head.lower() or b"text/plain" in head.lower()
    if is_text and MARK.encode() in content:
        return "the mark"
    return None


@contextmanager
def server(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of the demo classifier, whose labels are HTML, and its port."""
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder, "labels.txt")
        labels.write_text("\n".join(["star", *(f"{MARK}{i}" for i in range(11))]))
        command = (sys.executable, "-m", "gbp", "serve", str(MODELS / "demo.onnx"), "--labels", str(labels))
        limits = ("--max-body", "2M", "--max-pixels", "4M", "--seconds", str(SECONDS), "--port", "0")
        with subprocess.Popen(
            (*command, *limits, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                line, _, _ = (process.stdout.readline() for _ in range(3))  # the last says that it is ready
                yield process, int(re.findall(r":(\d+)/", line)[0])
            finally:
                process.terminate()


@contextmanager
def slow_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have begun a request and do not go on."""
    opened = []
    for i in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        start = b"POST /v1/models/demo/explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\nabc"
        connection.sendall(start[: 5 + i % len(start)])
        opened.append(connection)
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


def memory(pid: int) -> str:
    """The resident memory of a process: its most, and that of now; unknown where there is no /proc."""
    if not Path("/proc/self/status").exists():
        return "unknown"
    status = Path(f"/proc/{pid}/status").read_text()
    most, now = (int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) >> 10 for key in ("VmHWM", "VmRSS"))
    return f"{now} MiB, most {most} MiB"


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes a connection, after an answer or without one."""
    connection.settimeout(PATIENCE)
    try:
        while connection.recv(2**16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def attack(
    first: int, count: int, slow: int = 50, by_hand: bool = False
) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Send requests, 32 at a time.

    Parameters
    ----------
    first, count
        The seeds of the requests.
    slow
        How many slow connections there are beside.
    by_hand
        Whether to wait until they are closed, and print the server's memory.

    Returns
    -------
    How many answers had which status, and the faults by seed.
    """
    statuses: Counter[str] = Counter()
    faults: list[tuple[int, str]] = []
    bases()  # made once, before threads would each make them
    with server() as (process, port):
        with slow_connections(port, slow) as opened, ThreadPoolExecutor(32) as pool:
            seeds = range(first, first + count)
            answers = pool.map(lambda seed: answer_to(port, request_of(seed)), seeds)
            for seed, answer in zip(seeds, answers, strict=True):
                statuses[answer[9:12].decode() or "none"] += 1
                fault = fault_of(answer)
                if fault is not None:
                    faults.append((seed, fault))
                if by_hand and (seed + 1 - first) % 1000 == 0:
                    print(f"after {seed + 1 - first}: {memory(process.pid)}", flush=True)
            if by_hand and not all(map(is_closed, opened)):
                faults.append((-1, "a slow connection is still open"))
        photo = (MODELS / "demo.png").read_bytes()
        honest = (
            b"POST /v1/models/demo/explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            % len(photo)
        )
        if not answer_to(port, honest + photo).startswith(b"HTTP/1.1 200"):
            faults.append((-1, "an honest request is not answered"))
        process.terminate()
        log = process.communicate()[1]
        if "Traceback" in log:
            faults.append((-1, f"a traceback in the log: {log[-3000:]}"))
        if process.returncode not in (0, -signal.SIGTERM):
            faults.append((-1, f"exit code {process.returncode}"))
    return statuses, faults


def main(first: int, count: int) -> None:
    began = time.perf_counter()
    statuses, faults = attack(first, count, by_hand=True)
    print(dict(sorted(statuses.items())), f"{time.perf_counter() - began:.0f} s")
    for seed, fault in faults:
        print(seed, fault)
    print(f"{count} requests, {len(faults)} fault(s)")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
