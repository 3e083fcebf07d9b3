"""Uses the two-region cluster over HTTP and the SDK, and shows what its router has measured.

Ends with 1 if a request fails, or if the links between the regions are not measured in time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

import helix_mq
from helix_mq.errors import HelixError

HTTP = "http://127.0.0.1:8000"
_POLL_S = 0.1

Links = dict[tuple[str, str], dict[str, float]]


async def wait_ready(http: httpx.AsyncClient, timeout_s: float) -> dict[str, str]:
    """Each node's state and layers."""
    last = ""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                answer = await http.get("/ready")
            except httpx.TransportError:
                answer = None
            if answer is not None:
                body: dict[str, Any] = answer.json()
                if answer.status_code == 200:
                    nodes: dict[str, str] = body["nodes"]
                    return nodes
                if body["reason"] != last:
                    last = body["reason"]
                    print(f"  waiting: {last}", flush=True)
            await asyncio.sleep(_POLL_S)


async def ask_http(http: httpx.AsyncClient, text: str, tokens: int) -> int:
    body = {
        "model": "two-regions",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    answer = await http.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


async def ask_sdk(client: helix_mq.Client, text: str, tokens: int) -> int:
    done = await client.chat(
        [{"role": "user", "content": text}], max_tokens=tokens, temperature=0.0
    )
    return done.usage.output_tokens


async def read_links(http: httpx.AsyncClient) -> Links:
    wanted = {
        "helix_mq_link_round_trip_seconds": "round_trip_s",
        "helix_mq_link_probed_bytes_per_second": "bytes_per_s",
    }
    links: Links = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        name = wanted.get(family.name)
        for sample in family.samples if name else ():
            ends = (sample.labels["sender"], sample.labels["receiver"])
            links.setdefault(ends, {})[name or ""] = sample.value
    return links


def region_of(name: str) -> str:
    return "west" if name.startswith("west") else "east"


def crosses(ends: tuple[str, str]) -> bool:
    return region_of(ends[0]) != region_of(ends[1])


async def wait_measured(http: httpx.AsyncClient, timeout_s: float) -> Links:
    """The links, once those between the regions have both figures; or as they are then."""
    ends_s = time.monotonic() + timeout_s
    while True:
        links = await read_links(http)
        known = [all(v > 0 for v in f.values()) for ends, f in links.items() if crosses(ends)]
        if (known and all(known)) or time.monotonic() > ends_s:
            return links
        await asyncio.sleep(_POLL_S)


async def use(keys: Path, router: str, requests: int, tokens: int) -> dict[str, Any]:
    """Half of the requests over HTTP and half over the SDK, all at once."""
    async with httpx.AsyncClient(base_url=HTTP, timeout=120) as http:
        nodes = await wait_ready(http, 120)
        print("placement:")
        for name, text in nodes.items():
            print(f"  {name:<8} {text}")
        print("links before any request, as the processes at their ends have measured them:")
        links = await wait_measured(http, 15)
        for ends, figures in sorted(links.items()):
            print(f"  {_link_text(ends, figures)}", flush=True)
        print("  (those that were measured at the same moment had to share the wire)")
        async with helix_mq.Client(
            router, key=keys / "client.key", server_key=keys / "router.pub"
        ) as client:
            prompts = [f"Write {i + 3} words about the sea." for i in range(requests)]
            began_s = time.monotonic()
            counts = await asyncio.gather(
                *(
                    ask_sdk(client, p, tokens) if i % 2 else ask_http(http, p, tokens)
                    for i, p in enumerate(prompts)
                )
            )
            took_s = time.monotonic() - began_s
    total = sum(counts)
    rate = total / took_s
    print(
        f"{requests} requests at once, every other one through the SDK: {total} tokens in "
        f"{took_s:.1f} s, {rate:.1f} tokens/s"
    )
    return {
        "nodes": nodes,
        "links": [
            {"sender": a, "receiver": b, "crosses": crosses((a, b)), **figures}
            for (a, b), figures in sorted(links.items())
        ],
        "requests": requests,
        "tokens": total,
        "tokens_per_s": rate,
    }


def _link_text(ends: tuple[str, str], figures: dict[str, float]) -> str:
    rate = figures.get("bytes_per_s", 0.0) * 8 / 1e6
    wire = "across" if crosses(ends) else ""
    speed = f"{rate:>8.0f} Mbit/s" if rate else "not measured yet"
    trip = figures.get("round_trip_s", 0.0) * 1e3
    return f"{ends[0]:>8} -> {ends[1]:<8} {trip:>6.1f} ms  {speed}  {wire}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Use the two-region cluster and show it.")
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--router", required=True, help="its address for SDK clients")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write what was found there, too")
    given = parser.parse_args()
    try:
        found = asyncio.run(use(given.keys, given.router, given.requests, given.tokens))
    except (HelixError, httpx.HTTPError, TimeoutError) as e:
        sys.exit(f"the cluster did not serve: {e or type(e).__name__}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2))
    across = [link for link in found["links"] if link["crosses"]]
    if not across or not all(link["bytes_per_s"] > 0 < link["round_trip_s"] for link in across):
        sys.exit("the links between the regions were not measured in time")


if __name__ == "__main__":
    main()
