"""Which way new tokens take back to the first hop: by the router, or straight from the last. Pure.

Straight, a decode saves the two legs to the router and back, whose owner then learns each token
while the next is computed. In exchange nodes compute a little beyond a stop string or a cancelled
request. So in `auto` it is done where it saves time that can be measured: helix_mq.token_return.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helix_mq.features import DIRECT
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Route
from helix_mq.token_return import TokenReturn, goes_straight, saved_s
from router.link_watch import LinkWatch
from router.membership import Membership


@dataclass(frozen=True, slots=True)
class Way:
    """`drafting`: with drafts of the first hop, where it is direct. `together`: the hops share one
    device."""

    direct: bool = False
    drafting: bool = False
    together: bool = False


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
        direct = self.direct(route)
        return Way(direct, direct and self._drafts(route), self._together(route))

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
        first, last = route.hops[0].node, route.hops[-1].node
        saved = saved_s(
            self._round_trip_s(last, ROUTER),
            self._round_trip_s(ROUTER, first),
            self._round_trip_s(last, first) if first != last else None,
        )
        kept = first == last or self._together(route)
        return goes_straight(self._wanted, saved, kept=kept)

    def _together(self, route: Route) -> bool:
        return self._members.on_one_device(route.nodes)
