"""Lines at a link's end: urgent first, no sequence out of order, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_mq.link_queue import LinkQueue


def _any(nbytes: int) -> bool:
    return True


def drain(queue: LinkQueue[int]) -> list[int]:
    out = []
    while (found := queue.next_frame(_any, _any)) is not None:
        out.append(found[0])
        queue.sent()
    return out


def test_urgent_frames_pass_bulk_of_others() -> None:
    queue: LinkQueue[int] = LinkQueue()
    queue.push(1, 100, ["a"], urgent=False)
    queue.push(2, 100, ["b"], urgent=False)
    queue.push(3, 10, ["c"], urgent=True)
    assert (len(queue), queue.waiting_bytes, queue.bulk_frames, queue.urgent_frames) == (
        3,
        210,
        2,
        1,
    )
    assert drain(queue) == [3, 1, 2]
    assert (len(queue), queue.waiting_bytes) == (0, 0)


def test_a_sequence_never_overtakes_itself() -> None:
    queue: LinkQueue[int] = LinkQueue()
    queue.push(1, 100, ["a"], urgent=False)
    queue.push(2, 10, ["b", "a"], urgent=True)
    queue.push(3, 10, ["b"], urgent=True)
    assert drain(queue) == [1, 2, 3]
    queue.push(4, 10, ["a"], urgent=True)
    assert drain(queue) == [4]


def test_bulk_waits_for_its_turn_and_urgent_for_room() -> None:
    queue: LinkQueue[int] = LinkQueue()
    queue.push(1, 100, ["a"], urgent=False)
    assert queue.next_frame(_any, lambda n: False) is None
    queue.push(2, 10, ["b"], urgent=True)
    assert queue.next_frame(_any, lambda n: False) == (2, 10)
    assert queue.next_frame(lambda n: n > 10, _any) is None, "bulk must not take urgent room"
    queue.clear()
    assert (len(queue), queue.waiting_bytes) == (0, 0)
    queue.push(3, 1, ["a"], urgent=True)
    assert queue.urgent_frames == 1, "what was cleared holds nobody back"


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), st.booleans()),
        max_size=30,
    ),
    st.data(),
)
def test_each_sequence_leaves_in_order(
    frames: list[tuple[list[int], bool]], data: st.DataObject
) -> None:
    """Whatever is pushed and taken in between: per sequence order holds but for urgent frames that
    pass earlier urgent ones never, and nothing is lost or doubled."""
    queue: LinkQueue[int] = LinkQueue()
    out: list[int] = []
    for number, (keys, urgent) in enumerate(frames):
        queue.push(number, 1 + number, keys, urgent=urgent)
        if data.draw(st.booleans()):
            found = queue.next_frame(_any, _any)
            assert found is not None
            out.append(found[0])
            queue.sent()
    out += drain(queue)
    assert sorted(out) == list(range(len(frames)))
    place = {number: i for i, number in enumerate(out)}
    for later, (keys, _) in enumerate(frames):
        for earlier in range(later):
            if set(keys) & set(frames[earlier][0]) and frames[earlier][1] <= frames[later][1]:
                # An urgent one may be passed only by... nobody; a bulk one by no own frame.
                assert place[earlier] < place[later]
