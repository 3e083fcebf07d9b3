"""What a node's process sets for itself before it computes anything."""

from __future__ import annotations

import ctypes
import os
import sys

_ONEDNN_PRIMITIVES = 256
"""Compiled operations that oneDNN keeps for use again, half a MiB each; 1024 by default. Weights of
a model need at most 56 per shape, of five shapes (nodes.model.linear). Attention in 16 bits has one
for each number of rows and pages, more than any number kept: decodes took as long with 64 as with
1024, and held 379, 433 (256) or 652 MiB."""

_SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from another; 5 ms by default. The device's thread
prepares a step and makes frames of it in Python, and the event loop must not wait 2 ms for that."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_FROM_THE_SYSTEM_BYTES = 4 << 20
"""Blocks of this size and more come from the system one by one, and go back as they are freed:
nearly all frames are smaller. With 32 MiB, where KV pools and weights that come and go are among
them, nodes rose by 50 MiB in 30 rounds of faults."""
_KEPT_BYTES = 16 << 20
"""Of freed memory at an arena's end, before it goes back. glibc keeps 128 KiB, or twice the largest
block of its own that was freed. Then nearly every large frame is received into memory that the
kernel has to clear first: 85 page faults per MiB, more time than the copy."""


_SPINS = 20_000
"""Looks that a thread of OpenMP takes for its next work before it sleeps, some 0.3 ms; 300,000 by
default. Between a step and the next the event loop, the router and ZeroMQ's threads need the
processor: one node beside a router and its client decoded 8 streams at 512 to 568 tokens/s with the
default, at 603 to 647 with 10,000 to 50,000. Prompts, many short calls in a row, take as long
with none at all."""


def before_torch() -> None:
    """What must be set before the first `import torch`, which reads it."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))


def tune_process() -> None:
    """Before torch has computed anything. What the environment says is left as it is."""
    sys.setswitchinterval(_SWITCH_S)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_ONEDNN_PRIMITIVES))
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Has the C library use freed memory again rather than give it back. False where it is not
    glibc, or the environment says what it is to do."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _FROM_THE_SYSTEM_BYTES)
        and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    )
