"""One process at a time does what several of a machine would do at once, if they share a folder.

Nobody waits for ever: who holds the lock may have been stopped, and others can do the work as well.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LOOK_S: Final = 0.1


@contextmanager
def alone(file: Path, longest_s: float) -> Iterator[bool]:
    """Holds `file` locked, if that can be had within so many seconds: says whether. False as well
    where nothing can be written there. Blocking."""
    try:
        lock = file.open("wb")
    except OSError:
        yield False
        return
    with lock:
        ends_s = time.monotonic() + longest_s
        while not (held := _locked(lock.fileno())) and time.monotonic() < ends_s:
            time.sleep(_LOOK_S)
        # Closing the file gives the lock back, whatever happens to this process.
        yield held


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
