"""Prefix cache as the core uses it: where a prompt begins on its route, and what is learned. Pure.

A request whose first blocks every hop of its route has kept is sent without them. Its names tell
each hop what it computes, so that it can keep that; the router remembers where it was computed.
"""

from __future__ import annotations

from math import lcm
from typing import Final

from helix_mq.features import PREFIX
from helix_mq.ids import Epoch, NodeId
from helix_mq.layers import Route
from helix_mq.messages.data import BLOCK_TOKENS
from helix_mq.prefix_blocks import name_blocks, span_names, split_names
from router.kv_books import KvBooks
from router.membership import Membership
from router.prefix_memory import PrefixMemory
from router.prefix_settings import PrefixSettings, PrefixStatistics
from router.sessions import NO_PREFIX, Prefix, Session

MAX_MISSES: Final = 2
"""A request that nodes sent back so often for what they do not keep begins at its start."""


class PrefixDesk:
    def __init__(self, settings: PrefixSettings, membership: Membership, books: KvBooks) -> None:
        self._settings = settings
        self._membership = membership
        self._books = books
        self._memory = PrefixMemory()
        self._prompt_tokens = self._hit_tokens = self._misses = 0

    def begin(self, session: Session, route: Route) -> Prefix:
        """Where the session's tokens begin on a route, and the names of their blocks."""
        if self._settings.share == "off" or session.nameless:
            return NO_PREFIX
        if not self._membership.all_can(route.nodes, PREFIX):
            return NO_PREFIX
        tokens = (*session.generation.prompt_ids, *session.output)
        scope = session.generation.owner if self._settings.share == "key" else ""
        names = name_blocks(self._settings.key, scope, tokens)
        if not names or session.prefix_misses >= MAX_MISSES:
            return Prefix(0, names)
        kept = self._memory.kept_blocks(route.hops, split_names(names))
        # Whole pages on every hop, and never all: the last token is what is sampled after.
        unit = lcm(BLOCK_TOKENS, *(self._books.page_tokens(hop.node) for hop in route.hops))
        skipped = min(kept * BLOCK_TOKENS, len(tokens) - 1) // unit * unit
        if not span_names(names, skipped, len(tokens) - skipped):
            skipped = 0
        return Prefix(skipped, names)

    def token(self, session: Session, epoch: Epoch) -> None:
        """A token is about to be taken: with an attempt's first one its prompt is computed.
        `epoch`: of the newest placement; what older slices keep is nobody's."""
        if not session.prefilling:
            return
        prefix, route = session.prefix, session.route
        self._prompt_tokens += session.length_tokens
        self._hit_tokens += prefix.skipped_tokens
        if route is not None and prefix.names and session.epoch == epoch:
            names = split_names(prefix.names)
            for hop in route.hops:
                self._memory.keep(hop, names)

    def missing(self, session: Session, node: NodeId) -> None:
        """A node has refused the session since it does not keep what it was to go on from."""
        self._misses += 1
        session.prefix_misses += 1
        self._memory.forget(node, split_names(session.prefix.names))

    def distrust(self, session: Session) -> None:
        """What was computed of the session is no good: nobody goes on from it, and the session
        shares nothing any more."""
        session.nameless = True
        for node in session.route.nodes if session.route is not None else ():
            self._memory.forget(node, split_names(session.prefix.names))

    def forget(self, nodes: list[NodeId]) -> None:
        """They are gone, or have other slices."""
        for node in nodes:
            self._memory.forget_node(node)

    def statistics(self) -> PrefixStatistics:
        return PrefixStatistics(
            self._prompt_tokens, self._hit_tokens, self._misses, len(self._memory)
        )
