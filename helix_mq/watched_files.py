"""Files that a running process reads again when they change: keys, lists, certificates.

Looked at by their stat, about twice a second: no dependency, and it works on every file system. A
change counts once it has settled, so that a file that an editor truncates and then writes is not
read in between, when an empty list would mean that nobody may in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from helix_mq.errors import HelixError

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Two looks make a change known: it is in force after 1 s at most, and what reading takes."""

_Look = tuple[tuple[int, ...] | None, ...]


class WatchedFiles:
    """Make it before the files are read for the first time, so that no change is missed."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._known = self._look()
        self._seen = self._known

    def changed(self) -> bool:
        """True once per change: when two looks in a row found the same, and not what was known."""
        before, self._seen = self._seen, self._look()
        if self._seen == self._known or self._seen != before:
            return False
        self._known = self._seen
        return True

    def _look(self) -> _Look:
        return tuple(_stat(path) for path in self._paths)


def _stat(path: Path) -> tuple[int, ...] | None:
    """None: it is not there, or cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


async def reload_for_ever(files: WatchedFiles, reload: Callable[[], None], what: str) -> None:
    """Calls `reload` after each change. What it raises is logged, and the old content stays."""
    while True:
        await asyncio.sleep(LOOK_S)
        if not files.changed():
            continue
        try:
            reload()
        except HelixError as e:
            log.error("%s: what was read before stays in force: %s", what, e)
        except Exception:
            log.exception("%s could not be read again: what was read before stays", what)
