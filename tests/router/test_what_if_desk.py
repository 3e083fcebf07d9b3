"""Who asks what-if questions holds nothing up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from router import what_if_desk
from router.membership import Member
from router.what_if import CannotSay, Question, UnknownRegion, question
from router.what_if_desk import WhatIfBusy, WhatIfDesk
from tests.router.world import World


async def test_questions_are_made_in_a_thread_from_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.join_all()
    seen: list[tuple[int, Sequence[Member]]] = []

    def made(config: Any, members: Sequence[Member], *rest: Any) -> Question:
        seen.append((threading.get_ident(), members))
        return question(config, members, *rest)

    monkeypatch.setattr(what_if_desk, "question", made)
    desk = WhatIfDesk(world.core.cluster)
    first = asyncio.create_task(desk.answer("T4", ""))
    await asyncio.sleep(0)
    with pytest.raises(WhatIfBusy):
        await desk.answer("T4", "")
    with pytest.raises(CannotSay, match="the speed of a is not known"):
        await first
    ((thread, members),) = seen
    assert thread != threading.get_ident()
    assert [m.name for m in members] == [m.name for m in world.core.cluster.membership]
    mine = {id(m) for m in world.core.cluster.membership}
    assert not any(id(m) in mine for m in members)
    # What went wrong leaves the desk free.
    with pytest.raises(UnknownRegion):
        await desk.answer("T4", "mars")
    desk.close()


async def test_no_process_is_started_for_a_router_that_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.join_all()
    monkeypatch.setattr(what_if_desk, "question", lambda *asked: None)
    desk = WhatIfDesk(world.core.cluster)
    answer = asyncio.create_task(desk.answer("T4", ""))
    await asyncio.sleep(0)
    desk.close()
    with pytest.raises(CannotSay, match="stopping"):
        await answer
