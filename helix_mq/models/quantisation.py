"""Weights in fewer bits than they are computed in, and what they take then. Pure.

Nodes, router and planner all count by these figures. Quantised are the products of the layers and
the head; embedding, norms and biases stay in the compute dtype. `int4` holds the head in int8: its
errors go into every logit undamped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig

SCALE_BYTES: Final = 2
"""bfloat16, as the kernels want them."""
INT4_GROUPS: Final = (32,)
"""Weights that share a scale and a zero, the first that divides a row. 32 cost 5 bits per weight,
64 would cost 4.5. They are the blocks of GGUF's 4-bit forms: a model that was imported from one is
held all but as it was, where groups of 64 take SmolLM2-135M's perplexity from 43.0 to 53.7."""


class Quantisation(StrEnum):
    """int8: one scale per output; int4: a scale and a zero per group of inputs."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


def group_of(width: int) -> int | None:
    """Weights per group of rows of this width; None where int4 cannot hold them."""
    return next((g for g in INT4_GROUPS if width % g == 0), None)


def matrix_bytes(rows: int, width: int, quantise: Quantisation, dtype_bytes: int) -> int:
    """A weight [rows, width] as it is held, its bias left out. ValueError where int4 cannot."""
    match quantise:
        case Quantisation.NONE:
            return rows * width * dtype_bytes
        case Quantisation.INT8:
            return rows * (width + SCALE_BYTES)
        case Quantisation.INT4:
            group = group_of(width)
            if group is None:
                raise ValueError(f"rows of {width} do not divide into groups of {INT4_GROUPS[-1]}")
            return rows * width // 2 + rows * (width // group) * 2 * SCALE_BYTES


@dataclass(frozen=True, slots=True)
class WeightForm:
    """How a node holds a model's weights. `dtype_bytes`: of an element of the compute dtype, in
    which KV is held, too."""

    dtype_bytes: int
    quantise: Quantisation = Quantisation.NONE

    def layer_bytes(self, config: ModelConfig) -> int:
        if self.quantise is Quantisation.NONE:
            return config.layer_weight_bytes(self.dtype_bytes)
        matrices = _layer_matrices(config)
        rest = config.layer_parameters - sum(rows * width for rows, width in matrices)
        held = sum(self._matrix_bytes(rows, width) for rows, width in matrices)
        return held + rest * self.dtype_bytes

    def embed_bytes(self, config: ModelConfig) -> int:
        return config.embed_bytes(self.dtype_bytes)

    def head_bytes(self, config: ModelConfig) -> int:
        """Final norm and output projection."""
        if self.quantise is Quantisation.NONE:
            return config.head_bytes(self.dtype_bytes)
        table = matrix_bytes(
            config.vocab_size, config.hidden_size, Quantisation.INT8, self.dtype_bytes
        )
        return table + config.hidden_size * self.dtype_bytes

    def slice_bytes(self, config: ModelConfig, layers: LayerRange) -> int:
        """Weights that a node holding `layers` keeps. A quantised head shares nothing with the
        embedding, tied or not."""
        if self.quantise is Quantisation.NONE:
            return config.slice_weight_bytes(layers, self.dtype_bytes)
        if layers.end > config.num_layers:
            raise ValueError(f"{layers} reach beyond the model's {config.num_layers} layers")
        total = len(layers) * self.layer_bytes(config)
        if layers.first == 0:
            total += self.embed_bytes(config)
        if layers.end == config.num_layers:
            total += self.head_bytes(config)
        return total

    def _matrix_bytes(self, rows: int, width: int) -> int:
        # A model that int4 cannot hold is refused by the node; its planner counts it as int8.
        form = self.quantise
        if form is Quantisation.INT4 and group_of(width) is None:
            form = Quantisation.INT8
        return matrix_bytes(rows, width, form, self.dtype_bytes)


def _layer_matrices(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(outputs, inputs) of a layer's products, fused as they are held."""
    h, i, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
    return ((q + 2 * kv, h), (h, q), (2 * i, h), (h, i))
