"""Answers what-if questions about the running cluster, one at a time, in another process."""

from __future__ import annotations

import asyncio

import msgspec

from helix_mq.errors import CapacityError
from router.apart import Apart
from router.cluster_core import ClusterCore
from router.searches import NothingFound
from router.what_if import CannotSay, Gain, Newcomer, gpu_types, newcomer, question, work_out

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
        moves = self._cluster.moves
        members = list(self._cluster.membership)
        new = newcomer(self._cluster.config, members, gpu, region)
        asked = question(
            self._cluster.config,
            members,
            dict(moves.slowdown),
            lambda source, target: moves.links.get((source, target)),
            new,
            LIMIT_S,
        )
        self._busy = True
        if self._going is not None:
            self._going.cancel()
        try:
            found = await self._apart.run(work_out, asked, LIMIT_S)
        finally:
            self._busy = False
            self._going = asyncio.get_running_loop().call_later(KEEP_S, self._apart.close)
        if isinstance(found, NothingFound):
            raise CannotSay(found.reason)
        return _answer(new, found)

    def close(self) -> None:
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
