"""The page for people: one file that reaches nothing but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from ..pictures.percent import with_percent


@cache
def page() -> bytes:
    """The file."""
    return with_percent(files(__package__).joinpath("page.html").read_text(encoding="utf-8")).encode()


@cache
def policy() -> str:
    """Its Content-Security-Policy: its own script and style, pictures that it makes, and requests to here."""
    html = page().decode()

    def source(tag: str) -> str:
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
