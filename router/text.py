"""A request's output as text: detokenised bit by bit, ended by the first stop string. Pure.

A tail that could still become a stop string is held back until it is certain. Whatever the pieces
in which a text comes, what is given out adds up to the whole text, cut where the stop string
begins that is complete first; of several complete at one character, the longest.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from helix_mq.models.detokenizer import Detokenizer


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """`text` is certain now; `finished_by_stop` is the stop string that ended it, if one did."""

    text: str
    finished_by_stop: str | None = None


class _Search:
    """Follows one string through a text by Knuth, Morris and Pratt: constant time a character
    on average, also for a stop string and a text that repeat themselves for thousands of
    characters."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.matched = 0
        """How long a beginning of `wanted` the text ends with."""
        self._shorter = [0] * (len(wanted) + 1)
        """For a matched length, the next shorter beginning that the text then ends with, too."""
        length = 0
        for i in range(1, len(wanted)):
            while length and wanted[i] != wanted[length]:
                length = self._shorter[length]
            length += wanted[i] == wanted[length]
            self._shorter[i + 1] = length

    def step(self, letter: str) -> bool:
        """Takes one character; True when `wanted` is complete with it."""
        matched = self.matched
        while matched and self.wanted[matched] != letter:
            matched = self._shorter[matched]
        self.matched = matched + (self.wanted[matched] == letter)
        return self.matched == len(self.wanted)


class StopMatcher:
    """Ends a text that comes in pieces at the first of several strings; empty ones are ignored."""

    def __init__(self, stops: Iterable[str]) -> None:
        # The longest first: of several complete at one character it cuts the most.
        distinct = sorted({stop for stop in stops if stop}, key=lambda stop: (-len(stop), stop))
        self._searches = [_Search(stop) for stop in distinct]
        self._held = ""
        self._ended = False

    def push(self, text: str) -> TextDelta:
        """What of the text so far is certain; after a stop string there is nothing more."""
        if self._ended:
            return TextDelta("")
        pending = self._held + text
        if not self._searches:
            return TextDelta(pending)
        for at, letter in enumerate(text, start=len(self._held) + 1):
            # No short cut: every search must see every character.
            complete = [search.wanted for search in self._searches if search.step(letter)]
            if complete:
                self._ended, self._held = True, ""
                return TextDelta(pending[: at - len(complete[0])], complete[0])
        certain = len(pending) - max(search.matched for search in self._searches)
        self._held = pending[certain:]
        return TextDelta(pending[:certain])

    def flush(self) -> TextDelta:
        """The end of the text: what was held is given out."""
        self._ended = True
        text, self._held = self._held, ""
        return TextDelta(text)


class TextStream:
    """Token ids in, certain text out."""

    def __init__(self, detokenizer: Detokenizer, stops: Iterable[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        text = ""
        for token in token_ids:
            text += self._detokenizer.push(token)
        return self._matcher.push(text)

    def flush(self) -> TextDelta:
        """The text held back by incomplete characters and possible stop strings."""
        last = self._matcher.push(self._detokenizer.flush())
        if last.finished_by_stop is not None:
            return last
        return TextDelta(last.text + self._matcher.flush().text)
