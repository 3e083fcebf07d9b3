"""Steps that go on from the last one without being made ready anew: the same bits, or not begun."""

from __future__ import annotations

import gc
import random
import select
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import torch

from helix_mq.foreseen import PackedHeader
from helix_mq.messages.data import FrameHeader
from helix_mq.sampling import SamplingParams
from nodes.batching import Work
from nodes.model.native import build
from nodes.model.native.products import products_for
from nodes.payload import FrameUse, Payload
from nodes.steps import Batch
from tests.nodes.model.native.plain_twins import GREEDY, WAIT_S, Checkpoint, Twins

pytestmark = pytest.mark.skipif(
    products_for(torch.float32) is None or products_for(torch.bfloat16) is None,
    reason=f"no compiled products: {build.built().reason}",
)

DRAWN = SamplingParams(temperature=0.9, top_k=20, seed=5)
TOLD = SamplingParams(temperature=0.0, logprobs=True, top_logprobs=4)
SPARED = SamplingParams(temperature=0.0, min_tokens=4, stop_token_ids=(3,))


class Company:
    """Requests whose rows come in one frame after the other, each one token on."""

    def __init__(self, twins: Twins, lengths: Sequence[int], *sampling: SamplingParams) -> None:
        self.twins = twins
        self.positions = dict(enumerate(lengths))
        prompts = [
            twins.work(n, 0, length, sampling=sampling[n % len(sampling)])
            for n, length in self.positions.items()
        ]
        twins.run(prompts)

    def are_all(self, works: Sequence[Work[Payload]]) -> bool:
        use = works[0].payload.use
        return [w.seq.request for w in works] == list(self.positions) and all(
            w.payload.use is use for w in works
        )

    def leave(self, works: Sequence[Any], dtype: str) -> tuple[PackedHeader, frozenset[Any]] | None:
        return None

    def left(self, works: Sequence[Any], header: FrameHeader) -> None:
        """Headers are made of the rows each time."""

    def next(self) -> tuple[Batch, memoryview]:
        """The next frame's rows and payload."""
        works = [self.twins.work(n, at) for n, at in self.positions.items()]
        for n in self.positions:
            self.positions[n] += 1
        payload = memoryview(b"".join(bytes(w.payload.data) for w in works))
        size, use = payload.nbytes // len(works), FrameUse(len(works), lambda: None, course=self)
        batch = []
        for at, work in enumerate(works):
            data = payload[at * size : (at + 1) * size]
            own = msgspec.structs.replace(work.payload, data=data, use=use)
            batch.append(msgspec.structs.replace(work, payload=own))
        return batch, payload

    def run(self) -> bool:
        """The next step by all engines; whether it went on from the last one."""
        self.twins.run(*self.next())
        return self.twins.again[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["whole", "first", "last"])
@pytest.mark.parametrize("lengths", [(5,), (3, 17, 30)])
def test_they_come_to_the_same_as_steps_made_ready_anew(
    checkpoint: Checkpoint, part: str, dtype: torch.dtype, lengths: tuple[int, ...]
) -> None:
    twins = Twins(checkpoint("mistral").folder, part, dtype)
    company = Company(twins, lengths, GREEDY, DRAWN, TOLD)
    page = twins.engines[2]._cache.pool.page_tokens
    for step in range(page + 4):
        fresh = step == 0 or any(at % page == 0 for at in company.positions.values())
        assert company.run() is not fresh, step
    twins.engines[2].check()


def test_of_what_leaves_each_has_memory_of_its_own(checkpoint: Checkpoint) -> None:
    """The last frame may still wait for credit."""
    twins = Twins(checkpoint("mistral").folder, "first", torch.float32)
    company, engine = Company(twins, (5, 6), GREEDY), twins.engines[2]
    for _ in range(40):
        company.run()
    left, was = [], []
    for _ in range(6):
        batch, payload = company.next()
        bell = engine.again(batch, payload)
        if bell is None:
            assert all(engine.admit(work) is None for work in batch)
            bell = engine.begin(batch)
        assert bell is not None
        assert select.select([bell], [], [], WAIT_S)[0]
        result = engine.end()
        assert result is not None
        left.append(result.frames[0].buffers[0])
        was.append(bytes(result.frames[0].buffers[0]))
    assert [bytes(buffer) for buffer in left] == was
    assert len(set(was)) == len(was)


def _another_step(company: Company) -> None:
    company.twins.run([company.twins.work(9, 0, 3)])
    company.twins.run([company.twins.work(9, 3)])


def _a_prompt(company: Company) -> None:
    company.twins.run([company.twins.work(9, 0, 3)])


def _freed(company: Company) -> None:
    _a_prompt(company)
    assert company.run() is False
    assert company.run()
    for engine in company.twins.engines:
        engine.free(company.twins.work(9, 3).seq)


def _grown(company: Company) -> None:
    for engine in company.twins.engines:
        engine.grow(engine.total_pages + 10)


def _shrunk(company: Company) -> None:
    for engine in company.twins.engines:
        engine.shrink(engine.total_pages - 10)


def _skipped(company: Company) -> None:
    company.twins.run(company.next()[0])


@pytest.mark.parametrize("meanwhile", [_another_step, _a_prompt, _freed, _grown, _shrunk, _skipped])
def test_what_has_changed_meanwhile_is_seen(
    checkpoint: Checkpoint, meanwhile: Callable[[Company], None]
) -> None:
    """The step is made ready once more, and those behind it go on from that."""
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    company = Company(twins, (5, 7), GREEDY)
    assert [company.run() for _ in range(3)] == [False, True, True]
    meanwhile(company)
    went_on = meanwhile is _skipped
    assert [company.run(), company.run()] == [went_on, True]


@pytest.mark.parametrize("part", ["first", "last"])
def test_other_rows_do_not_go_on_from_it(checkpoint: Checkpoint, part: str) -> None:
    twins = Twins(checkpoint("mistral").folder, part, torch.float32)
    company = Company(twins, (5, 7), GREEDY)
    assert [company.run() for _ in range(2)] == [False, True]
    engine = twins.engines[2]
    batch, payload = company.next()
    for wrong in (bytes(payload[4:]), bytes(payload) + bytes(4), b""):
        assert engine.again(batch, memoryview(wrong)) is None
    strangers = [
        msgspec.structs.replace(
            w, payload=msgspec.structs.replace(w.payload, use=FrameUse(2, lambda: None))
        )
        for w in batch
    ]
    assert engine.again(strangers, payload) is None
    behind, more = company.next()
    assert engine.again(behind, more) is None
    twins.run(batch, payload)
    assert twins.again[-1]


def test_a_batch_of_part_of_a_frame_is_nothing_to_go_on_from(checkpoint: Checkpoint) -> None:
    """Nor one in another order."""
    twins = Twins(checkpoint("mistral").folder, "first", torch.float32)
    company = Company(twins, (5, 5), GREEDY)
    batch, _ = company.next()
    for work in batch:
        twins.run([work])
    assert twins.begun[-2:] == [True, True]
    assert company.run() is False
    batch, _ = company.next()
    twins.run(batch[::-1])
    assert company.run() is False
    assert company.run()


def test_what_was_refused_meanwhile_may_have_moved_what_a_step_reads(
    checkpoint: Checkpoint,
) -> None:
    twins = Twins(checkpoint("mistral").folder, "last", torch.float32)
    company, engine = Company(twins, (5,), GREEDY), twins.engines[2]
    assert [company.run() for _ in range(2)] == [False, True]
    strange = [twins.work(0, 40), twins.work(0, 41)]
    assert engine.begin(strange) is None
    assert company.run() is False
    assert company.run()


def test_rows_whose_logits_are_edited_are_made_ready_each_time(checkpoint: Checkpoint) -> None:
    """Till nothing is to be edited any more."""
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    company = Company(twins, (5,), SPARED)
    went_on = [company.run() for _ in range(6)]
    assert went_on[-1]
    first = went_on.index(True)
    assert first >= SPARED.min_tokens - 1
    assert all(went_on[first:])


def test_a_token_that_there_is_not_is_left_to_who_says_so(checkpoint: Checkpoint) -> None:
    twins = Twins(checkpoint("mistral").folder, "first", torch.float32)
    company, engine = Company(twins, (5,), GREEDY), twins.engines[2]
    assert [company.run() for _ in range(2)] == [False, True]
    batch, _ = company.next()
    bell = engine.again(batch, memoryview((151).to_bytes(4, "little")))
    assert bell is not None
    assert select.select([bell], [], [], WAIT_S)[0]
    assert engine.end() is None
    twins.run(batch)
    assert company.run()


def test_nothing_goes_on_after_the_end(checkpoint: Checkpoint) -> None:
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    company = Company(twins, (5,), GREEDY)
    assert [company.run() for _ in range(2)] == [False, True]
    twins.engines[2].close()
    assert twins.engines[2].again(*company.next()) is None


def test_what_came_is_not_kept(checkpoint: Checkpoint) -> None:
    """It is the transport's memory."""

    class Memory(bytearray):
        """Can be watched."""

    twins = Twins(checkpoint("mistral").folder, "last", torch.float32)
    company, engine = Company(twins, (5,), GREEDY), twins.engines[2]
    assert [company.run() for _ in range(2)] == [False, True]
    batch, payload = company.next()
    memory = Memory(payload)
    gone = weakref.ref(memory)
    own = msgspec.structs.replace(batch[0].payload, data=memoryview(memory))
    bell = engine.again([msgspec.structs.replace(batch[0], payload=own)], memoryview(memory))
    assert bell is not None
    assert select.select([bell], [], [], WAIT_S)[0]
    assert engine.end() is not None
    del memory, own
    gc.collect()
    assert gone() is None


def test_rotations_that_are_not_known_yet_are_made_first(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.model.native.decodes.FIRST_TURNS", 8)
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    company = Company(twins, (5,), GREEDY)
    page = twins.engines[2]._cache.pool.page_tokens
    assert page > 8
    assert [company.run() for _ in range(4)] == [False, True, True, False]


def test_random_companies_are_as_they_are_alone(checkpoint: Checkpoint) -> None:
    """Whoever joins and leaves in between, and whatever else runs."""
    rng = random.Random(3)
    twins = Twins(checkpoint("mistral").folder, "whole", torch.bfloat16)
    company = Company(twins, (4, 9, 15), GREEDY, DRAWN, TOLD)
    others = 10
    for _ in range(60):
        match rng.randrange(6):
            case 0:
                others += 1
                _as_another(company, others)
            case 1 if others > 10:
                for engine in twins.engines:
                    engine.free(twins.work(others, 1).seq)
                others -= 1
            case _:
                company.run()
    assert twins.again.count(True) > 10


def _as_another(company: Company, request: int) -> None:
    company.twins.run([company.twins.work(request, 0, 2)])
