"""What the router's HTTP endpoint tells anybody: that it is there, whether it serves, its time."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from helix_mq.doctor.clock import now_s, offset
from helix_mq.doctor.findings import Finding, ok, warning

CHECK = "reachability"
_ASK_S = 3.0


@dataclass(frozen=True, slots=True)
class RouterHttpFacts:
    """`fault`: why there was no answer. `reason`: why it does not serve, empty when it does."""

    url: str
    given: bool
    fault: str = ""
    status: int = 0
    reason: str = ""
    clock: tuple[float, float] | None = None


def check_router_http(facts: RouterHttpFacts) -> Finding:
    where = f"the router's HTTP at {facts.url}"
    if facts.fault:
        guess = "" if facts.given else "; that address is a guess, `--url` sets it"
        return warning(
            CHECK,
            f"{where}: {facts.fault}",
            "nodes do not need it; the clock could not be compared" + guess,
            "check `[http] host` and `port` of the router, or give --url",
        )
    if facts.status == 200:
        return ok(CHECK, f"{where}: it serves")
    if facts.status == 503 and facts.reason:
        return warning(
            CHECK,
            f"{where}: it does not serve: {facts.reason}",
            "requests are refused until nodes cover the model",
            "start the nodes that are missing, this one perhaps; see `helix-mq status`",
        )
    return warning(
        CHECK,
        f"{where}: status {facts.status}",
        "another program answers there",
        "give the router's address with --url",
    )


async def collect_router_http(url: str, *, given: bool) -> RouterHttpFacts:
    reason = ""
    try:
        async with httpx.AsyncClient(timeout=_ASK_S, trust_env=False) as http:
            before_s = now_s()
            answer = await http.get(url.rstrip("/") + "/ready")
            after_s = now_s()
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        return RouterHttpFacts(url, given, fault=str(e) or type(e).__name__)
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        reason = str(body.get("reason", ""))[:500]
    clock = offset(answer.headers.get("date", ""), before_s, after_s)
    return RouterHttpFacts(url, given, "", answer.status_code, reason, clock)
