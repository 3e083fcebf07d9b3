"""What it saves that nodes keep the beginnings of prompts: first tokens, and tokens computed.

    python -m bench.prefix_cache [--model FOLDER] [--out bench/results/prefix-cache.json]

Requests with one long system prompt and a short end of their own go through a router and two nodes
on loopback, each a process with one thread, some at a time; once with the prefix cache, once
without. Tokens are checked to be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from bench.chaos.cluster import ChaosCluster, Plan, slices_of
from bench.ending import run_to_its_end
from bench.live_run import say
from bench.planner_common import machine_summary, write_results
from helix_mq.client import Client
from helix_mq.models.config import ModelConfig
from helix_mq.models.resolve import find_demo_gguf, resolve_model

HALVES = {"alpha": (0.0, 0.5), "beta": (0.5, 1.0)}
READY_S = 180.0
SHARES = {"off": "without", "key": "with"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """`shared_tokens` begin every prompt, `own_tokens` end it; `at_once` requests are under way."""

    requests: int
    shared_tokens: int
    own_tokens: int
    output_tokens: int
    at_once: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """`first_ttft_s` is of the first request, which finds nothing; the others' are the rest.
    `computed_tokens` by each node, prompts and output together; `cached_tokens` as requests were
    told."""

    first_ttft_s: float
    median_ttft_s: float
    worst_ttft_s: float
    total_s: float
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: dict[str, int]


def prompts(wanted: Wanted, vocab_size: int) -> list[list[int]]:
    draw = random.Random(wanted.seed)

    def ids(count: int) -> list[int]:
        # Not the first ids, which are markers in many vocabularies.
        return [draw.randrange(100, vocab_size) for _ in range(count)]

    shared = ids(wanted.shared_tokens)
    return [[*shared, *ids(wanted.own_tokens)] for _ in range(wanted.requests)]


async def measure(
    model: Path, wanted: Wanted, share: str
) -> tuple[Measured, list[tuple[int, ...]]]:
    """What was measured, and every request's tokens."""
    config = ModelConfig.from_folder(model)
    plan = Plan(
        model,
        slices_of(config.num_layers, HALVES),
        node_memory="3GiB",
        settings=f'[prefix_cache]\nshare = "{share}"',
        gates=False,
        log_level="warning",
    )
    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as folder:
        async with ChaosCluster(plan, Path(folder)) as cluster:
            await cluster.whole(READY_S)
            async with Client(cluster.clients) as client:
                # What a first request costs beside its prompt is no part of this.
                await client.generate([7] * 32, max_tokens=4)
                before = await node_tokens(cluster.url)
                places = asyncio.Semaphore(wanted.at_once)
                loop = asyncio.get_running_loop()
                started_s = loop.time()

                async def one(prompt: Sequence[int]) -> tuple[float, int, tuple[int, ...]]:
                    async with places:
                        done = await client.generate(
                            list(prompt),
                            max_tokens=wanted.output_tokens,
                            temperature=0.0,
                            ignore_eos=True,
                        )
                        say(f"share = {share}: {done.timings.ttft_s:.3f} s to a first token")
                        return done.timings.ttft_s, done.usage.cached_tokens, done.token_ids

                every = prompts(wanted, config.vocab_size)
                results = await asyncio.gather(*(one(prompt) for prompt in every))
                total_s = loop.time() - started_s
                await cluster.idle(READY_S)
                after = await node_tokens(cluster.url)
    ttfts = [ttft_s for ttft_s, _, _ in results]
    measured = Measured(
        first_ttft_s=round(ttfts[0], 4),
        median_ttft_s=round(statistics.median(ttfts[1:]), 4),
        worst_ttft_s=round(max(ttfts[1:]), 4),
        total_s=round(total_s, 2),
        prompt_tokens=sum(map(len, every)),
        cached_tokens=sum(cached for _, cached, _ in results),
        computed_tokens={name: after[name] - before[name] for name in sorted(after)},
    )
    return measured, [ids for _, _, ids in results]


_TOKENS = re.compile(r'^helix_mq_node_tokens_total\{node="([^"]+)"\} (\S+)$', re.MULTILINE)


async def node_tokens(url: str) -> dict[str, int]:
    """Tokens that each node has run, as the router last heard; two reports apart, so that all of
    what has ended is in it."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
        last: dict[str, int] = {}
        while True:
            text = (await http.get(f"{url}/metrics")).text
            now = {node: int(float(count)) for node, count in _TOKENS.findall(text)}
            if now and now == last:
                return now
            last = now
            await asyncio.sleep(1.5)


async def compare(
    model: Path, wanted: Wanted, keep: Callable[[dict[str, Measured], bool | None], None]
) -> dict[str, Measured]:
    """By what is shared. `keep` is told after each of the two, and at the end whether tokens
    are the same. Raises AssertionError where they differ."""
    found: dict[str, Measured] = {}
    tokens: dict[str, list[tuple[int, ...]]] = {}
    for share in SHARES:
        found[share], tokens[share] = await measure(model, wanted, share)
        say(f"share = {share}: {found[share]}")
        keep(found, tokens["off"] == tokens["key"] if len(tokens) == len(SHARES) else None)
    assert tokens["off"] == tokens["key"], "the cache has changed a token"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="default: the demo's SmolLM2-135M")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--shared-tokens", type=int, default=1000)
    parser.add_argument("--own-tokens", type=int, default=24)
    parser.add_argument("--output-tokens", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = resolve_model(given.model or find_demo_gguf())
    wanted = Wanted(
        given.requests,
        given.shared_tokens,
        given.own_tokens,
        given.output_tokens,
        given.at_once,
    )
    machine = machine_summary(("torch", "pyzmq", "numpy"))

    def keep(found: dict[str, Measured], tokens_equal: bool | None) -> None:
        if given.out is None:
            return
        result: dict[str, object] = {
            "command": " ".join(["python -m bench.prefix_cache", *(arguments or sys.argv[1:])]),
            "machine": machine,
            "model": given.model.name if given.model else "SmolLM2-135M-Instruct, float32",
            "wanted": asdict(wanted),
            "tokens_equal": tokens_equal,
        }
        write_results(given.out, result | {SHARES[s]: asdict(m) for s, m in found.items()})

    found = run_to_its_end(compare(model, wanted, keep))
    print(
        f"first token, median: {found['off'].median_ttft_s:.3f} s without, "
        f"{found['key'].median_ttft_s:.3f} s with"
    )


if __name__ == "__main__":
    main()
