"""Drafts of a first hop: texts put together from what passes it, bounded in every way."""

from __future__ import annotations

import numpy as np
import pytest

from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SampleSpec
from helix_mq.sampling import SamplingParams
from nodes import first_drafts
from nodes.batching import Work
from nodes.first_drafts import DRAFTS_AT_ONCE, FirstDrafts
from nodes.payload import FrameUse, Payload
from tests.nodes.worker_bench import key

ROUTE = Route((Hop(NodeId("me"), LayerRange(0, 2)), Hop(NodeId("z"), LayerRange(2, 4))))
AGAIN = (5, 6, 7, 8) * 6


def work(
    ids: tuple[int, ...], position: int, *, request: int = 1, prompt: bool = False,
    spec: SampleSpec | None = None, use: FrameUse | None = None, direct: bool = True, hop: int = 0,
) -> Work[Payload]:  # fmt: skip
    payload = Payload(
        "int32", 1, np.array(ids, "<i4").data.cast("B"), use or FrameUse(len(ids), lambda: None),
        ROUTE, b"", hop, 1, 0, spec, None, direct=direct, drafting=prompt,
    )  # fmt: skip
    return Work(key(request), position, len(ids), LayerRange(0, 2), "z", True, payload)


def spec(prompt_tokens: int, max_tokens: int = 1000) -> SampleSpec:
    return SampleSpec(SamplingParams(max_tokens=max_tokens), prompt_tokens, 0)


def began(
    ids: tuple[int, ...] = AGAIN, at: int = 0, *, max_tokens: int = 1000, request: int = 1,
    drafts: FirstDrafts | None = None,
) -> FirstDrafts:  # fmt: skip
    drafts = FirstDrafts(4096) if drafts is None else drafts
    half = len(ids) // 2
    for part, position in ((ids[:half], at), (ids[half:], at + half)):
        last = spec(at + len(ids), max_tokens) if position > at else None
        row = work(part, position, prompt=True, spec=last, request=request)
        assert drafts.took(row, 1) is row
    return drafts


def ids_of(found: Work[Payload]) -> list[int]:
    return np.frombuffer(found.payload.data, "<i4").tolist()


def test_a_text_that_repeats_itself_is_drafted_on() -> None:
    drafts, end = began(), len(AGAIN)
    found = drafts.took(work((5,), end), 1)
    assert found.drafts == (6, 7, 8, 5)
    assert ids_of(found) == [5, 6, 7, 8, 5]
    assert (found.count, found.position, found.is_decode) == (5, end, True)
    # All four were right, and the token behind them came back.
    found = drafts.took(work((6,), end + 5), 1)
    assert found.drafts == (7, 8, 5, 6, 7, 8, 5, 6)
    # Two of eight were right: the next draft follows what really came.
    found = drafts.took(work((9,), end + 8), 1)
    assert found.drafts == ()
    found = drafts.took(work((5,), end + 9), 1)
    found = drafts.took(work((6,), end + 10), 1)
    assert found.drafts[:2] == (7, 8)


def test_a_text_may_begin_behind_what_is_kept_by_name() -> None:
    drafts = began(at=64)
    assert drafts.took(work((5,), 64 + len(AGAIN)), 1).drafts


def test_credit_comes_back_once_for_a_row_that_grew() -> None:
    given: list[int] = []
    use = FrameUse(2, lambda: given.append(1))
    use.arrived_s = 3.5
    found = began().took(work((5,), len(AGAIN), use=use), 1)
    assert found.payload.use.arrived_s == 3.5
    found.payload.use.take(found.count)
    assert given == []
    use.take(1)
    assert given == [1]


@pytest.mark.parametrize(("max_tokens", "most"), [(1, 0), (2, 0), (3, 1), (4, 2), (90, 4)])
def test_no_draft_goes_beyond_the_last_token(max_tokens: int, most: int) -> None:
    found = began(max_tokens=max_tokens).took(work((5,), len(AGAIN)), 1)
    assert len(found.drafts) == most


def test_nor_beyond_the_context() -> None:
    drafts = FirstDrafts(len(AGAIN) + 3)
    assert len(began(drafts=drafts).took(work((5,), len(AGAIN)), 1).drafts) == 2


@pytest.mark.parametrize(("running", "most"), [(1, 4), (20, 3), (33, 1), (65, 0)])
def test_requests_share_the_drafts_of_a_step(running: int, most: int) -> None:
    assert len(began().took(work((5,), len(AGAIN)), running).drafts) == most


@pytest.mark.parametrize(
    "row",
    [
        work((5,), len(AGAIN), direct=False),
        work((5,), len(AGAIN), hop=1),
        work((5,), len(AGAIN), request=2),
        # Behind more than was drafted: not of this text.
        work((5,), len(AGAIN) + 1),
    ],
)
def test_other_rows_stay_as_they_are(row: Work[Payload]) -> None:
    assert began().took(row, 1) is row


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = FirstDrafts(4096)
    for request in range(2 * DRAFTS_AT_ONCE):
        began(request=request, drafts=drafts)
    assert len(drafts) == DRAFTS_AT_ONCE
    for request in range(2 * DRAFTS_AT_ONCE):
        drafts.forget(key(request))
    assert len(drafts) == 0
    monkeypatch.setattr(first_drafts, "LONGEST_TEXT", len(AGAIN) + 1)
    began(drafts=drafts)
    drafts.took(work((5,), len(AGAIN)), 1)
    assert len(drafts) == 1
    drafts.took(work((6,), len(AGAIN) + 1), 1)
    assert len(drafts) == 0
    began((*AGAIN, 1, 2), drafts=drafts)
    assert len(drafts) == 0
