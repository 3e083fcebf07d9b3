"""Faults under load against real processes: a short `helix-mq bench chaos`.

The long runs, 50 rounds of 32 streams and soaks of all kinds, are kept in bench/results.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

import bench.chaos.run
from bench.chaos.catalogue import Known, answer_all, draw_asks
from bench.chaos.cluster import ChaosCluster, Plan
from bench.chaos.faults import Kind
from bench.chaos.load import Load
from bench.chaos.report import ChaosReport
from bench.chaos.run import ChaosOptions, ChaosRun
from bench.chaos.tiny_model import write_tiny_model
from helix_mq.client import Client

pytestmark = [pytest.mark.journey, pytest.mark.alone, pytest.mark.timeout(900)]

KINDS = (
    Kind.KILL,
    Kind.RESTART,
    Kind.HANG,
    Kind.DRAIN,
    Kind.CUT,
    Kind.CONTROL,
    Kind.REPLACE,
)
"""The others are links that break in other ways; the long runs have them all."""
SEED = 894
"""Each kind comes once, hanging on two nodes at a time, and faults last as short as they may."""


async def test_faults_lose_no_token_and_leak_nothing(tmp_path: Path) -> None:
    options = ChaosOptions(
        model=write_tiny_model(tmp_path / "model"),
        folder=tmp_path,
        seed=SEED,
        rounds=len(KINDS),
        streams=6,
        catalogue=10,
        only=KINDS,
    )
    said: list[str] = []
    kept: list[ChaosReport] = []
    report = await ChaosRun(options, said.append, kept.append).run()
    assert report.violations == (), "\n".join(said)
    assert len(report.rounds) == len(KINDS)
    assert set(report.faults()) == set(KINDS)
    assert report.rerouted > 0, "no fault hit a request: nothing was tested"
    assert report.finished > options.streams
    assert [len(r.rounds) for r in kept] == list(range(1, len(KINDS) + 1))
    assert kept[-1].rounds == report.rounds
    assert report.passed
    assert not kept[-1].passed, "its books were not closed yet"


async def test_a_run_that_is_cancelled_takes_its_processes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.chaos.run, "LAYOUT", {"alpha": (0, 1), "beta": (0, 1)})
    options = ChaosOptions(
        model=write_tiny_model(tmp_path / "model"),
        folder=tmp_path,
        seed=48,  # its first fault comes after few tokens
        streams=2,
        catalogue=4,
        only=(Kind.BREAK,),
    )
    under_load = asyncio.Event()

    def say(text: str) -> None:
        if text.startswith("1: "):
            under_load.set()

    running = asyncio.create_task(ChaosRun(options, say).run())
    await asyncio.wait_for(under_load.wait(), 240)
    running.cancel()
    await asyncio.wait({running}, timeout=240)
    assert running.cancelled()
    left = psutil.Process().children(recursive=True)
    assert not [p.pid for p in left if any(str(tmp_path) in word for word in p.cmdline())]


async def test_a_wrong_answer_would_be_seen(tmp_path: Path) -> None:
    """The trial itself: with other answers expected, each difference is written down."""
    model = write_tiny_model(tmp_path / "model")
    asks = draw_asks(seed=3, count=6, vocab_size=256, longest_tokens=60)
    async with ChaosCluster(Plan(model, {"one": "0:6"}), tmp_path / "one") as alone:
        await alone.whole(240)
        async with Client(alone.clients) as client:
            known = [k for k in await answer_all(client, asks) if len(k.token_ids) > 2]
            right = known[0]
            ids = right.token_ids
            for kind, token_ids in (
                ("wrong", (*ids[:-1], (ids[-1] + 1) % 256)),
                ("wrong", ids[:-1]),
                ("missing", (*ids, 7)),
            ):
                expected = Known(right.ask, token_ids, right.text, right.finish_reason)
                load = Load(client, [expected], streams=1, seed=1, deadline_s=30)
                load.start()
                await load.tokens_more(3 * len(ids))
                await load.stop()
                assert kind in {t.kind for t in load.tally.troubles}
            load = Load(client, known, streams=4, seed=1, deadline_s=30)
            load.start()
            await load.tokens_more(200)
            await load.stop()
            assert load.tally.troubles == []
            assert load.tally.finished > 0
        await alone.idle(240)
