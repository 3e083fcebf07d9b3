"""The native simulation: production decisions on a virtual clock. `simulate` is the entry.

Builds the machines of a Problem, lets the core and the batchers serve a workload on them, and says
what came of it. What is measured goes to the Recorder; what is here are totals of the whole run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.simulator.control import EPOCH, Control, NoText, model_config
from bench.simulator.feeders import ClosedFeeder, Feeder, OfflineFeeder, OnlineFeeder
from bench.simulator.machines import DIGEST, Machines
from bench.simulator.node import SimNode
from bench.simulator.node_parts import NodeParts, NodeRefusals, NodeTokens
from bench.simulator.records import Recorder
from bench.simulator.settings import FaultKind, Mode, SimSettings
from bench.simulator.step_times import step_tables
from bench.simulator.timeline import Timeline
from bench.simulator.wires import Wires
from bench.traces.types import Arrival, Lengths
from helix_mq.errors import ConfigError
from helix_mq.ids import ROUTER
from helix_mq.layers import Placement
from router import events as ev
from router.cluster_core import ClusterCore
from router.core import Core
from router.kv_books import KvBooks
from router.placing import FixedPlacer
from solver.objective import StepTimes
from solver.problem import Problem

DRAIN_LIMIT_S = 1e6
"""A run that is to end with its last request ends here at the latest."""


STOP_CHECKS = 100


@dataclass(frozen=True, slots=True)
class Workload:
    """`requests` in order: Lengths offline and closed, Arrivals (times ascending) online."""

    requests: Iterable[Lengths | Arrival]


@dataclass(frozen=True, slots=True)
class Progress:
    simulated_s: float
    end_s: float
    tokens: int
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class SimResult:
    """Totals from the start of the run, warm-up included. `events`: of the virtual clock.

    `rows`: rows run, each once per node it passed. `pages_held`: KV pages in use at the end.
    """

    simulated_s: float
    submitted: int
    finished: int
    failed: int
    tokens: int
    events: int
    steps: int
    rows: int
    frames: int
    pages_held: int
    wall_s: float
    cpu_s: float
    event_hash: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Simulation:
    """One run; `nodes`, `wires` and `control` are its parts, for those who look inside."""

    def __init__(
        self,
        problem: Problem,
        placement: Placement,
        step_times: Mapping[str, StepTimes],
        settings: SimSettings,
        recorder: Recorder,
    ) -> None:
        self.settings = settings
        self.recorder = recorder
        self.timeline = timeline = Timeline()
        self.wires = Wires(problem, timeline, recorder)
        parts = NodeParts(
            timeline=timeline,
            wires=self.wires,
            recorder=recorder,
            to_router=self._on_tokens,
            refuse=self._on_refusals,
            overhead_s=settings.node.overhead_s,
            fifo_links=settings.node.fifo_links,
        )
        placed = [node for node in problem.nodes if node.name in placement.slices]
        tables = step_tables(
            step_times,
            [node.type_name for node in placed],
            settings.node.limits,
            settings.node.chunk_cost,
            derive_budget=settings.node.derive_budget,
        )
        self.nodes = {n.name: SimNode(n.name, tables[n.type_name], parts) for n in placed}
        self.control = Control(
            self._core(problem, placement), self.nodes, self.wires, timeline, recorder
        )
        self.machines = Machines(
            problem,
            placement,
            self.nodes,
            self.control,
            timeline,
            settings.node,
            settings.heartbeat_s,
        )
        for fault in settings.faults:
            if fault.node not in self.nodes and fault.node != ROUTER:
                raise ConfigError(
                    f"fault.node={fault.node}: no node of the placement is called so", param="node"
                )

    def _core(self, problem: Problem, placement: Placement) -> Core:
        settings, config = self.settings, model_config(problem)
        placer, clock = FixedPlacer(placement), self.timeline
        cluster = ClusterCore(config, DIGEST, settings.cluster, placer, clock, EPOCH, problem)
        core = replace(settings.core, scheduling=settings.scheduling)
        text = NoText()
        return Core(config, core, cluster, KvBooks(settings.kv_high_water), clock, lambda _: text)

    def _on_tokens(self, said: NodeTokens) -> None:
        self.control.on_tokens(said)

    def _on_refusals(self, said: NodeRefusals) -> None:
        at_s = self.timeline.now + self.wires.control_latency_s(said.node, ROUTER)
        self.timeline.at(at_s, self.control.on_refusals, said)

    def run(
        self,
        workload: Workload,
        progress: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> SimResult:
        """From the first join to the end of the measurement, or to the last request's.

        `stop` is asked after every virtual second, or `STOP_CHECKS` times in a shorter run: whether
        to leave the rest. `simulated_s` says how far it came.
        """
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        feeder = self._feeder(workload)
        self._start(feeder)
        end_s, at_s, drain = self.settings.end_s, 0.0, self.settings.drain
        step_s = 1.0 if stop is None or end_s <= 0 else min(1.0, end_s / STOP_CHECKS)
        while at_s < (DRAIN_LIMIT_S if drain else end_s):
            if stop is not None and stop():
                break
            at_s = min(at_s + step_s, end_s) if at_s < end_s else at_s + 1.0
            self.timeline.run_until(at_s)
            if progress is not None:
                progress(self._progress())
            if drain and self._drained(feeder):
                break
        return self._result(time.perf_counter() - wall_s, time.process_time() - cpu_s)

    def check(self) -> None:
        """Raises AssertionError if the core or a node's pages are in disorder."""
        self.control.core.check()
        for node in self.nodes.values():
            node.check()

    def _feeder(self, workload: Workload) -> Feeder:
        settings, requests = self.settings, iter(workload.requests)
        most = settings.max_requests
        if settings.mode is Mode.OFFLINE:
            lengths = _lengths(requests)
            return OfflineFeeder(self.control, lengths, most, settings.max_prefilling)
        if settings.mode is Mode.CLOSED:
            return ClosedFeeder(self.control, _lengths(requests), most, settings.at_once)
        arrivals = _arrivals(requests)
        return OnlineFeeder(self.control, arrivals, self.timeline, most, settings.end_s)

    def _drained(self, feeder: Feeder) -> bool:
        """All requests have ended, and every node has heard of it."""
        quiet = not any(node.open_requests for node in self.nodes.values())
        return feeder.exhausted and quiet and not self.control.core.sessions()

    def _progress(self) -> Progress:
        state = self.control.core.statistics()
        now_s, end_s = self.timeline.now, self.settings.end_s
        return Progress(now_s, end_s, self.control.tokens, state.running, state.waiting)

    def _start(self, feeder: Feeder) -> None:
        """Everybody joins; then requests begin to come."""
        faults = self.settings.faults
        self.machines.start(frozenset(f.node for f in faults if f.kind is FaultKind.JOIN))
        self.timeline.run_until(0.0)
        self.machines.beat()
        for fault in faults:
            self.timeline.at(fault.at_s, self.machines.strike, fault)
        self.timeline.at(self.settings.heartbeat_s, self._tick, None)
        feeder.start()

    def _tick(self, _: None) -> None:
        self.machines.beat()
        self.control.handle(ev.Tick())
        now = self.timeline.now
        for name, node in self.nodes.items():
            total = node.pool.total_pages
            self.recorder.on_kv(now, name, total - node.pool.free_pages, total)
            self.recorder.on_queue(now, name, node.waiting_rows)
        state = self.control.core.statistics()
        self.recorder.on_waiting(now, state.waiting, state.running)
        self.timeline.at(now + self.settings.heartbeat_s, self._tick, None)

    def _result(self, wall_s: float, cpu_s: float) -> SimResult:
        nodes = self.nodes.values()
        return SimResult(
            simulated_s=self.timeline.now,
            submitted=self.control.submitted,
            finished=self.control.finished,
            failed=self.control.failed,
            tokens=self.control.tokens,
            events=self.timeline.ran,
            steps=sum(node.steps for node in nodes),
            rows=sum(node.rows for node in nodes),
            frames=self.wires.frames,
            pages_held=sum(n.pool.total_pages - n.pool.free_pages for n in nodes),
            wall_s=wall_s,
            cpu_s=cpu_s,
            event_hash=self.control.event_hash,
        )


def simulate(
    problem: Problem,
    placement: Placement,
    step_times: Mapping[str, StepTimes],
    workload: Workload,
    settings: SimSettings,
    recorder: Recorder,
    progress: Callable[[Progress], None] | None = None,
) -> SimResult:
    """Runs a workload on a placement; `step_times` by machine type.

    ConfigError where the problem lacks what a simulation needs: step times of a type, KV room.
    """
    return Simulation(problem, placement, step_times, settings, recorder).run(workload, progress)


def _lengths(requests: Iterable[Lengths | Arrival]) -> Iterator[Lengths]:
    for request in requests:
        yield request.lengths if isinstance(request, Arrival) else request


def _arrivals(requests: Iterable[Lengths | Arrival]) -> Iterator[Arrival]:
    for request in requests:
        if not isinstance(request, Arrival):
            raise ConfigError("online mode needs arrival times: give a rate", param="workload")
        yield request
