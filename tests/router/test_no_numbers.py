"""Requests whose results are not numbers: three tries, and only those are counted."""

from __future__ import annotations

from helix_mq.errors import LocalError
from router.service import Broken
from tests.router.world import SLICES, World

OVERFLOWED = "logits_not_finite"


def test_three_tries_for_numbers_whatever_else_moved_the_request() -> None:
    world = World()
    for node in sorted(SLICES):
        world.join(node)
    request = world.submit()
    stream = world.streams[request]
    for code in (OVERFLOWED, "kv_exhausted", "kv_exhausted", OVERFLOWED, "kv_exhausted"):
        world.answer()
        world.refuse(0, 1, code)
        assert stream.end is None, code
    world.answer()
    world.refuse(0, 1, OVERFLOWED)
    assert isinstance(stream.end, Broken)
    assert isinstance(stream.end.error, LocalError)
