"""Which way new tokens take back to the first hop: by the router, or straight from the last. Pure.

Straight, a decode saves the two legs to the router and back, whose owner then learns each token
while the next is computed. In exchange nodes compute a little beyond a stop string or a cancelled
request. So in `auto` it is done where it saves time that can be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from helix_mq.features import DIRECT
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Route
from router.link_watch import LinkWatch
from router.membership import Membership

TokenReturn = Literal["auto", "direct", "router"]
"""`direct` wherever the nodes can and the link works; `auto` where it also saves LEAST_SAVED_S."""

LEAST_SAVED_S = 0.001
"""Per token. On one network the legs to the router cost a few tenths of this."""


@dataclass(frozen=True, slots=True)
class Way:
    """`drafting`: with drafts of the first hop, where it is direct."""

    direct: bool = False
    drafting: bool = False


BY_ROUTER = Way()


class ReturnWays:
    def __init__(
        self,
        wanted: TokenReturn,
        members: Membership,
        links: LinkWatch,
        round_trip_s: Callable[[NodeId, NodeId], float],
        drafts: Callable[[Route], bool],
    ) -> None:
        """`round_trip_s` of a link as measured; 0 where it is not known. `drafts`: whether first
        hops are to draft on a route."""
        self._drafts = drafts
        self._wanted = wanted
        self._members = members
        self._links = links
        self._round_trip_s = round_trip_s

    def of(self, route: Route) -> Way:
        """That of a request which is given this route now."""
        return Way(True, self._drafts(route)) if self.direct(route) else BY_ROUTER

    def direct(self, route: Route) -> bool:
        """Whether tokens go straight."""
        first, last = route.hops[0].node, route.hops[-1].node
        if self._wanted == "router" or not self._members.all_can(route.nodes, DIRECT):
            return False
        if first == last:
            # Its own link, if it is that node alone; a route never comes by a node twice.
            return len(route.hops) == 1 and self._saves(route)
        return (last, first) not in self._links.closed and self._saves(route)

    def _saves(self, route: Route) -> bool:
        if self._wanted == "direct":
            return True
        first, last = route.hops[0].node, route.hops[-1].node
        legs_s = self._round_trip_s(last, ROUTER), self._round_trip_s(ROUTER, first)
        straight_s = self._round_trip_s(last, first) if first != last else 0.0
        if not all(legs_s) or (first != last and not straight_s):
            return False
        return (sum(legs_s) - straight_s) / 2 >= LEAST_SAVED_S
