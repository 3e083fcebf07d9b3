"""The cluster as it is, as a problem for the planner: measured nodes, measured links. Pure.

Nodes alike (same measurements, memory, dtype and slowdown) share a machine type, which keeps the
search small. A node's KV room is what its memory leaves beside the weights; a slice that leaves
less than LEAST_KV_TOKENS for each of its layers does not count as fitting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from helix_mq.ids import ROUTER, NodeId
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm
from solver.objective import StepTimes, Workload
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.typical import TypeTables, typical_by_tables

TOKEN_BYTES = 4
"""An int32 token id."""
WIRE_ELEMENT_BYTES = 4
"""Of activations at most; nodes of different dtypes exchange the wider."""
WORKSPACE_SHARE = 0.1
"""Of a node's memory: what steps need themselves, and what rounding to pages costs."""
LEAST_KV_TOKENS = 512
UNMEASURED_BYTES_PER_S = 1.25e9
"""10 Gbit/s: a link that nobody has measured yet must neither attract nor forbid."""
UNMEASURED_LATENCY_S = 1e-3


@dataclass(frozen=True, slots=True)
class LiveMachine:
    """A member as the planner sees it. `slowdown`: its steps take so many times as long as it has
    measured."""

    name: NodeId
    memory_bytes: int
    dtype_bytes: int
    times: StepTimes
    slowdown: float = 1.0
    quantise: Quantisation = Quantisation.NONE

    @property
    def form(self) -> WeightForm:
        return WeightForm(self.dtype_bytes, self.quantise)


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    bytes_per_s: float
    latency_s: float


LinkOf = Callable[[NodeId, NodeId], LinkSpeed | None]
"""What is known of a link, ROUTER one of its ends; None where nothing is."""


def live_problem(
    config: ModelConfig,
    machines: Sequence[LiveMachine],
    link_of: LinkOf,
    workload: Workload | None = None,
) -> Problem:
    """The problem of placing the model on these machines as they are. Raises ConfigError."""
    kinds, tables = _tables(config, machines)
    rates = typical_by_tables(config.num_layers, tables, workload)
    nodes = tuple(_node(m, kinds[m.name], rates[kinds[m.name]], tables) for m in machines)
    names = [m.name for m in machines]
    return Problem(
        name="live",
        num_layers=config.num_layers,
        token_bytes=TOKEN_BYTES,
        activation_bytes=config.activation_bytes_per_token(WIRE_ELEMENT_BYTES),
        nodes=nodes,
        links=tuple(_links(names, link_of)),
    )


def machine_rates(
    config: ModelConfig, machines: Sequence[LiveMachine], workload: Workload | None = None
) -> Mapping[NodeId, tuple[float, ...]]:
    """Tokens/s of each machine by layers held, as in the problem of them all."""
    kinds, tables = _tables(config, machines)
    rates = typical_by_tables(config.num_layers, tables, workload)
    return {name: rates[kind] for name, kind in kinds.items()}


def _tables(
    config: ModelConfig, machines: Sequence[LiveMachine]
) -> tuple[dict[NodeId, str], dict[str, TypeTables]]:
    """The kind of each machine, and what each kind measured."""
    kinds = {m.name: f"kind-{i}" for m, i in zip(machines, _kinds(machines), strict=True)}
    counts = Counter(kinds.values())
    by_kind = {kinds[m.name]: m for m in machines}
    tables = {
        kind: TypeTables(_slowed(m), kv_room(config, m.memory_bytes, m.form), counts[kind])
        for kind, m in by_kind.items()
    }
    return kinds, tables


def _node(
    m: LiveMachine, kind: str, rates: tuple[float, ...], tables: Mapping[str, TypeTables]
) -> ProblemNode:
    return ProblemNode(
        name=m.name,
        type_name=kind,
        region="",
        max_layers=len(rates),
        tokens_per_s_by_layers=rates,
        kv_tokens_by_layers=tables[kind].kv_token_layers,
        # Links are measured from socket to socket, the cards of both ends included.
        nic_in_bytes_per_s=1e12,
        nic_out_bytes_per_s=1e12,
        vram_bytes=m.memory_bytes,
    )


def kv_room(config: ModelConfig, memory_bytes: int, form: WeightForm) -> tuple[float, ...]:
    """Token-layers of KV room by layers held, as long as the slice fits.

    Any slice but the whole model may be the first or the last, so the larger end counts with it.
    """
    per_token = config.kv_bytes_per_token_per_layer(form.dtype_bytes)
    ends = max(form.embed_bytes(config), form.head_bytes(config))
    room: list[float] = []
    for held in range(1, config.num_layers + 1):
        weights = held * form.layer_bytes(config) + ends
        if held == config.num_layers:
            weights = form.slice_bytes(config, config.all_layers)
        tokens = (memory_bytes * (1 - WORKSPACE_SHARE) - weights) // per_token
        if tokens < min(LEAST_KV_TOKENS, config.max_context) * held:
            break
        room.append(tokens)
    return tuple(room)


def _kinds(machines: Sequence[LiveMachine]) -> Iterator[int]:
    seen: dict[tuple[object, ...], int] = {}
    for m in machines:
        key = (m.memory_bytes, m.form, m.times, m.slowdown)
        yield seen.setdefault(key, len(seen))


def _slowed(m: LiveMachine) -> StepTimes:
    if m.slowdown == 1.0:
        return m.times
    prefill, decode = (
        tuple((size, seconds * m.slowdown) for size, seconds in points)
        for points in (m.times.prefill, m.times.decode)
    )
    return StepTimes(prefill, decode)


def _links(names: Sequence[NodeId], link_of: LinkOf) -> Iterator[ProblemLink]:
    for source in (ROUTER, *names):
        for target in (*names, ROUTER):
            if source == target:
                continue
            link = link_of(source, target)
            if link is None:
                link = LinkSpeed(UNMEASURED_BYTES_PER_S, UNMEASURED_LATENCY_S)
            yield ProblemLink(
                SOURCE if source == ROUTER else source,
                SINK if target == ROUTER else target,
                link.bytes_per_s,
                link.latency_s,
            )
