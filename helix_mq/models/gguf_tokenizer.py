"""tokenizer.json from the metadata of a GGUF file.

A GGUF file carries vocabulary, merges and token types, but names its pre-tokenizer only by a word
(`tokenizer.ggml.pre`). The words known here are those of the families we serve; another one is
refused, since a wrong split gives a model that works almost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from helix_mq.errors import ModelFormatError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

# The split patterns that the families publish in their own tokenizer.json files.
_GPT2 = None
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "default": _GPT2,
    "gpt-2": _GPT2,
}
_SINGLE_DIGITS = frozenset({"smollm"})
"""Split like GPT-2, after every digit has been set apart."""


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The tokenizer fields of a GGUF file, as read."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    add_bos: bool
    add_space_prefix: bool

    def token(self, index: int | None) -> str | None:
        return self.tokens[index] if index is not None and index < len(self.tokens) else None


def build_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """A tokenizer with the file's ids. ModelFormatError for kinds that are not known here."""
    if not vocabulary.tokens or len(vocabulary.types) not in (0, len(vocabulary.tokens)):
        raise ModelFormatError(
            "the GGUF file's tokenizer has no tokens, or types that do not match"
        )
    if vocabulary.model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        tokenizer = _sentencepiece(vocabulary)
    else:
        raise ModelFormatError(
            f"tokenizer.ggml.model = {vocabulary.model!r} is not supported: use a GGUF file of a "
            "Llama, Mistral, Qwen or SmolLM model, or the Hugging Face folder"
        )
    _add_marked(tokenizer, vocabulary)
    bos = vocabulary.token(vocabulary.bos_id)
    if vocabulary.add_bos and bos is not None and vocabulary.bos_id is not None:
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary.bos_id)]
        )
        if vocabulary.model == "gpt2":
            byte_level = processors.ByteLevel(trim_offsets=False)
            tokenizer.post_processor = processors.Sequence([byte_level, template])
        else:
            tokenizer.post_processor = template
    return tokenizer


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    if vocabulary.pre not in _SPLITS and vocabulary.pre not in _SINGLE_DIGITS:
        known = ", ".join(sorted({*_SPLITS, *_SINGLE_DIGITS}))
        raise ModelFormatError(
            f"tokenizer.ggml.pre = {vocabulary.pre!r} is not known here ({known}): use the model's "
            "Hugging Face folder, which holds its exact tokenizer.json"
        )
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=_pairs(vocabulary.merges)))
    split = _SPLITS.get(vocabulary.pre)
    prefix = vocabulary.add_space_prefix
    if split is None:
        steps: list[pre_tokenizers.PreTokenizer] = []
        if vocabulary.pre in _SINGLE_DIGITS:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True))
    else:
        steps = [
            pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if vocabulary.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(vocabulary: GgufVocabulary) -> Tokenizer:
    """BPE with byte fallback over a SentencePiece vocabulary; merges follow from the scores."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = _pairs(vocabulary.merges) or merges_from_scores(vocabulary)
    unknown = vocabulary.token(vocabulary.unknown_id)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    strip: list[decoders.Decoder] = []
    if vocabulary.add_space_prefix:
        spaces.insert(0, normalizers.Prepend("\u2581"))
        strip = [decoders.Strip(" ", 1, 0)]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def merges_from_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """The merges a SentencePiece BPE vocabulary implies: every split of a token into two others,
    in the order of the merged token's score, best first."""
    ids: Mapping[str, int] = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for token, index in ids.items():
        if vocabulary.types and vocabulary.types[index] != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-vocabulary.scores[index], ids[left], ids[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or not left or not right:
            raise ModelFormatError(f"the GGUF file's merge {merge[:40]!r} is not two tokens")
        pairs.append((left, right))
    return pairs


def _add_marked(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    """Control tokens become special ones, user-defined ones are matched whole."""
    control, user = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=False):
        if kind in (_CONTROL, _UNKNOWN):
            control.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER:
            user.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(user)
