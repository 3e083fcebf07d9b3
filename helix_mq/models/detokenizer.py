"""Token ids to text, one token at a time, never half a character.

Whatever the pieces, the texts of all pushes and of the flush together are the text of all ids
decoded at once. `ByteDetokenizer` keeps at most three bytes between pushes and costs one look-up a
token; `PrefixDetokenizer` serves decoders whose tokens have no bytes of their own.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence, Set
from typing import Protocol

from helix_mq.models.token_bytes import TokenBytes

_REPLACEMENT = "\ufffd"

MAX_HELD_TOKENS = 16
"""A character takes at most 4 bytes; more tokens than this without a whole one are no text."""


class Detokenizer(Protocol):
    def push(self, token: int) -> str:
        """The text that becomes certain with this token; empty while a character is incomplete."""

    def flush(self) -> str:
        """What is held, an incomplete character as U+FFFD; nothing is held afterwards."""


class ByteDetokenizer:
    """Bytes of tokens through an incremental UTF-8 decoder; invalid bytes become U+FFFD.

    It differs from SentencePiece's own whole-text decoder in one case, on purpose: that one turns
    every byte of a run into U+FFFD if the run is broken anywhere, also whole characters in it,
    which would take back text that has been given out.
    """

    def __init__(self, bytes_of: TokenBytes, hidden: Set[int], *, at_start: bool = True) -> None:
        """`hidden`: ids that are no text. `at_start`: no text comes before this one."""
        self._bytes_of = bytes_of
        self._hidden = hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = at_start and bytes_of.strips_first_space

    def push(self, token: int) -> str:
        if token in self._hidden:
            return ""
        return self._stripped(self._utf8.decode(self._bytes_of(token)))

    def flush(self) -> str:
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class PrefixDetokenizer:
    """Decodes a short window of ids twice and takes the difference.

    The window begins with ids whose text has been given out, so that a decoder which joins tokens
    sees their context.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], after: Sequence[int] = ()) -> None:
        """`decode` gives the text of a run of ids. `after`: ids that come before this text."""
        self._decode = decode
        self._ids = list(after[-MAX_HELD_TOKENS:])
        self._given = len(self._ids)
        """How many of `_ids` have had their text given out; the others are held."""
        self._before = decode(self._ids)

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        held = len(self._ids) - self._given
        if text.endswith(_REPLACEMENT) and held < MAX_HELD_TOKENS:
            return ""
        new = text[len(self._before) :]
        if new or len(self._ids) > 2 * MAX_HELD_TOKENS:
            # Only what has text can be context: after special tokens alone, which have none, a
            # decoder would take the next word for the first and strip its space.
            self._ids = self._ids[self._given :][-MAX_HELD_TOKENS:]
            self._before = self._decode(self._ids)
        else:
            self._before = text
        self._given = len(self._ids)
        return new

    def flush(self) -> str:
        text = self._decode(self._ids)
        new = text[len(self._before) :]
        self._before, self._given = text, len(self._ids)
        return new
