"""Drafts for speculative decoding, from the text itself: what followed the last time. Pure.

The last tokens of a sequence are looked for earlier in it; what stood behind them then is the
draft. Right for quotations, edits, code and lists, wrong elsewhere, and then a draft costs its
computing: how many are made follows how many were right lately, down to none for a while.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from helix_mq.messages.data import MAX_DRAFTS

LONGEST_MATCH = 4
"""Tokens that are compared; the more of them agree, the likelier the next does."""
SHORTEST_MATCH = 2
PLACES_TRIED = 8
"""The latest places of the last two tokens among which the longest match is taken: a bound on the
work where two tokens stand everywhere."""
INDEXED_AT_ONCE = 2048
"""Tokens taken into the index by one call: some 1.5 ms, for whoever must not be held up longer."""

FIRST_DRAFTS = 4
LONGEST_REST = 32
"""Tokens that go without drafts at most, where none were right: a text may become repetitive."""


class TokenIndex:
    """Where each pair of neighbouring tokens of a growing sequence stood, the latest first.

    Of 8,192 tokens it takes about 1 MiB, and a token takes half a microsecond.
    """

    def __init__(self) -> None:
        self._tokens = array("i")
        self._last: dict[int, int] = {}
        """Pair -> the latest position of its second token."""
        self._before = array("i")
        """Of each position, the one where its pair stood before; -1 for none."""

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, ids: Sequence[int]) -> None:
        """Token ids, each below 2^31, that follow those it has."""
        tokens, last, before = self._tokens, self._last, self._before
        for token in ids:
            at = len(tokens)
            tokens.append(token)
            if not at:
                before.append(-1)
                continue
            pair = tokens[at - 1] << 32 | token
            before.append(last.get(pair, -1))
            last[pair] = at

    def continuation(self, most: int) -> list[int]:
        """Up to `most` tokens that followed the best earlier match of the end, where there is one.

        The longest match among the latest places, of equal ones the latest. Where a match reaches
        the end of what is there, the text is taken to go on repeating.
        """
        tokens = self._tokens
        end = len(tokens)
        if end <= SHORTEST_MATCH or most < 1:
            return []
        place, found, length = self._before[end - 1], -1, 0
        for _ in range(PLACES_TRIED):
            if place < 0 or length == LONGEST_MATCH:
                break
            matched = SHORTEST_MATCH
            while (
                matched < LONGEST_MATCH
                and place - matched >= 0
                and tokens[place - matched] == tokens[end - 1 - matched]
            ):
                matched += 1
            if matched > length:
                found, length = place, matched
            place = self._before[place]
        if found < 0:
            return []
        period = end - 1 - found
        return [tokens[found + 1 + i % period] for i in range(most)]


class Drafter:
    """Drafts for one sequence, as many as pay."""

    def __init__(self) -> None:
        self._index = TokenIndex()
        self._length = FIRST_DRAFTS
        self._rest = 0
        """Tokens to come without drafts."""
        self._wrong = 0
        """Drafts in a row of which not one token was right."""
        self._drafted = 0
        self._at = 0
        """Length of the sequence when `_drafted` tokens were drafted."""

    def accepted(self, length: int) -> int:
        """Of the last draft, how many tokens were right, now that the sequence is so long: all but
        the last that have come since, which the model would have given without it."""
        return min(max(0, length - self._at - 1), self._drafted)

    def draft(self, parts: Sequence[Sequence[int]], most: int = MAX_DRAFTS) -> list[int]:
        """What may follow the sequence that `parts` make up; at most `most` tokens, often none.

        To be called once for each pass over the model, with what the sequence was before and more.
        """
        length = sum(map(len, parts))
        self._learn(length)
        self._at, self._drafted = length, 0
        if most < 1 or self._rest or not self._catch_up(parts):
            return []
        drafts = self._index.continuation(min(most, self._length, MAX_DRAFTS))
        self._drafted = len(drafts)
        return drafts

    def _learn(self, length: int) -> None:
        """Doubled while all are right, else one more than were; none for a while where none were,
        each time twice as long."""
        if not self._drafted:
            self._rest = max(0, self._rest - max(1, length - self._at))
            return
        right = self.accepted(length)
        if right:
            self._wrong = 0
            grown = 2 * self._length if right == self._drafted else right + 1
            self._length = min(MAX_DRAFTS, max(grown, 1))
        else:
            self._wrong += 1
            self._length = 1 if self._wrong > 1 else max(1, self._length // 2)
            self._rest = min(LONGEST_REST, 2**self._wrong - 1)

    def _catch_up(self, parts: Sequence[Sequence[int]]) -> bool:
        """Takes in what the index does not have yet; False while some is left."""
        room, start = INDEXED_AT_ONCE, 0
        for part in parts:
            have = max(0, len(self._index) - start)
            if have < len(part):
                self._index.extend(part[have : have + room])
                room -= min(room, len(part) - have)
            start += len(part)
            if len(self._index) < start:
                return False
        return True
