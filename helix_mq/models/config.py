"""ModelConfig: what a Llama-family model is, as read from its Hugging Face folder.

Frozen and complete: a ModelConfig that exists is one that the engine can run exactly. A field that
would change the mathematics and is not supported is refused, never ignored. Reading of the JSON is
in config_reading.py; sizes in bytes are computed here, once, for planner and node alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from helix_mq.layers import LayerRange


class Family(StrEnum):
    """Architectures whose forward pass is implemented; values are HF `model_type`s.

    Llama 2/3, TinyLlama and SmolLM2 are all `llama`.
    """

    LLAMA = "llama"
    MISTRAL = "mistral"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"


class WeightsDtype(StrEnum):
    """Number format of weights on disk."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def nbytes(self) -> int:
        return 4 if self is WeightsDtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class LinearRope:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Llama 3.1's scaling: low frequencies divided by `factor`, high ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_context: int


RopeScaling = LinearRope | Llama3Rope | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model. Widths are in elements; `sliding_window` counts the token itself.

    attention_bias: q, k and v projections have a bias; attention_out_bias: so does the output
    projection; qk_norm: RMSNorm over each head of q and k before the rotation (Qwen 3).
    sliding_layers: the layers that see only the last `sliding_window` tokens.
    """

    family: Family
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    rms_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_layers: frozenset[int] = frozenset()
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    weights_dtype: WeightsDtype = WeightsDtype.FLOAT32

    @classmethod
    def from_folder(cls, folder: Path | str) -> ModelConfig:
        """From `config.json` and, where present, `generation_config.json`.

        Raises ModelFormatError naming the file, field, value and what to do.
        """
        from helix_mq.models.config_reading import read_folder

        return read_folder(Path(folder))

    @classmethod
    def from_dict(
        cls,
        config: Mapping[str, object],
        generation: Mapping[str, object] | None = None,
        *,
        source: str = "config.json",
    ) -> ModelConfig:
        """From the parsed JSON of `config.json` (and `generation_config.json`)."""
        from helix_mq.models.config_reading import read_config

        return read_config(config, generation, source=source)

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def all_layers(self) -> LayerRange:
        return LayerRange(0, self.num_layers)

    def window_of(self, layer: int) -> int | None:
        """Tokens that `layer` sees, itself included; None where it sees all."""
        return self.sliding_window if layer in self.sliding_layers else None

    @property
    def layer_parameters(self) -> int:
        """Weights of one transformer layer."""
        h, i, q, kv = self.hidden_size, self.intermediate_size, self.q_size, self.kv_size
        count = h * (q + 2 * kv) + q * h + 3 * h * i + 2 * h
        if self.attention_bias:
            count += q + 2 * kv
        if self.attention_out_bias:
            count += h
        if self.mlp_bias:
            count += 2 * i + h
        if self.qk_norm:
            count += 2 * self.head_dim
        return count

    @property
    def num_parameters(self) -> int:
        """Weights of the model; a tied head counts once."""
        return self.slice_weight_bytes(self.all_layers, 1)

    def layer_weight_bytes(self, dtype_bytes: int) -> int:
        return self.layer_parameters * dtype_bytes

    def embed_bytes(self, dtype_bytes: int) -> int:
        return self.vocab_size * self.hidden_size * dtype_bytes

    def head_bytes(self, dtype_bytes: int) -> int:
        """Final norm and output projection."""
        return (self.vocab_size * self.hidden_size + self.hidden_size) * dtype_bytes

    def slice_weight_bytes(self, layers: LayerRange, dtype_bytes: int) -> int:
        """Weights that a node holding `layers` keeps: its layers, and embedding and head at the
        ends. A tied embedding counts once where one slice holds both ends, and at each end where
        two do."""
        if layers.end > self.num_layers:
            raise ValueError(f"{layers} reach beyond the model's {self.num_layers} layers")
        total = len(layers) * self.layer_weight_bytes(dtype_bytes)
        starts, ends = layers.first == 0, layers.end == self.num_layers
        if starts:
            total += self.embed_bytes(dtype_bytes)
        if ends:
            total += self.head_bytes(dtype_bytes)
            if starts and self.tie_embeddings:
                total -= self.embed_bytes(dtype_bytes)
        return total

    def kv_bytes_per_token_per_layer(self, dtype_bytes: int) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_size * dtype_bytes

    def activation_bytes_per_token(self, dtype_bytes: int) -> int:
        """What one token puts on a link between two hops."""
        return self.hidden_size * dtype_bytes
