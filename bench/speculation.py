"""What drafts save over distance: time per token with and without them, on texts of two kinds.

    python -m bench.speculation --model FOLDER [--leg-ms 40] [--tokens 64] [--out FILE.json]

Real router, sockets and three nodes in one process (bench.distance); every connection delays what
passes by one leg, so a token crosses four. Requests run one at a time. "repetitive" asks for texts
that stand in the prompt already, "chat" for new ones. The tokens must be the same either way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import uvloop

from bench.distance import DistantCluster, Timed, distant_cluster
from bench.planner_common import machine_summary, write_results
from helix_mq.models.config import ModelConfig
from helix_mq.models.tokenizer import Tokenizer
from helix_mq.sampling import SamplingParams
from router.service import Generation

NODES = ("a", "b", "c")
MEMORY_BYTES = 1 << 30

_STORY = (
    "The lighthouse keeper climbed the stairs every evening, counted the ships on the horizon, "
    "wrote their names into a grey book, lit the lamp, and waited for the fog to come in from the "
    "northern bay."
)
_CODE = """def total(orders):
    result = 0
    for order in orders:
        if order.cancelled:
            continue
        result += order.price * order.amount
    return result
"""
_LIST = "\n".join(
    f'{{"id": {n}, "name": "{name}", "city": "{city}"}}'
    for n, (name, city) in enumerate(
        [("Ada", "London"), ("Emmy", "Erlangen"), ("Sofia", "Stockholm"), ("Grace", "New York")]
    )
)
TEXTS: Mapping[str, Sequence[str]] = {
    "repetitive": (
        f"Repeat this text exactly, word for word:\n\n{_STORY}",
        f"Repeat this code exactly, but with `order` renamed to `item`:\n\n{_CODE}",
        f"Write these lines again, with the ids counted from 10:\n\n{_LIST}",
    ),
    "chat": (
        "Why is the sky blue? Answer in one paragraph.",
        "Give me an idea for a birthday present for my sister who likes hiking.",
        "What is the difference between a virus and a bacterium?",
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Of the requests of one kind. `tpot_s`: median over them of the mean time per token after the
    first. `acceptance`: of the drafts, how many were right; None without any."""

    text: str
    drafts: bool
    tpot_s: float
    tokens_per_s: float
    drafted: int
    accepted: int
    acceptance: float | None


async def measure(
    folder: Path, leg_s: float, prompts: Mapping[str, list[Generation]], *, drafts: bool
) -> dict[str, tuple[Row, list[Timed]]]:
    settings = {
        "token_return": "router",
        "speculation": {"enabled": drafts},
        # One process is all of them: what is computed may hold up their signs of life.
        "dead_after_s": 60.0,
        "link_down_after_s": 60.0,
    }
    placement = _thirds(ModelConfig.from_folder(folder).num_layers)
    found: dict[str, tuple[Row, list[Timed]]] = {}
    async with distant_cluster(
        folder, placement, lambda _one, _other: leg_s, settings=settings, memory_bytes=MEMORY_BYTES
    ) as cluster:
        await cluster.run(_short(prompts["chat"][0]))
        for text, wanted in prompts.items():
            found[text] = await _run(cluster, text, wanted, drafts=drafts)
            print(_line(found[text][0]), file=sys.stderr, flush=True)
    return found


async def _run(
    cluster: DistantCluster, text: str, wanted: list[Generation], *, drafts: bool
) -> tuple[Row, list[Timed]]:
    before = cluster.app.core.statistics().drafts
    timed = [await cluster.run(generation) for generation in wanted]
    after = cluster.app.core.statistics().drafts
    drafted, accepted = after.drafted - before.drafted, after.accepted - before.accepted
    decode_s = sum(t.token_s[-1] - t.token_s[0] for t in timed)
    row = Row(
        text,
        drafts,
        median(t.tpot_s for t in timed),
        sum(len(t.token_s) - 1 for t in timed) / decode_s,
        drafted,
        accepted,
        accepted / drafted if drafted else None,
    )
    return row, timed


def _thirds(layers: int) -> dict[str, str]:
    cuts = [layers * n // len(NODES) for n in range(len(NODES) + 1)]
    return {node: f"{a}:{b}" for node, (a, b) in zip(NODES, pairwise(cuts), strict=True)}


def _short(generation: Generation) -> Generation:
    """To warm up with."""
    return Generation(generation.prompt_ids, SamplingParams(temperature=0.0, max_tokens=4))


def _generations(folder: Path, tokens: int) -> dict[str, list[Generation]]:
    tokenizer = Tokenizer.from_folder(folder)
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.apply_chat_template([{"role": "user", "content": text}]))

    return {kind: [Generation(ids(t), sampling) for t in texts] for kind, texts in TEXTS.items()}


def _line(row: Row) -> str:
    told = f", {row.accepted} of {row.drafted} drafts right" if row.drafts else ""
    return (
        f"{row.text:10} {'with' if row.drafts else 'without'} drafts: {row.tpot_s * 1e3:6.1f} ms "
        f"per token{told}"
    )


async def run(options: argparse.Namespace) -> dict[str, object]:
    leg_s = options.leg_ms / 1e3
    prompts = _generations(options.model, options.tokens)
    plain = await measure(options.model, leg_s, prompts, drafts=False)
    drafted = await measure(options.model, leg_s, prompts, drafts=True)
    same, times = True, dict[str, float]()
    for text, (row, timed) in drafted.items():
        base, alone = plain[text]
        same &= [t.token_ids for t in timed] == [t.token_ids for t in alone]
        times[text] = base.tpot_s / row.tpot_s
    print(f"times faster per token: {times}; same tokens: {same}", file=sys.stderr)
    return {
        "command": f"python -m bench.speculation --model {options.model.name}",
        "machine": machine_summary(("torch", "pyzmq", "uvloop")),
        "model": options.model.name,
        "leg_s": leg_s,
        "tokens": options.tokens,
        "same_tokens": same,
        "tpot_times_faster": times,
        "rows": [asdict(found[text][0]) for found in (plain, drafted) for text in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--leg-ms", type=float, default=40.0, help="each link, one way")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = uvloop.run(run(options))
    if options.out is not None:
        write_results(options.out, found)
    if not found["same_tokens"]:
        sys.exit("other tokens with drafts than without")


if __name__ == "__main__":
    main()
