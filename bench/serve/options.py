"""What the command line says, as a Job. Errors name the option and what to do. No I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.serve.arrivals import MAX_RATE, parse_ramp
from bench.serve.types import (
    Arrivals,
    Closed,
    HttpTarget,
    Own,
    Ramp,
    Rate,
    SdkTarget,
    Target,
)
from bench.traces.spec import parse_spec
from helix_mq.errors import ConfigError

DEFAULT_AT_ONCE = 8
DEFAULT_REQUESTS = 100


@dataclass(frozen=True, slots=True)
class Ways:
    """How requests may arrive; at most one is given, none takes DEFAULT_AT_ONCE at once."""

    concurrency: int | None = None
    rate: float | None = None
    ramp: str | None = None
    trace: bool = False

    def arrivals(self) -> Arrivals:
        given = {
            "--concurrency": self.concurrency is not None,
            "--rate": self.rate is not None,
            "--ramp": self.ramp is not None,
            "--trace": self.trace,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)}: give one of them", param=names[1])
        if self.ramp is not None:
            return parse_ramp(self.ramp)
        if self.rate is not None:
            if not (math.isfinite(self.rate) and 0 < self.rate <= MAX_RATE):
                raise ConfigError(
                    f"rate={self.rate:g} must be above 0 and at most {MAX_RATE:g} requests/s",
                    param="rate",
                )
            return Rate(self.rate)
        return Own() if self.trace else Closed(self.concurrency or DEFAULT_AT_ONCE)


def limits(
    arrivals: Arrivals, workload: str, requests: int | None, seconds: float | None
) -> tuple[int | None, float | None]:
    """Where a run ends. Without a word: a ramp at its end, a trace at its own, others after
    DEFAULT_REQUESTS. ConfigError for arrivals that cannot be had from the workload."""
    spec = parse_spec(workload)
    if isinstance(arrivals, Own) and spec.kind in ("synthetic", "sharegpt") and spec.rate is None:
        raise ConfigError(
            f"--trace: {spec.kind} has no times of its own; give --rate or --concurrency",
            param="trace",
        )
    if requests is not None or seconds is not None:
        return requests, seconds
    if isinstance(arrivals, Ramp):
        return None, arrivals.seconds
    if isinstance(arrivals, Own) and spec.kind not in ("synthetic", "sharegpt"):
        return None, None
    return DEFAULT_REQUESTS, None


def http_target(url: str, model: str, chat: bool, key_env: str, extra: Sequence[str]) -> HttpTarget:
    return HttpTarget(url, model, chat, key_env, parse_extra(extra))


def sdk_target(
    endpoint: str,
    model: str,
    chat: bool,
    key: Path | None,
    server_key: Path | None,
    insecure: bool,
) -> SdkTarget:
    if (key is None) != (server_key is None):
        raise ConfigError(
            "--key and --server-key: both or neither; keys need this client's pair and the "
            "router's public key",
            param="key",
        )
    return SdkTarget(endpoint, model, chat, str(key or ""), str(server_key or ""), insecure)


def parse_extra(pairs: Sequence[str]) -> dict[str, msgspec.Raw]:
    """`FIELD=JSON`. ConfigError."""
    found: dict[str, msgspec.Raw] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            json.loads(text)
        except ValueError:
            equals = ""
        if not name or not equals:
            raise ConfigError(
                f"extra={pair!r} is not FIELD=JSON, e.g. top_p=0.9 or 'stop=[\"x\"]'",
                param="extra",
            )
        found[name] = msgspec.Raw(text.encode())
    return found


def in_words(arrivals: Arrivals) -> str:
    match arrivals:
        case Closed(at_once):
            return f"{at_once} at once"
        case Rate(per_s):
            return f"{per_s:g} requests/s"
        case Ramp(low, high, seconds):
            return f"{low:g} to {high:g} requests/s in {seconds:g} s"
        case Own():
            return "the workload's own times"


def vllm_names(target: Target, arrivals: Arrivals) -> dict[str, object]:
    """The fields in which `vllm bench serve` says what was run."""
    backend = "helix_mq" if isinstance(target, SdkTarget) else "openai"
    backend = f"{backend}-chat" if target.chat else backend
    return {
        "backend": backend,
        "endpoint_type": backend,
        "label": None,
        "model_id": target.model,
        "request_rate": arrivals.per_s if isinstance(arrivals, Rate) else "inf",
        "max_concurrency": arrivals.at_once if isinstance(arrivals, Closed) else None,
    }
