"""Frames that are foreseen: the same rows, refusals and credit as of frames that are read."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from helix_mq.foreseen import PackedHeader
from helix_mq.frames import FRAME_HEAD, decode, pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import DIRECT, SAMPLE, SCALED, FrameHeader, SampleSpec
from helix_mq.packing import PACK
from helix_mq.sampling import SamplingParams
from helix_mq.scaled_rows import scaled_bytes
from nodes import courses
from nodes.batching import MAX_WAITING_ROWS, SeqKey
from nodes.courses import Course, Courses, Works
from nodes.frame_making import frame_of
from tests.nodes.courses_bench import (
    CONTEXT,
    FIRST,
    MIDDLE,
    VIEW,
    VOCAB,
    WHOLE,
    WIDTH,
    End,
    Frame,
    begin,
    frame,
    go_round,
    row,
)


@pytest.fixture
def ends() -> tuple[End, End]:
    return End(True), End(False)


def test_whoever_comes_twice_in_the_same_company_is_foreseen_from_then_on() -> None:
    end = End(True)
    begin(end, [1, 2, 3])
    assert not end.foreseen
    go_round(end, [1, 2, 3], 20, 10)
    assert (end.hits, end.told, len(end.foreseen)) == (8, 7, 1)
    # Another company: the old one is not expected any more, once the new one has come twice.
    go_round(end, [1, 2], 30, 4)
    assert end.hits == 8 + 2
    assert len(end.foreseen) == 1
    go_round(end, [3, 1], 34, 1)
    assert end.hits == 10


@pytest.mark.parametrize("seed", range(40))
def test_both_ways_come_to_the_same_whatever_comes(seed: int, ends: tuple[End, End]) -> None:
    """Random lives of a few requests, with all that can happen between two steps."""
    draw = random.Random(seed)
    with_courses, plain = ends
    positions = {r: draw.choice([20, 120, 250, CONTEXT - 12]) for r in range(1, 6)}

    def both(do: Callable[[End], None]) -> None:
        for end in ends:
            do(end)

    for request, position in positions.items():
        given = frame([row(request, 0, count=position)])
        both(lambda e, g=given: e.came(g))  # type: ignore[misc]
    groups = [[1, 2], [3], [4, 5]]
    last: Frame | None = None
    for _ in range(120):
        event = draw.random()
        group = draw.choice(groups)
        alive = [r for r in group if SeqKey(RequestId(r), Attempt(0)) in plain.ledger]
        rows = [row(r, positions[r], deadline_ms=9_000_000_000_000 + r) for r in alive]
        sender = "a"
        if event < 0.02 and alive:
            gone = draw.choice(alive)
            both(lambda e, g=gone: e.close(g))  # type: ignore[misc]
            continue
        if event < 0.04:
            groups = draw.choice(
                [[[1, 2], [3], [4, 5]], [[1], [2, 3], [4, 5]], [[1, 2, 3], [4, 5]]]
            )
            continue
        if event < 0.05:
            view = replace(VIEW)
            both(lambda e, v=view: e.serve(v))  # type: ignore[misc]
            continue
        if event < 0.06 and last is not None:
            both(lambda e, f=last: e.came(f))  # type: ignore[misc]
            continue
        if not rows:
            continue
        if event < 0.07:
            rows[0] = row(rows[0].request, rows[0].position + 1)
        elif event < 0.08:
            sender = "b"
        last = frame(rows)
        if event > 0.99:
            last = last[0], last[1][:-4]
        elif sender == "a" and event >= 0.07:
            for r in alive:
                positions[r] += 1
        both(lambda e, f=last, s=sender: e.came(f, s))  # type: ignore[misc]
    assert with_courses.taken == plain.taken
    assert with_courses.books() == plain.books()
    assert (plain.hits, plain.told) == (0, 0)
    assert with_courses.hits > 3
    assert with_courses.told
    for request in range(1, 6):
        with_courses.close(request)
    assert not with_courses.foreseen, "of closed sequences nothing is left"
    assert not len(with_courses.courses)


def test_what_is_expected_no_more_is_judged_like_any_other(ends: tuple[End, End]) -> None:
    """Both rows of a company have gone on apart when its next frame comes after all."""
    for end in ends:
        begin(end, [1, 2])
        go_round(end, [1, 2], 20, 4)
        end.came(frame([row(1, 24)]))
        end.came(frame([row(2, 24)]))
        end.came(frame([row(1, 24), row(2, 24)]))
        assert end.taken[-2:] == ["out_of_order"] * 2
    assert ends[0].taken == ends[1].taken
    assert ends[0].hits == 2


def test_a_closed_sequence_gets_no_rows_whoever_is_not_told() -> None:
    end = End(True)
    begin(end, [1])
    go_round(end, [1], 20, 4)
    seq = SeqKey(RequestId(1), Attempt(0))
    opened = end.ledger.opened[seq]
    end.ledger.close(seq)
    assert opened.over
    go_round(end, [1], 24, 1)
    assert end.hits == 2
    assert not end.ledger.opened


@pytest.mark.parametrize(
    "fields",
    [{"route": 1}, {"flags": SAMPLE | DIRECT}, {"route": 2, "hop": 0}],
    ids=["other routes", "another way back", "another hop"],
)
def test_rows_with_little_in_common_are_read_each_time(
    fields: dict[str, int], ends: tuple[End, End]
) -> None:
    other = Route((*MIDDLE.hops[:2], Hop(NodeId("y"), LayerRange(5, 6))))
    here = Route((Hop(NodeId("a"), LayerRange(0, 2)), Hop(NodeId("me"), LayerRange(2, 6))))
    fields = {"route": 2} if "hop" in fields else fields
    blobs = tuple(map(pack_route, (MIDDLE, other, here)))
    for end in ends:
        for start, count in ((0, 20), *((20 + n, 1) for n in range(5))):
            rows = [row(1, start, count=count), row(2, start, count=count)]
            rows[1] = structs.replace(rows[1], **fields)
            header = FrameHeader(5, "a", "float32", WIDTH, tuple(rows), blobs)
            payload = np.arange(2 * count * WIDTH, dtype=np.float32)
            end.came((PACK(header), payload.data.cast("B")))
    assert ends[0].taken == ends[1].taken
    assert ends[0].hits == 0


def test_rows_that_got_drafts_here_are_not_expected_as_they_came() -> None:
    end = End(True)
    begin(end, [1])
    go_round(end, [1], 20, 1)
    packed, _ = frame([row(1, 21)])
    header = decode([FRAME_HEAD, packed, memoryview(bytes(4 * WIDTH))]).header
    assert isinstance(header, FrameHeader)
    with_drafts = [structs.replace(work, count=2, drafts=(3,)) for work in end.last]
    for _ in range(3):
        end.courses.saw(header, [end.last[0], *with_drafts])
    assert not end.foreseen
    for _ in range(3):
        end.courses.saw(header, end.last)
    assert end.foreseen


def test_a_header_that_is_known_is_only_for_a_frames_own_rows_in_order() -> None:
    end = End(True)
    begin(end, [1, 2, 3, 4])
    go_round(end, [1, 2], 20, 5)
    go_round(end, [3, 4], 20, 5)
    assert end.told == 4
    one = list(end.last)
    go_round(end, [3, 4], 25, 1)
    two = list(end.last)
    payload = memoryview(bytes(8 * WIDTH))

    def leaves(works: Works, dtype: str = "float32") -> FrameHeader:
        header = frame_of("me", works, WIDTH, dtype, payload).header
        return header.header() if isinstance(header, PackedHeader) else header

    def known(works: Works, dtype: str = "float32") -> bool:
        course = works[0].payload.use.course
        assert course is not None
        return course.leave(works, dtype) is not None

    assert known(two)
    for works in (two[:1], two[::-1], [two[0], one[1]], [*two, *one]):
        assert not known(works)
        assert [(r.request, r.position) for r in leaves(works).rows] == [
            (w.seq.request, w.position) for w in works
        ]
    far = [structs.replace(work, position=CONTEXT + 7) for work in two]
    assert not known(far)
    before = [structs.replace(work, position=20) for work in two]
    assert not known(before)
    assert not known(two, "bfloat16")
    assert leaves(two, "bfloat16").dtype == "bfloat16"
    assert known(two, "bfloat16"), "the link's form has changed, and from now on it is that one"
    assert leaves(two).dtype == "float32"


def test_a_payload_that_is_not_the_headers_is_refused_as_ever(ends: tuple[End, End]) -> None:
    for end in ends:
        begin(end, [1])
        go_round(end, [1], 20, 3)
        packed, payload = frame([row(1, 23)])
        end.came((packed, payload[:-4]))
        assert end.taken[-1] == "length"
        end.came((packed, payload))
    assert ends[0].taken == ends[1].taken
    assert ends[0].books() == ends[1].books()


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_token_ids_are_asked_for_each_time(bad: int, ends: tuple[End, End]) -> None:
    for end in ends:
        end.came(frame([row(1, 0, hop=0, count=20)], ROUTER, FIRST), ROUTER)
        for step in range(4):
            end.came(frame([row(1, 20 + step, hop=0)], ROUTER, FIRST, [3]), ROUTER)
        assert end.hits == (2 if end.foresees else 0)
        end.came(frame([row(1, 24, hop=0)], ROUTER, FIRST, [bad]), ROUTER)
        assert end.taken[-1] == "token_id"
    assert ends[0].taken == ends[1].taken
    assert ends[0].books() == ends[1].books()


def test_tokens_handed_back_by_the_last_hop_are_foreseen_too() -> None:
    end = End(True)
    end.came(frame([row(1, 0, hop=0, count=20, flags=SAMPLE | DIRECT)], ROUTER, FIRST), ROUTER)
    for step in range(5):
        back = row(1, 20 + step, hop=0, flags=SAMPLE | DIRECT)
        end.came(frame([back], "z", FIRST, [3]), "z")
    assert (end.hits, end.told) == (3, 2)
    # By nobody else, and still by it.
    other = frame([row(1, 25, hop=0, flags=SAMPLE | DIRECT)], "z", FIRST, [3])
    end.came(other, "b")
    assert end.taken[-1] == "identity"
    end.came(other, "z")
    assert end.hits == 4


def test_deadlines_hold_for_what_is_foreseen(ends: tuple[End, End]) -> None:
    for end in ends:
        begin(end, [1])
        due_ms = int(end.clock.wall_s() * 1000) + 500
        for step in range(4):
            end.came(frame([row(1, 20 + step, deadline_ms=due_ms)]))
        assert end.hits == (2 if end.foresees else 0)
        end.clock.advance(0.5)
        end.came(frame([row(1, 24, deadline_ms=due_ms)]))
        assert end.taken[-1] == "deadline"


def test_nothing_is_foreseen_while_a_node_takes_nothing_or_its_memory_is_used_up() -> None:
    end = End(True)
    begin(end, [1])
    go_round(end, [1], 20, 4)
    link = end.links["a"]
    (known,) = end.foreseen.values()
    assert link.has_room(1000)
    nbytes = link._most_bytes - link._credit.outstanding_bytes
    assert not known.came(link, memoryview(bytes(4 * WIDTH)), nbytes + 1)
    go_round(end, [1], 24, 3)
    (known,) = end.foreseen.values()
    end.line.waiting_rows = MAX_WAITING_ROWS
    assert not known.came(link, memoryview(bytes(4 * WIDTH)), 100)
    assert end.hits == 4
    end.line.waiting_rows -= 1
    go_round(end, [1], 27, 2)
    assert end.hits == 5


def test_what_came_is_not_kept_and_nothing_is_when_the_node_stops() -> None:
    end = End(True)
    begin(end, [1])
    for step in range(5):
        packed, payload = frame([row(1, 20 + step)])
        memory = payload.obj
        end.came((packed, payload))
        end.last = []
        payload.release()
        assert isinstance(memory, bytearray)
        # A BufferError while anybody has a view of it.
        memory.clear()
    assert end.foreseen
    end.courses.stop()
    assert not end.foreseen
    assert end.courses.view is None
    end.courses.serve(VIEW)
    assert end.courses.view is None
    go_round(end, [1], 25, 3)
    assert not end.foreseen


def test_rows_in_eight_bits_are_read_each_time() -> None:
    end = End(True)
    begin(end, [1])
    for step in range(4):
        header = FrameHeader(5, "a", SCALED, WIDTH, (row(1, 20 + step),), (pack_route(MIDDLE),))
        end.came((PACK(header), memoryview(bytes(scaled_bytes(WIDTH)))))
        assert end.ledger.opened[SeqKey(RequestId(1), Attempt(0))].next_position == 21 + step
    assert not end.foreseen


def test_where_expecting_comes_to_nothing_it_is_done_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Companies in an order and then in the other, over and over; then one that stays."""
    learned = 0
    expect = Courses.expect

    def noted(self: Courses, course: Course, step: int) -> None:
        nonlocal learned
        learned += step == 1
        expect(self, course, step)

    monkeypatch.setattr(Courses, "expect", noted)
    end = End(True)
    begin(end, [1, 2])
    for turn in range(80):
        go_round(end, [1, 2], 20 + 2 * turn, 1)
        go_round(end, [2, 1], 21 + 2 * turn, 1)
    assert end.hits == 0
    assert 1 <= learned <= 4 + 160 / 16
    go_round(end, [1, 2], 180, 60)
    assert end.hits >= 60 - 18
    # What has kept together for long is expected at once again.
    before, hits = learned, end.hits
    go_round(end, [2, 1], 240, 3)
    go_round(end, [1, 2], 243, 3)
    assert learned == before + 2
    assert end.hits == hits + 2 * 2


def test_a_request_with_two_rows_in_a_frame_is_read_each_time(ends: tuple[End, End]) -> None:
    for end in ends:
        begin(end, [1])
        for step in range(0, 10, 2):
            end.came(frame([row(1, 20 + step), row(1, 21 + step)]))
    assert ends[0].taken == ends[1].taken
    assert not ends[0].foreseen


def test_what_a_node_hands_itself_is_not_expected_over_a_link() -> None:
    end = End(True)
    end.links["me"] = end.link("me")
    first = row(1, 0, hop=0, count=20, flags=SAMPLE | DIRECT)
    first = structs.replace(first, spec=SampleSpec(SamplingParams(), 2, 0))
    end.came(frame([first], ROUTER, WHOLE), ROUTER)
    for step in range(4):
        back = row(1, 20 + step, hop=0, flags=SAMPLE | DIRECT)
        end.came(frame([back], "me", WHOLE, [3]), "me")
    assert end.ledger.opened[SeqKey(RequestId(1), Attempt(0))].next_position == 24
    assert not end.foreseen


def test_headers_that_leave_are_worked_out_a_few_times_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link whose form changes all the time, and one whose headers are too long to be kept."""
    end, asked = End(True), 0
    begin(end, [1])
    go_round(end, [1], 20, 3)

    def none(header: FrameHeader, max_context: int) -> None:
        nonlocal asked
        asked += 1

    monkeypatch.setattr(courses, "steps_of", none)
    for step in range(10):
        go_round(end, [1], 23 + step, 1)
        frame_of("me", end.last, WIDTH, ("bfloat16", "float16")[step % 2], memoryview(b""))
    assert end.hits == 11
    assert asked <= 4
