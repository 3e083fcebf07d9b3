"""What this node is, and what that makes of the hops of routes: held against each other once.

The same few hundred routes come with every frame, so what is found of a hop is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from helix_mq.frames import unpack_route
from helix_mq.ids import ROUTER
from helix_mq.layers import LayerRange, Route

_REMEMBERED = 1024
_REMEMBERED_ROUTE_BYTES = 1024
"""Bounds what routes that nobody uses twice can take here."""


class Stop(msgspec.Struct, frozen=True, gc=False):
    """A hop as the rows that stop there share it; `code` and `reason` where they may not."""

    route: Route
    layers: LayerRange
    next_hop: str
    last: bool
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What this node is, for checking rows against it."""

    node: str
    epochs: frozenset[int]
    held: LayerRange
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_context: int
    eos_ids: tuple[int, ...] = ()
    stops: dict[tuple[bytes, int], Stop] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def stop(self, blob: bytes, hop: int) -> Stop:
        """Hop `hop` of a packed route, which `frames.check_frame` has passed."""
        found = self.stops.get((blob, hop))
        if found is None:
            found = self._stop(unpack_route(blob), hop)
            if len(blob) <= _REMEMBERED_ROUTE_BYTES:
                if len(self.stops) >= _REMEMBERED:
                    self.stops.clear()
                self.stops[blob, hop] = found
        return found

    def _stop(self, route: Route, at: int) -> Stop:
        hops = route.hops
        hop, last = hops[at], at == len(hops) - 1
        code = reason = ""
        if hop.node != self.node:
            code, reason = "wrong_node", f"hop {at} is {hop.node}, this is {self.node}"
        elif hops[-1].layers.end != self.num_layers:
            code = "wrong_model"
            reason = (
                f"its route has {route.num_layers} layers and the model of {self.node} "
                f"{self.num_layers}: give router and node the same model"
            )
        elif not self.held.covers(hop.layers):
            code, reason = "not_held", f"{self.node} holds {self.held}, not {hop.layers}"
        next_hop = ROUTER if last else hops[at + 1].node
        return Stop(route, hop.layers, next_hop, last, code, reason)
