"""A plan as people and programs read it: the table on a terminal, the JSON object."""

from __future__ import annotations

import math
from dataclasses import asdict

from solver.explain import Explanation
from solver.figures import percent, shown
from solver.judging import Trial
from solver.objective import ServingEstimate
from solver.problem import Problem
from solver.search_types import PlanResult

BAR = 48


def as_dict(result: PlanResult, explanation: Explanation | None) -> dict[str, object]:
    """The result as others check it; infinities become null."""
    slices = result.placement.slices
    body: dict[str, object] = {
        "method": result.method,
        "objective_tokens_per_s": result.objective_tokens_per_s,
        "upper_bound_tokens_per_s": _finite(result.upper_bound_tokens_per_s),
        "gap": _finite(result.gap),
        "seconds": result.seconds,
        "proven_optimal": result.proven_optimal,
        "bound_reason": result.bound_reason,
        "notes": list(result.notes),
        "placement": {n: [slices[n].first, slices[n].end] for n in result.placement},
        "trace": [
            {
                "seconds": p.seconds,
                "phase": p.phase,
                "incumbent_tokens_per_s": p.incumbent_tokens_per_s,
                "upper_bound_tokens_per_s": p.upper_bound_tokens_per_s,
            }
            for p in result.trace
        ],
    }
    if result.serving is not None:
        body["serving"] = {
            "decode_tokens_per_s": result.serving.decode_tokens_per_s,
            "requests_in_flight": result.serving.requests_in_flight,
            "round_trip_s": _finite(result.serving.round_trip_s),
            "limit": result.serving.limit,
            "busiest": result.serving.busiest,
            "straight_share": result.serving.straight_share,
        }
    if result.trial is not None:
        body["simulated"] = asdict(result.trial)
    if explanation is not None:
        body["explanation"] = _explained(explanation)
    return body


def describe(problem: Problem, result: PlanResult, explanation: Explanation | None) -> str:
    """A table of nodes and layers, and the figures."""
    lines = [f"{problem.name}: {shown(result.objective_tokens_per_s)} tokens/s by {result.method}"]
    bound = result.upper_bound_tokens_per_s
    if result.proven_optimal:
        lines.append(f"proven optimal ({result.bound_reason})")
    elif math.isfinite(bound):
        lines.append(
            f"no placement can pass {shown(bound)} ({result.bound_reason}): gap "
            f"{percent(result.gap)}"
        )
    if result.serving is not None:
        lines.append(_served(result.serving))
    if result.trial is not None:
        lines.append(_tried(result.trial))
    lines += [f"{result.seconds:.1f} s", "", *_table(problem, result), ""]
    if explanation is not None:
        lines.append(explanation.text())
    return "\n".join([*lines, *result.notes]).rstrip()


def _table(problem: Problem, result: PlanResult) -> list[str]:
    nodes = {n.name: n for n in problem.nodes}
    names = max([4, *(len(n) for n in result.placement)])
    kinds = max([4, *(len(nodes[n].type_name) for n in result.placement)])
    lines = [
        f"{'node':>{names}} {'type':>{kinds}}    layers |{'':{BAR}}|   flow of capacity, tokens/s"
    ]
    for node in sorted(result.placement, key=lambda n: (result.placement.slices[n].first, n)):
        layers = result.placement.slices[node]
        flow = result.flow.node_flow.get(node, 0.0)
        capacity = nodes[node].tokens_per_s(len(layers))
        start = min(BAR - 1, BAR * layers.first // problem.num_layers)
        end = max(start + 1, BAR * layers.end // problem.num_layers)
        bar = " " * start + "#" * (end - start)
        held = f"{layers.first}-{layers.end - 1}"
        lines.append(
            f"{node:>{names}} {nodes[node].type_name:>{kinds}} {held:>9} |{bar:{BAR}}|"
            f" {shown(flow):>9} {shown(capacity):>9}"
        )
    return lines


def _served(serving: ServingEstimate) -> str:
    if serving.decode_tokens_per_s <= 0:
        return f"expected to serve nothing: {serving.limit}"
    limit = (
        f"limited by KV room, busiest is {serving.busiest}"
        if serving.limit == "KV room"
        else f"limited by {serving.busiest}, which is {serving.limit}"
    )
    share = round(100 * serving.straight_share)
    straight = f" ({share} % straight from last hop to first)" if share else ""
    return (
        f"expected to serve {shown(serving.decode_tokens_per_s)} decode tokens/s with "
        f"{shown(serving.requests_in_flight, 0)} requests in flight, "
        f"{shown(serving.round_trip_s, 2)} s per token of each{straight}; {limit}"
    )


def _tried(trial: Trial) -> str:
    if trial.decode_tokens_per_s <= 0:
        return "simulated, kept full: no request came to its second token in the time simulated"
    return (
        f"simulated, kept full: {shown(trial.decode_tokens_per_s)} decode tokens/s with "
        f"{trial.requests_in_flight:.0f} requests in flight, median inter-token latency "
        f"{trial.itl_p50_s:.2f} s, median time to first token {trial.ttft_p50_s:.1f} s"
    )


def _explained(explanation: Explanation) -> dict[str, object]:
    return {
        "text": explanation.text(),
        "bottleneck": explanation.bottleneck,
        "layers": [explanation.layers.first, explanation.layers.end],
        "min_cut": [{"kind": e.kind.value, "from": e.src, "to": e.dst} for e in explanation.cut],
        "as_full": list(explanation.as_full),
        "one_more": [
            {
                "type": a.type_name,
                "region": a.region,
                "layers": [a.layers.first, a.layers.end],
                "tokens_per_s": a.tokens_per_s,
            }
            for a in explanation.advice
        ],
        "idle": [{"node": n.name, "reason": n.reason} for n in explanation.idle],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
