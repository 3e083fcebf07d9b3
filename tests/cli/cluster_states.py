"""Clusters as a router would describe them: made up, for what shows them."""

from __future__ import annotations

from typing import Any


def node(number: int, layers: int, **more: Any) -> dict[str, Any]:
    first = number * 3 % layers
    return {
        "node": f"node-{number:02}",
        "state": "ready",
        "layers": f"{first}-{first + 2}",
        "kind": ("T4", "L4", "A100-40")[number % 3],
        "region": ("eu-west", "us-east")[number % 2],
        "first_layer": first,
        "end_layer": first + 3,
        "heard_s": 0.4,
        "kv_used_pages": 10 * (number % 10),
        "kv_total_pages": 100,
        "crossing_requests": number,
        "waiting_rows": 3 * number,
        "tokens_per_s": 1200.0 + number,
        "flow_tokens_per_s": 1290.0,
        "rate_tokens_per_s": 12_900.0,
        "busy_share": 0.41,
        "step_s": 0.0123,
        "expected_step_s": 0.0119,
        **more,
    }


def cluster(many: int, **more: Any) -> dict[str, Any]:
    """So many nodes; the second one caps the flow."""
    nodes = [node(i, 60, caps=i == 1) for i in range(many)]
    links = [
        {
            "sender": "@router" if i == 0 else f"node-{i - 1:02}",
            "receiver": f"node-{i:02}",
            "flow_tokens_per_s": 1290.0,
            "capacity_tokens_per_s": 15_000.0 if i else None,
            "bytes_per_s": 3.4e6 + i,
            "round_trip_s": 0.0401,
        }
        for i in range(many)
    ]
    return {
        "serving": True,
        "reason": "",
        "epoch": 7,
        "flow_tokens_per_s": 1290.0,
        "doing": "",
        "verdict": "",
        "searches": 1,
        "nodes": nodes,
        "links": links,
        "router": {
            "version": "0.1.0",
            "model": "Llama-30B",
            "num_layers": 60,
            "now_s": 1.7e9,
            "uptime_s": 11_520.0,
            "waiting": 3,
            "running": 12,
            "max_waiting": 1024,
            "admitted": 1234,
            "refused": 5,
            "refused_by": {"queue_full": 5},
            "output_tokens_per_s": 412.0,
            "over_s": 300.0,
            "ttft": {"count": 100, "p50_s": 0.21, "p90_s": 0.5, "p99_s": 0.9},
            "itl": {"count": 9000, "p50_s": 0.031, "p90_s": 0.05, "p99_s": 0.08},
            "drafted_tokens": 1000,
            "accepted_tokens": 620,
        },
        "bottleneck": {
            "text": "the two T4s holding layers 3-5 (node-01, node-21) cap you at 1,290 tokens/s"
        },
        "happenings": [
            {"at_s": 1.7e9 + i, "level": "info", "kind": "joined", "node": f"node-{i:02}",
             "text": "joined: cuda:0 Tesla T4"}
            for i in range(min(many, 60))
        ],
        **more,
    }  # fmt: skip
