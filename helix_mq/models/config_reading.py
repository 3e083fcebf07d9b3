"""From the JSON of a Hugging Face folder to a ModelConfig, or to an error in words.

Both spellings of the rotary settings are read: `rope_theta` with `rope_scaling` (up to
transformers 4) and `rope_parameters` (from 5). The defaults are those of the transformers
configuration classes, for folders that leave a field out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from helix_mq.errors import ModelFormatError
from helix_mq.layers import MAX_LAYERS
from helix_mq.models.config import (
    Family,
    LinearRope,
    Llama3Rope,
    ModelConfig,
    RopeScaling,
    WeightsDtype,
)
from helix_mq.models.fields import Fields, read_json_object

_ARCHITECTURES = {
    "LlamaForCausalLM": Family.LLAMA,
    "MistralForCausalLM": Family.MISTRAL,
    "Qwen2ForCausalLM": Family.QWEN2,
    "Qwen3ForCausalLM": Family.QWEN3,
}
_SUPPORTED = ", ".join(f.value for f in Family)
_MAX_WIDTH = 1 << 20
_MAX_VOCAB = 1 << 22
_MAX_CONTEXT = 1 << 26
_MAX_HEAD_DIM = 512


def read_folder(folder: Path) -> ModelConfig:
    """ModelConfig of an HF folder."""
    if not folder.is_dir():
        raise ModelFormatError(f"{folder} is not a folder; give the folder that holds config.json")
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFormatError(f"{folder} holds no config.json; is it a Hugging Face model folder?")
    generation_path = folder / "generation_config.json"
    generation = read_json_object(generation_path) if generation_path.is_file() else None
    return read_config(read_json_object(path), generation, source=str(path))


def read_config(
    config: Mapping[str, object],
    generation: Mapping[str, object] | None,
    *,
    source: str,
) -> ModelConfig:
    """ModelConfig of parsed JSON; `source` names it in errors."""
    f = Fields(config, source)
    family = _family(f)
    _refuse_what_changes_the_mathematics(f)
    num_layers = f.integer("num_hidden_layers", 1, MAX_LAYERS)
    hidden = f.integer("hidden_size", 1, _MAX_WIDTH)
    vocab = f.integer("vocab_size", 1, _MAX_VOCAB)
    num_heads = f.integer("num_attention_heads", 1, 4096)
    num_kv_heads = f.integer("num_key_value_heads", 1, num_heads, num_heads)
    if num_heads % num_kv_heads:
        raise f.refuse("num_key_value_heads", f"must divide num_attention_heads={num_heads}")
    head_dim = _head_dim(f, family, hidden, num_heads)
    theta, scaling = _rope(f)
    bias = f.boolean("attention_bias", False)
    window, sliding = _sliding(f, family, num_layers)
    bos = f.token_ids("bos_token_id", vocab)
    eos = f.token_ids("eos_token_id", vocab)
    if generation is not None:
        # What generate() stops on: chat models list their end-of-turn id only here.
        eos = Fields(generation, "generation_config.json").token_ids("eos_token_id", vocab) or eos
    return ModelConfig(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=f.integer("intermediate_size", 1, _MAX_WIDTH),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_context=f.integer("max_position_embeddings", 1, _MAX_CONTEXT),
        rms_eps=f.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=f.boolean("tie_word_embeddings", False),
        # Qwen 2 always biases q, k and v and never the output; Mistral biases nothing.
        attention_bias=family is Family.QWEN2 or (bias and family in (Family.LLAMA, Family.QWEN3)),
        attention_out_bias=bias and family in (Family.LLAMA, Family.QWEN3),
        mlp_bias=family is Family.LLAMA and f.boolean("mlp_bias", False),
        qk_norm=family is Family.QWEN3,
        sliding_window=window,
        sliding_layers=sliding,
        bos_id=bos[0] if bos else None,
        eos_ids=eos,
        weights_dtype=_dtype(f),
    )


def _family(f: Fields) -> Family:
    architectures = f.texts("architectures", 8)
    named = _ARCHITECTURES.get(architectures[0]) if architectures else None
    if architectures and named is None:
        raise f.refuse("architectures", f"is not supported; use one of {', '.join(_ARCHITECTURES)}")
    model_type = f.text("model_type", named.value if named else None)
    try:
        family = Family(model_type)
    except ValueError:
        raise f.refuse("model_type", f"is not supported; use one of {_SUPPORTED}") from None
    if named is not None and named is not family:
        raise f.refuse("architectures", f"does not fit model_type={family.value}; correct one")
    return family


def _refuse_what_changes_the_mathematics(f: Fields) -> None:
    if f.has("quantization_config"):
        raise f.refuse(
            "quantization_config",
            "quantised folders are not supported; use the float weights or a GGUF file",
        )
    if f.text("hidden_act", "silu") not in ("silu", "swish"):
        raise f.refuse("hidden_act", "is not supported; only silu is")
    if f.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
        raise f.refuse("partial_rotary_factor", "is not supported; only 1.0 is")
    # IBM Granite and others reuse the llama names with these multipliers on top.
    for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
        if f.number(name, -1e9, 1e9, 1.0) != 1.0:
            raise f.refuse(name, "is not supported; only 1.0 is")


def _head_dim(f: Fields, family: Family, hidden: int, num_heads: int) -> int:
    if not f.has("head_dim") and family is not Family.QWEN3 and hidden % num_heads:
        raise f.refuse(
            "hidden_size",
            f"must be a multiple of num_attention_heads={num_heads}, or head_dim be given",
        )
    # Qwen3Config's own default is 128, whatever the width.
    default = 128 if family is Family.QWEN3 else hidden // num_heads
    head_dim = f.integer("head_dim", 2, _MAX_HEAD_DIM, default)
    if head_dim % 2 or not 2 <= head_dim <= _MAX_HEAD_DIM:
        raise f.refuse(
            "head_dim",
            f"comes to {head_dim}; rotary embedding needs an even number from 2 to {_MAX_HEAD_DIM}",
        )
    return head_dim


def _rope(f: Fields) -> tuple[float, RopeScaling]:
    section = f.section("rope_parameters") or f.section("rope_scaling")
    outer_theta = f.number("rope_theta", 1.0, 1e12, 10_000.0)
    if section is None:
        return outer_theta, None
    theta = section.number("rope_theta", 1.0, 1e12, outer_theta)
    if section.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
        raise section.refuse("partial_rotary_factor", "is not supported; only 1.0 is")
    key = "rope_type" if section.has("rope_type") else "type"
    kind = section.text(key, "default")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearRope(section.number("factor", 1e-3, 1e6))
    if kind == "llama3":
        low = section.number("low_freq_factor", 1e-6, 1e6)
        high = section.number("high_freq_factor", 1e-6, 1e6)
        if high <= low:
            raise section.refuse("high_freq_factor", f"must be above low_freq_factor={low:g}")
        original = section.integer("original_max_position_embeddings", 1, _MAX_CONTEXT)
        return theta, Llama3Rope(section.number("factor", 1e-3, 1e6), low, high, original)
    raise section.refuse(key, "is not supported; use default, linear or llama3")


def _sliding(f: Fields, family: Family, num_layers: int) -> tuple[int | None, frozenset[int]]:
    """(window, layers that use it) as the family's configuration class decides it."""
    every = frozenset(range(num_layers))
    if family is Family.LLAMA:
        return None, frozenset()
    if family is Family.MISTRAL:
        if not f.has("sliding_window"):
            return None, frozenset()
        return f.integer("sliding_window", 1, _MAX_CONTEXT), every
    if not f.boolean("use_sliding_window", False):
        return None, frozenset()
    if not f.has("sliding_window"):
        return None, frozenset()
    window = f.integer("sliding_window", 1, _MAX_CONTEXT)
    types = f.texts("layer_types", MAX_LAYERS)
    if not types:
        start = f.integer("max_window_layers", 0, MAX_LAYERS, 28)
        return window, frozenset(range(min(start, num_layers), num_layers))
    if len(types) != num_layers:
        raise f.refuse("layer_types", f"has {len(types)} entries for {num_layers} layers")
    odd = sorted(set(types) - {"full_attention", "sliding_attention"})
    if odd:
        raise f.refuse("layer_types", f"holds {odd[0]!r}; use full_attention or sliding_attention")
    return window, frozenset(i for i, kind in enumerate(types) if kind == "sliding_attention")


def _dtype(f: Fields) -> WeightsDtype:
    key = "dtype" if f.has("dtype") else "torch_dtype"
    text = f.text(key, WeightsDtype.FLOAT32.value)
    try:
        return WeightsDtype(text.removeprefix("torch."))
    except ValueError:
        wanted = ", ".join(d.value for d in WeightsDtype)
        raise f.refuse(key, f"is not supported; use one of {wanted}") from None
