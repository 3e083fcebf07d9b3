"""An engine that is held to given step times, and what it did.

Each step is computed for real, then waited out on the device thread until it has lasted what the
tables say, by the very function that the simulator takes them from. A step whose computing takes
longer than that is counted: a run with many such steps says nothing of the emulated cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

import msgspec

from bench.simulator.step_times import ChunkCost, StepTable, budget_of, one_token_pass_s
from helix_mq.layers import LayerRange
from helix_mq.step_budget import StepProfile
from nodes.batching import BatchLimits
from nodes.engine import Engine
from nodes.kv_cache import KvCache
from nodes.loader import Load
from nodes.loading import Loaded, LoadHost, LoadRequest, Report, load
from nodes.model.slice import ModelSlice
from nodes.step_expectation import Row, StepExpectation
from nodes.steps import Batch, StepResult
from solver.objective import StepTimes

_DECODE_ROWS: Final = (1, 4, 16, 64, 256)


class StepLog(msgspec.Struct, array_like=True, frozen=True):
    """One step; times on the machine's monotonic clock. `wanted_s`: what the tables say;
    `computed_s`: what the computing took of it."""

    began_s: float
    ended_s: float
    wanted_s: float
    computed_s: float
    decodes: int
    prefill_tokens: int
    layers: int


class NodeLog(msgspec.Struct, frozen=True):
    node: str
    steps: tuple[StepLog, ...]


def pieces_of(rows: Iterable[Row]) -> dict[LayerRange, list[int]]:
    """Layers -> (prefill tokens, decodes) of the rows that run them."""
    pieces: dict[LayerRange, list[int]] = {}
    for row in rows:
        piece = pieces.setdefault(row.layers, [0, 0])
        piece[row.count == 1 and row.is_decode] += row.count
    return pieces


class Pace:
    """What steps are to take, and the book of those taken."""

    def __init__(
        self,
        table: StepTable,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.table = table
        self.steps: list[StepLog] = []
        self._now_s = now_s
        self._sleep = sleep

    def now_s(self) -> float:
        return self._now_s()

    def wait_out(self, rows: Iterable[Row], began_s: float) -> float:
        """Called when a step's computing is done: returns when it has lasted long enough, with the
        seconds that it did."""
        computed_s = self._now_s() - began_s
        pieces = pieces_of(rows)
        wanted_s = self.table.pieces_s(pieces)
        if computed_s < wanted_s:
            self._sleep(wanted_s - computed_s)
        ended_s = self._now_s()
        self.steps.append(
            StepLog(
                began_s,
                ended_s,
                wanted_s,
                computed_s,
                sum(decodes for _, decodes in pieces.values()),
                sum(tokens for tokens, _ in pieces.values()),
                max(p.end for p in pieces) - min(p.first for p in pieces),
            )
        )
        return ended_s - began_s


class PacedEngine(Engine):
    """The real engine, no faster than its Pace."""

    def __init__(self, node: str, model: ModelSlice, cache: KvCache, pace: Pace) -> None:
        super().__init__(node, model, cache)
        self._pace = pace

    def begin(self, batch: Batch) -> int | None:
        """None: a step is waited out on the device thread."""
        return None

    def run(self, batch: Batch) -> StepResult:
        began_s = self._pace.now_s()
        result = super().run(batch)
        return msgspec.structs.replace(result, seconds=self._pace.wait_out(batch, began_s))


@dataclass(frozen=True, slots=True)
class PacedExpectation(StepExpectation):
    """What the tables say, as the simulator's nodes report it. What nodes expect of themselves is
    less for steps with both prompts and decodes, so these would look like slow machines."""

    table: StepTable

    def seconds(self, rows: Iterable[Row]) -> float:
        pieces = pieces_of(rows)
        return self.table.pieces_s(pieces) if pieces else 0.0


@dataclass(frozen=True, slots=True)
class PacedLoaded(Loaded):
    table: StepTable

    def expectation(self) -> StepExpectation:
        return PacedExpectation(len(self.layers), self.profile, self.decodes, self.table)


def table_of(times: StepTimes) -> StepTable:
    """As the simulator's nodes have it: their prompt tokens per step follow from their times."""
    limits = replace(BatchLimits(), prefill_tokens=budget_of(times))
    return StepTable(times, limits, ChunkCost())


def paced_load(times: StepTimes, pace: Pace) -> Load:
    """Loads for real; what was measured is replaced by what the tables say."""

    def engine(node: str, model: ModelSlice, cache: KvCache) -> Engine:
        return PacedEngine(node, model, cache, pace)

    def paced(request: LoadRequest, report: Report, host: LoadHost) -> Loaded:
        layers = len(request.layers)
        prefill = tuple((n, layers * s) for n, s in times.prefill if n > 0)
        decodes = tuple((float(n), layers * pace.table.decode_s[n]) for n in _DECODE_ROWS)
        loaded = replace(
            load(request, report, host, engine),
            profile=StepProfile(layers * one_token_pass_s(times), prefill),
            decodes=decodes,
            layer_tokens_per_s=1 / one_token_pass_s(times),
        )
        held = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
        return PacedLoaded(**held, table=pace.table)

    return paced
