"""Names of the beginnings of prompts, in blocks of BLOCK_TOKENS tokens. Pure.

A block's name says all of the prompt up to the block's end, so nodes that keep what they computed
find it again by one name. Names are keyed hashes: who does not have the key can neither guess one
nor learn from one what was in the prompt. `BlockNames` is how they travel beside a row's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from helix_mq.messages.data import BLOCK_NAME_BYTES, BLOCK_TOKENS, MAX_BLOCK_BYTES

_BLOCK_BYTES: Final = 4 * BLOCK_TOKENS


def name_blocks(key: bytes, scope: str, token_ids: Sequence[int]) -> bytes:
    """Names of all whole blocks of a prompt, BLOCK_NAME_BYTES each, in order.

    `key`: at most 64 secret bytes. `scope`: names of one scope are never those of another. About
    1 microsecond a block, and 5 for the ids of one.
    """
    whole = len(token_ids) // BLOCK_TOKENS
    ids = memoryview(np.array(token_ids[: whole * BLOCK_TOKENS], dtype="<i4").tobytes())
    name = blake2b(scope.encode(), digest_size=BLOCK_NAME_BYTES, key=key, person=b"scope").digest()
    names = bytearray()
    for start in range(0, len(ids), _BLOCK_BYTES):
        block = blake2b(name, digest_size=BLOCK_NAME_BYTES, key=key, person=b"block")
        block.update(ids[start : start + _BLOCK_BYTES])
        name = block.digest()
        names += name
    return bytes(names)


def split_names(names: bytes) -> list[bytes]:
    """Names one by one."""
    return [names[at : at + BLOCK_NAME_BYTES] for at in range(0, len(names), BLOCK_NAME_BYTES)]


def span_names(names: bytes, position: int, count: int) -> bytes:
    """Of the names of a whole prompt, those that a row of `count` tokens from `position` on
    carries: of the blocks that end in [position, position + count]. None where that is too many for
    a row, or where not all of them are there."""
    first, stop = _span(position, count)
    part = names[first * BLOCK_NAME_BYTES : stop * BLOCK_NAME_BYTES]
    return part if len(part) == min((stop - first) * BLOCK_NAME_BYTES, MAX_BLOCK_BYTES) else b""


def names_fit(names: bytes, position: int, count: int) -> bool:
    """Whether a row may carry these: none, or one for each block that ends in it."""
    first, stop = _span(position, count)
    return not names or len(names) == (stop - first) * BLOCK_NAME_BYTES


@dataclass(frozen=True, slots=True)
class BlockNames:
    """The names that came with a row; `position` is the row's."""

    position: int
    names: bytes

    def cut(self, start: int, stop: int) -> BlockNames:
        """Those of the row's tokens [start, stop) as a row of its own."""
        if not self.names:
            return BlockNames(self.position + start, b"")
        return BlockNames(self.position + start, cut_names(self.names, self.position, start, stop))

    def ends(self) -> Iterator[tuple[int, bytes]]:
        """(tokens of the prompt up to the block's end, its name), in order."""
        first, _ = _span(self.position, 0)
        for number, name in enumerate(split_names(self.names), start=first + 1):
            yield number * BLOCK_TOKENS, name


def cut_names(names: bytes, position: int, start: int, stop: int) -> bytes:
    """Of the names of a row at `position`, those of its tokens [start, stop) as a row."""
    if not names:
        return b""
    offset, _ = _span(position, 0)
    first, last = _span(position + start, stop - start)
    return names[(first - offset) * BLOCK_NAME_BYTES : (last - offset) * BLOCK_NAME_BYTES]


def _span(position: int, count: int) -> tuple[int, int]:
    """Numbers [first, stop) of the blocks that end in [position, position + count]; block n ends
    after (n + 1) * BLOCK_TOKENS tokens."""
    first = max(0, -(-position // BLOCK_TOKENS) - 1)
    return first, max(first, (position + count) // BLOCK_TOKENS)
