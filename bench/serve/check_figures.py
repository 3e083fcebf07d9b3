"""What the check of the load client compares: commands for the same load, figures from both. Pure,
but for the files that it reads.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helix_mq.errors import LocalError

FIGURES: Mapping[str, tuple[str, str]] = {
    "mean_ttft_ms": ("time_to_first_token", "avg"),
    "median_ttft_ms": ("time_to_first_token", "p50"),
    "mean_tpot_ms": ("inter_token_latency", "avg"),
    "mean_e2el_ms": ("request_latency", "avg"),
    "request_throughput": ("request_throughput", "avg"),
    "output_throughput": ("output_token_throughput", "avg"),
}
"""Ours, and where aiperf's JSON has it. Its inter-token latency is of a request: our TPOT."""


@dataclass(frozen=True, slots=True)
class Load:
    at_once: int
    requests: int
    warmup: int
    prompt_tokens: int
    output_tokens: int


def ours_command(
    url: str, model: str, load: Load, tokenizer: Path, out: Path, seed: int
) -> list[str]:
    return [
        *("helix-mq", "bench", "serve", "--url", f"{url}/v1", "--model", model),
        *("--concurrency", str(load.at_once), "--requests", str(load.requests)),
        *("--warmup", str(load.warmup), "--tokenizer", str(tokenizer), "--seed", str(seed)),
        "--workload",
        f"synthetic:prompt={load.prompt_tokens},output={load.output_tokens}",
        *("--out", str(out)),
    ]


def aiperf_command(
    url: str, model: str, load: Load, tokenizer: Path, out: Path, seed: int
) -> list[str]:
    return [
        *("aiperf", "profile", "--url", url, "-m", model),
        *("--endpoint-type", "completions", "--streaming", "--concurrency", str(load.at_once)),
        *("--request-count", str(load.requests), "--warmup-request-count", str(load.warmup)),
        *("--isl", str(load.prompt_tokens), "--isl-stddev", "0"),
        *("--osl", str(load.output_tokens), "--osl-stddev", "0"),
        *("--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"),
        *("--use-server-token-count", "--tokenizer", str(tokenizer), "--random-seed", str(seed)),
        *("--ui", "none", "--output-artifact-dir", str(out)),
    ]


def of_ours(out: Path) -> dict[str, float]:
    found = _read(out)
    return {name: round(float(found[name]), 4) for name in FIGURES}


def of_aiperf(out: Path) -> dict[str, float]:
    found = _read(out / "profile_export_aiperf.json")
    return {name: round(float(found[a][b]), 4) for name, (a, b) in FIGURES.items()}


def of_truth(truth: Mapping[str, Any]) -> dict[str, float]:
    """The paced server's own record, in the same names; its warm-up is no different."""
    return {
        "mean_ttft_ms": round(truth["ttft_s"]["mean"] * 1e3, 4),
        "median_ttft_ms": round(truth["ttft_s"]["p50"] * 1e3, 4),
        "mean_tpot_ms": round(truth["tpot_s"]["mean"] * 1e3, 4),
    }


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, as its client saw it: times on the wall clock of the machine they share."""

    sent_s: float
    ttft_s: float
    ended_s: float
    prompt_tokens: int
    tokens: int

    @staticmethod
    def of_ours(out: Path) -> list[Sent]:
        found = _read(out)
        if found["failed"]:
            raise LocalError(f"{found['failed']} requests failed: {found['helix_mq']['reasons']}")
        start_s = found["helix_mq"]["started_unix_s"]
        names = ("start_times", "ttfts", "latencies", "input_lens", "output_lens")
        return [
            Sent(start_s + at_s, ttft_s, start_s + at_s + e2el_s, prompt, tokens)
            for at_s, ttft_s, e2el_s, prompt, tokens in zip(
                *(found[name] for name in names), strict=True
            )
        ]

    @staticmethod
    def of_aiperf(out: Path) -> list[Sent]:
        """Its measured requests: the warm-up's records are left out."""
        lines = (out / "profile_export.jsonl").read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        sent = []
        for record in records:
            if record["metadata"]["benchmark_phase"] != "profiling":
                continue
            metrics, start_s = record["metrics"], record["metadata"]["request_start_ns"] / 1e9
            sent.append(
                Sent(
                    start_s,
                    metrics["time_to_first_token"]["value"] / 1e3,
                    start_s + metrics["request_latency"]["value"] / 1e3,
                    int(metrics["usage_prompt_tokens"]["value"]),
                    int(metrics["usage_completion_tokens"]["value"]),
                )
            )
        return sent


def common_window(a: Sequence[Sent], b: Sequence[Sent]) -> tuple[float, float]:
    """From when both had begun until one sent no more."""
    start_s = max(min(r.sent_s for r in a), min(r.sent_s for r in b))
    end_s = min(max(r.sent_s for r in a), max(r.sent_s for r in b))
    if end_s <= start_s:
        raise LocalError("the two clients never had requests under way at once")
    return start_s, end_s


def window_figures(requests: Sequence[Sent], window: tuple[float, float]) -> dict[str, float]:
    """Latencies of requests sent inside, rates of those that ended inside."""
    start_s, end_s = window
    sent = [r for r in requests if start_s <= r.sent_s < end_s]
    ended = [r for r in requests if start_s <= r.ended_s < end_s]
    seconds = end_s - start_s
    ttft = [r.ttft_s * 1e3 for r in sent]
    tpot = [(r.ended_s - r.sent_s - r.ttft_s) / (r.tokens - 1) * 1e3 for r in sent]
    return {
        "mean_ttft_ms": round(statistics.mean(ttft), 4),
        "median_ttft_ms": round(statistics.median(ttft), 4),
        "mean_tpot_ms": round(statistics.mean(tpot), 4),
        "mean_e2el_ms": round(statistics.mean((r.ended_s - r.sent_s) * 1e3 for r in sent), 4),
        "request_throughput": round(len(ended) / seconds, 4),
        "output_throughput": round(sum(r.tokens for r in ended) / seconds, 4),
        "requests": len(sent),
        "mean_prompt_tokens": round(statistics.mean(r.prompt_tokens for r in sent), 2),
    }


def summary(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, object]:
    """Medians over the rounds, ours over aiperf's, and each over the truth where it is known."""

    def median(who: str, figure: str) -> float:
        return round(statistics.median(found[who][figure] for found in rounds), 4)

    medians = {w: {f: median(w, f) for f in rounds[0][w]} for w in rounds[0]}
    found: dict[str, object] = {
        "medians": medians,
        "ours_over_aiperf": {
            f: round(medians["ours"][f] / medians["aiperf"][f], 4) for f in FIGURES
        },
    }
    for who in ("ours", "aiperf"):
        truth = medians.get(f"truth_of_{who}")
        if truth is not None:
            found[f"{who}_over_truth"] = {f: round(medians[who][f] / truth[f], 4) for f in truth}
    return found


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
