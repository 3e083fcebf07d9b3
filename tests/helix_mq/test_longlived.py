from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc
from helix_mq.longlived import keep_what_is_here

class Thing: pass
ring = Thing(); ring.self = ring
before = len(gc.get_objects())
keep_what_is_here()
assert gc.get_freeze_count() >= before / 2, "what was there is looked at again"
assert len(gc.get_objects()) < before / 10
late = Thing(); late.self = late
import weakref
gone = weakref.ref(late); del late
gc.collect()
assert gone() is None, "what comes later is collected"
"""


def test_what_was_there_is_not_looked_at_again_and_later_rings_are_collected() -> None:
    """In a process of its own: this one's garbage should be found."""
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True, timeout=240)
