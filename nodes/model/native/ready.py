"""Steps of decodes as they are made ready for decode.h: what comes in, where it is, what leaves."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Final

import msgspec

from nodes.model.native.calls import COUNT, REAL, Block
from nodes.model.native.odds import Odds

IDS: Final = 1
X: Final = 7
"""Where decode.h has these among its numbers of a step."""


class Given(msgspec.Struct, frozen=True, gc=False):
    """What comes into a step's rows: token ids, or else bytes of activations, each row's in the
    compute dtype."""

    ids: Sequence[int] = ()
    activations: Sequence[memoryview] = ()


class Memory(msgspec.Struct, frozen=True, gc=False):
    """Addresses of what a step reads and writes; 0 where it does not."""

    ids: int
    source: int
    x: int
    logits: int
    best: int = 0
    highest: int = 0
    choices: int = 0
    edits: int = 0
    odds: int = 0


class Ready(msgspec.Struct, gc=False):
    """A step to be computed, and what must stay in memory until then. `leaving`: bytes of the
    activations that go on; `best`, `highest`, `odds`: where tokens, their logits and what is told
    of their probabilities do."""

    layers_at: int
    sizes: object
    step: ctypes.Array[ctypes.c_int64]
    numbers: ctypes.Array[ctypes.c_int64]
    """Three of each row, the third its position."""
    page_tokens: int
    held: object
    leaving: memoryview | None = None
    best: ctypes.Array[ctypes.c_int64] | None = None
    highest: ctypes.Array[ctypes.c_float] | None = None
    odds: Odds | None = None


def filled(block: Block, pieces: Sequence[bytes]) -> Block:
    """The block, or a larger one, with these at its beginning."""
    joined = b"".join(pieces)
    if len(block.data) < len(joined):
        block = Block(len(joined))
    block.view[: len(joined)] = joined
    return block


@functools.lru_cache(maxsize=1024)
def reals(length: int) -> type[ctypes.Array[ctypes.c_float]]:
    return REAL * length


@functools.lru_cache(maxsize=1024)
def counts(length: int) -> type[ctypes.Array[ctypes.c_int64]]:
    return COUNT * length
