"""A request's body: read with a bound and a deadline, then strict JSON into one object.

Strict means: UTF-8, no NaN or infinities, no name twice in an object. Everything else that Python's
parser takes passes on to validation. Raises errors of `faults`, InvalidRequest, or ClientGone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.types import Receive

from helix_mq.errors import InvalidRequest
from router.gateway.faults import BodyTimeout, BodyTooLarge, UnsupportedMedia

READ_TIMEOUT_S = 60.0
_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_S = 5.0


class ClientGone(Exception):
    """The connection closed; there is no one to answer."""


def check_headers(headers: Headers) -> None:
    """JSON only. This also keeps web pages from posting here without the browser asking first."""
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMedia(
            f"content-type {content_type[:100]!r} is not supported: send application/json"
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMedia(
            f"content-encoding {encoding[:100]!r} is not supported: send the body as it is"
        )


async def read_body(
    headers: Headers, receive: Receive, max_bytes: int, timeout_s: float = READ_TIMEOUT_S
) -> bytes:
    """The body. BodyTooLarge as soon as it is known to exceed `max_bytes`."""
    declared = headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared[:20]) > max_bytes
    if too_large and headers.get("expect", "").lower() == "100-continue":
        # The client waits for a word before it sends anything.
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s) as limit:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if (too_large or size > max_bytes) and chunks is not None:
                    # A client that is still sending would not see an answer that comes with the
                    # connection's end; so a bounded rest is read and thrown away first.
                    too_large = True
                    chunks.clear()
                    soon = asyncio.get_running_loop().time() + _DRAIN_S
                    limit.reschedule(min(limit.when() or soon, soon))
                else:
                    chunks.append(chunk)
                if size > max_bytes + _DRAIN_BYTES or not message.get("more_body", False):
                    break
    except TimeoutError:
        if not too_large:
            raise BodyTimeout(f"the body did not arrive within {timeout_s:.0f} s") from None
    if too_large:
        raise _too_large(max_bytes)
    return b"".join(chunks)


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. InvalidRequest says what is wrong with any other bytes."""
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_twice
        )
    except UnicodeDecodeError as e:
        raise InvalidRequest(f"the body is not UTF-8 at byte {e.start}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except json.JSONDecodeError as e:
        raise InvalidRequest(
            f"the body is not valid JSON: {e.msg} at line {e.lineno}, column {e.colno}"
        ) from None
    except ValueError:
        # Python refuses to read integers of thousands of digits.
        raise InvalidRequest("the body holds a number with too many digits") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the {max_bytes} bytes allowed here")


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body holds {name}, which is not JSON: numbers must be finite")


def _without_twice(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidRequest(f"the body has {name[:100]!r} twice in one object")
            seen.add(name)
    return found
