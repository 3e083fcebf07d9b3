"""What a process that runs for weeks tells Python's garbage collector."""

from __future__ import annotations

import gc


def keep_what_is_here() -> None:
    """What exists now stays for good: the collector need not look at it again.

    Modules are most of it: a node's 190,000 objects, torch's among them, took 160 ms of the
    interpreter to walk, while no frame is taken in and no heartbeat is sent. Call it once, after
    imports and before there is work.
    """
    gc.collect()
    gc.freeze()
