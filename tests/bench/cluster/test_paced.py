"""Engines held to given speeds: what steps last is what the simulator's tables say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from bench.cluster.paced import NodeLog, Pace, StepLog, paced_load, table_of
from bench.cluster.run import pace_of
from bench.cluster.stand_in import memory_for, most_pages, write_stand_in
from bench.simulator.step_times import one_token_pass_s
from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError
from helix_mq.ids import Attempt, RequestId
from helix_mq.layers import LayerRange
from helix_mq.models.digest import model_digest
from helix_mq.sampling import SamplingParams
from helix_mq.transport import MemoryTransport
from nodes.batching import SeqKey, Work
from nodes.daemon import NodeDaemon
from nodes.identity import NodeIdentity
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings, SecuritySection
from router.main import build_app
from router.service import Generation
from router.settings import PlacementSection, RouterSettings, SpeculationSection
from solver.objective import StepTimes
from tests.cluster import Cluster

TIMES = StepTimes(
    prefill=((0.0, 0.0), (1000.0, 1.0)), decode=((0.0, 0.0), (1.0, 0.01), (65.0, 0.074))
)
"""A prompt token takes 1 ms per layer, a pass 10 ms, each further decode 1 ms."""
LAYERS = LayerRange(0, 2)


class Watch:
    """A clock that moves by what is slept, and by what a step is said to compute."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.at_s += seconds


def row(number: int, count: int, *, decode: bool, layers: LayerRange = LAYERS) -> Work[None]:
    position = 7 if decode else 0
    return Work(
        SeqKey(RequestId(number), Attempt(0)), position, count, layers, "next", decode, None
    )


def test_a_step_is_waited_out_to_what_the_table_says() -> None:
    watch = Watch()
    pace = Pace(table_of(TIMES), watch.now_s, watch.sleep)
    began_s = watch.at_s
    watch.at_s += 0.003
    lasted_s = pace.wait_out([row(1, 1, decode=True), row(2, 1, decode=True)], began_s)
    # Two layers, 10 ms and 1 ms more for the second decode.
    assert lasted_s == pytest.approx(0.022)
    assert watch.at_s == pytest.approx(100.022)
    (step,) = pace.steps
    assert (step.decodes, step.prefill_tokens, step.layers) == (2, 0, 2)
    assert step.computed_s == pytest.approx(0.003)


def test_rows_of_different_layers_cost_what_each_layer_has_to_do() -> None:
    watch = Watch()
    pace = Pace(table_of(TIMES), watch.now_s, watch.sleep)
    rows = [
        row(1, 1, decode=True, layers=LayerRange(0, 2)),
        row(2, 12, decode=False, layers=LayerRange(1, 3)),
    ]
    # A decode alone, both, and a chunk alone, which is no cheaper than a pass.
    assert pace.wait_out(rows, watch.at_s) == pytest.approx(0.010 + (0.010 + 0.012) + 0.012)
    assert (pace.steps[0].prefill_tokens, pace.steps[0].layers) == (12, 3)


def test_computing_that_takes_longer_is_in_the_books() -> None:
    watch = Watch()
    pace = Pace(table_of(TIMES), watch.now_s, watch.sleep)
    began_s = watch.at_s
    watch.at_s += 0.5
    assert pace.wait_out([row(1, 1, decode=True)], began_s) == pytest.approx(0.5)
    found = pace_of(NodeLog("a", tuple(pace.steps)), 0.0, 1e9)
    assert (found.steps, found.overran_share) == (1, 1.0)
    assert found.longer == pytest.approx(25.0)


def test_only_steps_of_the_window_count_and_gaps_are_of_those_that_follow_closely() -> None:
    steps = [StepLog(t, t + 0.02, 0.02, 0.01, 1, 0, 1) for t in (0.0, 1.0, 1.021, 1.042, 2.0)]
    found = pace_of(NodeLog("a", tuple(steps)), 0.5, 1.5)
    assert found.steps == 3
    assert found.gap_s == pytest.approx(0.001)
    assert found.computing_share == pytest.approx(0.5)
    assert pace_of(NodeLog("a", ()), 0.0, 1.0).longer == 1.0


def test_a_model_that_does_not_fit_the_wire_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        write_stand_in(tmp_path, 2, 1022)


async def test_a_cluster_of_paced_nodes_serves_and_keeps_their_books(tmp_path: Path) -> None:
    """The production daemon with paced engines: KV rooms as asked for, every step in the books and
    waited out, prompts and decodes counted once per layer range."""
    folder = write_stand_in(tmp_path / "model", 4, 256)
    slices = {"a": LayerRange(0, 1), "b": LayerRange(1, 4)}
    pages = {"a": 300, "b": 901}
    assert pages["b"] < most_pages(3)
    transport = MemoryTransport()
    settings = RouterSettings(
        model=folder,
        control="mem://control",
        clients="mem://clients",
        data="mem://data",
        token_return="router",
        speculation=SpeculationSection(enabled=False),
        placement=PlacementSection(nodes={n: f"{r.first}:{r.end}" for n, r in slices.items()}),
    )
    running = Cluster(build_app(settings, folder, transport, SystemClock()), folder, transport)
    await running.app.start()
    watches = {name: Watch() for name in slices}
    paces = {n: Pace(table_of(TIMES), w.now_s, w.sleep) for n, w in watches.items()}
    try:
        for name, held in slices.items():
            memory = memory_for(folder, held, pages[name])
            daemon = NodeDaemon(
                NodeSettings(
                    name=name,
                    router="mem://control",
                    listen=f"mem://data-{name}",
                    model=folder,
                    memory=memory,
                    heartbeat_s=0.1,
                ),
                NodeIdentity(
                    folder, model_digest(folder), torch.device("cpu"), "cpu", torch.float32, memory
                ),
                transport,
                NodeSecurity(SecuritySection()),
                SystemClock(),
                load=paced_load(TIMES, paces[name]),
            )
            running.daemons[name] = daemon
            running.tasks[name] = asyncio.create_task(daemon.run())
        await running.ready()
        sampling = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
        results = await asyncio.gather(
            *(running.run(Generation(tuple(range(9)), sampling)) for _ in range(3))
        )
        assert [len(r.token_ids) for r in results] == [5, 5, 5]
        for name, held in slices.items():
            loaded = running.daemons[name].loaded
            assert loaded is not None
            assert loaded.kv_pages == pages[name]
            assert loaded.profile.pass_s == pytest.approx(len(held) * one_token_pass_s(TIMES))
            steps = paces[name].steps
            assert sum(s.prefill_tokens for s in steps) == 3 * 9
            assert sum(s.decodes for s in steps) == 3 * 4
            assert {s.layers for s in steps} == {len(held)}
            # All of the clock's time is the waits, and nothing computes on it.
            assert watches[name].at_s - 100.0 == pytest.approx(sum(s.wanted_s for s in steps))
            # Nobody may take it for a machine that has become slow.
            work = running.daemons[name].workers[0].statistics()
            assert work.expected_s == pytest.approx(sum(s.wanted_s for s in steps))
            assert work.step_s == pytest.approx(work.expected_s)
            assert min(s.wanted_s for s in steps) >= len(held) * one_token_pass_s(TIMES)
        await running.quiet()
    finally:
        for daemon in running.daemons.values():
            daemon.stop()
        await asyncio.gather(*running.tasks.values(), return_exceptions=True)
        await running.app.close()
        await transport.close()
