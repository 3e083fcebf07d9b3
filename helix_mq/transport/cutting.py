"""Closing one connection of a bound ZeroMQ socket, which ZeroMQ itself has no call for.

A ROUTER tells the file descriptor of each message's connection. Shutting the connection down under
ZeroMQ ends it as if the peer had hung up: the I/O thread reads the end and closes. Descriptors are
used anew as soon as they are closed, by anybody in the process, so a connection is known by its
socket's inode as well, and shut down through a duplicate that is checked first.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct

NO_MARK = 0
_DROP_ON_CLOSE = struct.pack("ii", 1, 0)


def mark_of(fd: int) -> int:
    """What tells the socket behind `fd` from all others that are open; NO_MARK if there is none."""
    try:
        found = os.fstat(fd)
    except OSError:
        return NO_MARK
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else NO_MARK


def mark_at(fd: int, endpoint: str) -> int:
    """The mark of a connection that was made to `endpoint`, a bound one, under its number `fd`.

    NO_MARK where the number is somebody else's by now: what tells of a connection comes after it.
    """
    mark = mark_of(fd)
    if mark == NO_MARK:
        return NO_MARK
    try:
        borrowed = socket.socket(fileno=fd)
    except OSError:
        return NO_MARK
    try:
        name = borrowed.getsockname()
    except OSError:
        return NO_MARK
    finally:
        borrowed.detach()
    # Should the number have changed hands between the two looks, the mark fits nobody any more.
    return mark if _is_at(name, endpoint) else NO_MARK


def _is_at(name: object, endpoint: str) -> bool:
    """By the port alone, as one that is bound to all addresses is reached at any of them."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "tcp":
        port = address.rpartition(":")[2]
        return isinstance(name, tuple) and len(name) > 1 and str(name[1]) == port
    if isinstance(name, bytes):
        # An abstract one of Linux.
        name = name.replace(b"\0", b"@", 1).decode(errors="replace")
    return name == address


def cut(fd: int, mark: int) -> bool:
    """Shuts the connection down, both ways. False: it was not there any more."""
    if mark == NO_MARK:
        return False
    try:
        own = os.dup(fd)
    except OSError:
        return False
    with contextlib.ExitStack() as after:
        after.callback(os.close, own)
        if mark_of(own) != mark:
            return False
        # Adopted for the one call; the duplicate is closed above, ZeroMQ's stays its own.
        borrowed = socket.socket(fileno=own)
        try:
            # What is still on its way there is dropped when ZeroMQ closes, and a peer that only
            # sends and never looks is reset instead of being left with a full pipe.
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_ON_CLOSE)
            borrowed.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        finally:
            borrowed.detach()
    return True
