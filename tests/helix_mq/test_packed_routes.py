"""Routes as they travel: packed and back, and nothing else taken for one."""

from __future__ import annotations

import msgpack
import pytest

from helix_mq.errors import FrameError
from helix_mq.frames import pack_route, unpack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route

ROUTE = Route((Hop(NodeId("a"), LayerRange(0, 3)), Hop(NodeId("b-1.x"), LayerRange(3, 8))))


@pytest.mark.parametrize(
    "hops",
    [
        [],
        [["a", 1, 3]],
        [["a", 0, 0]],
        [["a", 0, 3], ["b", 4, 5]],
        [["a", 0, 5000]],
        [["a b", 0, 3]],
        [["a", 0]],
        [["a", 0.5, 3]],
        {"a": 1},
    ],
)
def test_bad_routes(hops: object) -> None:
    with pytest.raises(FrameError):
        unpack_route(msgpack.packb(hops))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\xc1",
        b"\xdc\x04\x00" * 1000,
        b"\x91" * 5000,
        b"\xdd\x7f\xff\xff\xff",
        b"\x91\x93\xa1\xff\x00\x01",
        pack_route(ROUTE) + b"\x00",
        b"\x91\x93\xa1a\x00\xcf" + b"\xff" * 8,
        msgpack.packb([["a", n, n + 1] for n in range(1025)]),
    ],
)
def test_what_is_no_route_at_all(blob: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        unpack_route(blob)
    assert caught.value.reason == "route"


def test_routes_come_back_equal() -> None:
    assert unpack_route(pack_route(ROUTE)) == ROUTE
