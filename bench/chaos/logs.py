"""What processes must never say in their logs. Pure."""

from __future__ import annotations

import re

_BAD = re.compile(
    r"Traceback \(most recent call last\)|CRITICAL|never retrieved|was destroyed but it is pending"
    r"|AssertionError|Segmentation fault|bad message from"
)
"""Exceptions that nobody caught or that were caught as bugs, tasks that died or were leaked, and
frames that a peer of the same version could not read."""
_MOST = 5


def alarms(name: str, log: str) -> list[str]:
    """The lines of a log that no fault from outside excuses, at most a few."""
    lines = log.splitlines()
    found = [f"{name}: {line.strip()[:200]}" for line in lines if _BAD.search(line)]
    if len(found) > _MOST:
        return [*found[:_MOST], f"{name}: {len(found) - _MOST} more such lines"]
    return found
