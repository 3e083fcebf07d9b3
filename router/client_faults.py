"""What can still be read of a client's message that is otherwise useless. Pure."""

from __future__ import annotations

import msgspec

from helix_mq.errors import FrameError
from helix_mq.messages import Kind
from helix_mq.packing import U63, unpack
from helix_mq.transport import Delivery

_WITH_REFERENCE = tuple(bytes((kind,)) for kind in (Kind.SUBMIT, Kind.RESUME))


class _Referenced(msgspec.Struct, array_like=True, frozen=True):
    """The first field of every message that belongs to a stream."""

    reference: U63


def reference_of(delivery: Delivery) -> int | None:
    """The reference in a message that may be broken elsewhere, where it can be read."""
    if len(delivery.parts) != 2 or delivery.parts[0][1:2] not in _WITH_REFERENCE:
        return None
    try:
        return unpack(delivery.parts[1], _Referenced).reference
    except FrameError:
        return None
