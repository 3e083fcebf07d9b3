"""A tokenizer of bytes, for models whose weights mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers


def byte_tokenizer(special: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Ids 0 to 255 are bytes, in the order of the byte-level alphabet; `special` follow."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer
