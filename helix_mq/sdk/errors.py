"""Errors across the wire: the router's Failed message as the exception it was there. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from helix_mq import errors
from helix_mq.errors import CallerError, CapacityError, HelixError, InvalidRequest
from helix_mq.messages import client

MAX_TEXT_CHARS = 4096


def failed(reference: int, error: HelixError) -> client.Failed:
    """The message that carries `error` to the client of stream `reference`."""
    retry_after_s = error.retry_after_s if isinstance(error, CapacityError) else None
    return client.Failed(
        reference,
        error.code,
        error.message[:MAX_TEXT_CHARS],
        error.param[:MAX_TEXT_CHARS] if error.param is not None else None,
        error.http_status,
        retry_after_s,
    )


def rebuilt(message: client.Failed) -> HelixError:
    """The error in `message`: by its code, else the branch of the tree its HTTP status names."""
    kind = _BY_CODE.get(message.code) or _branch(message.http_status)
    if issubclass(kind, CapacityError):
        return kind(message.message, param=message.param, retry_after_s=message.retry_after_s)
    return kind(message.message, param=message.param)


def _branch(http_status: int) -> type[HelixError]:
    if http_status in (429, 503, 504):
        return CapacityError
    if http_status == 502:
        return errors.PeerError
    return CallerError if http_status < 500 else errors.LocalError


def _classes(kind: type[HelixError]) -> Iterator[type[HelixError]]:
    yield kind
    for sub in kind.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from _classes(sub)


_BY_CODE = {kind.code: kind for kind in _classes(HelixError)}
# Two classes share this code; the one that names a field is what requests raise.
_BY_CODE[InvalidRequest.code] = InvalidRequest
# What no stream can raise, and what needs more than a message to be built.
for _code in (errors.FrameError.code, errors.HelixError.code):
    del _BY_CODE[_code]
