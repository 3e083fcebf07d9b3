"""Answers what-if questions about the running cluster, one at a time, in another process."""

from __future__ import annotations

import asyncio
import copy

import msgspec

from helix_mq.errors import CapacityError
from router.apart import Apart
from router.cluster_core import ClusterCore
from router.searches import NothingFound
from router.what_if import (
    CannotSay,
    Gain,
    Newcomer,
    Question,
    gpu_types,
    newcomer,
    question,
    work_out,
)

LIMIT_S = 6.0
"""Of the search with all layers free: somebody waits for the answer."""
KEEP_S = 60.0
"""The process has the solvers in memory; without questions for so long it goes."""


class WhatIfBusy(CapacityError):
    code = "what_if_busy"


class WhatIfChoices(msgspec.Struct, frozen=True):
    gpus: list[str]
    regions: list[str]


class WhatIfAnswer(msgspec.Struct, frozen=True):
    """Tokens/s of the planner's max flow: now, with the newcomer and the rest as it is, and with
    everything planned anew (`moved` nodes on other layers). `layers`: of the newcomer, the rest as
    it is; empty where that helps nowhere. `basis`: what the newcomer's speed is taken from."""

    gpu: str
    region: str
    now_tokens_per_s: float
    added_tokens_per_s: float
    layers: str
    replanned_tokens_per_s: float
    moved: int
    basis: str
    text: str
    estimate: bool = True


class WhatIfDesk:
    def __init__(self, cluster: ClusterCore) -> None:
        self._cluster = cluster
        self._apart = Apart("the what-if")
        self._busy = False
        self._closed = False
        self._going: asyncio.TimerHandle | None = None

    def choices(self) -> WhatIfChoices:
        regions = {m.register.region for m in self._cluster.membership}
        return WhatIfChoices(gpu_types(), sorted(regions))

    async def answer(self, gpu: str, region: str) -> WhatIfAnswer:
        """Raises UnknownGpu, UnknownRegion, CannotSay or WhatIfBusy."""
        if self._busy:
            raise WhatIfBusy(
                "another what-if is being worked out: ask again in a few seconds",
                retry_after_s=LIMIT_S,
            )
        self._busy = True
        if self._going is not None:
            self._going.cancel()
        try:
            new, asked = await self._asked(gpu, region)
            if self._closed:
                raise CannotSay("the router is stopping")
            found = await self._apart.run(work_out, asked, LIMIT_S)
        finally:
            self._busy = False
            self._going = asyncio.get_running_loop().call_later(KEEP_S, self._apart.close)
        if isinstance(found, NothingFound):
            raise CannotSay(found.reason)
        return _answer(new, found)

    async def _asked(self, gpu: str, region: str) -> tuple[Newcomer, Question]:
        """Made in a thread, from what the loop does not change meanwhile: it has a part for each
        pair of nodes, and takes 50 ms for a hundred of them."""
        config, moves = self._cluster.config, self._cluster.moves
        members = [copy.copy(member) for member in self._cluster.membership]
        slowdown, links = dict(moves.slowdown), dict(moves.links)

        def made() -> tuple[Newcomer, Question]:
            new = newcomer(config, members, gpu, region)
            return new, question(
                config, members, slowdown, lambda a, b: links.get((a, b)), new, LIMIT_S
            )

        return await asyncio.to_thread(made)

    def close(self) -> None:
        self._closed = True
        if self._going is not None:
            self._going.cancel()
        self._apart.close()


def _answer(new: Newcomer, gain: Gain) -> WhatIfAnswer:
    basis = (
        f"measured on {new.measured_on}, which has this GPU"
        if new.measured_on
        else "by its datasheet; no node here has measured this GPU"
    )
    return WhatIfAnswer(
        new.type_name,
        new.region,
        gain.now_tokens_per_s,
        gain.added_tokens_per_s,
        f"{gain.layers.first}-{gain.layers.end - 1}" if gain.layers is not None else "",
        gain.replanned_tokens_per_s,
        gain.moved,
        basis,
        _text(new, gain),
    )


def _text(new: Newcomer, gain: Gain) -> str:
    where = f" in {new.region}" if new.region else ""
    now = gain.now_tokens_per_s
    if gain.layers is not None:
        text = (
            f"One more {new.type_name}{where} on {gain.layers}, all else as it is, gives "
            f"{_flow(gain.added_tokens_per_s, now)}."
        )
    else:
        text = (
            f"One more {new.type_name}{where} raises nothing on any layers near the bottleneck "
            f"while all else stays as it is ({now:,.0f} tokens/s)."
        )
    if gain.replanned_tokens_per_s > gain.added_tokens_per_s * 1.005:
        nodes = f"{gain.moved} node{'s' if gain.moved != 1 else ''}"
        text += (
            f" With all layers planned anew, {nodes} holding others than now, it gives "
            f"{_flow(gain.replanned_tokens_per_s, now)}."
        )
    return text


def _flow(then: float, now: float) -> str:
    if now <= 0:
        return f"{then:,.0f} tokens/s"
    times = then / now
    gain = f"{times:,.0f} times as much" if times >= 10 else f"{times - 1:+.0%}"
    return f"{then:,.0f} tokens/s ({gain})"
