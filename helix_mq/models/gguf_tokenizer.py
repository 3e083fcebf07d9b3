"""tokenizer.json from the vocabulary of a GGUF file, built with the `tokenizers` library.

Two kinds: byte-level BPE (`gpt2`), and BPE over a SentencePiece vocabulary with byte fallback
(`llama`), whose merges follow from the scores. Token ids are the file's.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from helix_mq.models.gguf_vocabulary import CONTROL, UNKNOWN, USER_DEFINED, GgufVocabulary
from helix_mq.models.library_failures import in_words

_SPACE = "\u2581"


def build_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """A tokenizer with the file's ids. ModelFormatError for kinds that are not known here."""
    if not vocabulary.tokens:
        raise ModelFormatError("the GGUF file's tokenizer has no tokens")
    if vocabulary.model == "gpt2":
        build = _byte_level
    elif vocabulary.is_sentencepiece:
        build = _sentencepiece
    else:
        raise ModelFormatError(
            f"tokenizer.ggml.model={vocabulary.model!r} is not supported (gpt2 and llama are): use "
            "the model's Hugging Face folder"
        )
    with in_words("the GGUF file's tokenizer cannot be built"):
        tokenizer = build(vocabulary)
        _mark_added(tokenizer, vocabulary)
        _begin_with_bos(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    how = vocabulary.splitting
    tokenizer = Tokenizer(
        models.BPE(
            vocab=_ids(vocabulary), merges=_pairs(vocabulary.merges), ignore_merges=how.whole_words
        )
    )
    steps: list[pre_tokenizers.PreTokenizer] = []
    if how.digits_apart:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if how.split is not None:
        steps.append(pre_tokenizers.Split(Regex(how.split), behavior="isolated", invert=False))
    steps.append(
        pre_tokenizers.ByteLevel(
            add_prefix_space=vocabulary.prefixes_space, use_regex=how.split is None
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(vocabulary: GgufVocabulary) -> Tokenizer:
    # Files list merges only when they were no SentencePiece model to begin with.
    merges = _pairs(vocabulary.merges) or merges_from_scores(vocabulary.tokens, vocabulary.scores)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=_ids(vocabulary),
            merges=merges,
            unk_token=vocabulary.token(vocabulary.unknown_id),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    strip: list[decoders.Decoder] = []
    if vocabulary.prefixes_space:
        # By normalizer, as in Llama 2's own file and in llama.cpp: each text between special
        # tokens gets a space, also one that starts with a space.
        spaces.insert(0, normalizers.Prepend(_SPACE))
        strip = [decoders.Strip(" ", 1, 0)]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def merges_from_scores(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges a SentencePiece BPE vocabulary implies: every split of a token into two others,
    in the order of the merged token's score, best first, the longer left part first."""
    if len(scores) != len(tokens):
        raise ModelFormatError("a SentencePiece vocabulary needs a score for every token")
    known = set(tokens)
    merges: list[tuple[float, int, int, int, str, str]] = []
    for index, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                merges.append((-scores[index], -len(left), -len(right), index, left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _ids(vocabulary: GgufVocabulary) -> dict[str, int]:
    return {token: index for index, token in enumerate(vocabulary.tokens)}


def _pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or not left or not right:
            raise ModelFormatError(f"the GGUF file's merge {merge[:40]!r} is not two tokens")
        pairs.append((left, right))
    return pairs


def _mark_added(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    """Control tokens become special ones, user-defined ones are matched whole."""
    control, whole = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=False):
        if kind in (CONTROL, UNKNOWN):
            control.append(AddedToken(token, normalized=False, special=True))
        elif kind == USER_DEFINED:
            whole.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(whole)


def _begin_with_bos(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    bos, bos_id = vocabulary.token(vocabulary.bos_id), vocabulary.bos_id
    if bos is None or bos_id is None or not vocabulary.begins_with_bos:
        return
    template: processors.PostProcessor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, bos_id)]
    )
    if tokenizer.post_processor is not None:
        template = processors.Sequence([tokenizer.post_processor, template])
    tokenizer.post_processor = template
