"""The rounds: every system answers a case once, in turns, then again; then the next case.

In turns, because a machine's speed drifts: what is compared ran next to each other. All systems
stay loaded between, waiting for their next line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.engine.peer import Peer, PeerFailed
from bench.engine.types import Case, Job, System, Times

Say = Callable[[str], None]


@dataclass(slots=True)
class Measured:
    """times: by system and case, in the order of rounds. about: versions and number format, as each
    program says. missing: why a program could not be measured."""

    times: dict[str, dict[Case, list[Times]]] = field(default_factory=dict)
    about: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def measure(
    systems: Sequence[System],
    job: Job,
    cases: Sequence[Case],
    prompts: Callable[[Case], list[list[int]]],
    *,
    rounds: int,
    folder: Path,
    say: Say,
    keep: Callable[[Measured], None] = lambda _measured: None,
) -> Measured:
    """One round more than `rounds` per case: the first warms up and does not count.

    `keep` is told after each case, so that a run that is interrupted leaves what it has. A system
    that fails is passed over from then on, with what it said in `missing`. Logs go to
    `folder`.
    """
    measured = Measured()
    peers: list[Peer] = []
    try:
        for system in systems:
            say(f"loading {system.name}")
            try:
                peer = Peer(system, job, folder / f"{system.name.replace(' ', '-')}.log")
            except (PeerFailed, OSError) as error:
                measured.missing[system.name] = str(error)
                say(f"not measured: {error}")
                continue
            peers.append(peer)
            measured.about[system.name] = peer.about
            measured.times[system.name] = {}
        for case in cases:
            asked = prompts(case)
            for number in range(rounds + 1):
                peers = [p for p in peers if _round(p, case, asked, number, measured, say)]
            keep(measured)
    finally:
        for peer in peers:
            peer.close()
    return measured


def _round(
    peer: Peer,
    case: Case,
    asked: list[list[int]],
    number: int,
    measured: Measured,
    say: Say,
) -> bool:
    """Whether the peer goes on."""
    name = peer.system.name
    try:
        times = peer.run(case, asked)
    except PeerFailed as error:
        measured.missing[name] = str(error)
        say(f"gave up on {name}: {error}")
        peer.close()
        return False
    if number:
        measured.times[name].setdefault(case, []).append(times)
    rate = case.batch * case.new_tokens / times.total_s
    say(f"{case.name}, {f'round {number}' if number else 'warming up'}: {name} {rate:.1f} tokens/s")
    return True


def our_python() -> Path:
    return Path(sys.executable)
