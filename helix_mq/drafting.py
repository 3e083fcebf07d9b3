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
PLACES_SEEN = 64
"""Of those in their slot, other pairs' places among them."""
INDEXED_AT_ONCE = 2048
"""Tokens taken into the index by one call: about 1 ms, for whoever must not be held up longer."""
MOST_TOKENS = 131_072
"""Of a text beyond that the older half is forgotten, again and again."""

FEWEST_SLOTS = 256
MOST_PER_SLOT = 4
"""Tokens; with more of them there are four times as many slots."""
_SPREAD = 40_503
"""Odd, so that the slots of pairs with one first token are as many as their second tokens."""

FIRST_DRAFTS = 4
LONGEST_REST = 32
"""Tokens that go without drafts at most, where none were right: a text may become repetitive."""


class TokenIndex:
    """Where each pair of neighbouring tokens of a growing sequence stood, the latest first.

    Chains by slots of a hash, as in LZ77, and no dict: 9 to 12 bytes per token instead of 104, and
    whether a place has the pair is seen in the tokens themselves. What is not linked yet (much came
    at once, or the slots have grown) is linked step by step.
    """

    def __init__(self) -> None:
        self._forgotten = 0
        """Tokens before the first that is kept."""
        self._tokens = array("i")
        self._before = array("i")
        """Of each place that is linked, the one before it in its slot; -1 for none. A pair's place
        is that of its second token."""
        self._slots = array("i", (-1,)) * FEWEST_SLOTS
        """The latest place of each."""

    def __len__(self) -> int:
        return self._forgotten + len(self._tokens)

    @property
    def nbytes(self) -> int:
        return sum(a.itemsize * len(a) for a in (self._tokens, self._before, self._slots))

    def extend(self, ids: Sequence[int], expected: int = 0) -> None:
        """Token ids, each below 2^31, that follow those it has; so many in all are `expected`."""
        self._tokens.extend(ids)
        if len(self._tokens) > MOST_TOKENS:
            half = len(self._tokens) - MOST_TOKENS // 2
            self._forgotten += half
            del self._tokens[:half]
            self._unlink(len(self._slots))
        wanted = min(MOST_TOKENS, max(len(self._tokens), expected))
        slots = len(self._slots)
        while wanted > MOST_PER_SLOT * slots:
            slots *= 4
        if slots > len(self._slots):
            self._unlink(slots)

    def _unlink(self, slots: int) -> None:
        self._slots = array("i", (-1,)) * slots
        self._before = array("i")

    def link(self, most: int = INDEXED_AT_ONCE) -> bool:
        """Links so many tokens at most; False while some are left."""
        tokens, before, slots = self._tokens, self._before, self._slots
        start, mask = len(before), len(slots) - 1
        end = min(len(tokens), start + most)
        if not start < end:
            return start == len(tokens)
        if not start:
            # No pair ends here.
            before.append(-1)
            start = 1
        last = tokens[start - 1]
        for at in range(start, end):
            token = tokens[at]
            slot = (last * _SPREAD ^ token) & mask
            before.append(slots[slot])
            slots[slot] = at
            last = token
        return end == len(tokens)

    def continuation(self, most: int) -> list[int]:
        """Up to `most` tokens that followed the best earlier match of the end, where there is one;
        none while not all is linked.

        The longest match among the latest places, of equal ones the latest. Where a match reaches
        the end of what is there, the text is taken to go on repeating.
        """
        tokens, before = self._tokens, self._before
        end = len(tokens)
        if end <= SHORTEST_MATCH or most < 1 or len(before) < end:
            return []
        token, last = tokens[end - 1], tokens[end - 2]
        place, found, length, tried = before[end - 1], -1, 0, 0
        for _ in range(PLACES_SEEN):
            if place < 1 or length == LONGEST_MATCH or tried == PLACES_TRIED:
                break
            if tokens[place] == token and tokens[place - 1] == last:
                tried += 1
                matched = self._matched(place)
                if matched > length:
                    found, length = place, matched
            place = before[place]
        if found < 0:
            return []
        period = end - 1 - found
        return [tokens[found + 1 + i % period] for i in range(most)]

    def _matched(self, place: int) -> int:
        """How many tokens up to a place of the last pair are those up to the end."""
        tokens, end = self._tokens, len(self._tokens)
        matched = SHORTEST_MATCH
        while (
            matched < LONGEST_MATCH
            and place - matched >= 0
            and tokens[place - matched] == tokens[end - 1 - matched]
        ):
            matched += 1
        return matched


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
        length, start = sum(map(len, parts)), 0
        room = INDEXED_AT_ONCE
        for part in parts:
            have = max(0, len(self._index) - start)
            if have < len(part) and room:
                self._index.extend(part[have : have + room], length)
                room -= min(room, len(part) - have)
            start += len(part)
        return self._index.link() and len(self._index) == length
