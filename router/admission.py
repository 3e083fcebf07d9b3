"""Who is admitted next: the bounded queue of requests waiting for room, shared fairly. Pure.

Two priority classes (see `admission_lines` for the order within one). Interactive requests go
first, but background ones, while any wait, get `background_share` of the tokens that are admitted.
Guarantees, counting a request's tokens as its prompt and the output expected of it:

- What has begun and lost its route goes before all that has not; each class's in order of arrival.
- Requests of one owner and class start in order of arrival.
- Between two owners of a class that both have requests waiting, the tokens admitted differ by at
  most the largest request of each and one more, however many requests either of them has waiting.
- What has become the head of its class stays it until it has started or ended: a long prompt does
  not wait for ever behind short ones that fit earlier, whoever sends them.
- A background head starts once the interactive class has been admitted its tokens times
  `(1 - share) / share`, or has nothing left waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from helix_mq.ids import RequestId
from router.admission_lines import FairLines, Waiting

INTERACTIVE, BACKGROUND = 0, 1


class WaitingQueue:
    """Never refuses: `admission_gate` says who may wait."""

    def __init__(self, background_share: float = 0.1) -> None:
        """`background_share` in (0, 1): of the tokens admitted while both classes wait."""
        self._credit_per_token = background_share / (1.0 - background_share)
        self._classes = (FairLines(), FairLines())
        self._waiting: dict[RequestId, Waiting] = {}
        self._of_owner: Counter[str] = Counter()
        self._credit_tokens = 0.0
        """What the background class may be admitted before the interactive one goes on."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._waiting

    @property
    def tokens(self) -> int:
        """Of all that wait."""
        return sum(lines.tokens for lines in self._classes)

    @property
    def owners(self) -> Mapping[str, int]:
        """How many requests of each owner wait; no entry for those with none."""
        return self._of_owner

    def push(self, waiting: Waiting) -> None:
        """Adds a request that does not wait already."""
        assert waiting.request not in self._waiting, waiting.request
        self._waiting[waiting.request] = waiting
        self._of_owner[waiting.owner] += 1
        self._classes[waiting.priority].push(waiting)

    def head(self) -> RequestId | None:
        """The next to be admitted. It is so until it is taken or removed, or something that had
        begun comes back."""
        lines = self._next_class()
        found = lines.head() if lines is not None else None
        return found.request if found is not None else None

    def take(self, request: RequestId) -> None:
        """The request starts: its owner and its class have had its tokens."""
        waiting = self._drop(request)
        if waiting is None:
            return
        self._classes[waiting.priority].take(waiting)
        if not waiting.begun:
            self._count(waiting)

    def remove(self, request: RequestId) -> Waiting | None:
        """Takes a request out without its having started; None if it does not wait."""
        waiting = self._drop(request)
        if waiting is not None:
            self._classes[waiting.priority].remove(waiting)
            self._settle()
        return waiting

    def tokens_of(self, owner: str, priority: int) -> int:
        """Waiting of this owner and class, what had begun left out."""
        return self._classes[priority].tokens_of(owner)

    def mean_tokens_of(self, owner: str, priority: int) -> int:
        """The same a request, rounded up."""
        return self._classes[priority].mean_tokens_of(owner)

    def tokens_before(self, owner: str, priority: int, cost_tokens: int) -> int:
        """Tokens that will be admitted before a new request of this owner, if no more owners come.

        While interactive requests wait, they are taken to go on coming as fast as they are served:
        a background request is then served from its class's share alone.
        """
        before = self._classes[priority].tokens_before(owner, cost_tokens)
        if priority == BACKGROUND:
            if not len(self._classes[INTERACTIVE]):
                return before
            return before + int((before + cost_tokens) / self._credit_per_token)
        share = int((before + cost_tokens) * self._credit_per_token)
        return before + min(self._classes[BACKGROUND].tokens, share)

    def _next_class(self) -> FairLines | None:
        interactive, background = self._classes
        for lines in self._classes:
            if lines.has_begun:
                return lines
        if not len(background):
            return interactive if len(interactive) else None
        if not len(interactive):
            return background
        head = background.head()
        assert head is not None
        return background if self._credit_tokens >= head.cost_tokens else interactive

    def _count(self, started: Waiting) -> None:
        if started.priority == INTERACTIVE:
            self._credit_tokens += started.cost_tokens * self._credit_per_token
        else:
            self._credit_tokens = max(0.0, self._credit_tokens - started.cost_tokens)
        self._settle()

    def _settle(self) -> None:
        """Credit is for those who wait: none is saved up while nobody does."""
        if not len(self._classes[BACKGROUND]):
            self._credit_tokens = 0.0

    def _drop(self, request: RequestId) -> Waiting | None:
        waiting = self._waiting.pop(request, None)
        if waiting is not None:
            self._of_owner[waiting.owner] -= 1
            if not self._of_owner[waiting.owner]:
                del self._of_owner[waiting.owner]
        return waiting
