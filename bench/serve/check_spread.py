"""How far two clients agree over several rounds, and how far each agrees with itself. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

OURS, OTHER = "ours", "vllm"
CLIENTS = (OURS, OTHER)
HELD_TO = ("mean_ttft_ms", "median_ttft_ms", "output_throughput")
LIMIT = 0.05


@dataclass(frozen=True, slots=True)
class Side:
    """One client in one round. `server_ms`: the router's own record of the very same requests, by
    the name of the client's figure. Processor seconds while the load ran (`client_cpu_s`, and of
    the server `server_cpu_s`) and in the client's whole life, imports included."""

    figures: Mapping[str, float]
    server_ms: Mapping[str, float]
    seconds: float
    client_cpu_s: float
    client_whole_cpu_s: float
    server_cpu_s: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


Round = Mapping[str, Side]


def agreement(rounds: Sequence[Round]) -> dict[str, object]:
    """Medians of each, ours over theirs less one, and each one's own spread: the largest over the
    smallest of its rounds less one. `beside_server_ms`: by how much a client's mean is above the
    router's own record. `difference_beside_server`: how far these lie apart, over the mean: the
    clients' difference without what the server did differently for the two."""
    medians = {who: _medians([r[who] for r in rounds]) for who in CLIENTS}
    names = list(rounds[0][OURS].figures)
    difference = {n: round(medians[OURS][n] / medians[OTHER][n] - 1, 4) for n in names}
    worst = max(abs(difference[n]) for n in HELD_TO)
    beside = {who: _beside_server([r[who] for r in rounds]) for who in CLIENTS}
    return {
        "medians": medians,
        "difference": difference,
        "beside_server_ms": beside,
        "difference_beside_server": {
            n: round((beside[OURS][n] - beside[OTHER][n]) / medians[OTHER][n], 4)
            for n in beside[OURS]
        },
        "own_spread": {who: _spread([r[who].figures for r in rounds]) for who in CLIENTS},
        "held_to": {"figures": list(HELD_TO), "limit": LIMIT, "worst": worst},
        "agree": worst <= LIMIT,
    }


def _medians(sides: Sequence[Side]) -> dict[str, float]:
    rows: list[dict[str, float]] = []
    for side in sides:
        cpu = {
            "client_cpu_share": side.client_cpu_s / side.seconds,
            "server_cpu_share": side.server_cpu_s / side.seconds,
            "client_cpu_s": side.client_cpu_s,
            "client_whole_cpu_s": side.client_whole_cpu_s,
        }
        rows.append({**side.figures, **cpu})
    return {n: round(statistics.median(row[n] for row in rows), 4) for n in rows[0]}


def _beside_server(sides: Sequence[Side]) -> dict[str, float]:
    return {
        n: round(statistics.median(s.figures[n] - s.server_ms[n] for s in sides), 4)
        for n in sides[0].server_ms
    }


def _spread(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {n: round(max(r[n] for r in rows) / min(r[n] for r in rows) - 1, 4) for n in rows[0]}
