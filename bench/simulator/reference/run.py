"""Runs one cluster, or one published case, in compatibility mode and says what came out.

Nothing is written. Simulated time is the only clock that decides anything; wall and CPU seconds are
measured to be reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from bench.simulator.reference.cases import CASES, Mode, Part, SchedulerKind
from bench.simulator.reference.engine import Engine, Feeder, HopWatcher, Scheduler
from bench.simulator.reference.feeding import FillingFeeder, FixedFeeder, TraceFeeder
from bench.simulator.reference.parts import LinkState, NodeState, build_links, build_nodes
from bench.simulator.reference.queries import Query, read_offline, read_online
from bench.simulator.reference.reading import ReferenceDataError
from bench.simulator.reference.routing import (
    MaxFlowScheduler,
    RandomScheduler,
    ShortestQueueScheduler,
    SwarmScheduler,
)
from bench.simulator.reference.setup import Setup, read_setup, read_setup_file
from bench.simulator.reference.tally import Latencies, Tally, summarise

OFFLINE_WARMUP_S, OFFLINE_DURATION_S = 60.0, 600.0
ONLINE_WARMUP_S, ONLINE_DURATION_S = 0.0, 1800.0
PROGRESS_STEP_S = 20.0

Progress = Callable[[str, float, float], None]
"""Called with what runs, the simulated seconds so far, and those expected in all."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to load a setup, and when to measure. Times are simulated seconds after the start.

    Offline runs stop at the end of the window, online ones when the last query has ended.
    """

    scheduler: SchedulerKind
    mode: Mode
    warmup_s: float
    duration_s: float
    in_flight: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """Figures of one cluster. Throughputs and latencies count what ended inside the window."""

    name: str
    decode_tokens_per_s: float
    prompt_tokens_per_s: float
    prompt_latency: Latencies
    decode_latency: Latencies
    finished_prompts: int
    finished_decodes: int
    finished_queries: int
    dropped_queries: int
    simulated_s: float
    events: int
    wall_s: float
    cpu_s: float
    log_hash: str

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "prompt_tokens_per_s": self.prompt_tokens_per_s,
            "prompt_latency_s": self.prompt_latency.as_dict(),
            "decode_latency_s": self.decode_latency.as_dict(),
            "finished_prompts": self.finished_prompts,
            "finished_decodes": self.finished_decodes,
            "finished_queries": self.finished_queries,
            "dropped_queries": self.dropped_queries,
            "simulated_s": self.simulated_s,
            "events": self.events,
            "wall_s": round(self.wall_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "log_hash": self.log_hash,
        }


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A published case: its clusters, whose throughputs add and whose latencies are pooled."""

    name: str
    parts: tuple[ReferenceResult, ...]
    prompt_latency: Latencies
    decode_latency: Latencies

    @property
    def decode_tokens_per_s(self) -> float:
        return sum(part.decode_tokens_per_s for part in self.parts)

    @property
    def prompt_tokens_per_s(self) -> float:
        return sum(part.prompt_tokens_per_s for part in self.parts)

    @property
    def cpu_s(self) -> float:
        return sum(part.cpu_s for part in self.parts)

    def as_dict(self) -> dict[str, object]:
        return {
            "case": self.name,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "prompt_tokens_per_s": self.prompt_tokens_per_s,
            "prompt_latency_s": self.prompt_latency.as_dict(),
            "decode_latency_s": self.decode_latency.as_dict(),
            "wall_s": round(sum(part.wall_s for part in self.parts), 3),
            "cpu_s": round(self.cpu_s, 3),
            "clusters": [part.as_dict() for part in self.parts],
        }


def run_case(name: str, data: Path, *, progress: Progress | None = None) -> CaseResult:
    """Runs a published case from the data folder. ReferenceDataError if unknown or unreadable."""
    if name not in CASES:
        raise ReferenceDataError(
            f"no case {name!r}; there are {', '.join(sorted(CASES))}", param="case"
        )
    results = []
    prompts, decodes = Tally(0.0, inf), Tally(0.0, inf)
    for part in CASES[name]:
        setup = read_setup(data, part.cluster, part.placement)
        result, tally = _simulate(setup, options_of(part), queries_of(part, data), progress)
        results.append(result)
        prompts.prompt_latencies_s.extend(tally.prompt_latencies_s)
        decodes.decode_latencies_s.extend(tally.decode_latencies_s)
    return CaseResult(
        name,
        tuple(results),
        summarise(prompts.prompt_latencies_s),
        summarise(decodes.decode_latencies_s),
    )


def run(
    cluster_file: Path,
    placement: str,
    profiles_file: Path,
    queries: Sequence[Query],
    options: RunOptions,
    *,
    progress: Progress | None = None,
) -> ReferenceResult:
    """Runs a saved placement of a cluster file under `queries`. ReferenceDataError."""
    setup = read_setup_file(cluster_file, placement, profiles_file)
    return simulate(setup, queries, options, progress=progress)


def simulate(
    setup: Setup,
    queries: Sequence[Query],
    options: RunOptions,
    *,
    progress: Progress | None = None,
) -> ReferenceResult:
    """As `run`, from a setup that is already there."""
    return _simulate(setup, options, queries, progress)[0]


def options_of(part: Part) -> RunOptions:
    """The published window of the part's mode."""
    offline = part.mode is Mode.OFFLINE
    return RunOptions(
        scheduler=part.scheduler,
        mode=part.mode,
        warmup_s=OFFLINE_WARMUP_S if offline else ONLINE_WARMUP_S,
        duration_s=OFFLINE_DURATION_S if offline else ONLINE_DURATION_S,
        in_flight=part.in_flight,
    )


def queries_of(part: Part, data: Path) -> Sequence[Query]:
    """The published sequence that the part is loaded with. ReferenceDataError."""
    if part.mode is Mode.OFFLINE:
        return read_offline(data)
    if part.rate is None:
        raise ReferenceDataError("an online run needs the rate of its trace", param="rate")
    return read_online(data, part.rate)


def _simulate(
    setup: Setup, options: RunOptions, queries: Sequence[Query], progress: Progress | None
) -> tuple[ReferenceResult, Tally]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    nodes = build_nodes(setup)
    links = build_links(setup, nodes, by_flow=options.scheduler is SchedulerKind.MAX_FLOW)
    scheduler, feeder, watcher = _policies(setup, options, nodes, links)
    window_start_s = setup.start_s + options.warmup_s
    window_end_s = window_start_s + options.duration_s
    tally = Tally(window_start_s, window_end_s)
    engine = Engine(nodes, queries, scheduler, feeder, tally, watcher)
    engine.begin()
    until_s = window_end_s if options.mode is Mode.OFFLINE else inf
    if progress is None:
        engine.advance(until_s)
    else:
        at_s = setup.start_s
        while at_s < until_s and not engine.idle:
            at_s = min(at_s + PROGRESS_STEP_S, until_s)
            engine.advance(at_s)
            progress(setup.name, at_s - setup.start_s, window_end_s - setup.start_s)
    result = ReferenceResult(
        name=setup.name,
        decode_tokens_per_s=len(tally.decode_latencies_s) / options.duration_s,
        prompt_tokens_per_s=tally.window_prompt_tokens / options.duration_s,
        prompt_latency=summarise(tally.prompt_latencies_s),
        decode_latency=summarise(tally.decode_latencies_s),
        finished_prompts=tally.finished_prompts,
        finished_decodes=tally.finished_decodes,
        finished_queries=tally.finished_queries,
        dropped_queries=feeder.dropped if isinstance(feeder, FillingFeeder) else 0,
        simulated_s=engine.now_s - setup.start_s,
        events=engine.events,
        wall_s=time.perf_counter() - wall_s,
        cpu_s=time.process_time() - cpu_s,
        log_hash=tally.log_hash(),
    )
    return result, tally


def _policies(
    setup: Setup, options: RunOptions, nodes: list[NodeState], links: list[LinkState]
) -> tuple[Scheduler, Feeder, HopWatcher | None]:
    offline = options.mode is Mode.OFFLINE
    scheduler: Scheduler
    watcher: HopWatcher | None = None
    if options.scheduler is SchedulerKind.MAX_FLOW:
        if any(link.flow is None for link in setup.links):
            raise ReferenceDataError(
                f"{setup.name}: its links carry no ref_flow, which max flow needs", param="links"
            )
        flow = MaxFlowScheduler(
            nodes,
            links,
            setup.num_layers,
            output_ratio=1.0 if offline else 0.6,
            high_water=0.85 if offline else 0.9,
        )
        if offline:
            return flow, FillingFeeder(setup.start_s, flow), None
        scheduler = flow
    elif options.scheduler is SchedulerKind.SWARM:
        scheduler = watcher = SwarmScheduler(nodes, links)
    elif options.scheduler is SchedulerKind.SHORTEST_QUEUE:
        scheduler = ShortestQueueScheduler(links, options.seed)
    else:
        scheduler = RandomScheduler(links, options.seed)
    if not offline:
        return scheduler, TraceFeeder(setup.start_s), watcher
    if options.in_flight is None:
        raise ReferenceDataError(
            "offline without max flow needs a number of queries in flight", param="in_flight"
        )
    return scheduler, FixedFeeder(setup.start_s, options.in_flight), watcher
