"""What one more GPU would bring to the cluster as it is: the question as plain data, its answer.
Pure, but that `work_out` takes seconds: it is for another process.

The newcomer is as fast as a member with the same GPU has measured itself, else as the catalogue
says; its links are those of a member in its region. Both flows, with it and without, are the
planner's, so that they can be compared; the router's own may differ from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from helix_mq.errors import CallerError, CapacityError, HelixError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.models.config import ModelConfig
from router.live_problem import LinkOf, LinkSpeed, LiveMachine, live_problem
from router.machines import catalogued, machine_of, measured
from router.membership import Member
from router.searches import NothingFound
from solver.catalogue import GPU_TYPES, Machine, UnknownMachine, machine
from solver.problem import Problem
from solver.roofline import DTYPE_BYTES, step_times

MEMORY_SHARE = 0.9
"""Of a GPU's memory, what a node takes by itself."""


class UnknownGpu(CallerError):
    code = "unknown_gpu"


class UnknownRegion(CallerError):
    code = "unknown_region"


class CannotSay(CapacityError):
    """There is nothing to compare with, or no answer was found."""

    code = "what_if_unanswered"


@dataclass(frozen=True, slots=True)
class Question:
    """`problem` has the node `new` besides the members; `now` is what serves, without it."""

    problem: Problem
    new: NodeId
    now: Placement
    limit_s: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Tokens/s of the max flow as it is, with the newcomer on `layers` and the rest as it is, and
    with `moved` members on other layers as well. `layers` is None where it helps nowhere as things
    stand; `replanned_tokens_per_s` is the best that was found in the time."""

    now_tokens_per_s: float
    added_tokens_per_s: float
    layers: LayerRange | None
    replanned_tokens_per_s: float
    moved: int


@dataclass(frozen=True, slots=True)
class Newcomer:
    """`measured_on`: the member whose measurements it is given; empty where the catalogue's are."""

    type_name: str
    region: str
    machine: LiveMachine
    measured_on: str


def gpu_types() -> list[str]:
    """By their names in the catalogue."""
    return list(GPU_TYPES)


def newcomer(
    config: ModelConfig, members: Sequence[Member], type_name: str, region: str
) -> Newcomer:
    """Raises UnknownGpu or UnknownRegion."""
    try:
        kind = machine(type_name)
    except UnknownMachine as e:
        raise UnknownGpu(e.message, param="gpu") from None
    regions = sorted({m.register.region for m in members})
    if region not in regions:
        raise UnknownRegion(
            f"no node is in region {region!r:.80}, so its links are unknown; {_choice(regions)}",
            param="region",
        )
    names = {m.name for m in members}
    name = next(
        n for i in range(1, len(names) + 2) if (n := NodeId(f"new-{kind.name}-{i}")) not in names
    )
    for member in members:
        times = measured(member)
        if times is not None and catalogued(member.register.device) == kind:
            memory, form = member.register.memory_bytes, member.form
            made = LiveMachine(name, memory, form.dtype_bytes, times, quantise=form.quantise)
            return Newcomer(kind.name, region, made, member.name)
    return Newcomer(kind.name, region, _by_datasheet(config, name, kind), "")


def _choice(regions: Sequence[str]) -> str:
    """What may be asked instead."""
    named = [r for r in regions if r]
    if not named:
        return "leave `region` out: no node names one" if regions else "no node is here"
    other = ", or leave `region` out, for the nodes that name none" if "" in regions else ""
    return f"regions: {', '.join(named)}{other}"


def _by_datasheet(config: ModelConfig, name: NodeId, kind: Machine) -> LiveMachine:
    memory = int(kind.vram_bytes * MEMORY_SHARE)
    return LiveMachine(name, memory, DTYPE_BYTES, step_times(config, kind))


def question(
    config: ModelConfig,
    members: Sequence[Member],
    slowdown: dict[NodeId, float],
    link_of: LinkOf,
    new: Newcomer,
    limit_s: float,
) -> Question:
    """Raises CannotSay in words."""
    machines = []
    for member in members:
        made = machine_of(member, config, slowdown.get(member.name, 1.0))
        if made is None:
            raise CannotSay(
                f"the speed of {member.name} is not known: it has not measured itself (its setting "
                f"measure.at_start), and no GPU type is known for {member.register.device!r:.80}"
            )
        machines.append(made)
    slices = {m.name: m.layers for m in members if m.serves and m.layers is not None}
    now = Placement(config.num_layers, slices)
    if now.missing():
        raise CannotSay("nothing to compare with: the model's layers are not all served now")
    neighbours = [m.name for m in members if m.register.region == new.region]
    links = _with_links(link_of, [m.name for m in members], new.machine.name, neighbours[0])
    problem = live_problem(config, [*machines, new.machine], links)
    regions = {m.name: m.register.region for m in members} | {new.machine.name: new.region}
    nodes = tuple(replace(n, region=regions[n.name]) for n in problem.nodes)
    return Question(replace(problem, nodes=nodes), new.machine.name, now, limit_s)


def _with_links(link_of: LinkOf, names: Sequence[NodeId], new: NodeId, like: NodeId) -> LinkOf:
    """Links of `new` are those of `like`; between the two, the fastest that `like` has."""
    known = [link for name in names if name != like and (link := link_of(like, name)) is not None]
    best = max(known, key=lambda link: link.bytes_per_s, default=None)

    def links(source: NodeId, target: NodeId) -> LinkSpeed | None:
        if new not in (source, target):
            return link_of(source, target)
        ends = (like if source == new else source, like if target == new else target)
        return best if ends[0] == ends[1] else link_of(*ends)

    return links


def work_out(asked: Question) -> Gain | NothingFound:
    """Takes up to `limit_s` and some seconds more. No exception for what cannot be answered."""
    from solver.explain import cut_layers
    from solver.explain_what_if import best_addition
    from solver.flow import max_flow
    from solver.search import solve
    from solver.search_types import SolveOptions

    try:
        flow = max_flow(asked.problem, asked.now)
        near = cut_layers(asked.now, flow.min_cut)
        gain = best_addition(asked.problem, asked.now, asked.new, near, partial=True)
        added = asked.now
        if gain is not None:
            added = replace(added, slices={**added.slices, asked.new: gain.layers})
        options = SolveOptions(time_limit_s=asked.limit_s, warm_start=added)
        best = solve(asked.problem, options)
    except HelixError as e:
        return NothingFound(e.message)
    now = flow.tokens_per_s
    held = best.placement.slices
    moved = sum(held.get(name) != layers for name, layers in asked.now.slices.items())
    return Gain(
        now,
        gain.tokens_per_s if gain is not None else now,
        gain.layers if gain is not None else None,
        max(best.objective_tokens_per_s, gain.tokens_per_s if gain is not None else now),
        moved,
    )
