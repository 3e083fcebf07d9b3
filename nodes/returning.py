"""The way back of tokens that do not pass the router: from the last hop to the first. Pure.

The last hop makes of each token it samples the next decode row and sends it to the first hop; the
router gets the token beside. So it is the last hop that sees when a text has ended, as far as token
ids tell; stop strings, cancelled requests and deadlines are the router's, whose release ends the
loop a few tokens late. What was computed beyond the end is nobody's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import cast

import msgspec

from helix_mq.ids import ROUTER
from helix_mq.messages.data import DIRECT, SAMPLE, FrameHeader, Row, TokenItem
from helix_mq.sampling import SamplingParams
from nodes.batching import SeqKey, Work
from nodes.first_drafts import FirstDrafts
from nodes.inbox import NodeView
from nodes.ledger import Ledger
from nodes.payload import Payload
from nodes.steps import OutFrame


@dataclass(frozen=True, slots=True)
class _Returned:
    """A sequence that ends here and begins on `first`; `prompt_tokens` of them are not output."""

    seq: SeqKey
    first: str
    route_blob: bytes
    deadline_ms: int
    sampling: SamplingParams
    prompt_tokens: int


class _Group(msgspec.Struct):
    """What goes to one first hop."""

    rows: list[Row]
    routes: dict[bytes, int]
    ids: list[int]
    sequences: list[SeqKey]


class Returns:
    """The direct sequences whose last hop is this node, as many as are open here at most; and the
    drafts of those whose first hop it is."""

    def __init__(self, view: NodeView) -> None:
        self._node = view.node
        self._eos_ids = frozenset(view.eos_ids)
        self._known: dict[SeqKey, _Returned] = {}
        self._find = cast(Callable[[tuple[int, int]], _Returned | None], self._known.get)
        """By the plain numbers: making a key of them takes longer than the look-up."""
        self._drafts = FirstDrafts(view.max_context)
        self.drafts: Collection[SeqKey] = self._drafts.texts
        """Whose rows may get drafts here: mostly nobody's, for others to look at."""

    def __len__(self) -> int:
        return len(self._known) + len(self._drafts)

    def took(self, row: Work[Payload], ledger: Ledger) -> Work[Payload]:
        """A row has been let in: as it is, or with drafts, of which the ledger learns."""
        if not row.payload.direct:
            return row
        if row.payload.spec is not None:
            self._note(row)
        if not row.payload.drafting and not self._drafts.texts:
            return row
        work = self._drafts.took(row, len(ledger))
        if work.drafts != row.drafts:
            ledger.advance(work.seq, work.position, work.count, drafts=len(work.drafts))
        return work

    def _note(self, work: Work[Payload]) -> None:
        """Of a direct one, the row with the sampling parameters says what a last hop needs."""
        payload = work.payload
        if work.next_hop == ROUTER and payload.spec is not None:
            self._known[work.seq] = _Returned(
                work.seq,
                payload.route.hops[0].node,
                payload.route_blob,
                payload.deadline_ms,
                payload.spec.sampling,
                payload.spec.prompt_tokens,
            )

    def forget(self, seq: SeqKey) -> None:
        self._known.pop(seq, None)
        self._drafts.forget(seq)

    def to(self, first: str) -> list[SeqKey]:
        """Sequences whose tokens go to that node."""
        return [seq for seq, known in self._known.items() if known.first == first]

    def frames(self, tokens: Iterable[TokenItem], epoch: int) -> list[OutFrame]:
        """Decode rows of the newest tokens, a frame per first hop; none for texts that ended."""
        if not self._known:
            return []
        find = self._find
        groups: dict[str, _Group] = {}
        for token in tokens:
            known = find((token.request, token.attempt))
            if known is None or token.more:
                continue
            output_tokens = token.position + 1 - known.prompt_tokens
            if ends(known.sampling, self._eos_ids, token.token, output_tokens):
                continue
            group = groups.get(known.first)
            if group is None:
                group = groups[known.first] = _Group([], {}, [], [])
            group.rows.append(
                Row(
                    token.request,
                    token.attempt,
                    token.position,
                    1,
                    group.routes.setdefault(known.route_blob, len(group.routes)),
                    0,
                    SAMPLE | DIRECT,
                    known.deadline_ms,
                )
            )
            group.ids.append(token.token)
            group.sequences.append(known.seq)
        frames = []
        for first in sorted(groups):
            group = groups[first]
            rows, routes = tuple(group.rows), tuple(group.routes)
            header = FrameHeader(epoch, self._node, "int32", 1, rows, routes)
            ids = struct.pack(f"<{len(rows)}i", *group.ids)
            frames.append(OutFrame(first, header, (ids,), frozenset(group.sequences)))
        return frames


def ends(
    sampling: SamplingParams, eos_ids: Collection[int], token: int, output_tokens: int
) -> bool:
    """Whether a text ends with this token, its `output_tokens`-th, whatever the text says."""
    return (
        output_tokens >= sampling.max_tokens
        or (token in eos_ids and not sampling.ignore_eos)
        or token in sampling.stop_token_ids
    )
