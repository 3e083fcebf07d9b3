"""Index of the weights in a Hugging Face folder: one safetensors file, or shards with an index.

Reads headers only, and only of the shards that are asked about, so that a node may hold just the
shards its slice needs. The index file is untrusted: a shard's name is a plain file name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.fields import read_json_object
from helix_mq.models.safetensors_header import TensorEntry, read_header
from helix_mq.models.tensor_names import LM_HEAD, slice_tensors

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
FLOAT_DTYPES = frozenset({"F32", "BF16", "F16"})


class ModelFiles:
    """Where each tensor of a model lies. Not thread-safe: headers are read on first use."""

    def __init__(self, folder: Path, weight_map: Mapping[str, Path] | None) -> None:
        """`weight_map`: tensor -> shard; None means one `model.safetensors`. Use open()."""
        self.folder = folder
        self._weight_map = weight_map
        self._headers: dict[Path, dict[str, TensorEntry]] = {}

    @classmethod
    def open(cls, folder: Path | str) -> ModelFiles:
        """Reads the folder's index; ModelFormatError where there is none or it is malformed."""
        folder = Path(folder)
        if (folder / SINGLE_FILE).is_file():
            return cls(folder, None)
        index = folder / INDEX_FILE
        if not index.is_file():
            raise ModelFormatError(
                f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors weights "
                "are read (convert .bin weights with transformers' save_pretrained)"
            )
        return cls(folder, _weight_map(index))

    def entry(self, name: str) -> TensorEntry:
        """Where `name` lies; ModelFormatError when the folder does not hold it."""
        if self._weight_map is None:
            file = self.folder / SINGLE_FILE
        elif name in self._weight_map:
            file = self._weight_map[name]
        else:
            raise ModelFormatError(f"{self.folder / INDEX_FILE} does not list tensor {name}")
        header = self._headers.get(file)
        if header is None:
            if not file.is_file():
                raise ModelFormatError(f"{file} is missing; it holds {name}, download it")
            header = self._headers[file] = read_header(file)
        found = header.get(name)
        if found is None:
            raise ModelFormatError(f"{file} does not hold tensor {name}{_hint(name)}")
        return found

    def slice_entries(self, config: ModelConfig, layers: LayerRange) -> tuple[TensorEntry, ...]:
        """Every tensor of a slice, in the order of reading (file, then offset).

        Shapes are checked against `config` and dtypes must be float; ModelFormatError otherwise.
        """
        entries = []
        for name, shape in slice_tensors(config, layers).items():
            entry = self.entry(name)
            if entry.shape != shape:
                raise ModelFormatError(
                    f"{entry.file}: {name} has shape {list(entry.shape)}, but config.json makes it "
                    f"{list(shape)}; config and weights are of different models"
                )
            if entry.dtype not in FLOAT_DTYPES:
                raise ModelFormatError(
                    f"{entry.file}: {name} is {entry.dtype}; quantised weights are not supported, "
                    "use float32, bfloat16 or float16"
                )
            entries.append(entry)
        entries.sort(key=lambda e: (e.file.name, e.begin))
        return tuple(entries)

    def slice_bytes(self, config: ModelConfig, layers: LayerRange) -> int:
        """Bytes on disk that loading a slice reads."""
        return sum(entry.nbytes for entry in self.slice_entries(config, layers))


def _weight_map(index: Path) -> dict[str, Path]:
    names = read_json_object(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelFormatError(f"{index}: weight_map is missing or empty", param="weight_map")
    for name, file in names.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and len(file) <= 255
        if not plain or any(c in file for c in "/\\\0") or file.startswith("."):
            raise ModelFormatError(
                f"{index}: weight_map sends {name[:80]!r} to {str(file)[:80]!r}, which is not the "
                "plain name of a .safetensors file in that folder",
                param="weight_map",
            )
    return {name: index.parent / file for name, file in names.items()}


def _hint(name: str) -> str:
    if name == LM_HEAD:
        return "; if the model shares it with the embedding, set tie_word_embeddings to true"
    return "; is it complete?"
