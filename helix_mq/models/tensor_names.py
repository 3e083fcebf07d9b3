"""Which tensors a slice of a Llama-family model consists of, by Hugging Face name and shape.

Pure names and shapes; whether a folder holds them is files.py's question.
"""

from __future__ import annotations

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"

Shape = tuple[int, ...]


def head_name(config: ModelConfig) -> str:
    """The tensor that makes logits: a tied model's head is its embedding."""
    return EMBEDDING if config.tie_embeddings else LM_HEAD


def layer_tensors(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """Name -> shape of the tensors of one layer; projections are [out, in]."""
    h, i, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
    at = f"model.layers.{layer}."
    names: dict[str, Shape] = {
        at + "input_layernorm.weight": (h,),
        at + "self_attn.q_proj.weight": (q, h),
        at + "self_attn.k_proj.weight": (kv, h),
        at + "self_attn.v_proj.weight": (kv, h),
        at + "self_attn.o_proj.weight": (h, q),
        at + "post_attention_layernorm.weight": (h,),
        at + "mlp.gate_proj.weight": (i, h),
        at + "mlp.up_proj.weight": (i, h),
        at + "mlp.down_proj.weight": (h, i),
    }
    if config.attention_bias:
        names[at + "self_attn.q_proj.bias"] = (q,)
        names[at + "self_attn.k_proj.bias"] = (kv,)
        names[at + "self_attn.v_proj.bias"] = (kv,)
    if config.attention_out_bias:
        names[at + "self_attn.o_proj.bias"] = (h,)
    if config.mlp_bias:
        names[at + "mlp.gate_proj.bias"] = (i,)
        names[at + "mlp.up_proj.bias"] = (i,)
        names[at + "mlp.down_proj.bias"] = (h,)
    if config.qk_norm:
        names[at + "self_attn.q_norm.weight"] = (config.head_dim,)
        names[at + "self_attn.k_norm.weight"] = (config.head_dim,)
    return names


def slice_tensors(config: ModelConfig, layers: LayerRange) -> dict[str, Shape]:
    """Name -> shape of every tensor a node holding `layers` reads.

    The embedding comes with the first layer, final norm and head with the last.
    """
    if layers.end > config.num_layers:
        raise ValueError(f"{layers} reach beyond the model's {config.num_layers} layers")
    table = (config.vocab_size, config.hidden_size)
    names: dict[str, Shape] = {}
    if layers.first == 0:
        names[EMBEDDING] = table
    for layer in range(layers.first, layers.end):
        names.update(layer_tensors(config, layer))
    if layers.end == config.num_layers:
        names[FINAL_NORM] = (config.hidden_size,)
        names[head_name(config)] = table
    return names
