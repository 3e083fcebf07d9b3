"""Compatibility mode on the command line: published cases, and any placement on their clusters."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.simulator.reference.planned import part_of, run_on
from bench.simulator.reference.run import CaseResult, ReferenceResult, run_case
from helix_mq.errors import ConfigError
from solver.plan_file import read_plan


@dataclass(frozen=True, slots=True)
class Load:
    """The command line's words, as they came."""

    profile: str
    scheduler: str
    mode: str
    in_flight: int | None
    rate: int | None


def published_case(name: str, data: Path, *, as_json: bool) -> str:
    """A published case, as text. ReferenceDataError in words."""
    result = run_case(name, data, progress=None if as_json else _show)
    return json.dumps(result.as_dict()) if as_json else _told(result.name, result)


def reference_run(
    cluster: Path | None, placement: str, data: Path, load: Load, *, as_json: bool
) -> str:
    """A published placement by name, or a saved plan, on a published cluster, as text.

    ConfigError or ReferenceDataError in words.
    """
    if load.profile != "reference":
        raise ConfigError(f"--profile {load.profile}: take native or reference", param="profile")
    if cluster is None or cluster.suffix != ".json":
        raise ConfigError(
            "--profile reference runs on the published clusters: name one of clusters/*.json",
            param="cluster",
        )
    chosen = read_plan(Path(placement)).placement if placement.endswith(".toml") else placement
    part = part_of(load.scheduler, load.mode, load.in_flight, load.rate)
    result = run_on(cluster, data, chosen, part, progress=None if as_json else _show)
    return json.dumps(result.as_dict()) if as_json else _told(result.name, result)


def _told(name: str, result: CaseResult | ReferenceResult) -> str:
    body = result.as_dict()
    prompt, decode = result.prompt_latency, result.decode_latency
    return (
        f"{name}: decode {result.decode_tokens_per_s:.2f} tokens/s, prompts "
        f"{result.prompt_tokens_per_s:.1f} tokens/s\n"
        f"median latency: prompt {prompt.percentiles_s['p50']:.3f} s, "
        f"decode {decode.percentiles_s['p50']:.3f} s\n"
        f"{body['wall_s']} s, {body['cpu_s']} CPU s"
    )


def _show(name: str, at_s: float, end_s: float) -> None:
    if sys.stderr.isatty():
        end = "\n" if at_s >= end_s else ""
        print(f"\r\x1b[K{name}: {at_s:.0f} of {end_s:.0f} s", end=end, file=sys.stderr, flush=True)
