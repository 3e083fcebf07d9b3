"""Frames in, checked Work out. Pure bookkeeping on views of received buffers; no torch.

Here every row of a frame is held against what this node is and holds: epoch, hop, layers, width,
token ids, order within the sequence. What fails becomes a RefusedItem with its reason; nothing
that fails is ever executed. Credit goes back to the sender when a frame's last token is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import msgspec
import numpy as np

from helix_mq.errors import FrameError
from helix_mq.frames import ROUTES, unpack_routes
from helix_mq.ids import ROUTER, Attempt, RequestId
from helix_mq.messages.data import (
    BLOCK_TOKENS,
    DIRECT,
    DRAFTING,
    SAMPLE,
    TOGETHER,
    VERIFY,
    FrameHeader,
    RefusedItem,
    Row,
)
from helix_mq.prefix_blocks import BlockNames
from helix_mq.sampling import SamplingParams
from nodes.batching import SeqKey, Work
from nodes.ledger import Ledger, Verdict
from nodes.payload import FrameUse, IntArray, Payload
from nodes.stops import NodeView as NodeView
from nodes.stops import Stop

MAX_SEQUENCE_MS = 2 * 86_400_000
"""Pages come back after this at the latest, whatever deadline a row names and whoever forgets to
release them. A request may wait for a day; the other one is for clocks that differ."""

_FEW_IDS_BYTES = 256
"""For one token numpy takes 60 us when weights have driven it out of the caches."""

_COUNT = attrgetter("count")


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one frame: work to queue, refusals to report, older attempts to close.

    `strange`: tokens handed back by who is not the last hop of a sequence that is open here. They
    are nobody's to refuse to the router, and the frame's other rows are none the worse.
    """

    work: list[Work[Payload]]
    refused: list[RefusedItem]
    superseded: list[SeqKey]
    strange: int = 0


def check_sender(header: FrameHeader) -> None:
    """Raises FrameError when a row does not come from the hop before, or from the router to a first
    hop, or from the last hop where that may hand tokens back. Such a frame is nobody's to refuse to
    the router: its rows may name others' requests."""
    routes = ROUTES.get(header.routes) or unpack_routes(header.routes)
    sender = header.sender
    index = hop = -1
    for row in header.rows:
        if row.hop == hop and row.route == index:
            # Rows of a frame mostly go the same way, and this one's is right.
            continue
        route = routes[row.route]
        due = route.hops[row.hop - 1].node if row.hop else ROUTER
        if due == sender:
            index, hop = row.route, row.hop
            continue
        # Or the decode of a token that the last hop has sampled. Whether it may is for the ledger
        # to say: a frame names whatever route its sender likes.
        flags = row.flags
        if (
            row.hop
            or not flags & DIRECT
            or not flags & SAMPLE
            or row.blocks
            or row.position <= 0
            or row.count != 1
            or row.spec is not None
            or route.hops[-1].node != sender
        ):
            raise FrameError(
                f"request {row.request}: a row for hop {row.hop} from {sender}, due from {due}",
                reason="identity",
            )


def accept_frame(
    view: NodeView,
    ledger: Ledger,
    header: FrameHeader,
    buffers: tuple[memoryview, ...],
    on_consumed: Callable[[], None],
    now_ms: int,
) -> Accepted:
    """Checks a decoded frame row by row and opens or advances its sequences in the ledger.

    Raises FrameError when the frame as a whole does not fit the model (width, token ids); the
    frame is consumed in every case.
    """
    rows, sender, epoch, routes = header.rows, header.sender, header.epoch, header.routes
    dtype, width = header.dtype, header.width
    work: list[Work[Payload]] = []
    refused: list[RefusedItem] = []
    superseded: list[SeqKey] = []
    strange = 0
    total = rows[0].count if len(rows) == 1 else sum(map(_COUNT, rows))
    use = FrameUse(total, on_consumed)
    if dtype == "int32" or width != view.hidden_size or len(buffers) > 1:
        try:
            _check_whole(view, header, buffers)
        except FrameError:
            use.take(total)
            raise
    stride = buffers[0].nbytes // total
    at = history_at = 0
    data = buffers[0].cast("B")
    by_router = sender == ROUTER
    served = epoch in view.epochs
    find, most = ledger.find, view.max_context
    index = hop = -1
    for row in rows:
        count, position, spec, flags = row.count, row.position, row.spec, row.flags
        end = at + count * stride
        piece, at = data[at:end], end
        history: IntArray | None = None
        if spec is not None and spec.history_tokens:
            end = history_at + 4 * spec.history_tokens
            history = np.frombuffer(buffers[1].cast("B")[history_at:end], dtype=np.int32)
            history_at = end
        if row.route != index or row.hop != hop:
            # Rows of a frame mostly go the same way.
            index, hop = row.route, row.hop
            blob = routes[index]
            stop = view.stops.get((blob, hop)) or view.stop(blob, hop)
            layers, runs = stop.layers, served and not stop.code
        if not hop and not by_router:
            opened = find((row.request, row.attempt))
            if opened is None or opened.returned_by != sender:
                # Not from the last hop of a sequence that the router opened here as direct.
                use.take(count)
                strange += not ledger.is_over(_seq(row))
                continue
        guessed = count - 1 if flags & VERIFY else 0
        known: SeqKey | None = None
        if (
            runs
            and spec is None
            and position + count <= most
            and (row.deadline_ms > now_ms or not row.deadline_ms)
        ):
            # What nearly every row is: the next one of an open sequence, with nothing to say of it.
            opened = find((row.request, row.attempt))
            if (
                opened is not None
                and opened.layers is layers
                and not opened.over
                and 0 <= opened.next_position - position <= opened.drafts
            ):
                # `Ledger.follow` in place.
                known = opened.seq
                opened.next_position = position + count
                opened.drafts = guessed
                if epoch > opened.epoch:
                    opened.epoch = epoch
            else:
                known = ledger.follow(
                    row.request, row.attempt, position, count, layers, epoch, guessed
                )
        if known is None:
            known = seq = _seq(row)
            refusal = _judge(view, ledger, epoch, row, seq, stop, now_ms, superseded)
            if refusal is not None:
                use.take(count)
                if refusal.code != Verdict.STALE:
                    refused.append(refusal)
                continue
        work.append(
            Work(
                known,
                position,
                count,
                stop.layers,
                stop.next_hop,
                flags & SAMPLE != 0,
                Payload(
                    dtype,
                    width,
                    piece,
                    use,
                    stop.route,
                    blob,
                    hop,
                    epoch,
                    row.deadline_ms,
                    spec,
                    history,
                    flags & DIRECT != 0,
                    BlockNames(position, row.blocks) if row.blocks else None,
                    by_router and flags & DRAFTING != 0,
                    by_router and flags & TOGETHER != 0,
                ),
                _drafts(row, piece) if flags & VERIFY else (),
            )
        )
    return Accepted(work, refused, superseded, strange)


def _drafts(row: Row, piece: memoryview) -> tuple[int, ...]:
    """Token ids behind a row's first: a first hop has them as its tokens."""
    return row.drafts or tuple(np.frombuffer(piece, dtype=np.int32)[1:].tolist())


def ids_fit(ids: memoryview, view: NodeView) -> bool:
    """Whether int32 token ids, of which there is one at least, are all the model's."""
    lowest, highest = _bounds(ids)
    return lowest >= 0 and highest < view.vocab_size


def _check_whole(view: NodeView, header: FrameHeader, buffers: tuple[memoryview, ...]) -> None:
    if header.dtype == "int32":
        if not ids_fit(buffers[0], view):
            lowest, highest = _bounds(buffers[0])
            raise FrameError(
                f"token ids {lowest}..{highest} are outside the vocabulary of {view.vocab_size}",
                reason="token_id",
            )
    elif header.width != view.hidden_size:
        raise FrameError(
            f"activations of width {header.width}, this model's are {view.hidden_size}",
            reason="width",
        )
    if len(buffers) > 1 and not ids_fit(buffers[1], view):
        raise FrameError("history tokens outside the vocabulary", reason="token_id")


def _bounds(ids: memoryview) -> tuple[int, int]:
    """The lowest and the highest of int32 token ids, of which there is one at least."""
    if ids.nbytes <= _FEW_IDS_BYTES:
        few = ids.cast("B").cast("i").tolist()
        return min(few), max(few)
    many = np.frombuffer(ids, dtype=np.int32)
    return int(many.min()), int(many.max())


def _judge(
    view: NodeView,
    ledger: Ledger,
    epoch: int,
    row: Row,
    seq: SeqKey,
    stop: Stop,
    now_ms: int,
    superseded: list[SeqKey],
) -> RefusedItem | None:
    """None if the row may run (the ledger then knows it), else why not."""
    if epoch not in view.epochs:
        have = ", ".join(map(str, sorted(view.epochs))) or "none"
        return _refuse(row, "stale_epoch", f"placement epoch {epoch}, {view.node} serves {have}")
    if stop.code:
        return _refuse(row, stop.code, stop.reason)
    if row.position + row.count > view.max_context:
        return _refuse(
            row,
            "context",
            f"position {row.position + row.count} is past the context of {view.max_context}: "
            "send less, or ask for fewer tokens",
        )
    if stop.last and row.flags & SAMPLE and row.position == 0 and row.spec is None:
        return _refuse(row, "no_spec", "a last hop needs sampling parameters")
    if row.spec is not None:
        highest = _highest_id(row.spec.sampling)
        if highest >= view.vocab_size:
            # On the device it would fault the kernels of every row in the step.
            return _refuse(
                row,
                "wrong_model",
                f"sampling parameters name token id {highest}, outside the vocabulary of "
                f"{view.vocab_size}",
            )
    if 0 < row.deadline_ms <= now_ms:
        return _refuse(
            row, "deadline", f"the request's deadline has passed by the clock of {view.node}"
        )
    drafts = row.count - 1 if row.flags & VERIFY else 0
    resumes = bool(row.blocks) and row.position % BLOCK_TOKENS == 0
    verdict = ledger.judge(seq, row.position, stop.layers, resumes=resumes)
    if verdict is Verdict.FULL:
        return _refuse(row, verdict, f"{len(ledger)} sequences are open on {view.node}")
    if verdict is Verdict.WRONG_LAYERS:
        return _refuse(
            row, verdict, f"the sequence was opened with other layers than {stop.layers}"
        )
    if verdict in (Verdict.STALE, Verdict.OUT_OF_ORDER):
        return _refuse(row, verdict, f"position {row.position} does not follow what is here")
    if verdict is Verdict.OPEN:
        latest_ms = now_ms + MAX_SEQUENCE_MS
        deadline_ms = min(row.deadline_ms or latest_ms, latest_ms)
        superseded.extend(ledger.open(seq, stop.layers, deadline_ms, row.position))
        if row.flags & DIRECT and not row.hop:
            ledger.expect_from(seq, stop.route.hops[-1].node)
    ledger.advance(seq, row.position, row.count, epoch, drafts)
    return None


def _seq(row: Row) -> SeqKey:
    return SeqKey(RequestId(row.request), Attempt(row.attempt))


def _highest_id(sampling: SamplingParams) -> int:
    """The highest token id that bias or stop tokens name; -1 for none."""
    biased = (token for token, _ in sampling.logit_bias)
    return max((*biased, *sampling.stop_token_ids), default=-1)


def _refuse(row: Row, code: str, reason: str) -> RefusedItem:
    return RefusedItem(row.request, row.attempt, code, reason)
