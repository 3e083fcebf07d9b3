"""Tokenizers trained on the spot, of both kinds that the Llama family uses, and texts to try."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TRAINING = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Größe, naïve café, señor, 東京は日本の首都です。 Привет, мир! 😀👍",
    "In 1969, 600 million people watched; it's 2024 now and they've seen 1,000,000 more.",
] * 3

TEXTS = [
    "",
    "hello",
    "The dog",
    " leading space",
    "  two leading spaces",
    "trailing  ",
    "\n\nlines\r\n\tand tabs\n",
    "it's they've I'LL",
    "0 12 345 6789 1000000 3.14 1,000",
    "for i in range(10):\n    print(i ** 2)  # comment\n",
    "naïve café señor Größe",
    "e\u0301 decomposed",
    "東京は日本の首都です。",
    "مرحبا بالعالم",
    "😀 👨‍👩‍👧‍👦 🇩🇪",
    "\u00a0nbsp\u2003em\u200bzero",
    "a\x00b\x7f",
    "\ufeffbom",
    "private \ue000 use",
    "!!!???...;;;",
    "x" * 300,
    " " * 70,
]

SPECIAL = ["<|begin|>", "<|end|>", "<|start_role|>", "<|end_role|>"]


def _byte_level_json() -> str:
    """BPE over bytes, GPT-2's split, four special tokens and one that is not."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<think>"])
    return tokenizer.to_str()


def _sentencepiece_json(*, metaspace: bool) -> str:
    """BPE with byte fallback, its space prefix by normalizer (as Llama 2 has it) or by Metaspace
    (as transformers makes it)."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trained.train_from_iterator(
        [" " + text for text in TRAINING], trainers.BpeTrainer(vocab_size=400, show_progress=False)
    )
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *SPECIAL])
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def byte_level_json() -> str:
    return _byte_level_json()


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece", "metaspace"])
def tokenizer_json(request: pytest.FixtureRequest, byte_level_json: str) -> str:
    """tokenizer.json of each kind in turn; all have the special tokens of `special_spellings`."""
    if request.param == "byte_level":
        return byte_level_json
    return _sentencepiece_json(metaspace=request.param == "metaspace")


@pytest.fixture(scope="session")
def sentencepiece_json() -> str:
    return _sentencepiece_json(metaspace=False)


@pytest.fixture(scope="session")
def special_spellings() -> list[str]:
    return list(SPECIAL)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Varied texts: whitespace, digits, code, scripts, combining marks, control characters."""
    return list(TEXTS)


@pytest.fixture(scope="session")
def model_of_tokenizer() -> Any:
    """tokenizer.json text -> (tokens by id, merges as GGUF writes them)."""

    def read(tokenizer_json: str) -> tuple[list[str], list[str]]:
        data = json.loads(tokenizer_json)
        by_id = {i: token for token, i in data["model"]["vocab"].items()}
        by_id.update({added["id"]: added["content"] for added in data["added_tokens"]})
        merges = [" ".join(merge) for merge in data["model"]["merges"]]
        return [by_id[i] for i in range(len(by_id))], merges

    return read
