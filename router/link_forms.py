"""In which form activations go over each link between nodes. Pure.

Never narrower than the compute dtype unless the settings say so: tokens may then differ from those
of one machine, and between routes. `auto` narrows slow links only, by what they were measured to
carry; to widen again a link must be clearly faster than what narrowed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec

from helix_mq.ids import ROUTER, NodeId
from helix_mq.messages.control import Peer
from helix_mq.messages.data import SCALED, token_bytes
from router.link_watch import Edge

Activations = Literal["same", "bfloat16", "float16", "int8", "auto"]
"""The setting `links.activations`."""

AUTO_INT8_BYTES_PER_S: Final = 150e6
"""A gigabit and less: a prefill of 512 tokens of an 8B model is 4 MB in 16 bits, 30 ms there."""
AUTO_BFLOAT16_BYTES_PER_S: Final = 600e6
WIDEN: Final = 1.5
"""Times those limits, from where a link gets the wider form again."""
_FULL: Final = "float32"
"""What flows count with where nothing is narrowed."""
_NARROWNESS: Final = ("", "bfloat16", "int8")


class LinkForms:
    """`can_scale` says whether a node reads int8 rows, `bytes_per_s` what a link can carry: 0 where
    that is not known."""

    def __init__(
        self,
        setting: Activations,
        width: int,
        can_scale: Callable[[NodeId], bool],
        bytes_per_s: Callable[[Edge], float],
    ) -> None:
        self._setting = setting
        self._width = width
        self._can_scale = can_scale
        self._bytes_per_s = bytes_per_s
        self._auto: dict[Edge, str] = {}

    def of(self, edge: Edge) -> str:
        """The wire dtype of a link; empty for the compute dtype of its sender."""
        if ROUTER in edge or self._setting == "same":
            return ""
        wanted = self._auto.get(edge, "") if self._setting == "auto" else self._setting
        if wanted == SCALED and not self._can_scale(edge[1]):
            return "bfloat16"
        return wanted

    def gain(self, edge: Edge) -> float:
        """Times as many tokens that the link carries as it would in float32."""
        form = self.of(edge) or _FULL
        return token_bytes(_FULL, self._width) / token_bytes(form, self._width)

    def review(self, nodes: Iterable[NodeId]) -> bool:
        """Looks at the measurements again; whether some link is to have another form now."""
        if self._setting != "auto":
            return False
        there = sorted(nodes)
        before, self._auto = self._auto, {}
        for source in there:
            for target in there:
                if source != target:
                    edge = (source, target)
                    form = _auto(self._bytes_per_s(edge), before.get(edge, ""))
                    if form:
                        self._auto[edge] = form
        return self._auto != before

    def peers(self, node: NodeId, peers: Sequence[Peer]) -> Sequence[Peer]:
        """The same, with what `node` is to send each of them."""
        if self._setting == "same":
            return peers
        return [
            msgspec.structs.replace(p, activations=self.of((node, NodeId(p.node)))) for p in peers
        ]


def _auto(bytes_per_s: float, now: str) -> str:
    """The form for a link of this speed; a narrower one stays until the link is clearly faster."""
    if not bytes_per_s:
        return now
    wanted, allowed = _by_speed(bytes_per_s), _by_speed(bytes_per_s / WIDEN)
    if _NARROWNESS.index(wanted) >= _NARROWNESS.index(now):
        return wanted
    return allowed if _NARROWNESS.index(allowed) < _NARROWNESS.index(now) else now


def _by_speed(bytes_per_s: float) -> str:
    if bytes_per_s < AUTO_INT8_BYTES_PER_S:
        return "int8"
    return "bfloat16" if bytes_per_s < AUTO_BFLOAT16_BYTES_PER_S else ""
