"""API keys on /v1: `Authorization: Bearer KEY`, known by its SHA-256; and who may operate.

The router holds digests only, so that neither its settings, its files nor its memory give a key
away. Keys come from `[http] api_keys` (digests in the settings) and from `[http] keys_file`, which
is read again when it changes.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from helix_mq.api_keys import ApiKey, KeyLimits, digest_of, read_api_keys
from helix_mq.errors import ConfigError, HelixError, InvalidRequest, Unauthorized
from helix_mq.transport.endpoints import is_loopback
from helix_mq.watched_files import WatchedFiles, reload_for_ever
from router.gateway.faults import Forbidden, error_response

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_CALLER = "helix_mq.caller"
"""Where the middleware leaves the caller in the request's scope."""

_OWNER_DIGITS = 16
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPERATED = "/v1/helix/"
_ASKS_ONLY = frozenset({"/v1/helix/whatif"})
_SHOWS_ALL = frozenset({"/v1/helix/requests"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request. `owner`: what its requests are known by, empty where there are no
    keys; `name`: for people."""

    name: str
    owner: str
    operator: bool
    limits: KeyLimits


ANYBODY = Caller("", "", True, KeyLimits())
"""Where no keys are asked for."""

OwnersRevoked = Callable[[frozenset[str]], None]


def owner_of(key: str) -> str:
    """What a key's requests are known by, `Generation.owner`: the beginning of its digest."""
    return _owner(digest_of(key))


def _owner(digest: bytes) -> str:
    return digest.hex()[:_OWNER_DIGITS]


def caller_in(scope: Scope) -> Caller:
    """Whose request it is, as RequireKey found it."""
    caller = scope.get(_CALLER, ANYBODY)
    assert isinstance(caller, Caller)
    return caller


class ApiKeys:
    """The keys that may pass. None at all, and no file of them, lets everyone pass."""

    def __init__(self, digests: Sequence[str], keys_file: Path | None = None) -> None:
        """Raises ConfigError naming the entry that is no SHA-256 in hex; it is never shown."""
        for number, digest in enumerate(digests):
            if not _DIGEST.fullmatch(digest):
                raise ConfigError(
                    f"http.api_keys: entry {number} is not a SHA-256 digest in 64 hex digits; "
                    "`printf %s KEY | sha256sum` prints it",
                    param="http.api_keys",
                )
        # Those of the settings may operate where no file says who may: else nobody could.
        self._fixed = {
            bytes.fromhex(digest): Caller(
                f"http.api_keys[{number}]",
                _owner(bytes.fromhex(digest)),
                keys_file is None,
                KeyLimits(),
            )
            for number, digest in enumerate(digests)
        }
        self._file = keys_file
        self._callers = self._fixed
        self._owners: frozenset[str] = frozenset(c.owner for c in self._fixed.values())
        self._revoked: list[OwnersRevoked] = []
        if keys_file is not None:
            self._watched = WatchedFiles(keys_file)
            self._take(read_api_keys(keys_file))

    @property
    def demanded(self) -> bool:
        """Also while the file has no keys: then nobody passes."""
        return bool(self._fixed) or self._file is not None

    def check(self, headers: Headers) -> Caller:
        """Whose key the request comes with. Raises Unauthorized."""
        if not self.demanded:
            return ANYBODY
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("no API key: send it as `Authorization: Bearer KEY`")
        # A look-up's time depends on the digest, which tells nothing of use about any key: nobody
        # can make digests that begin as they like and know their keys.
        caller = self._callers.get(digest_of(key))
        if caller is None:
            raise Unauthorized("this API key is not one of this server's, or it was revoked")
        return caller

    def stands(self, owner: str) -> bool:
        """Whether what a key has begun may go on: it has not been revoked since."""
        return not owner or not self.demanded or owner in self._owners

    def owns(self, headers: Headers, owner: str) -> bool:
        """Whether what belongs to `owner` is that of the key in these headers, which passed."""
        if not self.demanded or not owner:
            # Made while there were no keys: whoever knows its name may have it.
            return True
        _, _, key = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(owner.encode(), owner_of(key.strip()).encode())

    def on_revoked(self, revoked: OwnersRevoked) -> None:
        """Has `revoked` called with the owners whose key was taken back."""
        self._revoked.append(revoked)

    async def watch(self) -> None:
        """Reads the file again whenever it changes; returns where there is none."""
        if self._file is not None:
            await reload_for_ever(self._watched, self.reload, str(self._file))

    def reload(self) -> None:
        """Raises KeyFileError, and leaves the keys as they were."""
        if self._file is not None:
            self._take(read_api_keys(self._file))

    def _take(self, keys: dict[str, ApiKey]) -> None:
        before = self._owners
        found = {
            key.digest: Caller(key.name, _owner(key.digest), key.operator, key.limits)
            for key in keys.values()
        }
        self._callers = {**self._fixed, **found}
        self._owners = frozenset(caller.owner for caller in self._callers.values())
        log.info("%s: %d API keys", self._file, len(keys))
        gone = before - self._owners
        if gone:
            for revoked in self._revoked:
                revoked(gone)


def needs_operator(method: str, path: str) -> bool:
    """Everything under /v1/helix that changes something, or shows what belongs to others."""
    if path in _SHOWS_ALL or (path.startswith(_OPERATED) and path.endswith("/trace")):
        return True
    return path.startswith(_OPERATED) and method not in _SAFE_METHODS and path not in _ASKS_ONLY


class RequireKey:
    """ASGI middleware: paths under /v1 need a key, some of them an operator's; health and metrics
    do not."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            try:
                headers = Headers(scope=scope)
                _check_path(scope["path"])
                caller = scope[_CALLER] = self._keys.check(headers)
                operates = needs_operator(scope["method"], scope["path"])
                if self._keys.demanded:
                    if operates:
                        _check_operator(caller)
                elif operates or (scope["path"] in _ASKS_ONLY and not _only_reads(scope)):
                    _check_local(scope, headers)
            except HelixError as e:
                await error_response(e)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _only_reads(scope: Scope) -> bool:
    return scope["method"] in _SAFE_METHODS


def _check_path(path: str) -> None:
    """Routes end in `$`, which also matches before a line's end: `/requests%0A` is `/requests` to
    them, and another page to `needs_operator`."""
    if "\n" in path:
        raise InvalidRequest("the path has a line's end in it: leave it out")


def _check_operator(caller: Caller) -> None:
    if not caller.operator:
        raise Forbidden(
            f"the key of {caller.name} may not operate the cluster: make one that may with "
            "`helix-mq keys api new NAME --operator`"
        )


def _check_local(scope: Scope, headers: Headers) -> None:
    """Without keys: from this machine only, and not by a web page of somebody else's.

    A page that a browser on this machine shows can post here; its origin is not ours then, or, if
    its name was made to point here, no address of this machine. What it only reads comes without an
    origin if the name is its own: that name must be this machine's too.
    """
    client = scope.get("client")
    if client is not None and not is_loopback(client[0]):
        raise Forbidden(
            "without API keys the cluster is operated, and its requests are seen, from the "
            "router's own machine only: make a key with `helix-mq keys api new NAME --operator` "
            "and set http.keys_file"
        )
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is None:
        if _only_reads(scope) and not is_loopback(_hostname(host)):
            raise Forbidden(
                f"without API keys what runs is shown under an address of this machine only, not "
                f"under {host[:100]!r}: ask 127.0.0.1, or make a key with "
                "`helix-mq keys api new NAME --operator` and set http.keys_file"
            )
        return
    if origin.partition("://")[2] != host or not is_loopback(_hostname(host)):
        raise Forbidden(f"a web page of {origin[:100]!r} may not operate this cluster")


def _hostname(host: str) -> str:
    """`[::1]:8000` and `localhost:8000` without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
