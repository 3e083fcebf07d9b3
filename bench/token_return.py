"""What direct return saves: time per token with the router far away, by either way.

    python -m bench.token_return [--leg-ms 40] [--between-ms 2] [--out FILE.json]

Real router, nodes and sockets in one process (bench.distance) and a tiny random model, so that
nearly all of a token's time is distance. Each placement runs without any distance first: what a
token takes then, plus the legs that it crosses, is what it is expected to take.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import uvloop

from bench.chaos.tiny_model import write_tiny_model
from bench.distance import Delay, DistantCluster, Timed, around_router, distant_cluster
from bench.planner_common import machine_summary, write_results
from helix_mq.ids import ROUTER, NodeId
from helix_mq.sampling import SamplingParams
from router.service import Generation

PLACEMENTS: Mapping[str, Mapping[str, str]] = {
    "three nodes": {"a": "0:2", "b": "2:4", "c": "4:6"},
    "one node": {"a": "0:6"},
}
WAYS = ("router", "direct", "auto")
STREAMS = (1, 4)
PROMPT_TOKENS = 24
MEASURED_S = 30.0
"""How long links are waited for to be measured; they are within two seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """`tpot_s`: median over requests of the mean time per token after the first."""

    placement: str
    way: str
    streams: int
    tpot_s: float
    expected_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Legs:
    """Seconds one way."""

    router_s: float
    between_s: float

    def of_token(self, nodes: int, way: str) -> float:
        """What a decode crosses: from hop to hop, and back by the router or straight."""
        onward = (nodes - 1) * self.between_s
        straight = self.between_s if nodes > 1 else 0.0
        return onward + (2 * self.router_s if way == "router" else straight)


async def measure(
    folder: Path, placement: str, way: str, delay_s: Delay, tokens: int
) -> dict[int, list[Timed]]:
    """Finished streams by how many ran at once."""
    nodes = PLACEMENTS[placement]
    # Drafts would save rounds, whichever way they take.
    settings = {"token_return": way, "speculation": {"enabled": False}}
    async with distant_cluster(folder, nodes, delay_s, settings=settings) as cluster:
        await _links_measured(cluster, [NodeId(n) for n in nodes])
        await cluster.run(_generation(0, 4))
        found: dict[int, list[Timed]] = {}
        for streams in STREAMS:
            asked = [_generation(n, tokens) for n in range(streams)]
            found[streams] = list(await asyncio.gather(*(cluster.run(g) for g in asked)))
        return found


def _generation(number: int, tokens: int) -> Generation:
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    prompt = tuple((7 * number + n) % 256 for n in range(PROMPT_TOKENS))
    return Generation(prompt, sampling)


async def _links_measured(cluster: DistantCluster, nodes: Sequence[NodeId]) -> None:
    """What `auto` decides by."""
    round_trip_s = cluster.app.core.cluster.flows.round_trip_s
    links = [(ROUTER, nodes[0]), (nodes[-1], ROUTER)]
    if len(nodes) > 1:
        links.append((nodes[-1], nodes[0]))
    async with asyncio.timeout(MEASURED_S):
        for link in links:
            while not round_trip_s(*link):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def compare(folder: Path, legs: Legs, tokens: int) -> tuple[list[Row], bool]:
    """The rows, and whether every way gave the same tokens."""
    rows: list[Row] = []
    same = True
    for placement, nodes in PLACEMENTS.items():
        near = await measure(folder, placement, "router", lambda one, other: 0.0, tokens)
        for way in WAYS:
            delay_s = around_router(legs.router_s, legs.between_s)
            far = await measure(folder, placement, way, delay_s, tokens)
            for streams, timed in far.items():
                same &= [t.token_ids for t in timed] == [t.token_ids for t in near[streams]]
                alone_s = median(t.tpot_s for t in near[streams])
                rows.append(
                    Row(
                        placement,
                        way,
                        streams,
                        median(t.tpot_s for t in timed),
                        alone_s + legs.of_token(len(nodes), way),
                        median(t.ttft_s for t in timed),
                    )
                )
                print(_text(rows[-1]), file=sys.stderr, flush=True)
    return rows, same


def _text(row: Row) -> str:
    return (
        f"{row.placement:12} {row.way:7} {row.streams} at once: {row.tpot_s * 1e3:6.1f} ms per "
        f"token, expected {row.expected_s * 1e3:6.1f}; first after {row.ttft_s * 1e3:.0f} ms"
    )


async def run(options: argparse.Namespace) -> dict[str, object]:
    legs = Legs(options.leg_ms / 1e3, options.between_ms / 1e3)
    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as folder:
        model = write_tiny_model(Path(folder) / "model")
        rows, same = await compare(model, legs, options.tokens)
    return {
        "command": "python -m bench.token_return",
        "machine": machine_summary(("torch", "pyzmq", "uvloop")),
        "leg_to_router_s": legs.router_s,
        "leg_between_nodes_s": legs.between_s,
        "tokens": options.tokens,
        "same_tokens": same,
        "rows": [asdict(row) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--leg-ms", type=float, default=40.0, help="router to nodes, one way")
    parser.add_argument("--between-ms", type=float, default=2.0, help="between nodes, one way")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = uvloop.run(run(options))
    if options.out is not None:
        write_results(options.out, found)
    if not found["same_tokens"]:
        sys.exit("the ways gave different tokens")


if __name__ == "__main__":
    main()
