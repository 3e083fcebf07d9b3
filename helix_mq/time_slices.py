"""How long a thread of this process keeps a processor at a time, and so how soon it gets one.

Linux 6.12 and newer take a slice of a thread's own. Whose slice is short comes first when it wakes,
even where all processors compute; it gets no more of them than before. No privilege is needed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SHORT_S = 0.0003
"""For threads that are woken for little work. The event loop's turns and those of ZeroMQ's threads
take less; a thread that uses its slice up waits as long as any other."""

_DEFAULT = 0
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Numbers of sched_setattr and sched_getattr; C libraries name them since 2025 only."""

_ATTRIBUTES = struct.Struct("IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime in ns, deadline, period: the first form of the
kernel's `sched_attr`."""
_RESET_ON_FORK = 1
"""Of its flags. Who has set it may not be let to take it back."""
_FAIR = (os.SCHED_OTHER, os.SCHED_BATCH) if sys.platform == "linux" else ()


def answer_soon() -> bool:
    """Gives the calling thread a short slice, and with it those that it starts from now on. False
    where the system has none, or somebody has chosen another policy for it."""
    return _set_slice(int(SHORT_S * 1e9))


def compute_long() -> bool:
    """Gives the calling thread the system's own slice again, and with it those that it starts."""
    return _set_slice(_DEFAULT)


def slice_s(thread: int = 0) -> float | None:
    """The slice of a thread of this process by its native id, or the calling one's; None where the
    system does not say."""
    found = _get(thread)
    return found[5] / 1e9 if found is not None and found[5] else None


def _set_slice(slice_ns: int) -> bool:
    found = _get()
    if found is None or found[1] not in _FAIR:
        return False
    _, policy, flags, nice, *_ = found
    kept = flags & _RESET_ON_FORK
    new = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, kept, nice, 0, slice_ns, 0, 0)
    return _call(0, 0, new, 0) == 0


def _get(thread: int = 0) -> tuple[int, ...] | None:
    """What the kernel knows of a thread, the calling one for 0, as _ATTRIBUTES has it."""
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if _call(1, thread, buffer, _ATTRIBUTES.size, 0) != 0:
        return None
    return _ATTRIBUTES.unpack(buffer.raw)


def _call(which: int, thread: int, attributes: object, *rest: int) -> int:
    """As the C library's `syscall` gives it; -1 where there is no such call."""
    numbers = _CALLS.get(platform.machine())
    if sys.platform != "linux" or numbers is None:
        return -1
    try:
        # Whole registers: what a plain int leaves of one is up to the processor's conventions.
        whole = [ctypes.c_long(number) for number in (numbers[which], thread, *rest)]
        return int(ctypes.CDLL(None).syscall(*whole[:2], attributes, *whole[2:]))
    except (AttributeError, OSError):
        return -1
