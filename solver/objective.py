"""What a placement serves under a workload: an analytic model beside the max flow.

The max flow counts tokens as if they came in any number. Here the requests in flight are limited by
KV room, each needs a round trip per token (Little's law), nodes run batches whose time grows with
their size, and prompts hold up decodes on nodes and links. Pure arithmetic on a placement, its flow
and step-time tables; `docs/planner.md` says where it fails.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import Placement
from helix_mq.step_budget import StepProfile, prefill_tokens
from helix_mq.token_return import TokenReturn
from solver.flow import FlowEdge, FlowSolution
from solver.objective_wires import Trips, Wire, wires_of
from solver.problem import SOURCE, Problem, ProblemNode
from solver.token_return import straight_returns

Points = tuple[tuple[float, float], ...]
"""(tokens in the batch, seconds per layer), ascending; linear between, and beyond the last two."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds that one layer takes, by batch size: `prefill` in tokens, `decode` in requests.

    A step with both takes the sum.
    """

    prefill: Points
    decode: Points

    def __post_init__(self) -> None:
        for name, points in (("prefill", self.prefill), ("decode", self.decode)):
            sizes = [size for size, _ in points]
            if len(points) < 2 or sizes != sorted(set(sizes)) or points[-1][1] <= 0:
                raise ConfigError(
                    f"step_times.{name}: needs two points or more with rising batch sizes, the "
                    "last of which takes time",
                    param=name,
                )
            for size, seconds in points:
                if not (0 <= size < math.inf and 0 <= seconds < math.inf):
                    raise ConfigError(
                        f"step_times.{name}: {seconds} seconds for a batch of {size}; both must "
                        "be finite and not negative",
                        param=name,
                    )


MAX_MEAN_TOKENS = 1e6
"""Of a prompt or an answer: beyond any model's context."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Mean lengths, and how much of the KV room requests may expect to fill."""

    input_tokens: float = 750.0
    output_tokens: float = 240.0
    kv_mark: float = 0.8

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_MEAN_TOKENS:  # NaN is neither
                raise ConfigError(
                    f"workload.{name}={value:g} is not in 1..{MAX_MEAN_TOKENS:,.0f}: it is the "
                    "mean number of tokens of a request",
                    param=name,
                )
        if not (math.isfinite(self.kv_mark) and self.kv_mark > 0):
            raise ConfigError(f"workload.kv_mark={self.kv_mark} must be positive", param="kv_mark")


@dataclass(frozen=True, slots=True)
class ServingModel:
    """Step times by machine type, and the workload to serve.

    `chunked`: prompts go in chunks and decodes pass them on links, as our nodes do it; else whole
    and first in first out, as in the published system. `token_return`: the router's setting; in
    the published system tokens go by the router.
    """

    step_times: Mapping[str, StepTimes]
    workload: Workload = Workload()
    chunked: bool = True
    token_return: TokenReturn = "auto"


@dataclass(frozen=True, slots=True)
class ServingEstimate:
    """Steady state with as many requests in flight as KV room allows.

    `limit` names what binds: KV room (more requests would give more), or a node or link that is
    always busy. `busiest` is that node or link.
    """

    decode_tokens_per_s: float
    requests_in_flight: float
    round_trip_s: float
    limit: str
    busiest: str
    straight_share: float = 0.0
    """Of requests, whose tokens go straight from the last hop to the first."""


BURSTS = 5.0
"""Prompts do not hold up rows one by one: what queued behind one travels on as a burst and queues
again. Fitted to nine runs of the published simulator (docs/planner.md); 1 would mean no memory."""
MAX_PASSES = 400
LONGEST_PASS_S = 1e3


def estimate(
    problem: Problem, placement: Placement, flow: FlowSolution, model: ServingModel
) -> ServingEstimate:
    """The decode rate at which requests in flight just fill the KV room.

    ConfigError if a node's type has no step times or its KV room is unknown.
    """
    if flow.tokens_per_s <= 0:
        return ServingEstimate(0.0, 0.0, math.inf, "no flow", "")
    stations = _stations(problem, placement, flow, model)
    straight = straight_returns(problem, placement, flow, model.token_return)
    wires = wires_of(problem, flow, straight)
    room = _requests_that_fit(problem, placement, model.workload)
    low, high = 0.0, flow.tokens_per_s
    while _load(stations, wires, high, model)[0] < room and high < 1e12:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2
        inside = _load(stations, wires, middle, model)[0] <= room
        low, high = (middle, high) if inside else (low, middle)
    requests, round_trip, use = _load(stations, wires, low, model)
    busiest = max(sorted(use), key=lambda name: use[name])
    return ServingEstimate(
        decode_tokens_per_s=low,
        requests_in_flight=min(requests, room),
        round_trip_s=round_trip,
        limit="KV room" if use[busiest] < 0.9 else "always busy",
        busiest=busiest,
        straight_share=math.fsum(way.share for way in straight),
    )


@dataclass(frozen=True, slots=True)
class _Station:
    """`share` of all rows pass it, each through `layers` layers on average."""

    name: NodeId
    share: float
    layers: float
    times: StepTimes


def _stations(
    problem: Problem, placement: Placement, flow: FlowSolution, model: ServingModel
) -> list[_Station]:
    nodes: dict[NodeId, ProblemNode] = {n.name: n for n in problem.nodes}
    into: dict[NodeId, list[FlowEdge]] = {}
    for edge in flow.edges:
        into.setdefault(edge.dst, []).append(edge)
    stations = []
    for name in sorted(flow.node_flow):
        through = flow.node_flow[name]
        if through <= flow.tokens_per_s * 1e-9:
            continue
        times = model.step_times.get(nodes[name].type_name)
        if times is None:
            raise ConfigError(
                f"node {name}: no step times for machine type {nodes[name].type_name}",
                param="step_times",
            )
        end = placement.slices[name].end
        work = math.fsum(
            e.tokens_per_s * (end - (0 if e.src == SOURCE else placement.slices[e.src].end))
            for e in into.get(name, [])
        )
        stations.append(_Station(name, through / flow.tokens_per_s, work / through, times))
    return stations


def _requests_that_fit(problem: Problem, placement: Placement, workload: Workload) -> float:
    """Requests whose expected tokens fill the scarcest layer's KV room up to the mark."""
    room = [0.0] * problem.num_layers
    for node in sorted(problem.nodes, key=lambda n: n.name):
        held = placement.slices.get(node.name)
        if held is None:
            continue
        tokens = node.kv_tokens(len(held))
        if tokens is None:
            raise ConfigError(
                f"node {node.name}: KV room for {len(held)} layers is unknown", param="kv_tokens"
            )
        for layer in range(held.first, held.end):
            room[layer] += tokens / len(held)
    return workload.kv_mark * min(room) / (workload.input_tokens + workload.output_tokens)


def _load(
    stations: Sequence[_Station], wires: Sequence[Wire], decode_per_s: float, model: ServingModel
) -> tuple[float, float, dict[str, float]]:
    """Requests in flight, seconds per round trip, and each part's use, at a decode rate.

    Infinite where a part cannot keep up.
    """
    workload = model.workload
    prompts_per_s = decode_per_s / workload.output_tokens
    use: dict[str, float] = {}
    trips = Trips([], [], [])
    for station in stations:
        prompts = _prompts(station, prompts_per_s, workload.input_tokens, chunked=model.chunked)
        visit_s, use[station.name] = _visit_s(station, decode_per_s * station.share, prompts)
        trips.visited(station.share * visit_s)
    for wire in wires:
        prompt_s = workload.input_tokens * wire.row_s
        rows, prompt_rate = decode_per_s * wire.rows, prompts_per_s * wire.prompts
        busy = rows * wire.row_s + prompt_rate * prompt_s
        use[wire.name] = busy
        if busy >= 1:
            return math.inf, math.inf, use
        if model.chunked:
            found_s = (rows * wire.row_s**2 + prompt_rate * prompt_s * wire.piece_s) / 2
            waiting = found_s / (1 - rows * wire.row_s)
        else:
            behind_s = BURSTS * prompt_rate * prompt_s**2
            waiting = (rows * wire.row_s**2 + behind_s) / 2 / (1 - busy)
        trips.passed(wire, wire.latency_s + wire.row_s + waiting, prompt_s)
    round_trip = trips.round_trip_s
    if not math.isfinite(round_trip):
        return math.inf, math.inf, use
    return prompts_per_s * trips.life_s(workload.output_tokens), round_trip, use


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What prompts do to a node: so many pieces a second, each taking so long; they come in
    bursts (`BURSTS`) or one by one."""

    pieces_per_s: float
    piece_s: float
    bursts: float

    @property
    def busy(self) -> float:
        return self.pieces_per_s * self.piece_s


def _prompts(
    station: _Station, prompts_per_s: float, input_tokens: float, *, chunked: bool
) -> _Prompts:
    prompts, prefill = prompts_per_s * station.share, station.times.prefill
    if not chunked:
        return _Prompts(prompts, station.layers * _at(prefill, input_tokens), BURSTS)
    pass_s = next(seconds for size, seconds in station.times.decode if size > 0 and seconds > 0)
    sizes = tuple(point for point in prefill if min(point) > 0)
    chunk = min(input_tokens, float(prefill_tokens(StepProfile(pass_s, sizes))))
    piece_s = station.layers * max(pass_s, _at(prefill, chunk))
    return _Prompts(prompts * input_tokens / chunk, piece_s, 1.0)


def _visit_s(station: _Station, rows_per_s: float, prompts: _Prompts) -> tuple[float, float]:
    """Seconds from reaching a node to leaving it, and how busy the node is.

    Rows that come during one pass form the next batch: pass = layers x time(rate x pass), the least
    fixed point, reached from below. Prompts arrive at random and make passes unequal. A row is
    likelier to arrive in a long pass: it waits half of E[C^2]/E[C], then rides in the batch that
    formed meanwhile.
    """

    def following(pass_s: float) -> float:
        decode_s = station.layers * _at(station.times.decode, max(2.0, rows_per_s * pass_s))
        return decode_s + prompts.busy * pass_s

    mean_s = following(0.0)
    for _ in range(MAX_PASSES):
        longer = following(mean_s)
        if longer - mean_s <= 1e-9 * mean_s:
            met_s = mean_s + prompts.bursts * prompts.busy * prompts.piece_s
            return met_s / 2 + following(met_s), _busy(station, rows_per_s, prompts.busy)
        mean_s = longer
        if mean_s > LONGEST_PASS_S:
            break
    return math.inf, 1.0


def _busy(station: _Station, rows_per_s: float, prompts_busy: float) -> float:
    """Share of time the node would need if decodes came in the largest measured batches."""
    size, layer_s = station.times.decode[-1]
    return min(1.0, prompts_busy + rows_per_s * station.layers * layer_s / size)


def _at(points: Points, size: float) -> float:
    """Linear between points; beyond the last, on with the mean rate there."""
    if size >= points[-1][0]:
        return points[-1][1] * size / points[-1][0]
    i = max(1, bisect_right([x for x, _ in points], size))
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * (size - x0) / (x1 - x0)
