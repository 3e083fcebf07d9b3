"""Which faults come, when and where: drawn from the seed alone. Pure.

No round disables more than two nodes, so the survivors always cover the model (cluster.LAYOUT) and
no request has an excuse.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

_T = TypeVar("_T")


class Kind(StrEnum):
    KILL = "kill"
    """kill -9; started again once it is gone from the router's tables."""
    RESTART = "restart"
    """kill -9 and started again at once: the new process may speak before the old one is missed."""
    HANG = "hang"
    """SIGSTOP, for longer than a node may be silent, then SIGCONT."""
    PAUSE = "pause"
    """SIGSTOP for a moment: nobody is dead."""
    DRAIN = "drain"
    """SIGTERM; started again when it has ended."""
    CUT = "cut"
    """The link from `source` to the node breaks and is refused until healed."""
    ISOLATE = "isolate"
    """All data links to the node break and are refused; it can still send and be heard of."""
    FREEZE = "freeze"
    """Nothing comes through the link from `source`, and nobody is told."""
    BREAK = "break"
    """All data links to the node break once and may be made anew at once."""
    CONTROL = "control"
    """The node's way to the router's control socket is cut: it works and cannot be heard."""
    TOKENS = "tokens"
    """The node's way to the router's data socket is cut: its tokens do not arrive."""
    REPLACE = "re-place"
    """An operator has all nodes hold other layers, while requests run."""
    CLIENT = "client"
    """The client's connection breaks for a moment."""
    ROUTER = "router"
    """kill -9 of the router, which goes on from its journal. Only where there is one."""


NODE_KINDS = (Kind.KILL, Kind.RESTART, Kind.HANG, Kind.PAUSE, Kind.DRAIN, Kind.CONTROL)
LINK_KINDS = (Kind.CUT, Kind.ISOLATE, Kind.FREEZE, Kind.BREAK, Kind.TOKENS)
ALONE = (Kind.CLIENT, Kind.ROUTER)
_HOLD_S = {
    Kind.KILL: (0.0, 2.0),
    Kind.RESTART: (0.0, 0.0),
    Kind.HANG: (4.0, 7.0),
    Kind.PAUSE: (0.3, 2.0),
    Kind.DRAIN: (0.0, 1.0),
    Kind.CUT: (1.0, 6.0),
    Kind.ISOLATE: (1.0, 6.0),
    Kind.FREEZE: (1.0, 6.0),
    Kind.BREAK: (0.0, 0.0),
    Kind.CONTROL: (1.0, 6.0),
    Kind.TOKENS: (1.0, 6.0),
    Kind.REPLACE: (0.0, 0.0),
    Kind.CLIENT: (0.1, 3.0),
    Kind.ROUTER: (0.0, 2.0),
}
"""Seconds before a fault is mended, from and to."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`node` is hit; `source` is the sender of a link; `hold_s` until it is mended."""

    kind: Kind
    node: str
    source: str
    hold_s: float

    def __str__(self) -> str:
        where = {
            Kind.CUT: f" {self.source} > {self.node}",
            Kind.FREEZE: f" {self.source} > {self.node}",
            Kind.REPLACE: "",
            Kind.CLIENT: "",
            Kind.ROUTER: "",
        }.get(self.kind, f" {self.node}")
        return f"{self.kind}{where}" + (f" for {self.hold_s:.1f} s" if self.hold_s else "")


@dataclass(frozen=True, slots=True)
class Round:
    """`after_tokens`: how many tokens come before the first fault; `apart_s`: between two."""

    number: int
    faults: tuple[Fault, ...]
    after_tokens: int
    apart_s: float

    def __str__(self) -> str:
        return " and ".join(str(f) for f in self.faults)

    @property
    def harmless(self) -> bool:
        """No request may notice anything."""
        return all(f.kind is Kind.REPLACE for f in self.faults)


@dataclass(frozen=True, slots=True)
class Mix:
    """What may happen. `only`: these kinds; none means all, that of the router where it has a
    `journal`."""

    seed: int
    names: Sequence[str]
    only: tuple[Kind, ...] = ()
    journal: bool = False
    doubled: float = 0.35
    """Share of rounds in which two nodes are hit."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return self.only or tuple(k for k in Kind if self.journal or k is not Kind.ROUTER)


def rounds(mix: Mix) -> Iterator[Round]:
    """Without end; the same for the same mix. All kinds come in turn before one comes again, and so
    do all nodes."""
    draw = random.Random(f"faults/{mix.seed}")
    kinds = _in_turn(mix.kinds, draw)
    nodes = _in_turn(tuple(mix.names), draw)
    for number in itertools.count(1):
        first = _fault(next(kinds), next(nodes), mix.names, draw)
        faults = [first]
        if draw.random() < mix.doubled and first.kind not in ALONE:
            second = _second(first.kind, mix, draw)
            if second is not None:
                other = next(n for n in nodes if n != first.node)
                faults.append(_fault(second, other, mix.names, draw))
        apart_s = draw.choice((0.0, 0.0, 0.2, 1.5))
        yield Round(number, tuple(faults), draw.randrange(20, 800), apart_s)


def _second(first: Kind, mix: Mix, draw: random.Random) -> Kind | None:
    """Two kills at once are what is asked about most. None where no kind may be the second."""
    if mix.only:
        kinds = [k for k in mix.only if k not in (*ALONE, Kind.REPLACE)]
        return draw.choice(kinds) if kinds else None
    if first is Kind.KILL and draw.random() < 0.5:
        return Kind.KILL
    return draw.choice(NODE_KINDS if first in LINK_KINDS else (*NODE_KINDS, *LINK_KINDS))


def _fault(kind: Kind, node: str, names: Sequence[str], draw: random.Random) -> Fault:
    source = draw.choice([n for n in (*names, "router") if n != node])
    return Fault(kind, node, source, round(draw.uniform(*_HOLD_S[kind]), 2))


def _in_turn(values: tuple[_T, ...], draw: random.Random) -> Iterator[_T]:
    while True:
        yield from draw.sample(values, len(values))
