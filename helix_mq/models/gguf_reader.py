"""A GGUF file opened through the `gguf` package, with its failures turned into words.

The package trusts the counts in a file and reads past its end as if there were nothing there, so
that a damaged count becomes an endless loop; here a short read is an error at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import numpy.typing as npt

from helix_mq.errors import ModelFormatError

T = TypeVar("T")


class _StrictReader(gguf.GGUFReader):
    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        values = super()._get(offset, dtype, count, override_order)
        if len(values) != count:
            raise ValueError(f"it ends before byte {offset}: is the download complete?")
        return values


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as stored; `shape` is in Hugging Face's order, [out, in]."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    _data: npt.NDArray[Any]
    _type: Any

    def values(self) -> npt.NDArray[np.float32]:
        """Dequantised, float32, in `shape`. ModelFormatError for a format that cannot be."""
        try:
            flat = gguf.dequantize(self._data, self._type)
            return np.asarray(flat, dtype=np.float32).reshape(self.shape)
        except (NotImplementedError, ValueError) as e:
            raise ModelFormatError(
                f"tensor {self.name!r} is stored as {self.type_name}, which cannot be "
                f"dequantised: {e}"
            ) from None


@dataclass(frozen=True, slots=True)
class Metadata:
    """The key-value part of a GGUF file; every getter names the file, the key and the value."""

    source: str
    values: Mapping[str, Any]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ModelFormatError(f"{self.source} has no {key}", param=key)
            return default
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.refuse(key, f"is no {kind.__name__}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        return self.get(key, kind) if self.values.get(key) is not None else None

    def list_of(self, key: str, kind: type[T]) -> list[T]:
        """A list of one type; empty when the key is absent."""
        values = self.get(key, list, [])
        if not all(isinstance(value, kind) for value in values):
            raise self.refuse(key, f"must hold {kind.__name__} values only")
        return values

    def refuse(self, key: str, advice: str) -> ModelFormatError:
        shown = repr(self.values.get(key))
        if len(shown) > 60:
            shown = shown[:57] + "..."
        return ModelFormatError(f"{self.source}: {key}={shown} {advice}", param=key)


@dataclass(frozen=True, slots=True)
class GgufFile:
    metadata: Metadata
    tensors: Mapping[str, GgufTensor]


def read_gguf(file: Path) -> GgufFile:
    """Metadata and tensors (mapped, not loaded). ModelFormatError when it is no whole GGUF file."""
    try:
        reader = _StrictReader(str(file))
        values = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {t.name: _tensor(t) for t in reader.tensors}
    except Exception as e:
        # The package raises whatever its parsing trips over: ValueError, KeyError, IndexError...
        raise ModelFormatError(f"{file} is not a readable GGUF file: {_words(e)}") from None
    if values.get("split.count", 0) not in (0, 1):
        raise ModelFormatError(
            f"{file} is one of {values['split.count']} parts: merge them first with llama.cpp's "
            "`llama-gguf-split --merge`"
        )
    return GgufFile(Metadata(file.name, values), tensors)


def _tensor(t: Any) -> GgufTensor:
    shape = tuple(int(n) for n in reversed(t.shape))
    return GgufTensor(t.name, shape, t.tensor_type.name, t.data, t.tensor_type)


def _words(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
