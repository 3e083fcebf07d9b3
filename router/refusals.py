"""What a node's refusal means for the request, and who gets no new requests for it. Pure.

Most refusals are of the moment: the request goes on elsewhere. What refuses at once would refuse
all attempts within milliseconds, so that node, or the link it names, is left out for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

from helix_mq.errors import CapacityError, HelixError, LocalError
from helix_mq.ids import NodeId
from helix_mq.messages.data import RefusedItem, TokenItem
from router.link_watch import Edge
from router.sessions import Session, State

_GIVE_UP_CODES = frozenset({"wrong_model", "context"})
"""Refusals that another route would meet again."""

_LINK_CODES = frozenset({"link_lost", "no_peer"})
"""Refusals that are about the way to the next hop and not about who refuses."""

_NO_RETURN = "no_return"
"""A last hop does not get through to the first; only said where tokens go that way."""

_TOKENS_LOST = "tokens_lost"
"""By the router itself, of a last hop: the link may be to blame, so nobody is avoided for it."""

_NO_NUMBERS = "logits_not_finite"
_TRIES_FOR_NUMBERS = 3
"""Another route may compute in a wider dtype; the same one would overflow again and again."""

AVOID_S = 0.5
"""How long a node that refused rows gets no new ones; requests wait or go elsewhere meanwhile."""

MAX_REROUTES = 64
"""A request that has been moved this often is not the victim of chance any more."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The request ends with this error."""

    error: HelixError


@dataclass(frozen=True, slots=True)
class Expired:
    """The request's deadline has passed on the node's clock."""


@dataclass(frozen=True, slots=True)
class FromStart:
    """The node no longer keeps what the request was to go on from, which is nobody's fault."""


@dataclass(frozen=True, slots=True)
class MoveOn:
    """The request gets another route, without the node or the link if one is named. `squeezed`: it
    ran out of pages. `damaged`: what was computed of it is no good."""

    avoid: NodeId | None = None
    link: Edge | None = None
    squeezed: bool = False
    damaged: bool = False


def tokens_lost(item: TokenItem) -> RefusedItem:
    """What it comes to that tokens before this one did not arrive: as often as with refusals, since
    a node may say it at will and each time a prompt is computed anew."""
    reason = "its tokens were lost on the way"
    return RefusedItem(item.request, item.attempt, _TOKENS_LOST, reason)


def judge(
    session: Session, node: NodeId, item: RefusedItem
) -> GiveUp | Expired | FromStart | MoveOn | None:
    """None for what changes nothing: it is late, or said by a node that was not asked."""
    if session.state is not State.RUNNING or item.attempt != session.attempt:
        return None
    if session.route is None or node not in session.route.nodes:
        # Only who was given a request may refuse it: ids are easy to guess.
        return None
    if item.code == "prefix_missing" and session.prefix.skipped_tokens:
        return FromStart()
    if item.code in _GIVE_UP_CODES or session.reroutes >= MAX_REROUTES:
        return GiveUp(CapacityError(f"{node} refused the request: {item.reason}"))
    if item.code == "deadline":
        return Expired()
    if item.code == "kv_exhausted":
        return MoveOn(squeezed=True)
    if item.code == _TOKENS_LOST:
        return MoveOn()
    if item.code == _NO_NUMBERS:
        # The request's doing more likely than the node's, which goes on serving the others.
        if session.overflows >= _TRIES_FOR_NUMBERS - 1:
            return GiveUp(LocalError(f"{node} refused the request: {item.reason}"))
        return MoveOn(damaged=True)
    if item.code == _NO_RETURN and session.direct and node == session.route.nodes[-1]:
        return MoveOn(link=(node, session.route.nodes[0]))
    after = session.route.nodes[session.route.nodes.index(node) + 1 :]
    if item.code in _LINK_CODES and after:
        return MoveOn(link=(node, after[0]))
    return MoveOn(avoid=node)


class AvoidedNodes:
    """Nodes that refused a moment ago."""

    def __init__(self) -> None:
        self._until_s: dict[NodeId, float] = {}

    def __contains__(self, node: NodeId) -> bool:
        return node in self._until_s

    def add(self, node: NodeId, now_s: float) -> None:
        self._until_s[node] = now_s + AVOID_S

    def forget(self, node: NodeId) -> None:
        self._until_s.pop(node, None)

    def __bool__(self) -> bool:
        return bool(self._until_s)

    def expire(self, now_s: float) -> bool:
        """True if some node may be tried again."""
        past = [n for n, until_s in self._until_s.items() if until_s <= now_s]
        for node in past:
            del self._until_s[node]
        return bool(past)
