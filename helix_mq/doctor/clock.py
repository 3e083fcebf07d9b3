"""This machine's clock against the router's, and whether somebody keeps it right.

Rows on the wire carry deadlines as times of day: a node whose clock is ahead gives requests up too
early, one that is behind keeps what should have gone. The router's clock is read off the Date
header of its HTTP answers, which is in whole seconds.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from helix_mq.doctor.findings import Finding, ok, problem, warning

CHECK = "clock"
WARN_S = 2.0
BAD_S = 30.0
"""Requests have 600 s by default and often a minute: half of that is gone."""
_HEADER_S = 0.5
"""Half of a whole second."""
_ASK_S = 3.0


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """`ahead_s`: this clock less the router's, None where it is not known; right to within
    `within_s`. `synchronised`: as timedatectl says, None where it does not."""

    ahead_s: float | None = None
    within_s: float = 0.0
    synchronised: bool | None = None


def check_clock(facts: ClockFacts) -> list[Finding]:
    found = []
    if facts.ahead_s is not None:
        found.append(_offset(facts.ahead_s, facts.within_s))
    if facts.synchronised is None:
        found.append(ok(CHECK, "timedatectl does not tell here whether the clock is kept right"))
    elif facts.synchronised:
        found.append(ok(CHECK, "synchronised by NTP"))
    else:
        found.append(
            warning(
                CHECK,
                "not synchronised",
                "it drifts; clocks that differ by seconds end requests before their deadlines",
                "`timedatectl set-ntp true`, or install chrony",
            )
        )
    return found


def _offset(ahead_s: float, within_s: float) -> Finding:
    way = "ahead of" if ahead_s > 0 else "behind"
    text = f"{abs(ahead_s):.1f} s {way} the router's (to within {within_s:.1f} s)"
    off_s = max(0.0, abs(ahead_s) - within_s)
    if off_s <= WARN_S:
        return ok(CHECK, "as the router's" if abs(ahead_s) <= within_s else text)
    make = problem if off_s > BAD_S else warning
    return make(
        CHECK,
        text,
        "a node that is ahead gives requests up before their deadline; one behind keeps the pages "
        "of requests that have ended",
        "have both synchronised: `timedatectl set-ntp true`, or chrony",
    )


def offset(date: str, before_s: float, after_s: float) -> tuple[float, float] | None:
    """How far this clock (Unix times before and after the answer) is ahead of a Date header, and to
    within how much; None for a header that is none."""
    try:
        theirs_s = parsedate_to_datetime(date).timestamp() + _HEADER_S
    except (TypeError, ValueError):
        return None
    return (before_s + after_s) / 2 - theirs_s, _HEADER_S + (after_s - before_s) / 2


async def collect_synchronised() -> bool | None:
    command = shutil.which("timedatectl")
    if command is None:
        return None
    child = await asyncio.create_subprocess_exec(
        command,
        "show",
        "--property=NTPSynchronized",
        "--value",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_ASK_S):
            said, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        return None
    return {b"yes": True, b"no": False}.get(said.strip())


def now_s() -> float:
    return time.time()
