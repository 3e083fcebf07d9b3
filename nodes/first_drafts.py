"""Drafts of the first hop, for sequences whose tokens come back to it without the router. Pure.

The text's tokens pass here: the prompt as the router sends it, then each token that the last hop
hands back, behind those of its drafts that were right. What is kept of a text is bounded, and so is
the number of texts: requests share the drafts of a step, and among many there are none.
"""

from __future__ import annotations

from array import array

import msgspec
import numpy as np

from helix_mq.drafting import MOST_TOKENS, Drafter
from helix_mq.messages.data import MAX_DRAFTS
from nodes.batching import SeqKey, Work
from nodes.payload import FrameUse, Payload

MOST_DRAFTS = min(8, MAX_DRAFTS)
DRAFTS_AT_ONCE = 64
"""Of all requests on the node together, shared evenly. As the router's own defaults."""
LONGEST_TEXT = MOST_TOKENS
"""Tokens; a text and its index take some 16 bytes each."""


class _Text:
    """Tokens from `base` on: what is before is kept by name, and never passed here."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.ids = array("i")
        self.drafter = Drafter()
        self.drafts: tuple[int, ...] = ()
        """Behind its last token; what is right of them is known when the next one comes."""
        self.last_position = 0
        """Of the last token it may have; 0 while the sampling parameters have not come."""

    @property
    def end(self) -> int:
        return self.base + len(self.ids)

    def learn(self, token: int, position: int) -> bool:
        """A token was handed back. False if it does not fit what is known."""
        right = position - self.end
        if not 0 <= right <= len(self.drafts):
            return False
        self.ids.extend((*self.drafts[:right], token))
        self.drafts = ()
        return len(self.ids) <= LONGEST_TEXT


class FirstDrafts:
    def __init__(self, max_context: int) -> None:
        self._max_context = max_context
        self.texts: dict[SeqKey, _Text] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def forget(self, seq: SeqKey) -> None:
        self.texts.pop(seq, None)

    def took(self, work: Work[Payload], open_requests: int) -> Work[Payload]:
        """A row has come: as it is, or as a decode with drafts behind its token."""
        if not work.payload.is_tokens or not work.payload.direct:
            return work
        if work.payload.drafting:
            self._prompt(work)
            return work
        text = self.texts.get(work.seq)
        if text is None or not work.is_decode:
            return work
        token = int.from_bytes(work.payload.data[:4], "little")
        if not text.learn(token, work.position):
            self.forget(work.seq)
            return work
        most = min(
            MOST_DRAFTS,
            DRAFTS_AT_ONCE // max(1, open_requests),
            # The pass gives one token beside those that were drafted.
            text.last_position - work.position - 1,
            self._max_context - work.position - 1,
        )
        text.drafts = tuple(text.drafter.draft((text.ids,), most))
        return _with_drafts(work, token, text.drafts) if text.drafts else work

    def _prompt(self, work: Work[Payload]) -> None:
        text = self.texts.get(work.seq)
        if text is None:
            if len(self.texts) >= DRAFTS_AT_ONCE:
                return
            text = self.texts[work.seq] = _Text(work.position)
        if text.end != work.position or len(text.ids) + work.count > LONGEST_TEXT:
            self.forget(work.seq)
            return
        text.ids.frombytes(bytes(work.payload.data))
        spec = work.payload.spec
        if spec is not None:
            text.last_position = spec.prompt_tokens + spec.sampling.max_tokens - 1


def _with_drafts(work: Work[Payload], token: int, drafts: tuple[int, ...]) -> Work[Payload]:
    """The decode of a token with drafts behind it; its frame is used up as by the token alone."""
    use = work.payload.use
    count = 1 + len(drafts)
    ids = np.array((token, *drafts), dtype="<i4")
    # Of the frame's own count only one token is this row's.
    own = FrameUse(count, lambda: use.take(1))
    own.arrived_s = use.arrived_s
    payload = msgspec.structs.replace(work.payload, data=ids.data.cast("B"), use=own)
    return msgspec.structs.replace(work, count=count, drafts=drafts, payload=payload)
