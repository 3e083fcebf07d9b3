"""The waiting requests of one priority class: a line per owner, shared fairly. Pure.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM '96) in tokens: an owner's tag is the virtual
time at which its next request may start; starting one moves the tag on by its tokens. The lowest
tag is next. An owner that comes, or comes back, starts at the virtual time: what it did not use is
not saved up, so nobody can build a claim by waiting.
"""

from __future__ import annotations

import heapq
from collections.abc import Container
from dataclasses import dataclass, field

from helix_mq.ids import RequestId

_REMEMBERED_OWNERS = 1024
"""Owners with nothing waiting whose tag is in the future. Beyond this many, those that owe least
are forgotten."""
_SLACK = 64


@dataclass(frozen=True, slots=True)
class Waiting:
    """`cost_tokens`: the prompt and the output expected. `begun`: it had a route before."""

    request: RequestId
    owner: str
    priority: int
    arrived_s: float
    cost_tokens: int
    begun: bool = False


_Entry = tuple[float, RequestId]


@dataclass(slots=True)
class _Line:
    """In order of arrival. What leaves from the middle stays in the heap until it comes up."""

    heap: list[_Entry] = field(default_factory=list)
    live: int = 0
    tokens: int = 0
    tag: float = 0.0

    def push(self, waiting: Waiting) -> None:
        heapq.heappush(self.heap, (waiting.arrived_s, waiting.request))
        self.live += 1
        self.tokens += waiting.cost_tokens

    def leave(self, waiting: Waiting, present: Container[RequestId]) -> None:
        self.live -= 1
        self.tokens -= waiting.cost_tokens
        if len(self.heap) > _SLACK and len(self.heap) > 2 * self.live:
            # A sorted list is a heap; what came back is in it twice.
            self.heap = sorted({entry for entry in self.heap if entry[1] in present})

    def first(self, present: Container[RequestId]) -> RequestId:
        while self.heap[0][1] not in present:
            heapq.heappop(self.heap)
        return self.heap[0][1]


class FairLines:
    def __init__(self) -> None:
        self._fresh: dict[RequestId, Waiting] = {}
        self._begun: dict[RequestId, Waiting] = {}
        self._begun_line = _Line()
        self._lines: dict[str, _Line] = {}
        """Of owners with something waiting."""
        self._owed: dict[str, float] = {}
        """Tags of owners with nothing waiting, where they are past the virtual time."""
        self._virtual = 0.0
        self._standing: RequestId | None = None
        """Once the head, always the head: it may need more room than those behind it."""

    def __len__(self) -> int:
        return len(self._fresh) + len(self._begun)

    @property
    def has_begun(self) -> bool:
        return bool(self._begun)

    @property
    def tokens(self) -> int:
        return self._begun_line.tokens + sum(line.tokens for line in self._lines.values())

    def push(self, waiting: Waiting) -> None:
        if waiting.begun:
            self._begun[waiting.request] = waiting
            self._begun_line.push(waiting)
            return
        line = self._lines.get(waiting.owner)
        if line is None:
            tag = max(self._virtual, self._owed.pop(waiting.owner, 0.0))
            line = self._lines[waiting.owner] = _Line(tag=tag)
        self._fresh[waiting.request] = waiting
        line.push(waiting)

    def head(self) -> Waiting | None:
        if self._begun:
            return self._begun[self._begun_line.first(self._begun)]
        if self._standing is None and self._lines:
            # The oldest of those whose tags are equal; linear, but only when one has started.
            best = min(
                self._lines.values(), key=lambda line: (line.tag, self._fresh_first(line).arrived_s)
            )
            self._standing = self._fresh_first(best).request
        return self._fresh[self._standing] if self._standing is not None else None

    def take(self, waiting: Waiting) -> None:
        """The request starts and is charged to its owner; what had begun was charged before."""
        if not waiting.begun:
            line = self._lines[waiting.owner]
            self._virtual = max(self._virtual, line.tag)
            line.tag += waiting.cost_tokens
        self.remove(waiting)

    def remove(self, waiting: Waiting) -> None:
        """Takes out what waits here, at no charge."""
        if waiting.begun:
            del self._begun[waiting.request]
            self._begun_line.leave(waiting, self._begun)
            if not self._begun:
                self._begun_line = _Line()
            return
        if self._standing == waiting.request:
            self._standing = None
        del self._fresh[waiting.request]
        line = self._lines[waiting.owner]
        line.leave(waiting, self._fresh)
        if not line.live:
            del self._lines[waiting.owner]
            self._remember(waiting.owner, line.tag)

    def tokens_of(self, owner: str) -> int:
        """Waiting in its line, what had begun left out."""
        line = self._lines.get(owner)
        return line.tokens if line is not None else 0

    def mean_tokens_of(self, owner: str) -> int:
        """A request's in its line, rounded up; 0 of an empty one."""
        line = self._lines.get(owner)
        return -(-line.tokens // line.live) if line is not None else 0

    def tokens_before(self, owner: str, cost_tokens: int) -> int:
        """Tokens that go before a new request of this owner: its own, and of every other owner's
        what is served meanwhile."""
        own = self._lines.get(owner)
        tag = own.tag if own is not None else max(self._virtual, self._owed.get(owner, 0.0))
        own_tokens = own.tokens if own is not None else 0
        starts_at = tag + own_tokens
        others = sum(
            # One that is being served when the tag is reached goes on to its end.
            min(line.tokens, int(starts_at - line.tag) + cost_tokens)
            for name, line in self._lines.items()
            if name != owner and line.tag <= starts_at
        )
        return self._begun_line.tokens + own_tokens + others

    def _fresh_first(self, line: _Line) -> Waiting:
        return self._fresh[line.first(self._fresh)]

    def _remember(self, owner: str, tag: float) -> None:
        if tag > self._virtual:
            self._owed[owner] = tag
        if len(self._owed) > _REMEMBERED_OWNERS:
            owed = {name: t for name, t in self._owed.items() if t > self._virtual}
            most = sorted(owed, key=lambda name: (-owed[name], name))[: _REMEMBERED_OWNERS // 2]
            self._owed = {name: owed[name] for name in most}
