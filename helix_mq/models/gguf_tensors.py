"""The tensors of a GGUF file under Hugging Face's names and in its layout."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from helix_mq.errors import ModelFormatError
from helix_mq.models.config import Family, ModelConfig
from helix_mq.models.gguf_reader import GgufFile, GgufTensor
from helix_mq.models.gguf_rope import FREQUENCY_FACTORS
from helix_mq.models.tensor_names import EMBEDDING, FINAL_NORM, LM_HEAD, slice_tensors

Array = npt.NDArray[np.float32]

_WHOLE = {EMBEDDING: "token_embd", FINAL_NORM: "output_norm", LM_HEAD: "output"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor that Hugging Face calls `name`."""
    if name in _WHOLE:
        return _WHOLE[name] + ".weight"
    _, _, layer, *middle, kind = name.split(".")
    return f"blk.{layer}.{_IN_LAYER['.'.join(middle)]}.{kind}"


def find_tensors(file: GgufFile, config: ModelConfig) -> dict[str, GgufTensor | None]:
    """Hugging Face name -> stored tensor, for every tensor of the model, in layer order; None for
    a bias that is left out because it is zero.

    Raises ModelFormatError when one is missing, has another shape than the config makes it, or
    when the file holds one that the model has no use for: it would change the mathematics.
    """
    found: dict[str, GgufTensor | None] = {}
    left = {name for name in file.tensors if name != FREQUENCY_FACTORS}
    for name, shape in slice_tensors(config, config.all_layers).items():
        stored_name = gguf_name(name)
        stored = file.tensors.get(stored_name)
        if stored is None and name.endswith("o_proj.bias"):
            # Hugging Face's attention_bias is for all four projections; files hold those there are.
            found[name] = None
            continue
        if stored is None:
            raise ModelFormatError(f"{file.metadata.source} has no tensor {stored_name}")
        if stored.shape != shape:
            raise ModelFormatError(
                f"{file.metadata.source}: tensor {stored_name} has shape {list(stored.shape)}, its "
                f"metadata make it {list(shape)}"
            )
        left.discard(stored_name)
        found[name] = stored
    if left:
        raise ModelFormatError(
            f"{file.metadata.source}: tensor {min(left)} belongs to no architecture that is served "
            "here"
        )
    return found


def hf_values(name: str, stored: GgufTensor, config: ModelConfig) -> Array:
    """The values of a tensor in Hugging Face's layout, float32."""
    values = stored.values()
    # llama.cpp stores the query and key projections of the llama architecture with the two halves
    # of each head's rotation interleaved.
    if config.family in (Family.LLAMA, Family.MISTRAL):
        if ".q_proj." in name:
            values = _uninterleave(values, config.num_heads)
        elif ".k_proj." in name:
            values = _uninterleave(values, config.num_kv_heads)
    return np.ascontiguousarray(values)


def _uninterleave(values: Array, heads: int) -> Array:
    """Rows (r0, r1, r2, ...) of each head back to (r0, r2, ..., r1, r3, ...)."""
    rows = values.shape[0] // heads
    split = values.reshape(heads, rows // 2, 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)
