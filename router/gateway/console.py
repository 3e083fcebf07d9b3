"""The web console's files at /console/: a fixed set, read once, so that no path is ever looked up.

The pages hold no data and need no key; what they show they fetch from /v1 with the key that their
user gives. Their policy allows nothing from elsewhere, no inline code and no markup from strings.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_INDEX = "index.html"
_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Kept, but asked for again each time: after an upgrade no old file runs beside a new one.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    packed: bytes
    """The same, gzipped."""
    content_type: str
    etag: str


def console_files() -> dict[str, bytes]:
    """Every file of the console by its name."""
    return {
        item.name: item.read_bytes()
        for item in (files("router") / "console").iterdir()
        if item.name.rpartition(".")[2] in _TYPES
    }


class ConsolePages:
    def __init__(self) -> None:
        self._files = {name: _file(name, body) for name, body in console_files().items()}

    def routes(self) -> list[Route]:
        return [
            Route("/console", self.beginning),
            Route("/console/", self.file),
            Route("/console/{name}", self.file),
        ]

    async def beginning(self, request: Request) -> Response:
        # Relative, so that it also works behind a proxy that adds a prefix.
        return Response(status_code=308, headers={"location": "console/"})

    async def file(self, request: Request) -> Response:
        found = self._files.get(request.path_params.get("name", _INDEX))
        if found is None:
            raise HTTPException(404)
        headers = {**_HEADERS, "etag": found.etag}
        if found.etag in _tags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        body = found.body
        if "gzip" in request.headers.get("accept-encoding", ""):
            body = found.packed
            headers["content-encoding"] = "gzip"
        return Response(body, 200, headers, found.content_type)


def _file(name: str, body: bytes) -> _File:
    digest = hashlib.sha256(body).hexdigest()[:32]
    packed = gzip.compress(body, mtime=0)
    # Weak: the same for both encodings.
    return _File(body, packed, _TYPES[name.rpartition(".")[2]], f'W/"{digest}"')


def _tags(header: str) -> set[str]:
    tags = {tag.strip() for tag in header[:4096].split(",")}
    return tags | {f"W/{tag}" for tag in tags if tag.startswith('"')}
