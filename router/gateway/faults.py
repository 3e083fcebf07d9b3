"""Errors that only HTTP has, and every error as an OpenAI body.

    CallerError
    ├── BodyTooLarge          413
    ├── BodyTimeout           408  the body did not arrive in time
    ├── UnsupportedMedia      415  not JSON by its headers
    ├── Forbidden             403  this caller may not do that
    └── InvalidRequest        400
        ├── UnknownParameter       a name that means nothing here
        └── UnsupportedParameter   a name OpenAI knows and this server does not do
    CapacityError
    ├── RateLimited           429  the key's own limit, which the text names
    └── RequestCancelled      503  ended by the operator, not by its client

Body: `{"error": {"message", "type", "param", "code"}}`; clients of OpenAI's read `code` and `type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from helix_mq.errors import CallerError, CapacityError, HelixError, InvalidRequest, Unauthorized

_MAX_MESSAGE_CHARS = 2000


class BodyTooLarge(CallerError):
    code = "request_too_large"
    http_status = 413


class BodyTimeout(CallerError):
    code = "request_timeout"
    http_status = 408


class UnsupportedMedia(CallerError):
    code = "unsupported_media_type"
    http_status = 415


class Forbidden(CallerError):
    code = "forbidden"
    http_status = 403


class UnknownParameter(InvalidRequest):
    code = "unknown_parameter"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class RateLimited(CapacityError):
    code = "rate_limit_exceeded"
    http_status = 429


class RequestCancelled(CapacityError):
    code = "cancelled"


class ErrorFields(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorFields


def error_json(error: HelixError) -> bytes:
    """The body of an error, also what an SSE event in mid-stream carries."""
    return _json(error.http_status, error.message, error.param, error.code)


def error_response(error: HelixError) -> Response:
    """The whole response, with Retry-After where trying again may help."""
    headers: dict[str, str] = {}
    if error.http_status in (429, 503):
        wait_s = error.retry_after_s if isinstance(error, CapacityError) else None
        headers["retry-after"] = str(max(1, math.ceil(wait_s or 0)))
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge | BodyTimeout):
        # What is left of the body would be read as the next request's beginning.
        headers["connection"] = "close"
    return Response(error_json(error), error.http_status, headers, "application/json")


def error_fields(error: HelixError) -> ErrorFields:
    """The error as part of another body."""
    return _fields(error.http_status, error.message, error.param, error.code)


def plain_error_response(
    status: int, message: str, code: str, headers: Mapping[str, str] | None = None
) -> Response:
    """For what has no class of ours: a wrong path or method, a fault of this program."""
    return Response(_json(status, message, None, code), status, headers, "application/json")


def _json(status: int, message: str, param: str | None, code: str) -> bytes:
    return msgspec.json.encode(ErrorBody(_fields(status, message, param, code)))


def _fields(status: int, message: str, param: str | None, code: str) -> ErrorFields:
    if len(message) > _MAX_MESSAGE_CHARS:
        message = message[:_MAX_MESSAGE_CHARS] + " ..."
    if status == 429:
        kind = "rate_limit_error"
    elif status == 403:
        kind = "permission_error"
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
    param = _clean(param) if param is not None else None
    return ErrorFields(_clean(message), kind, param, code)


def _clean(text: str) -> str:
    """JSON may carry lone surrogates; what quotes them back must be UTF-8 all the same."""
    return text.encode("utf-8", "replace").decode("utf-8")
