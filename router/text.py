"""A request's output as text: detokenised bit by bit, cut at the first stop string. Pure.

A tail that could still become a stop string is held back until it is certain. Whatever is pushed
in whatever pieces, the texts given out add up to the whole text cut at the earliest match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helix_mq.models.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """`text` is certain now; `finished_by_stop` is the stop string that ended it, if one did."""

    text: str
    finished_by_stop: str | None = None


class StopMatcher:
    """Finds the earliest of several strings in a text that comes in pieces."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> TextDelta:
        """What of the text so far is certain; after a match there is nothing more."""
        if self._stopped:
            return TextDelta("")
        pending = self._held + text
        found = min(
            ((at, -len(stop), stop) for stop in self._stops if (at := pending.find(stop)) >= 0),
            default=None,
        )
        held_from = _possible_start(pending, self._stops)
        if found is not None and found[0] <= held_from:
            self._stopped, self._held = True, ""
            return TextDelta(pending[: found[0]], found[2])
        self._held = pending[held_from:]
        return TextDelta(pending[:held_from])

    def flush(self) -> TextDelta:
        """The end of the text: what was held is given out, cut at a match that it completes."""
        if self._stopped:
            return TextDelta("")
        self._stopped = True
        text, self._held = self._held, ""
        found = min(
            ((at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            return TextDelta(text[: found[0]], found[2])
        return TextDelta(text)


def _possible_start(text: str, stops: Sequence[str]) -> int:
    """Where the earliest proper prefix of a stop string begins that ends the text."""
    longest = max((len(stop) for stop in stops), default=0)
    for at in range(max(0, len(text) - longest + 1), len(text)):
        tail = text[at:]
        if any(len(stop) > len(tail) and stop.startswith(tail) for stop in stops):
            return at
    return len(text)


class TextStream:
    """Token ids in, certain text out."""

    def __init__(self, detokenizer: Detokenizer, stops: Iterable[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        return self._matcher.push("".join(self._detokenizer.push(token) for token in token_ids))

    def flush(self) -> TextDelta:
        """The text held back by incomplete characters and possible stop strings."""
        last = self._matcher.push(self._detokenizer.flush())
        if last.finished_by_stop is not None:
            return last
        rest = self._matcher.flush()
        return TextDelta(last.text + rest.text, rest.finished_by_stop)
