"""What happens to the router's core, and what the core wants done about it. Plain data.

`Core.handle(event) -> list[Effect]`. Events come from sockets, HTTP and timers by way of the app;
effects go back the same way. Nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from helix_mq.ids import Attempt, NodeId, RequestId
from helix_mq.layers import LayerRange, Route
from helix_mq.messages.control import (
    Assign,
    AssignFailed,
    Heartbeat,
    Leave,
    LinkReport,
    Ready,
    Register,
    RegisterAgain,
    Rejected,
    Retain,
)
from helix_mq.messages.data import Refused, ReleaseItem, SampleSpec, TokenItem, Tokens
from router.flows import LiveFlow
from router.searches import Found, NothingFound, Search
from router.service import Generation, StreamEvent
from router.solving import FlowProblem


@dataclass(frozen=True, slots=True)
class NodeRegistered:
    register: Register


@dataclass(frozen=True, slots=True)
class NodeReady:
    node: NodeId
    incarnation: int
    ready: Ready


@dataclass(frozen=True, slots=True)
class NodeAssignFailed:
    node: NodeId
    incarnation: int
    failure: AssignFailed


@dataclass(frozen=True, slots=True)
class NodeBeat:
    beat: Heartbeat


@dataclass(frozen=True, slots=True)
class NodeDraining:
    node: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """An operator wants a node to leave, as soon as others hold its layers."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class ReplanWanted:
    """An operator wants to know of a better placement, and to have it if it is worth the move."""


@dataclass(frozen=True, slots=True)
class PlacementWanted:
    """An operator wants these slices, and no others, without an outage. Refused by an error."""

    slices: Mapping[NodeId, LayerRange]


@dataclass(frozen=True, slots=True)
class PlanFound:
    """The answer to the PlanWanted of that number."""

    number: int
    found: Found | NothingFound


@dataclass(frozen=True, slots=True)
class NodeGone:
    node: NodeId
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Submitted:
    request: RequestId
    generation: Generation


@dataclass(frozen=True, slots=True)
class Restored:
    """A request that the router's earlier life accepted and did not end. Never refused: it waits
    for the cluster until its deadline."""

    request: RequestId
    generation: Generation
    output: tuple[TokenItem, ...]
    """Its tokens so far; what they say of attempt and position means nothing any more."""
    attempt: Attempt
    """Above any that nodes may have seen."""
    restarts: int
    age_s: float
    """Since it was submitted."""
    first_token_s: float | None
    """From its submission, where there is one."""
    deadline_ms: int
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    request: RequestId


@dataclass(frozen=True, slots=True)
class TokensArrived:
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class RowsRefused:
    refused: Refused


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The router's own data link to a node broke; what was in it may be lost."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class ConnectionBroke:
    """A connection between the node and the router ended without a goodbye; `what` in words. An
    `incarnation` of None is whichever it is."""

    node: NodeId
    incarnation: int | None
    what: str


@dataclass(frozen=True, slots=True)
class FlowSolved:
    """The answer to the SolveFlow of that number; None if it could not be solved."""

    number: int
    flow: LiveFlow | None


@dataclass(frozen=True, slots=True)
class OwnLinks:
    """How long each of the router's own data links has been unconnected, 0 for those that work,
    and what it measured of those that there are."""

    down_s: tuple[tuple[NodeId, float], ...]
    reports: tuple[LinkReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: deadlines, silent nodes."""


Event = (
    NodeRegistered
    | NodeReady
    | NodeAssignFailed
    | NodeBeat
    | NodeDraining
    | DrainWanted
    | ReplanWanted
    | PlacementWanted
    | PlanFound
    | NodeGone
    | Submitted
    | Restored
    | Cancelled
    | TokensArrived
    | RowsRefused
    | LinkLost
    | ConnectionBroke
    | FlowSolved
    | OwnLinks
    | Tick
)


@dataclass(frozen=True, slots=True)
class ToNode:
    """A control message to one incarnation of a node."""

    node: NodeId
    incarnation: int
    message: Assign | RegisterAgain | Rejected | Leave | Retain


@dataclass(frozen=True, slots=True)
class SendRow:
    """Token ids for the first hop of a route: a prompt, or the one token of a decode, with what is
    guessed to follow where it is to `verify` that."""

    request: RequestId
    attempt: int
    position: int
    token_ids: tuple[int, ...]
    route: Route
    epoch: int
    deadline_ms: int
    spec: SampleSpec | None = None
    history: tuple[int, ...] = ()
    direct: bool = False
    """The last hop sends the decodes that follow."""
    drafting: bool = False
    """With drafts of the first hop."""
    together: bool = False
    """All hops share one device."""
    blocks: bytes = b""
    """Names of the prompt's blocks that end in the row."""
    verify: bool = False


@dataclass(frozen=True, slots=True)
class SendRelease:
    node: NodeId
    item: ReleaseItem


@dataclass(frozen=True, slots=True)
class Emit:
    """An event of a request's stream. `past`: of the router's earlier life, kept already."""

    request: RequestId
    event: StreamEvent
    past: bool = False


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """The set of nodes with data sockets changed: tell everyone, connect and disconnect."""


@dataclass(frozen=True, slots=True)
class PlanWanted:
    """A placement is to be searched for; the answer is a PlanFound of that number."""

    number: int
    search: Search


@dataclass(frozen=True, slots=True)
class SolveFlow:
    """A flow is to be solved apart from the loop; the answer is a FlowSolved of that number."""

    number: int
    problem: FlowProblem


@dataclass(frozen=True, slots=True)
class PlacementKept:
    """What nodes are to hold from now on, after a restart of the router too."""

    slices: Mapping[NodeId, LayerRange]


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log, in words; `request` or `node` says what it is about."""

    level: int
    text: str
    node: str = ""
    request: int = 0
    kind: str = ""
    """What happened to the cluster: router.happenings names them."""


Effect = (
    ToNode
    | SendRow
    | SendRelease
    | Emit
    | PeersChanged
    | PlanWanted
    | SolveFlow
    | PlacementKept
    | Note
)
