"""One scheduler, live and simulated: the same placement, lengths and number of users."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from bench.cluster.load import ClosedLoad
from bench.cluster.machines import Choices, LiveCluster
from bench.cluster.paced import NodeLog, StepLog
from bench.cluster.replay import replay
from bench.cluster.subject import Subject
from bench.simulator.native import Workload, simulate
from bench.simulator.records import Recorder
from bench.simulator.settings import Mode, SimSettings
from bench.simulator.stats import Report, report
from bench.traces.types import Lengths
from bench.traces.workload import open_workload
from helix_mq.errors import ConfigError
from helix_mq.token_return import TokenReturn

LOAD = "load"
BACK_TO_BACK_S = 0.01
"""Two steps closer than this are taken for one after the other, with rows waiting in between."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What every run of a comparison has in common. `overhead_s`: of the simulator's steps."""

    workload: str
    at_once: int
    warmup_s: float
    duration_s: float
    seed: int = 0
    overhead_s: float = 0.0
    token_return: TokenReturn = "auto"
    prefer_near: bool = True

    def __post_init__(self) -> None:
        for name in ("at_once", "duration_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be more than 0", param=name)
        for name in ("warmup_s", "overhead_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative", param=name)

    def lengths(self) -> Iterator[Lengths]:
        return open_workload(self.workload, self.seed).lengths()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def end_s(self) -> float:
        return self.warmup_s + self.duration_s


@dataclass(frozen=True, slots=True)
class NodePace:
    """How well a node was held to its speed, over the window. Shares and seconds are of its steps.

    `overran_share`: computing alone took longer than the tables say. `longer`: what steps lasted
    over what they should have, 1 where all is right. `gap_s`: median time between two steps that
    follow each other closely, which is what the node does between steps.
    """

    node: str
    steps: int
    overran_share: float
    longer: float
    computing_share: float
    gap_s: float


@dataclass(frozen=True, slots=True)
class Live:
    """`cpu_cores`: used by each process; `machine_busy`: share of all cores, by everything that
    runs here. Both inside the window."""

    report: Report
    paces: tuple[NodePace, ...]
    shaper_late_s: float
    cpu_cores: dict[str, float]
    machine_busy: float
    failures: dict[str, int]


async def run_live(subject: Subject, scheduler: str, trial: Trial, folder: Path) -> Live:
    """Starts everything, loads it, stops it. LocalError for what did not start or broke."""
    choices = Choices(scheduler, trial.seed, trial.token_return, trial.prefer_near)
    async with LiveCluster(subject, choices, folder) as cluster:
        load = ClosedLoad(cluster.clients, trial.lengths(), trial.at_once, trial.seed)
        loading = asyncio.create_task(load.run(trial.end_s))
        watching = asyncio.create_task(_watch(cluster, trial))
        try:
            began_s = await loading
            cores, busy = await watching
        finally:
            for task in (loading, watching):
                task.cancel()
            await asyncio.gather(loading, watching, return_exceptions=True)
    logs, shaper = cluster.node_logs(), cluster.shaper_log()
    recorder = Recorder(trial.warmup_s, trial.duration_s)
    replay(recorder, load.asked, logs, shaper, began_s)
    first_s, last_s = began_s + trial.warmup_s, began_s + trial.end_s
    return Live(
        report=report(recorder),
        paces=tuple(pace_of(log, first_s, last_s) for log in logs),
        shaper_late_s=shaper.mean_late_s,
        cpu_cores=cores,
        machine_busy=busy,
        failures=dict(Counter(a.reason for a in load.asked if a.ok is False)),
    )


async def _watch(cluster: LiveCluster, trial: Trial) -> tuple[dict[str, float], float]:
    """Cores used by each process inside the window, and the machine's busy share."""

    def used() -> dict[str, float]:
        return {**cluster.cpu_s(), LOAD: time.process_time()}

    await asyncio.sleep(trial.warmup_s)
    before, times = used(), psutil.cpu_times()
    # Ends a little before the load does, while everybody is there.
    seconds = 0.98 * trial.duration_s
    await asyncio.sleep(seconds)
    after, times_after = used(), psutil.cpu_times()
    idle_s = times_after.idle - times.idle
    cores = os.cpu_count() or 1
    return (
        {name: (after[name] - s) / seconds for name, s in before.items()},
        max(0.0, 1 - idle_s / (seconds * cores)),
    )


def pace_of(log: NodeLog, first_s: float, last_s: float) -> NodePace:
    """Of the steps that began within [first_s, last_s)."""
    steps = [s for s in log.steps if first_s <= s.began_s < last_s]
    wanted_s = sum(s.wanted_s for s in steps)
    overran = sum(s.computed_s > s.wanted_s for s in steps)
    return NodePace(
        node=log.node,
        steps=len(steps),
        overran_share=overran / len(steps) if steps else 0.0,
        longer=sum(s.ended_s - s.began_s for s in steps) / wanted_s if steps else 1.0,
        computing_share=sum(s.computed_s for s in steps) / wanted_s if steps else 0.0,
        gap_s=_gap_s(steps),
    )


def overhead_of(paces: Sequence[NodePace]) -> float:
    """What a step took beside itself, in seconds: the median of the nodes that had any to do."""
    gaps = [pace.gap_s for pace in paces if pace.gap_s]
    return statistics.median(gaps) if gaps else 0.0


def _gap_s(steps: Sequence[StepLog]) -> float:
    gaps = [b.began_s - a.ended_s for a, b in pairwise(steps)]
    close = [gap for gap in gaps if gap < BACK_TO_BACK_S]
    return statistics.median(close) if close else 0.0


def run_simulated(subject: Subject, scheduler: str, trial: Trial) -> Report:
    """The same on the virtual clock."""
    base = SimSettings()
    settings = replace(
        base,
        mode=Mode.CLOSED,
        scheduler=scheduler,
        prefer_near=trial.prefer_near,
        duration_s=trial.duration_s,
        warmup_s=trial.warmup_s,
        seed=trial.seed,
        at_once=trial.at_once,
        node=replace(base.node, overhead_s=trial.overhead_s),
        core=replace(base.core, token_return=trial.token_return),
    )
    recorder = Recorder(trial.warmup_s, trial.duration_s)
    simulate(
        subject.problem,
        subject.placement,
        subject.step_times,
        Workload(trial.lengths()),
        settings,
        recorder,
    )
    return report(recorder)
