"""Finding the spellings of special tokens in a text, a piece of it at a time.

The interpreter's lock is held while a pattern is searched for: with hundreds of spellings, half a
second for a million characters that nearly match everywhere. Between pieces other threads run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

PIECE_CHARS = 16 * 1024


class Spellings:
    """Matches any of some texts, the longest that fits; never overlapping, from left to right."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Empty texts are ignored."""
        longest_first = sorted({t for t in texts if t}, key=lambda t: (-len(t), t))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._longest = len(longest_first[0]) if longest_first else 0

    def find(self, text: str) -> Iterator[re.Match[str]]:
        """As `re.finditer` would."""
        if not self._longest:
            return
        at = 0
        while at < len(text):
            end = min(len(text), at + PIECE_CHARS + self._longest)
            # Where the longest may be cut off at the end of the piece, the next one looks.
            sure = len(text) if end == len(text) else end - self._longest + 1
            match = self._pattern.search(text, at, end)
            if match is not None and match.start() < sure:
                yield match
                at = match.end()
            else:
                at = sure

    def replace(self, text: str, by: Mapping[str, str]) -> str:
        """The text with each match replaced by what `by` has for it."""
        parts: list[str] = []
        at = 0
        for match in self.find(text):
            parts += (text[at : match.start()], by[match.group()])
            at = match.end()
        return "".join([*parts, text[at:]])
