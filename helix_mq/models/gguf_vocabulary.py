"""The tokenizer fields of a GGUF file, as read, and what follows from the pre-tokenizer's name.

A GGUF file carries vocabulary, merges and token types, but names its pre-tokenizer only by a word
(`tokenizer.ggml.pre`). The words known here are those of the families that are served; another one
is refused, since a wrong split gives a model that works almost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helix_mq.errors import ModelFormatError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""llama.cpp's token types; UNUSED = 5 and BYTE = 6 need nothing done."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a byte-level tokenizer cuts text before merging.

    split: the pattern of words, None for GPT-2's own. digits_apart: every digit is cut out first.
    whole_words: a word that is in the vocabulary is one token whatever the merges say.
    """

    split: str | None = None
    digits_apart: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    nfc: bool = False


# The patterns are those of the families' own tokenizer.json files.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = Splitting(
    rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}", whole_words=True, adds_bos=True
)
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = Splitting(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    adds_bos=True,
)
SPLITTINGS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": Splitting(_QWEN2, nfc=True),
    "deepseek-r1-qwen": Splitting(_QWEN2, adds_bos=True),
    "tekken": _TEKKEN,
    "smollm": Splitting(digits_apart=True),
    "gpt-2": Splitting(),
    "default": Splitting(),
}


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """`add_bos` and `add_space_prefix` are None where the file leaves them to its kind."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    add_bos: bool | None
    add_space_prefix: bool | None

    def token(self, index: int | None) -> str | None:
        return self.tokens[index] if index is not None else None

    @property
    def is_sentencepiece(self) -> bool:
        return self.model == "llama"

    @property
    def splitting(self) -> Splitting:
        """Of a byte-level vocabulary; ModelFormatError for a word that is not known here."""
        found = SPLITTINGS.get(self.pre)
        if found is None:
            raise ModelFormatError(
                f"tokenizer.ggml.pre={self.pre!r} is not known here ({', '.join(SPLITTINGS)} are): "
                "use the model's Hugging Face folder, which holds its exact tokenizer.json",
                param="tokenizer.ggml.pre",
            )
        return found

    @property
    def begins_with_bos(self) -> bool:
        """Whether a text starts with the beginning-of-sequence token."""
        if self.bos_id is None:
            return False
        if self.add_bos is not None:
            return self.add_bos
        return self.is_sentencepiece or self.splitting.adds_bos

    @property
    def prefixes_space(self) -> bool:
        if self.add_space_prefix is not None:
            return self.add_space_prefix
        return self.is_sentencepiece

    @property
    def control_ids(self) -> list[int]:
        return [i for i, kind in enumerate(self.types) if kind == CONTROL]
