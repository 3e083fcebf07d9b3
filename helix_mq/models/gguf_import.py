"""A GGUF file, converted once to a Hugging Face folder in the cache.

Several processes may ask for the same file at once: one converts, the others wait, and a folder
appears whole or not at all. What a killed conversion left behind goes with the next one.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from helix_mq.errors import ConfigError, ModelFormatError
from helix_mq.models.config import WeightsDtype
from helix_mq.models.gguf_convert import Progress, convert

CONVERTER_VERSION = 2
"""Part of the cache key: raise it when the converted result changes."""


def cached_folder(file: Path, cache: Path, dtype: WeightsDtype = WeightsDtype.FLOAT32) -> Path:
    """Where the converted folder of `file` is or will be: by its name, size and time of change."""
    stat = file.stat()
    key = f"{CONVERTER_VERSION}:{dtype.value}:{file.name}:{stat.st_size}:{stat.st_mtime_ns}"
    return cache / "gguf" / f"{file.stem[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def import_gguf(
    file: Path,
    cache: Path,
    progress: Progress | None = None,
    *,
    dtype: WeightsDtype = WeightsDtype.FLOAT32,
) -> Path:
    """The Hugging Face folder of a GGUF file, converting it if the cache has none.

    `dtype`: of the converted weights, float32 or float16. Raises ModelFormatError when it is no
    GGUF file or of an architecture not served here, ConfigError when the cache cannot be written.
    """
    report = progress or (lambda fraction, text: None)
    try:
        target = cached_folder(file, cache, dtype)
        if not _is_whole(target):
            _convert_once(file, target, dtype, report)
    except OSError as e:
        raise ConfigError(
            f"cannot keep the converted {file.name} in {cache}: {e.strerror or e}; set "
            "HELIX_MQ_CACHE to a folder with room for it",
            param="HELIX_MQ_CACHE",
        ) from None
    return target


def _is_whole(target: Path) -> bool:
    return (target / "config.json").is_file()


def _convert_once(file: Path, target: Path, dtype: WeightsDtype, report: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(0.0, f"waiting for another process to convert {file.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_whole(target):
            return
        for left in target.parent.glob(f".{glob.escape(target.name)}-*"):
            # Only the holder of the lock works here, so this is a killed conversion's.
            shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            work.chmod(0o755)
            convert(file, work, dtype, report)
            os.replace(work, target)
        except OSError as e:
            if not file.is_file():
                raise ModelFormatError(f"{file} went away while it was read: {e}") from None
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    report(1.0, f"converted {file.name}")
