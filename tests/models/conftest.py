"""Tokenizers trained on the spot, of both kinds that the Llama family uses, texts to try, and GGUF
files of tiny models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
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


@pytest.fixture(scope="session")
def model_kinds() -> dict[str, Any]:
    """GGUF architecture -> a tiny transformers configuration of it."""
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "vocab_size": 8,
    }
    return {
        "llama": transformers.LlamaConfig(
            **shape, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
        ),
        "qwen2": transformers.Qwen2Config(**shape, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**shape, head_dim=16),
    }


@pytest.fixture(scope="session")
def write_gguf(model_kinds: dict[str, Any]) -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """(path, architecture, tokens=..., changes=..., ...) -> the model's state by HF's names.

    Writes a GGUF file as llama.cpp's converter lays it out. `changes` replaces metadata (None
    leaves a key out), `tensors` adds or replaces tensors (None leaves one out), `quantise` stores
    the matrices in that format.
    """

    def write(
        path: Path,
        architecture: str = "llama",
        *,
        tokens: Sequence[str] = ("<unk>", "<s>", "</s>", "a", "b", "ab", "c", "abc"),
        types: Sequence[int] = (2, 3, 3, 1, 1, 1, 1, 1),
        merges: Sequence[str] | None = None,
        tokenizer: str = "llama",
        pre: str | None = None,
        changes: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
        quantise: gguf.GGMLQuantizationType | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        config = copy.deepcopy(model_kinds[architecture])
        config.vocab_size = len(tokens)
        torch.manual_seed(0)
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        if config.tie_word_embeddings:
            del state["lm_head.weight"]
        a = architecture
        metadata: dict[str, Any] = {
            f"{a}.block_count": config.num_hidden_layers,
            f"{a}.context_length": config.max_position_embeddings,
            f"{a}.embedding_length": config.hidden_size,
            f"{a}.feed_forward_length": config.intermediate_size,
            f"{a}.attention.head_count": config.num_attention_heads,
            f"{a}.attention.head_count_kv": config.num_key_value_heads,
            f"{a}.attention.key_length": model.model.layers[0].self_attn.head_dim,
            f"{a}.attention.value_length": model.model.layers[0].self_attn.head_dim,
            f"{a}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            f"{a}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
            "tokenizer.ggml.model": tokenizer,
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": list(tokens),
            "tokenizer.ggml.token_type": list(types),
            "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
            "tokenizer.ggml.merges": None if merges is None else list(merges),
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            **(changes or {}),
        }
        writer = gguf.GGUFWriter(str(path), metadata.pop("general.architecture", a))
        for key, value in metadata.items():
            _add(writer, key, value)
        stored = {
            _gguf_name(name): _as_stored(name, value, config, a) for name, value in state.items()
        }
        stored.update(tensors or {})
        for name, value in stored.items():
            if value is None:
                continue
            if quantise is not None and value.ndim == 2:
                quantised = gguf.quantize(value, quantise)
                writer.add_tensor(name, quantised, raw_dtype=quantise)
            else:
                writer.add_tensor(name, np.ascontiguousarray(value))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return state

    return write


def _add(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value) if value >= 0 else writer.add_int32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _gguf_name(name: str) -> str:
    """By the `gguf` package's own table, the other way round than the importer's."""
    table = gguf.TensorNameMap(gguf.MODEL_ARCH.LLAMA, 8)
    qwen = gguf.TensorNameMap(gguf.MODEL_ARCH.QWEN3, 8)
    found = table.get_name(name, (".weight", ".bias")) or qwen.get_name(name, (".weight", ".bias"))
    assert found is not None, name
    return found


def _as_stored(name: str, value: Any, config: Any, architecture: str) -> Any:
    """Queries and keys of the llama architecture with the halves of each head interleaved."""
    if architecture != "llama":
        return value
    if "q_proj" in name:
        heads = config.num_attention_heads
    elif "k_proj" in name:
        heads = config.num_key_value_heads
    else:
        return value
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)
