"""The bytes that a token id stands for, by the two spellings that Llama-family tokenizers use.

Byte-level vocabularies write each byte as one printable letter; SentencePiece ones write spaces as
U+2581 and lone bytes as `<0xNN>`. Another kind of decoder gives None from `of`: then only the
`tokenizers` library itself can tell the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

_SPACE = "\u2581"


class TokenBytes:
    """Looks spellings up once per token; safe to share between threads."""

    def __init__(
        self,
        token_of: Callable[[int], str | None],
        spell: Callable[[str], bytes],
        *,
        strips_first_space: bool,
    ) -> None:
        self._token_of = token_of
        self._spell = spell
        self.strips_first_space = strips_first_space
        """The decoder takes one space off the start of a text."""
        self._known: dict[int, bytes] = {}

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, decoder: Mapping[str, Any]) -> TokenBytes | None:
        """`decoder`: that section of tokenizer.json."""
        steps = _steps(decoder)
        kinds = [step.get("type") for step in steps]
        if kinds == ["ByteLevel"]:
            return cls(tokenizer.id_to_token, _byte_level, strips_first_space=False)
        sentencepiece = ["Replace", "ByteFallback", "Fuse"]
        if kinds[:3] != sentencepiece or not _replaces_space(steps[0]):
            return None
        if kinds == sentencepiece:
            return cls(tokenizer.id_to_token, _sentencepiece, strips_first_space=False)
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if steps[3:] == [strip]:
            return cls(tokenizer.id_to_token, _sentencepiece, strips_first_space=True)
        return None

    def __call__(self, token: int) -> bytes:
        """The bytes of `token`, a special token's name included; empty for an unknown id."""
        found = self._known.get(token)
        if found is None:
            text = self._token_of(token)
            found = self._known[token] = b"" if text is None else self._spell(text)
        return found


def _steps(decoder: Mapping[str, Any]) -> list[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        return [step for step in decoder.get("decoders", []) if isinstance(step, dict)]
    return [dict(decoder)]


def _replaces_space(step: Mapping[str, Any]) -> bool:
    return step.get("pattern") == {"String": _SPACE} and step.get("content") == " "


def _letters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in sorted(printable)}
    letters.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return letters


_LETTERS = _letters()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_LETTERS[letter] for letter in token)
    except KeyError:
        # An added token, which is written as plain text.
        return token.encode("utf-8", "replace")


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_SPACE, " ").encode("utf-8", "replace")
