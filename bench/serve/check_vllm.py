"""`vllm bench serve` as the other client of the check: its command, its prompts, its figures.

vLLM's own load client: an asyncio program on aiohttp in one process, so light that it leaves a
server on the same two cores as it is. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.serve.check_figures import FIGURES
from bench.serve.prompts import Prompts
from bench.traces.types import Lengths
from bench.traces.workload import open_workload
from helix_mq.errors import LocalError

LAUNCH = (
    "from vllm.benchmarks.serve import add_cli_args, main\n"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "parser = FlexibleArgumentParser()\n"
    "add_cli_args(parser)\n"
    "main(parser.parse_args())\n"
)
"""What `vllm bench serve` does. The program `vllm` of the wheel for CPUs ends at once, as it asks
for the version of a package of another name."""


_RECORDED = {"mean_ttft_ms": "time_to_first_token", "mean_e2el_ms": "request"}


@dataclass(frozen=True, slots=True)
class SameLoad:
    """What both send: `requests` of a workload's lengths, `at_once` under way. Lengths that differ
    keep requests from ending in step, when who sends its next a millisecond sooner is first in all
    rounds. Neither warms up: each would do it in its own way, and the server could not tell."""

    workload: str
    seed: int
    at_once: int
    requests: int

    def lengths(self) -> list[Lengths]:
        return list(islice(open_workload(self.workload, self.seed).lengths(), self.requests))


def vllm_command(
    url: str, model: str, same: SameLoad, tokenizer: Path, requests: Path, out: Path
) -> list[str]:
    """Without the interpreter. Lengths come with the prompts, from the file `requests`."""
    return [
        *("vllm", "bench", "serve", "--backend", "openai", "--base-url", url),
        *("--endpoint", "/v1/completions", "--model", model, "--tokenizer", str(tokenizer)),
        *("--dataset-name", "custom", "--dataset-path", str(requests), "--skip-chat-template"),
        *("--disable-shuffle", "--no-oversample", "--num-prompts", str(same.requests)),
        *("--custom-output-len", "-1", "--ignore-eos", "--temperature", "0"),
        *("--max-concurrency", str(same.at_once), "--ready-check-timeout-sec", "0"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm"),
        *("--save-result", "--save-detailed"),
        *("--result-dir", str(out.parent), "--result-filename", out.name),
    ]


def ours_command(url: str, model: str, same: SameLoad, tokenizer: Path, out: Path) -> list[str]:
    return [
        *("helix-mq", "bench", "serve", "--url", f"{url}/v1", "--model", model),
        *("--concurrency", str(same.at_once), "--requests", str(same.requests)),
        *("--warmup", "0", "--tokenizer", str(tokenizer)),
        *("--workload", same.workload, "--seed", str(same.seed), "--out", str(out)),
    ]


def request_lines(same: SameLoad, tokenizer: Path) -> str:
    """What ours will send, as vLLM's `custom` data set."""
    prompts = Prompts(same.seed, tokenizer)
    rows = (
        {"prompt": prompts.text(number, lengths.prompt_tokens), "output_tokens": asked}
        for number, lengths in enumerate(same.lengths())
        for asked in [lengths.output_tokens]
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def of_vllm(found: Mapping[str, Any], same: SameLoad) -> dict[str, float]:
    return _held("vllm", found, same)


def of_ours(found: Mapping[str, Any], same: SameLoad) -> dict[str, float]:
    return _held("ours", found, same)


def _held(who: str, found: Mapping[str, Any], same: SameLoad) -> dict[str, float]:
    """LocalError unless what was sent is the load, and all its tokens came: figures of another load
    are none."""
    asked = sum(lengths.output_tokens for lengths in same.lengths())
    if found["failed"] or found["completed"] != same.requests:
        errors = sorted({str(e)[-200:] for e in found.get("errors", ()) if e})
        raise LocalError(
            f"{who}: {found['completed']} of {same.requests} requests were served: {errors}"
        )
    if found["total_output_tokens"] != asked:
        raise LocalError(f"{who}: {found['total_output_tokens']} tokens came, not {asked}")
    return {name: round(float(found[name]), 4) for name in FIGURES}


def record_of(metrics: str) -> dict[str, tuple[float, float]]:
    """Seconds and requests of the router's two histograms so far, by the figure of a client that
    they stand beside. LocalError where the page has none."""
    found = {}
    for figure, name in _RECORDED.items():
        values = {}
        for part in ("sum", "count"):
            line = re.search(rf"^helix_mq_{name}_seconds_{part} (\S+)$", metrics, re.MULTILINE)
            if line is None:
                raise LocalError(f"the router's metrics have no helix_mq_{name}_seconds_{part}")
            values[part] = float(line[1])
        found[figure] = (values["sum"], values["count"])
    return found


def recorded_ms(
    before: Mapping[str, tuple[float, float]],
    after: Mapping[str, tuple[float, float]],
    same: SameLoad,
) -> dict[str, float]:
    """Means between the two. LocalError if anything but the load was served meanwhile."""
    means = {}
    for figure, (sum_s, count) in after.items():
        requests = count - before[figure][1]
        if requests != same.requests:
            raise LocalError(
                f"the router counts {requests:g} requests, not the {same.requests} that were sent"
            )
        means[figure] = round((sum_s - before[figure][0]) / requests * 1e3, 4)
    return means


def span_of_vllm(found: Mapping[str, Any]) -> tuple[float, float]:
    """From its first request to its last answer, on the machine's monotonic clock (seconds)."""
    start_s = min(found["start_times"])
    return start_s, start_s + float(found["duration"])
