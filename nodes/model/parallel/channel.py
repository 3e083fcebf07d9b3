"""The stream between rank 0 and one other rank: a socket pair, inherited when the rank starts."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from nodes.model.parallel.orders import (
    LENGTH_BYTES,
    Array,
    Message,
    Received,
    decode_header,
    encode,
    header_bytes,
)


class ChannelClosed(Exception):
    """The other side has ended."""


class Channel:
    """Blocking. One thread may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, message: Message, arrays: Sequence[Array] = ()) -> None:
        try:
            for part in encode(message, arrays):
                self._socket.sendall(part)
        except OSError as e:
            raise ChannelClosed(str(e)) from None

    def receive(self) -> Received:
        """ChannelClosed at the end; FrameError for what is no message."""
        header = self._read(header_bytes(bytes(self._read(LENGTH_BYTES))))
        message, arrays = decode_header(header)
        for array in arrays:
            if array.size:
                self._fill(array.reshape(-1).view(np.uint8).data)
        return Received(message, arrays)

    def close(self) -> None:
        # Without it a thread that is receiving would go on waiting.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, count: int) -> bytearray:
        buffer = bytearray(count)
        self._fill(memoryview(buffer))
        return buffer

    def _fill(self, view: memoryview) -> None:
        while len(view):
            try:
                count = self._socket.recv_into(view)
            except OSError as e:
                raise ChannelClosed(str(e)) from None
            if not count:
                raise ChannelClosed("the other side has ended")
            view = view[count:]
