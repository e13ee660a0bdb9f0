"""Requests: the query, the header Accept and the body, read within limits and checked."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from starlette.datastructures import Headers, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .. import At, Channel, InputError, Question, Style, Target, Top, Unit
from ..methods import METHODS
from ..questions.targets import target_of
from ..rules import RULE_NAMES
from .limits import Limits
from .work import BusyError

#: Name of a format → its media type.  The first is the default.
FORMATS = {
    "json": "application/json",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "npz": "application/x-npz",
}
STYLES = get_args(Style)
#: The parts of an answer in JSON that a request may choose.
EXTRAS = ("map", "input")
#: Characters of a target or of a layer's name: labels and names are searched for what is like it.
MAX_TEXT = 200
_WHAT_TO_SEND = (
    "Send a picture, or an array in an .npy file, as it is or in a form; all else goes into the query."
)
#: The parameters of a query.
PARAMETERS = ("rule", "method", "layer", "target", "at", "channel", "unit", "style", "format", "include")


class RequestError(InputError):
    """A request that HTTP has a status code for.

    Parameters
    ----------
    status
        The code.
    found, supported, hint
        As for `GbpError`.
    """

    def __init__(self, status: int, found: str, **more: str) -> None:
        super().__init__(found, **more)
        self.status = status


@dataclass(frozen=True)
class Ask:
    """The content of a request.

    Parameters
    ----------
    rule
        The name of a rule.
    method
        The name of a method of `gbp.methods`, or None for the rule alone.
    layer
        The tensor that the method is to look at, or None for its default.
    target
        As for `Explainer.explain`; a `Channel` or a `Unit` by the parameters at, channel and unit.
    style
        How pictures are drawn; None for the default.
    format
        One of `FORMATS`.
    include
        Those of `EXTRAS` that an answer in JSON holds.
    """

    rule: str = "guided"
    method: str | None = None
    layer: str | None = None
    target: Question = None
    style: Style | None = None
    format: str = "json"
    include: tuple[str, ...] = ()

    @classmethod
    def read(cls, query: QueryParams, accept: str, limits: Limits) -> Ask:
        """Read the query and the header Accept.

        Raises
        ------
        RequestError
            For parameters that do not exist or have no such value, and if no accepted format can be written.
        """
        given = query.multi_items()
        values = dict(given)
        if len(values) < len(given):
            twice = next(name for name in values if len(query.getlist(name)) > 1)
            raise RequestError(400, f"the parameter {twice!r:.80} is there twice.", supported="each once")
        unknown = sorted(values.keys() - set(PARAMETERS))
        if unknown:
            raise RequestError(
                400, f"no parameter is called {unknown[0]!r:.80}.", supported=", ".join(PARAMETERS)
            )
        method = _one_of("method", values["method"], tuple(METHODS)) if "method" in values else None
        rule = _one_of("rule", values.get("rule", _rule_of(method)), RULE_NAMES)
        if method is not None and METHODS[method].rule is None and "rule" in values:
            raise RequestError(400, f"{method} has a rule of its own.", hint="Leave rule out.")
        layer = _short("layer", values["layer"]) if "layer" in values else None
        if layer is None and method is not None and METHODS[method].needs:
            raise RequestError(400, f"{method} needs a layer.", hint="Name one: layer=.")
        if layer is not None and (method is None or "layer" not in METHODS[method].options):
            supported = ", ".join(name for name in METHODS if "layer" in METHODS[name].options)
            raise RequestError(400, "layer is for methods that look at one.", supported=supported)
        style: Any = _one_of("style", values["style"], STYLES) if "style" in values else None
        if "format" in values:
            format = _one_of("format", values["format"], tuple(FORMATS))
        else:
            format = accepted(accept)
        extras = tuple(part for part in values.get("include", "").split(",") if part)
        for extra in extras:
            _one_of("include", extra, EXTRAS)
        if extras and format != "json":
            raise RequestError(400, "include is for answers in JSON.", hint="Say format=json.")
        target = _question(values, method, limits)
        return cls(rule, method, layer, target, style, format, tuple(dict.fromkeys(extras)))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for requests that can be computed as one batch."""
        return (self.rule, type(self.target), self.target)

    @property
    def is_plain(self) -> bool:
        """Whether it asks for the rule's map of one target, as most do."""
        return self.method is None and (self.target is None or isinstance(self.target, (int, str, At)))


def _rule_of(method: str | None) -> str:
    """The rule by default."""
    return "guided" if method is None else METHODS[method].rule or "vanilla"


def _short(name: str, text: str) -> str:
    """A text of at most `MAX_TEXT` characters.  Raises RequestError for a longer one."""
    if len(text) > MAX_TEXT:
        raise RequestError(400, f"{name} has {len(text)} characters.", supported=f"up to {MAX_TEXT}")
    return text


def _question(values: Mapping[str, str], method: str | None, limits: Limits) -> Question:
    """The target: a class, or a hidden unit by "at", "channel" and "unit"."""
    if "at" not in values:
        if "channel" in values or "unit" in values:
            raise RequestError(400, "channel and unit are of a tensor.", hint="Name it: at=.")
        return _target(_short("target", values.get("target", "")), limits)
    if method is not None or "target" in values or ("channel" in values and "unit" in values):
        found = "at asks for a hidden unit, with channel, with unit or with neither."
        raise RequestError(400, found, hint="Leave out target, method and one of these.")
    tensor = _short("at", values["at"])
    if "channel" in values:
        (channel,) = _indices("channel", values["channel"], 1)
        return Channel(tensor, channel)
    return Unit(tensor, *(_indices("unit", values["unit"]) if "unit" in values else ()))


def _indices(name: str, text: str, count: int | None = None) -> tuple[int, ...]:
    """Indices with commas between them."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9}){0,7}", text) or count not in (None, text.count(",") + 1):
        supported = "an index" if count == 1 else "an index for each axis, as 17,5,7"
        raise RequestError(400, f"{name} is {text!r:.80}.", supported=supported)
    return tuple(map(int, text.split(",")))


def _target(text: str, limits: Limits) -> Target:
    """None for nothing, `Top(5)` for "top5", else as on the command line."""
    top = re.fullmatch("top([0-9]{1,9})", text)
    if top is None:
        return target_of(text) if text else None
    if not 1 <= int(top[1]) <= limits.targets:
        raise RequestError(400, f"target is {text!r}.", supported=f"top1 to top{limits.targets}")
    return Top(int(top[1]))


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise RequestError(400, f"{name} is {value!r:.80}.", supported=", ".join(known))
    return value


def accepted(accept: str) -> str:
    """The format that the header Accept prefers (RFC 9110, section 12.5.1).

    Raises
    ------
    RequestError
        406 if it accepts none.
    """
    ranges: dict[str, float] = {}
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges[kind] = min(1.0, max(0.0, float(weight)))
        except ValueError:
            ranges[kind] = 0.0

    def weight_of(media: str) -> tuple[float, int]:
        forms = (media, media.partition("/")[0] + "/*", "*/*")
        return next(((ranges[form], -i) for i, form in enumerate(forms) if form in ranges), (0.0, 0))

    best = max(FORMATS, key=lambda name: weight_of(FORMATS[name]))
    if not weight_of(FORMATS[best])[0] > 0:
        raise RequestError(
            406, "nothing that is accepted can be written.", supported=", ".join(FORMATS.values())
        )
    return best


class Held:
    """How many bytes of bodies are held by all requests.  It is used by the event loop's thread alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.bytes = max_bytes, 0

    def take(self, count: int) -> None:
        """Count bytes in.  Raises `BusyError` if there are too many."""
        if self.bytes + count > self._max_bytes:
            raise BusyError(1)
        self.bytes += count

    def give_back(self, count: int) -> None:
        """Count bytes out."""
        self.bytes -= count


class Body:
    """The bytes of one request, counted as long as it is held.

    Parameters
    ----------
    held
        Where the bytes are counted.
    """

    def __init__(self, held: Held) -> None:
        self._held, self._counted = held, 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.give_back(self._counted)

    async def read(self, request: Request, limits: Limits) -> bytes:
        """Read the file that a request sends: its whole body, or the only file of a form.

        Raises
        ------
        RequestError
            413 for too large a body, 415 for a compressed one, 400 for an empty or broken one, or for JSON.
        BusyError
            If all requests together hold too many bytes.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise RequestError(
                415,
                f"Content-Encoding says that the body is compressed: {encoding:.80}.",
                hint="Send it as it is.",
            )
        kind = request.headers.get("content-type", "").lower()
        if kind.startswith("application/json"):
            raise RequestError(
                400,
                "Content-Type says that the body is JSON, which holds no file.",
                hint=f"{_WHAT_TO_SEND} Say what it is, as image/png, or leave Content-Type out.",
            )
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and len(announced) < 20 and int(announced) > limits.body:
            raise _too_large(limits)
        body = bytearray()
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.body:
                    raise _too_large(limits)
                self._held.take(len(chunk))
                self._counted += len(chunk)
                body += chunk
        except ClientDisconnect:
            raise RequestError(400, "the body is not complete.") from None
        if kind.startswith("multipart/"):
            return await _file_of(request.headers, bytes(body))
        if not body:
            raise RequestError(400, "the body is empty.", hint=_WHAT_TO_SEND)
        return bytes(body)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"the body has more than {limits.body} bytes.")


class _Form(MultiPartParser):
    spool_max_size = 2**40  # in memory: the body is there already, and has a limit


async def _file_of(headers: Mapping[str, str], body: bytes) -> bytes:
    """The only file of a form."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    raw = Headers(dict(headers))
    try:
        form = await _Form(raw, stream(), max_files=1, max_fields=0).parse()  # type: ignore[arg-type]
    except (MultiPartException, ValueError, LookupError) as error:
        raise RequestError(
            400,
            f"the form cannot be read: {str(error).rstrip('.')}.",
            hint="Send one file in it; all else goes into the query.",
        ) from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise RequestError(400, f"the form holds {len(files)} files.", supported="one")
    content = await files[0].read()
    if not content:
        raise RequestError(400, "the file in the form is empty.")
    return content
