"""What a model or a slice of it weighs, as plain figures for people and programs. No printing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig, WeightsDtype
from helix_mq.models.files import ModelFiles


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Sizes in bytes, with weights and KV cache in `dtype`.

    disk_bytes: what loading the slice reads; None with `disk_problem` saying why where the weights
    are not all there.
    """

    folder: str
    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    sliding_window: int | None
    tied_embeddings: bool
    parameters: int
    stored_dtype: str
    dtype: str
    layer_bytes: int
    embedding_bytes: int
    head_bytes: int
    model_bytes: int
    kv_bytes_per_token_per_layer: int
    kv_bytes_per_token: int
    activation_bytes_per_token: int
    slice_first: int
    slice_end: int
    slice_bytes: int
    slice_kv_bytes_per_token: int
    disk_bytes: int | None
    disk_problem: str | None


def inspect_model(
    folder: Path, layers: LayerRange | None = None, dtype: WeightsDtype | None = None
) -> ModelReport:
    """Figures of the model in an HF folder, and of `layers` (all of them by default).

    dtype: what nodes will hold weights and KV in; by default as the weights are stored. Raises
    ModelFormatError when config.json is unusable or `layers` reach beyond the model.
    """
    config = ModelConfig.from_folder(folder)
    part = layers or config.all_layers
    if part.end > config.num_layers:
        raise ModelFormatError(
            f"slice {part.first}:{part.end} reaches beyond the model's {config.num_layers} layers",
            param="slice",
        )
    wanted = dtype or config.weights_dtype
    width = wanted.nbytes
    kv = config.kv_bytes_per_token_per_layer(width)
    disk_bytes, disk_problem = _on_disk(folder, config, part)
    return ModelReport(
        folder=str(folder),
        family=config.family.value,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_context=config.max_context,
        sliding_window=config.sliding_window,
        tied_embeddings=config.tie_embeddings,
        parameters=config.num_parameters,
        stored_dtype=config.weights_dtype.value,
        dtype=wanted.value,
        layer_bytes=config.layer_weight_bytes(width),
        embedding_bytes=config.embed_bytes(width),
        head_bytes=config.head_bytes(width),
        model_bytes=config.slice_weight_bytes(config.all_layers, width),
        kv_bytes_per_token_per_layer=kv,
        kv_bytes_per_token=kv * config.num_layers,
        activation_bytes_per_token=config.activation_bytes_per_token(width),
        slice_first=part.first,
        slice_end=part.end,
        slice_bytes=config.slice_weight_bytes(part, width),
        slice_kv_bytes_per_token=kv * len(part),
        disk_bytes=disk_bytes,
        disk_problem=disk_problem,
    )


def _on_disk(
    folder: Path, config: ModelConfig, layers: LayerRange
) -> tuple[int | None, str | None]:
    try:
        return ModelFiles.open(folder).slice_bytes(config, layers), None
    except ModelFormatError as error:
        return None, str(error)
