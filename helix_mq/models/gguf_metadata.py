"""What a GGUF file says of its model, as Hugging Face says it: the JSON files beside the weights.

A field that would change the mathematics and has no place there is refused, never dropped.
"""

from __future__ import annotations

from typing import Any

from helix_mq.errors import ModelFormatError
from helix_mq.models.gguf_reader import GgufFile, Metadata
from helix_mq.models.gguf_rope import rope_scaling
from helix_mq.models.gguf_vocabulary import GgufVocabulary

_CLASS_NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""llama.cpp's names; its `llama` covers Mistral, too."""

_ENDINGS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end_of_turn|>",
    }
)
"""Control tokens that end an answer in every family that has them. A GGUF file names one
end-of-sequence token; the families' own generation_config.json files list these beside it."""


def model_config(file: GgufFile) -> dict[str, Any]:
    """config.json of the model. ModelFormatError for what is not served here."""
    metadata = file.metadata
    name = metadata.get("general.architecture", str)
    if name not in _ARCHITECTURES:
        raise metadata.refuse(
            "general.architecture", f"is not served here; {', '.join(_ARCHITECTURES)} are"
        )

    def number(key: str, default: int | None = None) -> int:
        return metadata.get(f"{name}.{key}", int, default)

    if number("expert_count", 0):
        raise metadata.refuse(f"{name}.expert_count", "makes it a mixture of experts: not served")
    heads = number("attention.head_count")
    if not 1 <= heads <= 4096:
        raise metadata.refuse(f"{name}.attention.head_count", "must be from 1 to 4096")
    width = number("embedding_length")
    head_dim = number("attention.key_length", width // heads)
    if number("attention.value_length", head_dim) != head_dim:
        raise metadata.refuse(f"{name}.attention.value_length", f"must be {head_dim}, as the keys'")
    if number("rope.dimension_count", head_dim) != head_dim:
        raise metadata.refuse(
            f"{name}.rope.dimension_count", f"must be all {head_dim} dimensions of a head"
        )
    # llama.cpp has no architecture of its own for Mistral, whose older models slide.
    window = number("attention.sliding_window", 0)
    model_type = "mistral" if name == "llama" and window else name
    config: dict[str, Any] = {
        "architectures": [_CLASS_NAMES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": metadata.get(f"{name}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": metadata.get(f"{name}.rope.freq_base", float, 10000.0),
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", list)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": metadata.optional("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": metadata.optional("tokenizer.ggml.eos_token_id", int),
    }
    if model_type == "mistral":
        config["sliding_window"] = window
    if name == "llama" and "blk.0.attn_q.bias" in file.tensors:
        config["attention_bias"] = True
    scaling = rope_scaling(file, name, head_dim, config["rope_theta"])
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def generation_config(metadata: Metadata, words: GgufVocabulary) -> dict[str, Any]:
    """generation_config.json: every token that ends an answer."""
    named = [
        metadata.optional(f"tokenizer.ggml.{kind}_token_id", int) for kind in ("eos", "eot", "eom")
    ]
    spelled = [i for i in words.control_ids if words.tokens[i] in _ENDINGS]
    ends = dict.fromkeys(i for i in [*named, *spelled] if i is not None)
    return {"bos_token_id": words.bos_id, "eos_token_id": list(ends)}


def vocabulary(metadata: Metadata) -> GgufVocabulary:
    """The tokenizer's part; lists are checked for their types."""
    size = len(metadata.get("tokenizer.ggml.tokens", list))

    def token_id(kind: str) -> int | None:
        key = f"tokenizer.ggml.{kind}_token_id"
        value = metadata.optional(key, int)
        if value is not None and not 0 <= value < size:
            raise metadata.refuse(key, f"is outside the vocabulary of {size}")
        return value

    types = metadata.list_of("tokenizer.ggml.token_type", int)
    scores = metadata.list_of("tokenizer.ggml.scores", float)
    for key, values in (("token_type", types), ("scores", scores)):
        if len(values) not in (0, size):
            raise ModelFormatError(
                f"{metadata.source}: tokenizer.ggml.{key} has {len(values)} entries for {size} "
                "tokens"
            )
    return GgufVocabulary(
        model=metadata.get("tokenizer.ggml.model", str),
        pre=metadata.get("tokenizer.ggml.pre", str, "default"),
        tokens=metadata.list_of("tokenizer.ggml.tokens", str),
        types=types,
        scores=scores,
        merges=metadata.list_of("tokenizer.ggml.merges", str),
        bos_id=token_id("bos"),
        eos_id=token_id("eos"),
        unknown_id=token_id("unknown"),
        add_bos=metadata.optional("tokenizer.ggml.add_bos_token", bool),
        add_space_prefix=metadata.optional("tokenizer.ggml.add_space_prefix", bool),
    )


def tokenizer_config(metadata: Metadata, words: GgufVocabulary) -> dict[str, Any]:
    """tokenizer_config.json: special tokens by name, and the chat template where there is one."""
    config: dict[str, Any] = {
        "bos_token": words.token(words.bos_id),
        "eos_token": words.token(words.eos_id),
        "unk_token": words.token(words.unknown_id),
        "add_bos_token": words.begins_with_bos,
        "clean_up_tokenization_spaces": False,
    }
    template = metadata.optional("tokenizer.chat_template", str)
    if template is not None:
        config["chat_template"] = template
    return config
