"""API keys on /v1: `Authorization: Bearer KEY`, compared by SHA-256 in constant time.

The router holds digests only, so that neither its settings nor its memory give a key away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from helix_mq.errors import ConfigError, Unauthorized
from router.gateway.faults import error_response

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_MAX_KEY_CHARS = 4096
_OWNER = "helix_mq.owner"
"""Where the middleware leaves the owner in the request's scope."""

_OWNER_DIGITS = 16


def owner_of(key: str) -> str:
    """What a key's requests are known by, `Generation.owner`: the beginning of its digest."""
    return _digest(key).hex()[:_OWNER_DIGITS]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key[:_MAX_KEY_CHARS].encode("utf-8", "replace")).digest()


def owner_in(scope: Scope) -> str:
    """Whose request it is, as RequireKey found it."""
    return str(scope.get(_OWNER, ""))


class ApiKeys:
    """Digests of the keys that may pass; none at all lets everyone pass."""

    def __init__(self, digests: Sequence[str]) -> None:
        """Raises ConfigError naming the entry that is no SHA-256 in hex; it is never shown."""
        for number, digest in enumerate(digests):
            if not _DIGEST.fullmatch(digest):
                raise ConfigError(
                    f"http.api_keys: entry {number} is not a SHA-256 digest in 64 hex digits; "
                    "`printf %s KEY | sha256sum` prints it",
                    param="http.api_keys",
                )
        self._digests = tuple(bytes.fromhex(digest) for digest in digests)

    def check(self, headers: Headers) -> str:
        """The owner that the request's key stands for, empty where there are no keys. Raises
        Unauthorized."""
        if not self._digests:
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("no API key: send it as `Authorization: Bearer KEY`")
        digest = _digest(key)
        # Every digest is compared: the time must not tell which one came close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("this API key is not one of this server's")
        return owner_of(key)

    def owns(self, headers: Headers, owner: str) -> bool:
        """Whether what belongs to `owner` is that of the key in these headers, which passed."""
        if not self._digests or not owner:
            # Made while there were no keys: whoever knows its name may have it.
            return True
        _, _, key = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(owner.encode(), owner_of(key.strip()).encode())


class RequireKey:
    """ASGI middleware: paths under /v1 need a key; health and metrics do not."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            try:
                scope[_OWNER] = self._keys.check(Headers(scope=scope))
            except Unauthorized as e:
                await error_response(e)(scope, receive, send)
                return
        await self._app(scope, receive, send)
