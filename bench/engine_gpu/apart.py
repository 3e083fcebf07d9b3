"""Runs a command as a process of its own, for so long and no longer, and leaves nothing of it.

A GPU that has seen one illegal access answers nothing more to the process that made it, and a
kernel that hangs cannot be interrupted: only another process can go on after either.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

import psutil

from bench.ending import told_to_end

GRACE_S = 20.0
"""For one that is told to end, and has processes of its own to end first."""
_GONE_S = 2.0
"""For the dead to be gone, with the device's memory that they held."""


def run_apart(command: Sequence[str], limit_s: float, grace_s: float = GRACE_S) -> str:
    """Waits until it has ended; nothing where it ended well, else in words how it did.

    It ends with its descendants when the limit has passed, and when this process is interrupted or
    told to end.
    """
    with told_to_end():
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"ended after {limit_s:.0f} s, which is its limit"
        finally:
            end(process, grace_s)
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}" if code else ""


def end(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """Asks it to go, then kills what is left of it and of its descendants."""
    if process.poll() is not None:
        return
    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    process.kill()
    process.wait()
    for member in family:
        # is_running() tells a process from another that has got its number since.
        with suppress(psutil.Error):
            if member.is_running():
                member.kill()
    psutil.wait_procs(family, _GONE_S)
