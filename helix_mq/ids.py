"""Identifiers as distinct types, so that a node's name is never passed for a request's number."""

from __future__ import annotations

import secrets
from typing import Final, NewType

NodeId = NewType("NodeId", str)
"""Name of a node, unique in a cluster: 1-64 characters of letters, digits, `.`, `_`, `-`."""

RequestId = NewType("RequestId", int)
"""Number of one generated sequence, unique over the router's life and its restarts (u63)."""

Attempt = NewType("Attempt", int)
"""How often the request has been routed; frames of an older attempt are refused."""

Epoch = NewType("Epoch", int)
"""Version of the placement; rises by one with every re-placement."""

ROUTER = NodeId("@router")
"""The router's name as a data-plane peer; `@` is not allowed in nodes' names."""

_GAP_BITS: Final = 28
"""At 1,000 requests/s ids last for a year and a half beyond the clock's."""


def id_after(number: int) -> RequestId:
    """A higher id, not to be told from this one: who is on one request's route must not know the
    others', whose rows it could then imitate."""
    return RequestId(number + 1 + secrets.randbits(_GAP_BITS))
