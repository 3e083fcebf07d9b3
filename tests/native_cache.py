"""Cache folders of their own for tests, but with the machine's compiled kernels.

A node with an empty cache compiles them anew: ten seconds of a core, each time the same library.
tests/nodes/model/native compiles for real.
"""

from __future__ import annotations

from pathlib import Path

from helix_mq.models.resolve import default_cache


def cache_with_kernels(folder: Path) -> str:
    """For HELIX_MQ_CACHE. May be asked for again; where nobody compiled yet, the first who needs
    the kernels does it for all."""
    kernels, link = default_cache() / "native", folder / "native"
    kernels.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(kernels, target_is_directory=True)
    return str(folder)
