"""What the router's /ready and /metrics say at one moment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROUTER_SENDER = "@router"


@dataclass(frozen=True, slots=True)
class Picture:
    """`nodes`: state and layers by name. Links are (sender, receiver); the router is `@router`."""

    ready: bool
    reason: str
    nodes: Mapping[str, str]
    queued: int
    running: int
    used_pages: Mapping[str, int]
    total_pages: Mapping[str, int]
    open_requests: Mapping[str, int]
    waiting_rows: Mapping[str, int]
    backlog_bytes: Mapping[tuple[str, str], int]
    down_s: Mapping[tuple[str, str], float]

    def is_whole(self, names: frozenset[str]) -> bool:
        """Exactly `names` are there, all serve, each is linked to each and to the router."""
        everybody = names | {ROUTER_SENDER}
        links = {(a, b) for a in everybody for b in everybody if a != b}
        return (
            self.ready
            and set(self.nodes) == names
            and all(_serves(state) for state in self.nodes.values())
            and set(self.down_s) == links
            and not any(self.down_s.values())
        )

    @property
    def is_idle(self) -> bool:
        return not (
            self.queued
            or self.running
            or any(self.used_pages.values())
            or any(self.open_requests.values())
            or any(self.waiting_rows.values())
            or any(self.backlog_bytes.values())
        )

    def text(self) -> str:
        """One line: what is missing, held or down."""
        down = [f"{a} > {b} down {s:.1f} s" for (a, b), s in sorted(self.down_s.items()) if s]
        held = [
            f"{node} holds {self.open_requests.get(node, 0)} requests, {pages} pages, "
            f"{self.waiting_rows.get(node, 0)} rows"
            for node, pages in sorted(self.used_pages.items())
            if pages or self.open_requests.get(node) or self.waiting_rows.get(node)
        ]
        backlog = [f"{a} > {b} {n} bytes wait" for (a, b), n in self.backlog_bytes.items() if n]
        nodes = [f"{node} {state}" for node, state in sorted(self.nodes.items())]
        parts = [self.reason, *nodes, f"{self.queued} queued", f"{self.running} running"]
        return "; ".join(p for p in (*parts, *held, *down, *backlog) if p)


def _serves(state: str) -> bool:
    return state.startswith("ready") and "suspect" not in state


def read_picture(ready: Mapping[str, Any], metrics: str) -> Picture:
    """From the JSON of /ready and the text of /metrics."""
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            name = sample.name.removeprefix("helix_mq_")
            key = tuple(sample.labels[k] for k in sorted(sample.labels))
            values.setdefault(name, {})[key] = sample.value
    pages = values.get("node_kv_pages", {})
    return Picture(
        ready=ready["status"] == "ready",
        reason=str(ready["reason"]),
        nodes=dict(ready["nodes"]),
        queued=int(values["queued_requests"][()]),
        running=int(values["running_requests"][()]),
        used_pages={node: int(v) for (kind, node), v in pages.items() if kind == "used"},
        total_pages={node: int(v) for (kind, node), v in pages.items() if kind == "total"},
        open_requests=_by_node(values.get("node_open_requests", {})),
        waiting_rows=_by_node(values.get("node_waiting_rows", {})),
        # Labels in the order of their names: receiver, sender.
        backlog_bytes={(s, r): int(v) for (r, s), v in _pairs(values, "link_backlog_bytes")},
        down_s={(s, r): v for (r, s), v in _pairs(values, "link_down_seconds")},
    )


def _by_node(values: Mapping[tuple[str, ...], float]) -> dict[str, int]:
    return {key[0]: int(value) for key, value in values.items()}


def _pairs(
    values: Mapping[str, Mapping[tuple[str, ...], float]], name: str
) -> list[tuple[tuple[str, str], float]]:
    return [((key[0], key[1]), value) for key, value in values.get(name, {}).items()]
