"""Errors as OpenAI's clients expect them: status, body, Retry-After."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from helix_mq.errors import CallerError, CapacityError, HelixError, Unauthorized

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class BodyTooLarge(CallerError):
    code = "body_too_large"
    http_status = 413


def error_body(error: HelixError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`; faults of ours are named, not described."""
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.http_status, "server_error"),
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: HelixError) -> JSONResponse:
    headers: dict[str, str] = {}
    if isinstance(error, CapacityError) and error.http_status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1.0)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.http_status, headers=headers)
