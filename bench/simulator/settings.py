"""What a simulation is run with: frozen values, checked when made. No behaviour.

Defaults are the production defaults where there are any, so that a run without options answers what
the system would do as it is shipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import cast

from bench.simulator.step_times import ChunkCost
from helix_mq.errors import ConfigError
from helix_mq.token_return import token_return
from nodes.batching import BatchLimits
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from router.cluster_core import ClusterSettings
from router.core import CoreSettings
from router.schedulers_base import Method, Scheduling


def _at_least(value: float, least: float, name: str) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ConfigError(f"{name}={value} must be finite and at least {least:g}", param=name)


class Mode(StrEnum):
    OFFLINE = "offline"
    """As many requests as the KV books admit, all the time."""
    ONLINE = "online"
    """Requests come when they come."""
    CLOSED = "closed"
    """`at_once` requests at any time: for each that ends, the next one comes."""


class FaultKind(StrEnum):
    KILL = "kill"
    """`node` falls silent; it and all it holds are gone."""
    CUT = "cut"
    """The links between `node` and `peer`, both ways, go down; frames on them are lost."""
    SLOW = "slow"
    """Steps of `node` take `factor` times as long; 1 is normal."""
    RESTORE = "restore"
    """`node` starts anew; with a `peer`, their links come back."""
    JOIN = "join"
    """`node`, not there at the start, joins."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    kind: FaultKind
    node: str
    peer: str = ""
    factor: float = 1.0

    def __post_init__(self) -> None:
        _at_least(self.at_s, 0.0, "fault.at_s")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ConfigError(f"fault.factor={self.factor} must be positive", param="factor")
        if self.kind is FaultKind.CUT and not self.peer:
            raise ConfigError("fault.peer: a cut names both ends of the link", param="peer")


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What every node runs with. `overhead_s` is added to each step: launches, copies, the loop.

    `load_s`: from being given a slice to being ready, for nodes that come after the start.
    `fifo_links`: decodes wait for the chunks before them, as production had it once; to compare.
    `derive_budget`: each node's prefill budget follows from its step times, as in production; else
    it is `limits.prefill_tokens`.
    """

    limits: BatchLimits = BatchLimits()
    derive_budget: bool = True
    fifo_links: bool = False
    page_tokens: int = DEFAULT_PAGE_TOKENS
    chunk_cost: ChunkCost = ChunkCost()
    overhead_s: float = 0.0
    load_s: float = 30.0

    def __post_init__(self) -> None:
        _at_least(self.overhead_s, 0.0, "node.overhead_s")
        _at_least(self.load_s, 0.0, "node.load_s")
        if not 1 <= self.page_tokens <= 4096:
            raise ConfigError(
                f"node.page_tokens={self.page_tokens} is not in 1..4096", param="page_tokens"
            )


@dataclass(frozen=True, slots=True)
class SimSettings:
    """One run. The recorder measures `duration_s` seconds after `warmup_s`.

    `max_prefilling`: offline, requests without a first token at any time; all at once would begin
    with minutes of nothing but prompts. `at_once`: closed, requests in the system. `drain`: run on
    after the last arrival until all ended.
    """

    mode: Mode = Mode.OFFLINE
    scheduler: str = "maxflow"
    prefer_near: bool = True
    duration_s: float = 600.0
    warmup_s: float = 60.0
    seed: int = 0
    max_requests: int | None = None
    max_prefilling: int = 20
    at_once: int = 64
    kv_high_water: float = 0.9
    node: NodeSettings = NodeSettings()
    core: CoreSettings = CoreSettings(
        max_waiting=1_000_000, max_context=1 << 20, default_deadline_s=86_400.0
    )
    cluster: ClusterSettings = ClusterSettings(max_nodes=100_000)
    heartbeat_s: float = 1.0
    drain: bool = False
    faults: tuple[Fault, ...] = field(default=())

    def __post_init__(self) -> None:
        _at_least(self.duration_s, 0.0, "duration_s")
        _at_least(self.warmup_s, 0.0, "warmup_s")
        _ = self.scheduling
        if self.max_prefilling < 1:
            raise ConfigError(
                f"max_prefilling={self.max_prefilling} must be at least 1", param="max_prefilling"
            )
        if self.at_once < 1:
            raise ConfigError(f"at_once={self.at_once} must be at least 1", param="at_once")
        if not 0 < self.heartbeat_s < self.cluster.dead_after_s:
            raise ConfigError(
                f"heartbeat_s={self.heartbeat_s} must be positive and less than dead_after_s="
                f"{self.cluster.dead_after_s}",
                param="heartbeat_s",
            )

    @property
    def scheduling(self) -> Scheduling:
        """ConfigError if there is no such scheduler."""
        return Scheduling(cast(Method, self.scheduler), self.seed, self.prefer_near)

    @property
    def end_s(self) -> float:
        """Virtual seconds from the start to the end of the measurement."""
        return self.warmup_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Options:
    """What people choose of a run, as the command line gives it."""

    mode: str = "offline"
    scheduler: str = "maxflow"
    prefer_near: bool = True
    duration_s: float = 600.0
    warmup_s: float = 60.0
    seed: int = 0
    expected_output_tokens: int = 256
    kv_high_water: float = 0.9
    prefill_tokens: int | None = None
    """None lets each node derive it from its step times."""
    faults: tuple[Fault, ...] = ()
    at_once: int = 64
    token_return: str = "auto"


def settings_of(options: Options) -> SimSettings:
    """ConfigError naming the option that makes no sense."""
    if options.mode not in list(Mode):
        raise ConfigError(f"mode={options.mode!r}: offline, online or closed", param="mode")
    for name in ("expected_output_tokens", "prefill_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1", param=name)
    if not 0 < options.kv_high_water <= 1:
        raise ConfigError(
            f"kv_high_water={options.kv_high_water} must be in (0, 1]", param="kv_high_water"
        )
    base = SimSettings()
    budget = options.prefill_tokens
    limits = BatchLimits() if budget is None else BatchLimits(prefill_tokens=budget)
    return replace(
        base,
        mode=Mode(options.mode),
        scheduler=options.scheduler,
        prefer_near=options.prefer_near,
        duration_s=options.duration_s,
        warmup_s=options.warmup_s,
        seed=options.seed,
        kv_high_water=options.kv_high_water,
        node=replace(base.node, limits=limits, derive_budget=budget is None),
        core=replace(
            base.core,
            expected_output_tokens=options.expected_output_tokens,
            token_return=token_return(options.token_return),
        ),
        faults=options.faults,
        at_once=options.at_once,
    )
