"""The published cases by name: which clusters, placement, scheduler, mode and load each one runs.

A case with several parts is a sum of sub-clusters that never meet ("separate pipelines").
`in_flight` of the fixed-load cases is not published; it is what Little's law gives for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType


class SchedulerKind(Enum):
    MAX_FLOW = "maxflow"
    SWARM = "swarm"
    RANDOM = "random"
    SHORTEST_QUEUE = "shortest-queue"


class Mode(Enum):
    OFFLINE = "offline"
    ONLINE = "online"


@dataclass(frozen=True, slots=True)
class Part:
    """One cluster of a case.

    Offline load: `in_flight` queries at all times, except under max flow, which fills the KV room.
    Online load: the published trace of `rate` (that trace's own name for itself).
    """

    cluster: str
    placement: str
    scheduler: SchedulerKind
    mode: Mode
    in_flight: int | None = None
    rate: int | None = None


def _part(cluster: str, placement: str, scheduler: SchedulerKind) -> Part:
    return Part(cluster, placement, scheduler, Mode.OFFLINE)


def _fixed(part: Part, in_flight: int) -> Part:
    return replace(part, in_flight=in_flight)


def _online(part: Part, rate: int) -> Part:
    return replace(part, mode=Mode.ONLINE, rate=rate)


_MAX_FLOW, _SWARM = SchedulerKind.MAX_FLOW, SchedulerKind.SWARM
_RANDOM, _SHORTEST = SchedulerKind.RANDOM, SchedulerKind.SHORTEST_QUEUE


def _by_type(prefix: str, model: str, loads: Mapping[str, int]) -> tuple[tuple[Part, int], ...]:
    """Separate pipelines: hand-made placements and a random scheduler, which has no choice."""
    return tuple(
        (_part(f"{prefix}_{machine}_{model}", "separate", _RANDOM), load)
        for machine, load in loads.items()
    )


def _separate(prefix: str, model: str, loads: Mapping[str, int]) -> tuple[Part, ...]:
    return tuple(_fixed(part, load) for part, load in _by_type(prefix, model, loads))


def _separate_online(prefix: str, model: str, loads: Mapping[str, int]) -> tuple[Part, ...]:
    return tuple(_online(part, load) for part, load in _by_type(prefix, model, loads))


_SINGLE70, _GEO70, _HET70 = "single24_llama70b", "3cluster24_llama70b", "cluster42_llama70b"
_HELIX70 = _part(_SINGLE70, "helix", _MAX_FLOW)
_SWARM70 = _part(_SINGLE70, "swarm", _SWARM)
_GEO_HELIX = _part(_GEO70, "helix", _MAX_FLOW)
_GEO_SWARM = _part(_GEO70, "swarm", _SWARM)
_SWARM30 = _part("single24_llama30b", "swarm", _SWARM)
_HELIX30 = {kind: _part(f"single24_{kind}_llama30b", "helix", _MAX_FLOW) for kind in
            ("a100", "l4", "t4")}  # fmt: skip
_HET_SEPARATE = {"a100": 1, "l4": 60, "l4x2": 35, "t4x4": 110}


def _tutorial(scheduler: SchedulerKind) -> Part:
    return _part(_SINGLE70, "helix_example", scheduler)


CASES: Mapping[str, tuple[Part, ...]] = MappingProxyType(
    {
        "single_llama30b_offline_helix": tuple(_HELIX30.values()),
        "single_llama30b_offline_swarm": (_fixed(_SWARM30, 50),),
        "single_llama30b_offline_separate": _separate(
            "single24", "llama30b", {"a100": 30, "l4": 25, "t4": 25}
        ),
        "single_llama30b_online_helix": (
            _online(_HELIX30["a100"], 600),
            _online(_HELIX30["l4"], 200),
            _online(_HELIX30["t4"], 170),
        ),
        "single_llama30b_online_swarm": (_online(_SWARM30, 450),),
        "single_llama30b_online_separate": _separate_online(
            "single24", "llama30b", {"a100": 500, "l4": 150, "t4": 150}
        ),
        "single_llama70b_offline_helix": (_HELIX70,),
        "single_llama70b_offline_swarm": (_fixed(_SWARM70, 180),),
        "single_llama70b_offline_separate": _separate(
            "single24", "llama70b", {"a100": 18, "l4": 40, "t4": 3}
        ),
        "single_llama70b_online_helix": (_online(_HELIX70, 700),),
        "single_llama70b_online_swarm": (_online(_SWARM70, 350),),
        "single_llama70b_online_separate": _separate_online(
            "single24", "llama70b", {"a100": 240, "l4": 120, "t4": 10}
        ),
        "dist_llama70b_offline_helix": (_GEO_HELIX,),
        "dist_llama70b_offline_swarm": (_fixed(_GEO_SWARM, 180),),
        "dist_llama70b_offline_separate": _separate(
            "3cluster24", "llama70b", {"a100": 1, "l4": 60, "t4": 50}
        ),
        "dist_llama70b_online_helix": (_online(_GEO_HELIX, 320),),
        "dist_llama70b_online_swarm": (_online(_GEO_SWARM, 160),),
        "dist_llama70b_online_separate": _separate_online(
            "3cluster24", "llama70b", {"a100": 1, "l4": 120, "t4": 60}
        ),
        "het_offline_helix": (_part(_HET70, "helix", _MAX_FLOW),),
        "het_offline_swarm": (_fixed(_part(_HET70, "swarm", _SWARM), 500),),
        "het_offline_separate": _separate("cluster42", "llama70b", _HET_SEPARATE),
        "het_offline_sp_plus": (
            *_separate("cluster42", "llama70b", {**_HET_SEPARATE, "v100_t4": 90}),
        ),
        "mp_helix": (_GEO_HELIX,),
        "mp_petals": (_part(_GEO70, "petals", _MAX_FLOW),),
        "mp_swarm": (_part(_GEO70, "swarm", _MAX_FLOW),),
        "abl_ablation1_pruning_simulate_24": (_part(_GEO70, "helix_noprune24", _MAX_FLOW),),
        "abl_ablation1_pruning_simulate_42": (_part(_HET70, "helix_noprune42", _MAX_FLOW),),
        "ex_offline_maxflow": (_tutorial(_MAX_FLOW),),
        "ex_offline_swarm": (_fixed(_tutorial(_SWARM), 240),),
        "ex_offline_random": (_fixed(_tutorial(_RANDOM), 240),),
        "ex_offline_shortest_queue": (_fixed(_tutorial(_SHORTEST), 240),),
        "ex_online_maxflow": (_online(_tutorial(_MAX_FLOW), 700),),
        "ex_online_swarm": (_online(_tutorial(_SWARM), 400),),
        "ex_online_random": (_online(_tutorial(_RANDOM), 400),),
        "ex_online_shortest_queue": (_online(_tutorial(_SHORTEST), 400),),
    }
)

MEASURED_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "abl_ablation1_pruning_simulate_24": "abl_simulate_24",
        "abl_ablation1_pruning_simulate_42": "abl_simulate_42",
    }
)
"""Names in `measured.json` where they are not those of `published.json`."""
