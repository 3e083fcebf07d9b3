"""Loading reads the tensors of the slice, not a byte more, and copies them out of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.files import ModelFiles
from helix_mq.models.safetensors_header import TensorEntry
from nodes.model.slice import ModelSlice
from nodes.model.weights import SafetensorsReader, held_bytes, load_slice

CPU = torch.device("cpu")


class CountingReader(SafetensorsReader):
    """The real reader, and what went through it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.names: list[str] = []

    def read(self, entry: TensorEntry) -> torch.Tensor:
        tensor = super().read(entry)
        self.bytes += tensor.nbytes
        self.names.append(entry.name)
        return tensor


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "llama3-sharded"])
@pytest.mark.parametrize("cut", [(0, 1), (1, 3), (3, 4), (0, 4)])
def test_bytes_read_are_those_of_the_slice(
    checkpoint: Callable[[str], Any], family: str, cut: tuple[int, int]
) -> None:
    folder: Path = checkpoint(family).folder
    config = ModelConfig.from_folder(folder)
    layers = LayerRange(cut[0], config.num_layers if cut[1] == 4 else cut[1])
    reader = CountingReader()
    seen: list[tuple[int, int]] = []
    ModelSlice.load(
        folder,
        layers,
        device=CPU,
        dtype=torch.float32,
        reader=reader,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert reader.bytes == config.slice_weight_bytes(layers, 4)
    assert len(reader.names) == len(set(reader.names))
    assert seen == [(i + 1, len(reader.names)) for i in range(len(reader.names))]


def test_a_tied_head_shares_the_embedding_only_within_one_slice(
    checkpoint: Callable[[str], Any],
) -> None:
    folder = checkpoint("smollm2").folder
    config = ModelConfig.from_folder(folder)

    def load(first: int, end: int) -> Any:
        return load_slice(folder, config, LayerRange(first, end), device=CPU, dtype=torch.float32)

    whole, tail = load(0, 6), load(3, 6)
    x = torch.eye(config.hidden_size)
    assert torch.equal(whole.head(x).T, whole.embedding)
    assert tail.embedding is None
    assert torch.equal(tail.head(x).T, whole.embedding)
    assert load(0, 3).head is None


def test_weights_are_copies_not_views_of_the_file(
    checkpoint: Callable[[str], Any], tmp_path: Path
) -> None:
    """A model folder may be replaced while it is served."""
    folder = checkpoint("llama2").folder
    config = ModelConfig.from_folder(folder)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = load_slice(tmp_path, config, LayerRange(0, 1), device=CPU, dtype=torch.float32)
    x = torch.eye(config.intermediate_size)
    before = weights.layers[0].down(x)
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(path.stat().st_size - 4096))
    assert torch.equal(weights.layers[0].down(x), before)


def test_a_file_that_changed_since_its_header_was_read_is_an_error_in_words(
    checkpoint: Callable[[str], Any], tmp_path: Path
) -> None:
    source = checkpoint("llama2").folder / "model.safetensors"
    path = tmp_path / "model.safetensors"
    path.write_bytes(source.read_bytes())
    entry = ModelFiles.open(tmp_path).entry("model.norm.weight")
    path.write_bytes(b"not a safetensors file any more")
    with pytest.raises(ModelFormatError, match=r"cannot read model\.norm\.weight from"):
        SafetensorsReader().read(entry)


def test_layers_beyond_the_model_are_refused(checkpoint: Callable[[str], Any]) -> None:
    with pytest.raises(ModelFormatError, match=r"layers 2-8 were asked for, .* has 4"):
        ModelSlice.load(
            checkpoint("llama2").folder, LayerRange(2, 9), device=CPU, dtype=torch.float32
        )


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "llama_linear_biased"])
@pytest.mark.parametrize("cut", [(0, 2), (2, 4), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_known_before_loading(
    checkpoint: Callable[[str], Any], family: str, cut: tuple[int, int], dtype: torch.dtype
) -> None:
    folder = checkpoint(family).folder
    config = ModelConfig.from_folder(folder)
    layers = LayerRange(cut[0], config.num_layers if cut[1] == 4 else cut[1])
    weights = load_slice(folder, config, layers, device=CPU, dtype=dtype)
    planned = held_bytes(config, layers, device=CPU, dtype=dtype)
    # Packing rounds widths up to whole blocks, which shows at these tiny sizes.
    assert planned <= weights.nbytes < 1.2 * planned
