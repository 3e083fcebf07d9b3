"""Which part of each weight a rank holds. Pure: numbers only.

Attention is split by head, the MLP by its inner width, the head by vocabulary; norms are held by
all, the embedding by rank 0. Where a model has fewer key and value heads than there are ranks, each
of those heads is held by several.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import INT4_GROUPS, Quantisation, WeightForm, group_of

MAX_RANKS = 64


@dataclass(frozen=True, slots=True)
class Share:
    """What `rank` of `size` holds of a model; ranges are [begin, end) rows or columns of the
    stored weights."""

    rank: int
    size: int
    query: tuple[int, int]
    """Rows of the query projection, columns of the output projection."""
    key: tuple[int, int]
    """Rows of the key and of the value projection."""
    inner: tuple[int, int]
    """Rows of gate and up, columns of down."""
    vocab: tuple[int, int]
    """Rows of the output head. The last rank's may be fewer than the others'."""

    @property
    def leads(self) -> bool:
        return self.rank == 0


def check_split(config: ModelConfig, size: int) -> None:
    """ConfigError unless `size` ranks can share the model."""
    if not 1 <= size <= MAX_RANKS:
        raise _no(f"tensor_parallel = {size} is not in 1..{MAX_RANKS}")
    heads, kv_heads, inner = config.num_heads, config.num_kv_heads, config.intermediate_size
    possible = [
        n
        for n in range(1, MAX_RANKS + 1)
        if not heads % n and not inner % n and (not kv_heads % n or not n % kv_heads)
    ]
    if size not in possible:
        raise _no(
            f"tensor_parallel = {size} does not divide this model: it has {heads} heads, "
            f"{kv_heads} of keys and values, and {inner} columns in its MLP; use one of "
            f"{', '.join(map(str, possible))}"
        )


def share_of(config: ModelConfig, rank: int, size: int) -> Share:
    """`size` must have passed check_split()."""
    local = rank_config(config, size)
    first_kv = rank * config.num_kv_heads // size
    width = config.head_dim
    rows = vocab_rows(config, size)
    begin = min(rank * rows, config.vocab_size)
    return Share(
        rank=rank,
        size=size,
        query=(rank * local.q_size, (rank + 1) * local.q_size),
        key=(first_kv * width, first_kv * width + local.kv_size),
        inner=(rank * local.intermediate_size, (rank + 1) * local.intermediate_size),
        vocab=(begin, min(begin + rows, config.vocab_size)),
    )


def vocab_rows(config: ModelConfig, size: int) -> int:
    """Rows of the head that each rank computes, the last one with some of zeros."""
    return -(-config.vocab_size // size)


def rank_config(config: ModelConfig, size: int) -> ModelConfig:
    """The model as one rank sees it: what is split is narrower, all else as it was."""
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=max(1, config.num_kv_heads // size),
        intermediate_size=config.intermediate_size // size,
    )


def check_groups(quantise: Quantisation, config: ModelConfig, size: int) -> None:
    """ConfigError where a rank would have parts of the groups that share a scale. `size` must have
    passed check_split()."""
    local = rank_config(config, size)
    for width in (local.q_size, local.intermediate_size):
        if size > 1 and quantise is Quantisation.INT4 and group_of(width) is None:
            raise _no(
                f'tensor_parallel = {size} with quantise = "int4": rows of {width} weights on each '
                f"rank do not divide into groups of {INT4_GROUPS[-1]}; use fewer ranks, or "
                'quantise = "int8"'
            )


def rank_weight_bytes(
    config: ModelConfig, layers: LayerRange, rank: int, size: int, form: WeightForm
) -> int:
    """Memory of a rank's weights. The head is a copy of its own even where it is tied."""
    local, dtype_bytes = rank_config(config, size), form.dtype_bytes
    total = len(layers) * form.layer_bytes(local)
    if rank:
        # Biases of what is summed are added once.
        extra = (config.attention_out_bias + config.mlp_bias) * config.hidden_size
        total -= len(layers) * extra * dtype_bytes
    elif layers.first == 0:
        total += config.embed_bytes(dtype_bytes)
    if layers.end == config.num_layers:
        total += form.head_bytes(replace(config, vocab_size=vocab_rows(config, size)))
    return total


def node_weight_bytes(config: ModelConfig, layers: LayerRange, size: int, form: WeightForm) -> int:
    """Memory that the node needs for the weights when each rank has the same: the most that one
    holds, times ranks. Rank 0 holds the most, since it embeds."""
    return size * rank_weight_bytes(config, layers, 0, size, form)


def node_kv_config(config: ModelConfig, size: int) -> ModelConfig:
    """The model with as many key and value heads as all ranks hold together."""
    return replace(config, num_kv_heads=size * rank_config(config, size).num_kv_heads)


def _no(text: str) -> ConfigError:
    return ConfigError(text, param="tensor_parallel")
