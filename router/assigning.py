"""Slices for nodes that are due one under the placement that serves, and what comes of them. Pure.

Re-placements give their own orders (router.moves); here are joins, returns, spares and failures.
"""

from __future__ import annotations

import logging

from helix_mq.clock import Clock
from helix_mq.errors import ConfigError
from helix_mq.messages.control import Assign
from helix_mq.models.config import ModelConfig
from router import events as ev
from router.change import ClusterChange, to_member
from router.machines import catalogued, measured
from router.membership import Membership, NodeState
from router.moves import Moves
from router.placing import Candidate, Placer


class Assigner:
    """`fault`: why no placement can be made, in words; empty when one can."""

    def __init__(
        self,
        config: ModelConfig,
        membership: Membership,
        placer: Placer,
        moves: Moves,
        clock: Clock,
    ) -> None:
        self.fault = ""
        self._config = config
        self._membership = membership
        self._placer = placer
        self._moves = moves
        self._clock = clock

    def waiting_for(self) -> str:
        """In words, what the placement still waits for; empty if nothing."""
        return self._placer.waiting_for(self.candidates())

    def assign(self, change: ClusterChange) -> None:
        """Gives slices to members that are due one and have none."""
        if self._moves.busy:
            # Who is new waits for the placement that is being made, and the search after it.
            return
        if self._placer.wants_plan(self.candidates()):
            self._moves.search_first(self._clock.now_s(), change)
        try:
            slices = self._placer.place(self.candidates())
        except ConfigError as e:
            self.fault = e.message
            change.note(logging.ERROR, e.message, kind="failed")
            return
        self.fault = ""
        for member in self._membership:
            layers = slices.get(member.name)
            if member.state is not NodeState.JOINED:
                continue
            if layers is None:
                if slices and member.register.holding is not None:
                    # It came back, and its place is another's now.
                    self._moves.relocation.tidy(member.name)
                continue
            member.layers, member.state, member.epoch = layers, NodeState.LOADING, self._moves.epoch
            depth = max(1, round(self._config.num_layers / len(layers)))
            order = Assign(self._moves.epoch, layers.first, layers.end, depth)
            change.effects.append(to_member(member.register, order))
            if member.register.holding is not None:
                # Slices of a router before this one: nobody here knows their epochs.
                self._moves.relocation.tidy(member.name)
            change.note(logging.INFO, f"is to hold {layers}", member.name, "assigned")

    def candidates(self) -> list[Candidate]:
        return [
            Candidate(
                m.name,
                m.register.memory_bytes,
                m.register.dtype_bytes,
                measured(m) is not None or catalogued(m.register.device) is not None,
                m.form.quantise,
            )
            for m in self._membership
            if m.state is not NodeState.FAILED and m.name not in self._moves.leavers
        ]

    def ready(self, event: ev.NodeReady, change: ClusterChange) -> None:
        now_s = self._clock.now_s()
        member = self._membership.hear(event.node, event.incarnation, now_s)
        if member is None or self._moves.ready(member, event.ready, now_s, change):
            return
        ready = event.ready
        layers = member.layers
        if layers is None or (ready.epoch, ready.first, ready.end) != (
            member.epoch,
            layers.first,
            layers.end,
        ):
            return
        if member.state is not NodeState.LOADING:
            if member.serves:
                # Its KV pool has grown since.
                member.ready = ready
                change.ready.append((member.name, ready))
            return
        member.state, member.ready = NodeState.READY, ready
        change.ready.append((member.name, ready))
        text = f"ready with {layers} after {ready.load_s:.1f} s: {ready.notes}"
        change.note(logging.INFO, text, member.name, "ready")
        change.flow_changed = True

    def failed(self, event: ev.NodeAssignFailed, change: ClusterChange) -> None:
        member = self._membership.hear(event.node, event.incarnation, self._clock.now_s())
        if member is None or self._moves.failed(member, event, change):
            return
        if member.state is not NodeState.LOADING or event.failure.epoch != member.epoch:
            return
        member.state, member.failure = NodeState.FAILED, event.failure.reason
        text = f"could not load {member.layers}: {event.failure.reason}"
        change.note(logging.ERROR, text, member.name, "failed")
        # A spare that waits may take the slice over.
        self.assign(change)

    def keep(self, change: ClusterChange) -> None:
        slices = {m.name: m.layers for m in self._membership if m.layers is not None}
        change.effects.append(ev.PlacementKept(slices))
