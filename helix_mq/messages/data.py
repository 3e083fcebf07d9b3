"""Along a route: rows of activations or token ids, sampled tokens, releases, credit."""

from __future__ import annotations

from typing import Annotated

import msgspec

from helix_mq.packing import U16, U31, U63, Known, Name, Text
from helix_mq.sampling import SamplingParams
from helix_mq.scaled_rows import scaled_bytes

SAMPLE = 1
"""Row flag: the row's last token is the sequence's last, so the last hop samples after it."""
VERIFY = 2
"""Row flag, with SAMPLE: the tokens after the row's first are drafts. The last hop samples after
each, up to and with the first whose sample is not the next draft. A first hop has the drafts among
the row's token ids, the hops after it in `Row.drafts`."""
DIRECT = 4
"""Row flag: the last hop hands each sampled token to the first hop itself, and tells the router."""
DRAFTING = 8
"""Row flag, with DIRECT and of a prompt: the first hop may put drafts behind the tokens it gets."""
TOGETHER = 16
"""Row flag, of a prompt: all hops of its route compute on one device, so its decodes had better
leave the first hop together with those of others."""

BLOCK_TOKENS = 64
"""Tokens of a prefix block: a beginning of a prompt is shared in whole blocks."""
BLOCK_NAME_BYTES = 16
MAX_BLOCK_BYTES = 32 * 1024
"""Of one row: names for 131,072 tokens."""

MAX_DRAFTS = 16
"""In one row: it counts as a decode, which neither waits for credit nor is cut."""
MAX_ROWS = 8192
MAX_FRAME_TOKENS = 1 << 17
MAX_WIDTH = 1 << 16
MAX_PADDING_BYTES = 64 * 1024

SCALED = "int8"
"""Wire dtype of activations in 8 bits with scales: `helix_mq.scaled_rows`."""
DTYPES = {"int32": 4, "float32": 4, "bfloat16": 2, "float16": 2, SCALED: 1}
"""Names of buffer dtypes on the wire and their bytes per element (little-endian), scales left
out."""


def token_bytes(dtype: str, width: int) -> int:
    """Bytes of one token of a frame; KeyError for what is no wire dtype."""
    return scaled_bytes(width) if dtype == SCALED else width * DTYPES[dtype]


class SampleSpec(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the last hop needs to sample; travels with the last prefill chunk of an attempt.

    `history_tokens` int32 token ids (prompt and output so far) follow in the frame's history
    buffer when a penalty needs them, else 0.
    """

    sampling: SamplingParams
    prompt_tokens: U31
    history_tokens: U31


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`count` consecutive tokens of one request, for hop `hop` of route `route`."""

    request: U63
    attempt: U31
    position: U31
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_FRAME_TOKENS)]
    route: U16
    """Index into the frame's `routes`."""
    hop: U16
    """Index of the receiving hop in that route."""
    flags: Annotated[int, msgspec.Meta(ge=0, lt=256)]
    deadline_ms: U63
    """Unix time in ms after which nobody needs the result; 0 for none."""
    spec: SampleSpec | None = None
    blocks: Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCK_BYTES)] = b""
    """Names of the prefix blocks that end within the row, from its position on: BLOCK_NAME_BYTES
    each. A sequence's first row may begin at the end of a block that every hop has kept."""
    drafts: Annotated[tuple[U31, ...], msgspec.Meta(max_length=MAX_DRAFTS)] = ()
    """Token ids that a VERIFY row has after its first, for hops that see activations only."""

    @property
    def is_decode(self) -> bool:
        """The next token of a running request, with or without drafts behind it; as far as a
        header tells."""
        one = self.count == 1 or bool(self.flags & VERIFY)
        return one and bool(self.flags & SAMPLE) and self.position > 0


class FrameHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Header of an activation frame.

    Buffers: `[payload][history]`, the second only when some row's spec has history. The payload is
    `[sum(count), width]` elements of `dtype`: token ids (int32, width 1) to a first hop,
    activations to the others.
    """

    epoch: U63
    sender: Known
    """Whose link it comes over, as that was greeted with."""
    dtype: Annotated[str, msgspec.Meta(max_length=8)]
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_WIDTH)]
    rows: Annotated[tuple[Row, ...], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]
    routes: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]
    """Distinct routes of the rows, each packed by `frames.pack_route`."""


class TopLogprob(msgspec.Struct, array_like=True, frozen=True):
    token: U31
    logprob: Annotated[float, msgspec.Meta(le=1e-3, ge=-1e30)]


class TokenItem(msgspec.Struct, array_like=True, frozen=True):
    """One sampled token; `position` is its own place in the sequence (prompt included)."""

    request: U63
    attempt: U31
    position: U31
    token: U31
    logprob: Annotated[float, msgspec.Meta(le=1e-3, ge=-1e30)] | None = None
    top: Annotated[tuple[TopLogprob, ...], msgspec.Meta(max_length=20)] = ()
    more: bool = False
    """The next token of the sequence was sampled in the same pass and follows at once."""
    drafted: Annotated[int, msgspec.Meta(ge=0, le=MAX_DRAFTS)] = 0
    """Of the first token of a pass: how many drafts were held against what was sampled."""


class Tokens(msgspec.Struct, array_like=True, frozen=True):
    """Last hop -> router."""

    epoch: U63
    node: Name
    items: Annotated[tuple[TokenItem, ...], msgspec.Meta(max_length=MAX_ROWS)]


class RefusedItem(msgspec.Struct, array_like=True, frozen=True):
    """A row that was not executed, and why: `kv_exhausted`, `stale_epoch`, `not_held`, ..."""

    request: U63
    attempt: U31
    code: Text
    reason: Text


class Refused(msgspec.Struct, array_like=True, frozen=True):
    """Node -> router: these requests cannot go on here under this attempt."""

    epoch: U63
    node: Name
    items: Annotated[tuple[RefusedItem, ...], msgspec.Meta(max_length=MAX_ROWS)]


class ReleaseItem(msgspec.Struct, array_like=True, frozen=True):
    request: U63
    attempt: U31


class Release(msgspec.Struct, array_like=True, frozen=True):
    """Router -> every hop: free the pages of these attempts and refuse what is still on its way."""

    items: Annotated[tuple[ReleaseItem, ...], msgspec.Meta(max_length=MAX_ROWS)]


class LinkHello(msgspec.Struct, array_like=True, frozen=True):
    """First message on a data connection, and after each reconnect: who is sending here.

    `link` is random per connection: byte counts start at 0 with it. Answered by a Grant.
    """

    sender: Name
    incarnation: U63
    link: U63


class Grant(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Receiver -> sender: bytes the sender may have sent in total since `link` began.

    `received_bytes`: of frames that are here, in total; 0 where a receiver does not say.
    """

    receiver: Known
    link: U63
    total_bytes: U63
    received_bytes: U63 = 0


class LinkProbe(msgspec.Struct, array_like=True, frozen=True):
    """Sender -> receiver of a link. Answered by a LinkEcho at once; with a buffer of padding it is
    dropped instead, and counted like a frame in the next Grant's `received_bytes`."""

    link: U63
    number: U31


class LinkEcho(msgspec.Struct, array_like=True, frozen=True):
    """The answer to the probe of this number."""

    link: U63
    number: U31
