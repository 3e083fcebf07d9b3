"""Token ids of a prompt in which some special tokens' spellings are only text.

The template's own special tokens become their ids; everything between them is encoded by a
tokenizer that reads no special tokens at all, users' words in one piece with what surrounds them.
"""

from __future__ import annotations

from collections.abc import Callable

import tokenizers

from helix_mq.models.chat_template import Rendered
from helix_mq.models.spellings import Spellings
from helix_mq.models.tokenizer_files import Sections


def encoding(
    tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool
) -> tokenizers.Encoding:
    """`tokenizer.encode(text)`, with the same ids, but with the interpreter's lock released.

    `encode` holds it to the end: seconds for a million characters, in which no other thread runs.
    Of the library's methods only those for batches release it; this one also leaves out where in
    the text each token was, which nobody asks for.
    """
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]


class LiteralEncoder:
    """Thread-safe: its tokenizer is never changed after construction."""

    def __init__(self, tokenizer_json: str, sections: Sections) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {
            token.content: (id_, token) for id_, token in added.items() if token.special
        }
        self._spellings = Spellings(tuple(self._special))
        self._starts_with_space = sections.prefixes_first_word
        if self._starts_with_space:
            # Only the start of the whole prompt gets a space before its first word, not the start
            # of each part.
            self._tokenizer.pre_tokenizer.prepend_scheme = "never"

    def encode(self, prompt: Rendered) -> list[int]:
        """Token ids; no special token is added at start or end."""
        ids: list[int] = []
        at, strip_next = 0, False
        for match in self._spellings.find(prompt.text):
            id_, token = self._special[match.group()]
            self._encode_text(prompt, at, match.start(), ids, _strip(strip_next, token.lstrip))
            ids.append(id_)
            at, strip_next = match.end(), token.rstrip
        self._encode_text(prompt, at, len(prompt.text), ids, _strip(strip_next, False))
        return ids

    def count_special(self, text: str) -> int:
        """How many special tokens are spelled out in `text`."""
        return sum(1 for _ in self._spellings.find(text))

    def _encode_text(
        self, prompt: Rendered, begin: int, end: int, ids: list[int], strip: Callable[[str], str]
    ) -> None:
        text = strip(prompt.text[begin:end])
        if not text:
            return
        if begin == 0 and self._starts_with_space and not text.startswith(" "):
            text = " " + text
        found = encoding(self._tokenizer, prompt.restore(text), add_special_tokens=False)
        ids += found.ids


def _strip(left: bool, right: bool) -> Callable[[str], str]:
    """What special tokens beside a text take off it."""
    if left and right:
        return str.strip
    if left:
        return str.lstrip
    return str.rstrip if right else str
