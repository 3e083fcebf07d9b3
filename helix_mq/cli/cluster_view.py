"""The cluster as a router describes it over HTTP, for commands that show it.

Read leniently: routers of other versions may leave out fields or add some. What nodes and their
devices say of themselves is only ever text: control characters, which a terminal would obey, are
taken out here.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from helix_mq.errors import LocalError

T = TypeVar("T")


class NodeView(msgspec.Struct, frozen=True):
    node: str
    state: str
    layers: str = ""
    next_layers: str = ""
    kind: str = ""
    region: str = ""
    first_layer: int | None = None
    end_layer: int | None = None
    suspect: str = ""
    failure: str = ""
    leaving: bool = False
    heard_s: float = 0.0
    kv_used_pages: int = 0
    kv_total_pages: int = 0
    crossing_requests: int = 0
    waiting_rows: int = 0
    tokens_per_s: float = 0.0
    flow_tokens_per_s: float = 0.0
    rate_tokens_per_s: float = 0.0
    busy_share: float = 0.0
    step_s: float = 0.0
    expected_step_s: float = 0.0
    slowdown: float = 1.0
    caps: bool = False

    @property
    def kv_share(self) -> float:
        return self.kv_used_pages / self.kv_total_pages if self.kv_total_pages else 0.0

    @property
    def trouble(self) -> str:
        """In words; empty if there is none."""
        if self.failure:
            return f"could not load its layers: {self.failure}"
        if self.suspect:
            return f"may be dead: {self.suspect}; new requests avoid it"
        if self.leaving:
            return "is leaving: waits for the requests it serves"
        if self.slowdown >= 1.5:
            return f"takes {self.slowdown:.1f}x as long per step as it measured"
        return ""


class LinkView(msgspec.Struct, frozen=True):
    sender: str
    receiver: str
    flow_tokens_per_s: float = 0.0
    capacity_tokens_per_s: float | None = None
    bytes_per_s: float = 0.0
    round_trip_s: float = 0.0
    backlog_bytes: int = 0
    blocked_share: float = 0.0
    down_s: float = 0.0
    closed: bool = False
    caps: bool = False

    @property
    def name(self) -> str:
        ends = ("router" if end == "@router" else end for end in (self.sender, self.receiver))
        return " > ".join(ends)

    @property
    def trouble(self) -> str:
        if self.down_s:
            return f"has been down for {self.down_s:.0f} s"
        if self.closed:
            return "is not used for a while: rows were lost on it"
        if self.blocked_share >= 0.2:
            return f"waits for its receiver {self.blocked_share:.0%} of the time"
        return ""


class PercentilesView(msgspec.Struct, frozen=True):
    count: int = 0
    p50_s: float = 0.0
    p90_s: float = 0.0
    p99_s: float = 0.0


class RouterView(msgspec.Struct, frozen=True):
    version: str = ""
    model: str = ""
    num_layers: int = 0
    now_s: float = 0.0
    uptime_s: float = 0.0
    waiting: int = 0
    running: int = 0
    max_waiting: int = 0
    admitted: int = 0
    refused: int = 0
    refused_by: dict[str, int] = {}
    output_tokens_per_s: float = 0.0
    over_s: float = 0.0
    ttft: PercentilesView = PercentilesView()
    itl: PercentilesView = PercentilesView()
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class HappeningView(msgspec.Struct, frozen=True):
    at_s: float
    level: str
    kind: str
    node: str
    text: str


class BottleneckView(msgspec.Struct, frozen=True):
    text: str = ""


class ClusterView(msgspec.Struct, frozen=True):
    serving: bool
    reason: str = ""
    epoch: int = 0
    flow_tokens_per_s: float = 0.0
    doing: str = ""
    verdict: str = ""
    nodes: tuple[NodeView, ...] = ()
    links: tuple[LinkView, ...] = ()
    router: RouterView = RouterView()
    bottleneck: BottleneckView = BottleneckView()
    happenings: tuple[HappeningView, ...] = ()


def cluster_view(state: object) -> ClusterView:
    """Of the answer of `/v1/helix/cluster`. LocalError where it is none."""
    return read_as(state, ClusterView, "/v1/helix/cluster")


def read_as(state: object, kind: type[T], path: str) -> T:
    """The answer of a page as `kind`. LocalError where it is another router's, or none's."""
    try:
        return msgspec.convert(_clean(state), kind)
    except (msgspec.ValidationError, RecursionError) as e:
        raise LocalError(f"{path} answers in a form that this helix-mq cannot read: {e}") from None


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return (
            value if value.isprintable() else "".join(c if c.isprintable() else "?" for c in value)
        )
    if isinstance(value, dict):
        return {_clean(k): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value
