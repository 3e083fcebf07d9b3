"""The worker around an engine of the test's: closing while a step runs, refusals, stalls, credit.

The engine books pages as the real one does and fails loudly when it is touched during a step.
"""

from __future__ import annotations

import asyncio

import pytest

import nodes.worker
from helix_mq.errors import FrameError, KvExhausted
from helix_mq.ids import ROUTER
from nodes.batching import BatchLimits
from tests.nodes.worker_bench import (
    ONWARD,
    WAIT_S,
    bench,
    decode,
    guessed,
    key,
    prompt,
)


async def test_a_prompt_then_decodes_become_tokens() -> None:
    async with bench() as b:
        b.frame(prompt(1))
        await b.until(lambda: len(b.tokens) == 1)
        b.frame(decode(1, 4))
        await b.until(lambda: len(b.tokens) == 2)
        assert [(t.position, t.token) for t in b.tokens] == [(4, 7), (5, 7)]
        b.release(1)
        assert b.engine.freed == [key(1)]
        statistics = b.worker.statistics()
        assert (statistics.steps, statistics.tokens, statistics.layer_tokens) == (2, 5, 20)


async def test_decodes_begin_at_once_when_none_can_join_them() -> None:
    """Prompts never do: others may come in the same turn."""
    async with bench() as b:
        b.frame(prompt(1), prompt(2))
        assert not b.worker._loop.busy
        await b.until(lambda: len(b.tokens) == 2)
        b.frame(decode(1, 4))
        assert not b.worker._loop.busy, "the other one may come in this turn"
        b.frame(decode(2, 4))
        assert b.worker._loop.busy
        await b.until(lambda: len(b.tokens) == 4)
        assert b.engine.batches[-1] == [(key(1), 4, 1), (key(2), 4, 1)]
        b.frame(decode(1, 5))
        b.frame(prompt(3))
        assert not b.worker._loop.busy
        await b.until(lambda: len(b.tokens) == 6)


async def test_a_sequence_closed_during_a_step_is_freed_after_it_and_says_nothing() -> None:
    async with bench() as b:
        b.engine.gate.clear()
        b.frame(prompt(1), prompt(2))
        await b.engine.started.wait()
        b.release(1)
        assert b.engine.freed == [], "the device still reads these pages"
        assert b.worker.statistics().open_requests == 1
        b.engine.gate.set()
        await b.until(lambda: bool(b.tokens))
        assert [t.request for t in b.tokens] == [2]
        assert b.engine.freed == [key(1)]


async def test_a_frame_of_closed_sequences_only_is_not_sent() -> None:
    async with bench() as b:
        b.engine.gate.clear()
        b.frame(prompt(1), route=ONWARD)
        await b.engine.started.wait()
        b.release(1)
        b.engine.gate.set()
        await b.until(lambda: b.credited == 1)
        assert b.sent == []


async def test_without_pages_only_that_sequence_is_refused() -> None:
    async with bench(pages=10) as b:
        b.frame(prompt(1, 8), prompt(2, 8), prompt(3, 2))
        await b.until(lambda: len(b.tokens) == 2)
        assert [t.request for t in b.tokens] == [1, 3]
        assert b.refused == [(2, "kv_exhausted")]
        assert key(2) in b.engine.freed


async def test_a_batch_refused_whole_does_not_hold_up_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No grace period, no overdraft: the next batch follows at once."""
    monkeypatch.setattr(nodes.worker, "STALL_GRACE_S", 3600.0)
    async with bench(pages=4, limits=BatchLimits(prefill_tokens=8)) as b:
        b.frame(prompt(1, 8), prompt(2, 4))
        await b.until(lambda: len(b.tokens) == 1)
        assert b.refused == [(1, "kv_exhausted")]
        assert b.overdrafts == 0


async def test_a_step_that_fails_refuses_its_rows_and_the_node_goes_on() -> None:
    async with bench() as b:
        b.engine.faults = [RuntimeError("device fault"), KvExhausted("pages went")]
        b.frame(prompt(1))
        await b.until(lambda: len(b.refused) == 1)
        b.frame(prompt(2))
        await b.until(lambda: len(b.refused) == 2)
        assert b.refused == [(1, "step_failed"), (2, "kv_exhausted")]
        b.frame(prompt(3))
        await b.until(lambda: bool(b.tokens))
        assert b.worker.statistics().open_requests == 1


async def test_a_row_that_cannot_be_admitted_is_refused_and_the_others_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        b.engine.admit_faults = [RuntimeError("books are wrong")]
        b.frame(prompt(1), prompt(2))
        await b.until(lambda: bool(b.tokens))
        assert b.refused == [(1, "step_failed")]
        assert [t.request for t in b.tokens] == [2]
        assert b.engine.freed == [key(1)]
        b.frame(prompt(3))
        await b.until(lambda: len(b.tokens) == 2)
    assert "books are wrong" in caplog.text


async def test_a_lost_link_gives_up_what_crosses_it_and_nothing_else() -> None:
    async with bench() as b:
        b.frame(prompt(1), route=ONWARD)
        b.frame(prompt(2))
        await b.until(lambda: len(b.sent) == 2)
        b.worker.on_link_lost("z")
        assert b.refused == [(1, "link_lost")]
        assert b.engine.freed == [key(1)]
        b.worker.on_link_lost("z")
        assert b.refused == [(1, "link_lost")], "said once"
        b.frame(decode(2, 4))
        await b.until(lambda: len(b.tokens) == 2)


async def test_refusals_that_a_broken_link_may_have_lost_are_said_again() -> None:
    """The sequence is closed here: were the refusal lost, its request would wait for ever."""
    async with bench(pages=4) as b:
        b.frame(prompt(1, 8), route=ONWARD)
        await b.until(lambda: bool(b.refused))
        b.worker.on_link_lost("z")
        assert b.refused == [(1, "kv_exhausted")]
        b.worker.on_link_lost(ROUTER)
        assert b.refused == [(1, "kv_exhausted")] * 2


async def test_without_a_link_to_the_next_hop_the_rows_are_refused() -> None:
    async with bench() as b:
        b.unreachable.add("z")
        b.frame(prompt(1), route=ONWARD)
        await b.until(lambda: bool(b.refused))
        assert b.refused == [(1, "no_peer")]


async def test_passed_deadlines_close_running_sequences() -> None:
    async with bench() as b:
        deadline_ms = int((b.clock.wall_s() + 5) * 1000)
        b.frame(prompt(1, deadline_ms=deadline_ms))
        await b.until(lambda: bool(b.tokens))
        b.clock.advance(6)
        b.worker.wake()
        await b.until(lambda: bool(b.refused))
        assert b.refused == [(1, "deadline")]
        assert b.engine.freed == [key(1)]


async def test_a_newer_attempt_takes_over_from_the_older_one() -> None:
    async with bench() as b:
        b.engine.gate.clear()
        b.frame(prompt(1, 100))
        await b.engine.started.wait()
        b.frame(prompt(1, 50, attempt=1))
        b.engine.gate.set()
        await b.until(lambda: bool(b.tokens))
        assert [(t.attempt, t.position) for t in b.tokens] == [(1, 50)]
        assert b.engine.freed == [key(1)]


async def test_two_attempts_in_one_frame_leave_only_the_newer_one() -> None:
    async with bench() as b:
        b.frame(prompt(1, 4), prompt(1, 4, attempt=1))
        b.worker.check()
        await b.until(lambda: bool(b.tokens))
        assert [t.attempt for t in b.tokens] == [1]


async def test_blocked_prefill_waits_for_credit_and_decodes_go_on() -> None:
    async with bench() as b:
        b.frame(prompt(2))
        await b.until(lambda: len(b.tokens) == 1)
        b.blocked.add("z")
        b.frame(prompt(1), route=ONWARD)
        b.frame(decode(2, 4))
        await b.until(lambda: len(b.tokens) == 2)
        assert not [m for p, m in b.sent if p == "z"]
        b.blocked.clear()
        b.worker.wake()
        await b.until(lambda: bool([m for p, m in b.sent if p == "z"]))
        assert b.overdrafts == 0


async def test_a_stall_ends_in_an_overdraft_however_often_it_is_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peers repeat their grants all the time; that alone must not put the overdraft off."""
    monkeypatch.setattr(nodes.worker, "STALL_GRACE_S", 0.05)
    async with bench() as b:
        b.blocked.add("z")
        b.frame(prompt(1), route=ONWARD)

        async def keep_waking() -> None:
            while not b.overdrafts:
                b.worker.wake()
                await asyncio.sleep(0)

        async with asyncio.timeout(WAIT_S):
            await keep_waking()
        b.release(1)


async def test_cancelling_the_loop_waits_for_the_step() -> None:
    """The device thread must not run on with pages that are already someone else's."""
    async with bench(run=False) as b:
        task = asyncio.create_task(b.worker.run())
        b.engine.gate.clear()
        b.frame(prompt(1))
        await b.engine.started.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        b.engine.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not b.engine.running
        assert b.tokens == []


async def test_a_bad_frame_is_an_error_for_its_sender_and_credit_comes_back() -> None:
    async with bench() as b:
        with pytest.raises(FrameError):
            b.frame(prompt(1), ids=100)
        assert b.credited == 1
        b.frame(prompt(1))
        await b.until(lambda: bool(b.tokens))


async def test_closing_all_gives_back_rows_that_wait() -> None:
    async with bench(run=False) as b:
        b.frame(prompt(1), prompt(2))
        b.frame(prompt(3), route=ONWARD)
        b.worker.close_all()
        assert b.worker.statistics().waiting_rows == 0
        assert b.credited == 2


async def test_an_epoch_that_is_assigned_again_refuses_what_is_open_under_it() -> None:
    """A node that was away may register many times, and be assigned as often: after the first it
    has requests of now."""
    async with bench() as b:
        b.frame(prompt(1))
        await b.until(lambda: len(b.tokens) == 1)
        (epoch,) = b.worker.view.epochs
        b.worker.close_epoch(epoch + 1)
        assert b.refused == []
        b.worker.close_epoch(epoch)
        assert b.refused == [(1, "not_ready")]
        assert b.worker.statistics().open_requests == 0


async def test_what_is_closed_with_the_slice_is_refused() -> None:
    """An assignment that comes twice must not leave requests waiting for tokens for ever."""
    async with bench() as b:
        b.frame(prompt(1))
        await b.until(lambda: len(b.tokens) == 1)
        b.engine.gate.clear()
        b.frame(prompt(2, count=40))
        b.worker.close_all()
        assert b.refused == [(1, "not_ready"), (2, "not_ready")]
        b.engine.gate.set()
        b.frame(decode(1, 4))
        assert b.refused[2:] == [], "it is known to be closed"


async def test_drafts_without_room_are_left_out_and_the_text_goes_on() -> None:
    async with bench(pages=10) as b:
        b.frame(prompt(1), prompt(2))
        await b.until(lambda: len(b.tokens) == 2)
        # Two pages are left: one for the token and one for the first of five drafts.
        b.frame(guessed(1, 4, drafts=5))
        await b.until(lambda: len(b.tokens) == 3)
        assert b.engine.batches[-1] == [(key(1), 4, 2)]
        # Behind what has run, and nowhere else: the three others have no KV.
        b.frame(decode(1, 7))
        await b.until(lambda: b.refused == [(1, "out_of_order")])
        b.release(2)
        b.frame(prompt(3, 1))
        await b.until(lambda: len(b.tokens) == 4)


async def test_drafts_that_others_came_behind_run_whole_or_not_at_all() -> None:
    async with bench(pages=8) as b:
        b.frame(prompt(1))
        await b.until(lambda: len(b.tokens) == 1)
        b.frame(guessed(1, 4, drafts=7), decode(1, 12))
        await b.until(lambda: b.refused == [(1, "kv_exhausted")])
