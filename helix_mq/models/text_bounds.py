"""How many characters a token can stand for, by a tokenizer.json: texts too long to fit any number
of tokens are then known without tokenising them.

Only where nothing of a text can get lost on the way: tokenizers that drop or collapse characters
(strip spaces, fuse unknown ones) have no such bound, and get None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_COMPOSED = 4
"""Most characters that Unicode composes into one: a letter with three marks."""
_KEEP_ALL = frozenset({"ByteLevel", "Digits", "Metaspace", "Split"})
_COMPOSING = frozenset({"NFC", "NFKC"})
_EXPANDING = frozenset({"NFD", "NFKD", "Prepend"})


def chars_per_token(data: Mapping[str, Any]) -> int | None:
    """The most characters of a text that one token can hold; None where there is no bound.

    `data`: a tokenizer.json that the `tokenizers` library has accepted.
    """
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        return None
    words = list(_steps(data.get("pre_tokenizer"), "pretokenizers"))
    if not all(w.get("type") in _KEEP_ALL and w.get("behavior") != "Removed" for w in words):
        return None
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not _has_all_bytes(
        vocabulary,
        spelled=any(w.get("type") == "ByteLevel" for w in words),
        falls_back=model.get("byte_fallback") is True,
    ):
        return None
    added = [t for t in data.get("added_tokens") or () if isinstance(t, dict)]
    if any(t.get("lstrip") or t.get("rstrip") for t in added):
        return None
    factor = 1
    for step in _steps(data.get("normalizer"), "normalizers"):
        if step.get("type") in _COMPOSING:
            factor = _COMPOSED
        elif step.get("type") not in _EXPANDING and not _lengthens(step):
            return None
    spellings = [*vocabulary, *(str(t.get("content", "")) for t in added)]
    return factor * max(len(text) for text in spellings)


def _steps(section: object, parts: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(section, dict):
        if section.get("type") == "Sequence":
            for part in section.get(parts) or ():
                yield from _steps(part, parts)
        else:
            yield section


def _has_all_bytes(vocabulary: Mapping[str, Any], *, spelled: bool, falls_back: bool) -> bool:
    """Whether no character can be unknown, and thereby be dropped or share a token with others."""
    if spelled:
        return all(letter in vocabulary for letter in _alphabet())
    return falls_back and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))


def _alphabet() -> Iterator[str]:
    """The 256 letters that byte-level vocabularies write bytes with (GPT-2's)."""
    yield from map(chr, (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))
    yield from map(chr, range(0x100, 0x144))


def _lengthens(step: Mapping[str, Any]) -> bool:
    """Replaces a text by one that is no shorter."""
    pattern, content = step.get("pattern"), step.get("content")
    wanted = pattern.get("String") if isinstance(pattern, dict) else None
    return (
        step.get("type") == "Replace"
        and isinstance(wanted, str)
        and isinstance(content, str)
        and len(wanted) <= len(content)
    )
