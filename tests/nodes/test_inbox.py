"""The inbox: what is refused and why, what opens a sequence, and credit exactly once per frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq import frames
from helix_mq.errors import FrameError
from helix_mq.frames import check_frame, pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SAMPLE, VERIFY, FrameHeader, Row, SampleSpec
from helix_mq.sampling import SamplingParams
from nodes.batching import SeqKey
from nodes.inbox import Accepted, NodeView, accept_frame, check_sender
from nodes.ledger import Ledger
from nodes.payload import FrameUse, cut_payload

ROUTE = Route(
    (
        Hop(NodeId("a"), LayerRange(0, 2)),
        Hop(NodeId("me"), LayerRange(2, 5)),
        Hop(NodeId("z"), LayerRange(5, 6)),
    )
)
FIRST = Route((Hop(NodeId("me"), LayerRange(0, 3)), Hop(NodeId("z"), LayerRange(3, 6))))
WHOLE = Route((Hop(NodeId("me"), LayerRange(0, 6)),))
VIEW = NodeView("me", frozenset({4, 5}), LayerRange(0, 6), 6, 8, 100, 64)
SPEC = SampleSpec(SamplingParams(), 2, 0)
NOW_MS = 1_000_000


class Credit:
    """Counts how often a frame was given back."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def row(request: int = 1, position: int = 0, count: int = 2, **fields: object) -> Row:
    values: dict[str, object] = {
        "attempt": 0, "route": 0, "hop": 0, "flags": SAMPLE, "deadline_ms": 0, "spec": None,
    } | fields  # fmt: skip
    return Row(request=request, position=position, count=count, **values)  # type: ignore[arg-type]


def token_frame(
    rows: Sequence[Row], route: Route = FIRST, *, ids: Sequence[int] | None = None, epoch: int = 5
) -> tuple[FrameHeader, tuple[memoryview, ...]]:
    total = sum(r.count for r in rows)
    header = FrameHeader(epoch, ROUTER, "int32", 1, tuple(rows), (pack_route(route),))
    values = np.arange(total, dtype=np.int32) % 100 if ids is None else np.array(ids, np.int32)
    buffers = [values.data.cast("B")]
    history = [t for r in rows if r.spec for t in range(r.spec.history_tokens)]
    if history:
        buffers.append(np.array(history, np.int32).data.cast("B"))
    return header, tuple(buffers)


def hidden_frame(
    rows: Sequence[Row], route: Route = ROUTE, *, width: int = 8
) -> tuple[FrameHeader, tuple[memoryview, ...]]:
    total = sum(r.count for r in rows)
    header = FrameHeader(5, "a", "float32", width, tuple(rows), (pack_route(route),))
    return header, (np.arange(total * width, dtype=np.float32).data.cast("B"),)


def accept(
    frame: tuple[FrameHeader, tuple[memoryview, ...]],
    *,
    ledger: Ledger | None = None,
    view: NodeView = VIEW,
    credit: Credit | None = None,
) -> Accepted:
    header, buffers = frame
    check_frame(header, buffers)
    return accept_frame(
        view,
        ledger if ledger is not None else Ledger(),
        header,
        buffers,
        credit or Credit(),
        NOW_MS,
    )


def test_rows_become_work_with_their_own_bytes() -> None:
    frame = hidden_frame([row(1, hop=1, count=2), row(2, hop=1, count=3, spec=SPEC)])
    out = accept(frame)
    assert out.refused == []
    one, two = out.work
    assert (one.seq, one.layers, one.next_hop) == (
        SeqKey(RequestId(1), Attempt(0)),
        LayerRange(2, 5),
        "z",
    )
    assert np.frombuffer(one.payload.data, np.float32).tolist() == list(range(16))
    assert np.frombuffer(two.payload.data, np.float32).tolist() == list(range(16, 40))
    assert not one.payload.is_tokens
    tail = cut_payload(two.payload, 1, 3)
    assert np.frombuffer(tail.data, np.float32).tolist() == list(range(24, 40))
    assert (tail.spec, tail.use) == (SPEC, two.payload.use)


def test_the_last_hop_answers_the_router() -> None:
    out = accept(token_frame([row(spec=SPEC)], WHOLE))
    assert out.work[0].next_hop == ROUTER
    assert out.work[0].payload.is_tokens


def test_drafts_are_taken_from_ids_or_from_the_row_and_taken_back() -> None:
    verify = SAMPLE | VERIFY
    ledger = Ledger()
    accept(token_frame([row(count=3)]), ledger=ledger)
    out = accept(token_frame([row(position=3, count=4, flags=verify)]), ledger=ledger)
    assert [(w.drafts, w.is_decode) for w in out.work] == [((1, 2, 3), True)]
    # One draft was right, two were not: what follows takes their places.
    out = accept(token_frame([row(position=5, count=1)]), ledger=ledger)
    assert (len(out.work), out.refused) == (1, [])
    out = accept(token_frame([row(position=5, count=1)]), ledger=ledger)
    assert [r.code for r in out.refused] == ["out_of_order"]
    behind = Ledger()
    accept(hidden_frame([row(hop=1, count=3)]), ledger=behind)
    drafts = row(position=3, count=3, hop=1, flags=verify, drafts=(90, 7))
    assert accept(hidden_frame([drafts]), ledger=behind).work[0].drafts == (90, 7)


def test_a_verified_row_ends_within_the_context() -> None:
    ledger = Ledger()
    accept(token_frame([row(count=60)]), ledger=ledger)
    late = row(position=60, count=5, flags=SAMPLE | VERIFY)
    assert [r.code for r in accept(token_frame([late]), ledger=ledger).refused] == ["context"]


def test_histories_are_cut_row_by_row() -> None:
    spec = SampleSpec(SamplingParams(repetition_penalty=1.1), 2, 2)
    longer = SampleSpec(SamplingParams(repetition_penalty=1.1), 2, 3)
    rows = [row(1, spec=spec), row(2), row(3, count=3, spec=longer)]
    out = accept(token_frame(rows))
    histories = [
        None if w.payload.history is None else w.payload.history.tolist() for w in out.work
    ]
    assert histories == [[0, 1], None, [0, 1, 2]]


@pytest.mark.parametrize(
    ("code", "frame"),
    [
        ("stale_epoch", token_frame([row()], epoch=3)),
        ("wrong_node", hidden_frame([row(hop=2, spec=SPEC)])),
        ("wrong_model", token_frame([row()], Route((Hop(NodeId("me"), LayerRange(0, 5)),)))),
        ("context", token_frame([row(count=65)])),
        ("no_spec", token_frame([row()], WHOLE)),
        ("deadline", token_frame([row(deadline_ms=NOW_MS)])),
        ("out_of_order", token_frame([row(position=3, count=1)])),
        ("out_of_order", token_frame([row(count=3), row(position=2, count=1)])),
        ("out_of_order", token_frame([row(count=3), row(position=4, count=1)])),
    ],
)  # fmt: skip
def test_each_refusal_has_its_code(
    code: str, frame: tuple[FrameHeader, tuple[memoryview, ...]]
) -> None:
    credit = Credit()
    out = accept(frame, credit=credit)
    assert [r.code for r in out.refused] == [code]
    assert out.refused[0].reason
    assert credit.times == (1 if not out.work else 0)


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(logit_bias=((100, 1.0),)), SamplingParams(stop_token_ids=(3, 2**31 - 1))],
)
def test_sampling_parameters_beyond_the_vocabulary_are_refused(sampling: SamplingParams) -> None:
    ledger = Ledger()
    out = accept(token_frame([row(spec=SampleSpec(sampling, 2, 0))], WHOLE), ledger=ledger)
    assert [r.code for r in out.refused] == ["wrong_model"]
    assert len(ledger) == 0


def test_layers_that_are_not_held_are_refused_in_words() -> None:
    out = accept(token_frame([row()]), view=replace(VIEW, held=LayerRange(0, 2)))
    assert [(r.code, r.reason) for r in out.refused] == [
        ("not_held", "me holds layers 0-1, not layers 0-2")
    ]


def test_a_sequence_keeps_its_layers() -> None:
    ledger = Ledger()
    accept(token_frame([row(count=3)]), ledger=ledger)
    out = accept(token_frame([row(position=3, count=1)], WHOLE), ledger=ledger)
    assert [(r.code, r.reason) for r in out.refused] == [
        ("wrong_layers", "the sequence was opened with other layers than layers 0-5")
    ]


def test_stale_attempts_are_dropped_without_a_word() -> None:
    ledger, credit = Ledger(), Credit()
    ledger.close(SeqKey(RequestId(1), Attempt(2)))
    out = accept(token_frame([row(attempt=1)]), ledger=ledger, credit=credit)
    assert (out.work, out.refused, credit.times) == ([], [], 1)


def test_a_newer_attempt_closes_the_older_one() -> None:
    ledger = Ledger()
    accept(token_frame([row()]), ledger=ledger)
    out = accept(token_frame([row(attempt=1)]), ledger=ledger)
    assert out.superseded == [SeqKey(RequestId(1), Attempt(0))]
    assert [w.seq.attempt for w in out.work] == [1]


def test_what_is_refused_opens_nothing() -> None:
    ledger = Ledger()
    accept(token_frame([row(count=65)]), ledger=ledger)
    accept(token_frame([row(deadline_ms=1)]), ledger=ledger)
    assert len(ledger) == 0
    assert accept(token_frame([row()]), ledger=ledger).work


@pytest.mark.parametrize("fine", [0, 100])
@pytest.mark.parametrize("ids", [[0, 100], [-1, 3], [2**31 - 1, 0]])
def test_token_ids_outside_the_vocabulary_break_the_frame(ids: list[int], fine: int) -> None:
    credit, ledger = Credit(), Ledger()
    rows, ids = [row(count=2 + fine)], [7] * fine + ids
    with pytest.raises(FrameError, match=f"{min(ids)}..{max(ids)} .* of 100") as caught:
        accept(token_frame(rows, ids=ids), ledger=ledger, credit=credit)
    assert caught.value.reason == "token_id"
    assert credit.times == 1
    assert len(ledger) == 0


def test_history_outside_the_vocabulary_breaks_the_frame() -> None:
    credit = Credit()
    header, buffers = token_frame([row(spec=SampleSpec(SamplingParams(), 2, 2))])
    bad = np.array([5, 100], np.int32).data.cast("B")
    with pytest.raises(FrameError) as caught:
        accept((header, (buffers[0], bad)), credit=credit)
    assert (caught.value.reason, credit.times) == ("token_id", 1)


def test_activations_of_another_width_break_the_frame() -> None:
    credit = Credit()
    with pytest.raises(FrameError, match="width 16, this model's are 8"):
        accept(hidden_frame([row(hop=1)], width=16), credit=credit)
    assert credit.times == 1


@given(
    rows=st.lists(
        st.builds(
            row,
            request=st.integers(1, 3),
            position=st.integers(0, 6),
            count=st.integers(1, 6),
            attempt=st.integers(0, 2),
            flags=st.sampled_from([0, SAMPLE]),
            deadline_ms=st.sampled_from([0, 1, NOW_MS + 1]),
        ),
        min_size=1,
        max_size=12,
    ),
    epoch=st.sampled_from([3, 5]),
    pieces=st.lists(st.integers(1, 3), min_size=1, max_size=4),
)
def test_credit_comes_back_once_when_the_last_token_is_taken(
    rows: list[Row], epoch: int, pieces: list[int]
) -> None:
    """Whatever is refused or accepted, cut and taken in whatever pieces."""
    credit, ledger = Credit(), Ledger()
    out = accept(token_frame(rows, epoch=epoch), ledger=ledger, credit=credit)
    assert credit.times == (0 if out.work else 1)
    assert len(out.work) + len(out.refused) <= len(rows)
    for index, work in enumerate(out.work):
        left = work.count
        while left:
            taken = min(left, pieces[left % len(pieces)])
            left -= taken
            work.payload.use.take(taken)
            last = index == len(out.work) - 1 and left == 0
            assert credit.times == (1 if last else 0)
    # The rows of each attempt that were let in follow one another without gap or overlap.
    for seq in {w.seq for w in out.work}:
        at = 0
        for work in (w for w in out.work if w.seq == seq):
            assert work.position == at
            at += work.count


def test_frame_use_counts_down_to_one_call() -> None:
    credit = Credit()
    use = FrameUse(3, credit)
    use.take(2)
    assert credit.times == 0
    use.take(1)
    assert credit.times == 1


def test_a_long_route_is_read_once_however_many_rows_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes milliseconds, and 8,192 rows fit into a frame."""
    hops = [Hop(NodeId("a"), LayerRange(n, n + 1)) for n in range(300)]
    route = Route((*hops, Hop(NodeId("me"), LayerRange(300, 301))))
    read: list[bytes] = []
    unpack = frames._unpack_route

    def counted(blob: bytes) -> Route:
        read.append(blob)
        return unpack(blob)

    monkeypatch.setattr(frames, "_unpack_route", counted)
    rows = [row(n, count=1, hop=300) for n in range(50)]
    header, buffers = hidden_frame(rows, route)
    check_sender(header)
    accepted = accept((header, buffers))
    assert [item.code for item in accepted.refused] == ["wrong_model"] * 50
    # As it is decoded, for its sender, and for its rows.
    assert len(read) == 3


def test_what_is_known_of_routes_is_bounded() -> None:
    view = replace(VIEW)
    for n in range(3000):
        hops = (Hop(NodeId(f"n{n}"), LayerRange(0, 2)), Hop(NodeId("me"), LayerRange(2, 6)))
        blob = pack_route(Route(hops))
        stop = view.stop(blob, 1)
        assert (stop.layers, stop.last, stop.code) == (LayerRange(2, 6), True, "")
        assert view.stop(blob, 1) is stop
        assert view.stop(blob, 0).code == "wrong_node"
        assert len(view.stops) <= 1024
    many = tuple(Hop(NodeId(f"node-with-a-long-name-{i}"), LayerRange(i, i + 1)) for i in range(60))
    before = len(view.stops)
    assert view.stop(pack_route(Route(many)), 59).code == "wrong_node"
    assert len(view.stops) == before
