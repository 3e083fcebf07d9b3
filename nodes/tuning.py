"""What a node's process sets for itself before it computes anything."""

from __future__ import annotations

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


def tune_process() -> None:
    """Before torch has computed anything. What the environment says is left as it is."""
    sys.setswitchinterval(_SWITCH_S)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_ONEDNN_PRIMITIVES))
