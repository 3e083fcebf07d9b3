"""What a GGUF file says of its model, as Hugging Face says it: config.json and tokenizer parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from helix_mq.errors import ModelFormatError
from helix_mq.models.gguf_tokenizer import GgufVocabulary

T = TypeVar("T")

_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """The key-value part of a GGUF file; `get` checks types and names what is wrong."""

    source: str
    values: Mapping[str, Any]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ModelFormatError(f"{self.source} has no {key}")
            return default
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind):
            raise ModelFormatError(
                f"{self.source}: {key} = {str(value)[:60]!r} is no {kind.__name__}"
            )
        return value

    def optional_int(self, key: str) -> int | None:
        value = self.values.get(key)
        return int(value) if isinstance(value, int) else None

    @property
    def architecture(self) -> str:
        name = self.get("general.architecture", str)
        if name not in _ARCHITECTURES:
            known = ", ".join(sorted(_ARCHITECTURES))
            raise ModelFormatError(
                f"{self.source} is of architecture {name!r}, which is not served here ({known})"
            )
        return name


def model_config(metadata: Metadata, *, tied: bool) -> dict[str, Any]:
    """config.json of the model; `tied` when the file has no separate output projection."""
    name = metadata.architecture
    model_type, class_name = _ARCHITECTURES[name]

    def number(key: str, default: int | None = None) -> int:
        return metadata.get(f"{name}.{key}", int, default)

    heads = number("attention.head_count")
    width = number("embedding_length")
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": number("attention.key_length", width // heads),
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": metadata.get(f"{name}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": metadata.get(f"{name}.rope.freq_base", float, 10000.0),
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", list)),
        "tie_word_embeddings": tied,
        "bos_token_id": metadata.optional_int("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.optional_int("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }
    scaling = metadata.values.get(f"{name}.rope.scaling.type")
    if scaling == "linear":
        factor = metadata.get(f"{name}.rope.scaling.factor", float)
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling not in (None, "none"):
        raise ModelFormatError(
            f"{metadata.source}: rope scaling {scaling!r} is not supported from GGUF files: use "
            "the model's Hugging Face folder"
        )
    return config


def vocabulary(metadata: Metadata) -> GgufVocabulary:
    model = metadata.get("tokenizer.ggml.model", str)
    return GgufVocabulary(
        model=model,
        pre=metadata.get("tokenizer.ggml.pre", str, "default"),
        tokens=metadata.get("tokenizer.ggml.tokens", list),
        types=metadata.get("tokenizer.ggml.token_type", list, []),
        scores=metadata.get("tokenizer.ggml.scores", list, []),
        merges=metadata.get("tokenizer.ggml.merges", list, []),
        bos_id=metadata.optional_int("tokenizer.ggml.bos_token_id"),
        eos_id=metadata.optional_int("tokenizer.ggml.eos_token_id"),
        unknown_id=metadata.optional_int("tokenizer.ggml.unknown_token_id"),
        # SentencePiece files without the flags mean yes; byte-level ones mean no.
        add_bos=bool(metadata.values.get("tokenizer.ggml.add_bos_token", model == "llama")),
        add_space_prefix=bool(
            metadata.values.get("tokenizer.ggml.add_space_prefix", model == "llama")
        ),
    )


def tokenizer_config(metadata: Metadata, words: GgufVocabulary) -> dict[str, Any]:
    """tokenizer_config.json: special tokens by name, and the chat template where there is one."""
    config: dict[str, Any] = {
        "bos_token": words.token(words.bos_id),
        "eos_token": words.token(words.eos_id),
        "unk_token": words.token(words.unknown_id),
        "add_bos_token": words.add_bos,
        "model_max_length": metadata.get(f"{metadata.architecture}.context_length", int),
    }
    template = metadata.values.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config
