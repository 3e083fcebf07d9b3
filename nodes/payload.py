"""What a row carries from the frame that it came in to the step that it runs in. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from helix_mq.foreseen import PackedHeader
from helix_mq.layers import Route
from helix_mq.messages.data import FrameHeader, SampleSpec, token_bytes
from helix_mq.prefix_blocks import BlockNames

IntArray = npt.NDArray[np.int32]


class Again(Protocol):
    """What a frame's rows that go on together may have a header of already; `nodes.courses`."""

    def are_all(self, works: Sequence[Any]) -> bool:
        """Whether these are all rows of one of its frames, in its order."""
        ...

    def leave(self, works: Sequence[Any], dtype: str) -> tuple[PackedHeader, frozenset[Any]] | None:
        """The header, and of which sequences, for all rows of one frame, in its order; None where
        it is to be made of the works."""
        ...

    def left(self, works: Sequence[Any], header: FrameHeader) -> None:
        """They have left with this one."""
        ...


class FrameUse(msgspec.Struct):
    """Counts a frame's tokens down; at zero its bytes have left the inbox."""

    left: int
    on_consumed: Callable[[], None]
    arrived_s: float = 0.0
    """On the process's performance counter, where whoever took the frame in has noted it."""
    course: Again | None = None
    """Of a frame that was foreseen."""

    def take(self, tokens: int) -> None:
        self.left -= tokens
        if self.left == 0:
            self.on_consumed()


class Payload(msgspec.Struct, frozen=True, gc=False):
    """The tokens of a Work: `data` is `[count, width]` elements of `dtype`, a view of the frame.

    A struct, as Work is: one is made for every row at every hop.
    """

    dtype: str
    width: int
    data: memoryview
    use: FrameUse
    route: Route
    route_blob: bytes
    hop: int
    epoch: int
    """Of the frame it came in; what comes of it goes on under the same."""
    deadline_ms: int
    spec: SampleSpec | None
    history: IntArray | None
    direct: bool = False
    """The sequence's tokens go from its last hop to its first, not by way of the router."""
    blocks: BlockNames | None = None
    drafting: bool = False
    """Of a prompt from the router: drafts may be put behind the tokens that follow."""
    together: bool = False
    """Of a prompt from the router: the hops of its route share one device."""

    @property
    def is_tokens(self) -> bool:
        return self.hop == 0


def cut_payload(payload: Payload, start: int, stop: int) -> Payload:
    """The part of a payload for tokens [start, stop) of its Work; still a view."""
    stride = token_bytes(payload.dtype, payload.width)
    return Payload(
        payload.dtype,
        payload.width,
        payload.data[start * stride : stop * stride],
        payload.use,
        payload.route,
        payload.route_blob,
        payload.hop,
        payload.epoch,
        payload.deadline_ms,
        payload.spec,
        payload.history,
        payload.direct,
        payload.blocks.cut(start, stop) if payload.blocks is not None else None,
    )
