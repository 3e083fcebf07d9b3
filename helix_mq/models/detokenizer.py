"""Token ids to text, one token at a time, never half a character.

Keeps a short window of ids whose text has been given out, so that a decoder which joins tokens
(leading spaces, byte fallback) sees its context; the text of all pushes and the flush together is
the text of all ids decoded at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"

MAX_HELD_TOKENS = 16
"""A character takes at most 4 bytes; more tokens than this without a whole one are no text."""


class Detokenizer:
    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """`decode(ids)` gives the text of a run of ids; see Tokenizer.detokenizer."""
        self._decode = decode
        self._ids: list[int] = []
        self._given = 0
        """How many of `_ids` have had their text given out; the others are held."""

    def push(self, token: int) -> str:
        """The text that becomes certain with this token; empty while a character is incomplete."""
        self._ids.append(token)
        before = self._decode(self._ids[: self._given])
        after = self._decode(self._ids)
        held = len(self._ids) - self._given
        if after.endswith(_REPLACEMENT) and held < MAX_HELD_TOKENS:
            return ""
        text = after[len(before) :]
        # What was just given out is the context of what comes next.
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)
        return text

    def flush(self) -> str:
        """What is held, incomplete characters as U+FFFD; then nothing is held."""
        before = self._decode(self._ids[: self._given])
        text = self._decode(self._ids)[len(before) :]
        self._given = len(self._ids)
        return text
