"""Result files as they are read: JSON objects of a bounded size."""

from __future__ import annotations

import json
from pathlib import Path

from helix_mq.errors import ConfigError

MAX_FILE_BYTES = 64 << 20


def read_object(path: Path) -> dict[str, object]:
    """The object in the file. ConfigError, with the file's name, for anything else."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, no result file")
        found = json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: no JSON: {e}") from None
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: no result file: a JSON object with figures was expected")
    return found
