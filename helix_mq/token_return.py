"""Whether new tokens go straight from the last hop of a route to the first: one rule for the router
that chooses, the simulator that plays it and the planner that reckons with it. Pure.

By the router a decode makes two legs between its last layer and its first, straight one: on one
network a few tenths of a millisecond less, between regions most of the time of a token. A node that
holds the whole route, or nodes that share one device, keep their batch together as well: by the
router some tokens are back before others, the next step starts with those, and two halves of a
batch take turns ever after.
"""

from __future__ import annotations

from typing import Final, Literal, cast, get_args

from helix_mq.errors import ConfigError

TokenReturn = Literal["auto", "direct", "router"]
"""`direct` wherever the nodes can and the link works; `auto` where it also saves LEAST_SAVED_S, or
the route is one node's or one device's."""

LEAST_SAVED_S: Final = 0.001
"""Per token. On one network the legs to the router cost a few tenths of this."""


def saved_s(to_router_s: float, from_router_s: float, straight_s: float | None) -> float:
    """Seconds per token that going straight saves, by the round trips of the links from the last
    hop to the router, from it to the first hop, and from last to first.

    `straight_s` is None where the first hop is the last. 0 where a round trip is unknown, which is
    how they say it: nothing is known to be saved then.
    """
    if not (to_router_s and from_router_s) or straight_s == 0:
        return 0.0
    return (to_router_s + from_router_s - (straight_s or 0.0)) / 2


def goes_straight(wanted: TokenReturn, saved_s: float, *, kept: bool = False) -> bool:
    """Whether tokens are to go straight where they can. kept: a batch stays one by it."""
    return wanted == "direct" or (wanted == "auto" and (kept or saved_s >= LEAST_SAVED_S))


def token_return(text: str) -> TokenReturn:
    """As a command line or a file gives it. ConfigError in words."""
    if text not in get_args(TokenReturn):
        known = ", ".join(get_args(TokenReturn))
        raise ConfigError(f"token_return={text!r:.40}: take one of {known}", param="token_return")
    return cast(TokenReturn, text)
