"""The cluster on the move: re-placements, nodes that leave, and the epoch that serves. Pure.

ClusterCore tells what happened; the answers are effects and what changed for requests. Nothing
here looks at requests but through `in_use`: which epochs those on their way need on which node.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from helix_mq.errors import ConfigError, HelixError
from helix_mq.ids import Epoch, NodeId
from helix_mq.layers import LayerRange, Placement, describe_ranges, uncovered
from helix_mq.messages.control import Leave, Ready
from helix_mq.models.config import ModelConfig
from helix_mq.slice_room import KEPT_PER_USED_PAGE, least_kv_bytes, usable_bytes
from router import events as ev
from router.change import ClusterChange, to_member
from router.leaving import Leavers
from router.live_problem import LinkSpeed, live_problem
from router.machines import machine_of
from router.membership import Member, Membership, NodeState
from router.placing import Placer, slice_bytes
from router.relocation import EpochsInUse, Relocation, RelocationSettings, changes
from router.replanner import Occasion, Replanner, ReplanSettings
from router.searches import Found, NothingFound, Search
from router.waypoints import NoWay, Slices, loads, waypoints

SLOWEST_LOAD_BYTES_PER_S = 200e6
"""Assumed of nodes that have not loaded anything yet: a plain disk."""


@dataclass(frozen=True, slots=True)
class MoveSettings:
    relocation: RelocationSettings = RelocationSettings()
    replan: ReplanSettings = ReplanSettings(automatic=False)


class Moves:
    def __init__(
        self,
        config: ModelConfig,
        membership: Membership,
        placer: Placer,
        settings: MoveSettings,
        first_epoch: Epoch,
    ) -> None:
        self.epoch = first_epoch
        self.leavers = Leavers(settings.relocation.drain_s)
        self.replanner = Replanner(settings.replan)
        self.relocation = Relocation(membership, config.num_layers, settings.relocation)
        self.slowdown: Mapping[NodeId, float] = {}
        self.links: Mapping[tuple[NodeId, NodeId], LinkSpeed] = {}
        self._config = config
        self._membership = membership
        self._placer = placer
        self._cramped: set[NodeId] = set()
        """Said that they had no room for a slice beside the one they hold."""
        self._target: Slices = {}

    @property
    def busy(self) -> bool:
        """Slices are being made: nobody else is to be given any meanwhile."""
        return self.relocation.active

    @property
    def unsettled(self) -> bool:
        return self.relocation.unsettled or bool(self.leavers)

    # -- what nodes say -------------------------------------------------------

    def ready(self, member: Member, ready: Ready, now_s: float, change: ClusterChange) -> bool:
        """True if this was about a shift."""
        if not self.relocation.ready(member.name, ready):
            return False
        self._switch_if_complete(now_s, change)
        return True

    def failed(self, member: Member, failure: ev.NodeAssignFailed, change: ClusterChange) -> bool:
        """A slice of the next placement could not be loaded. True if this was about a shift."""
        shift = self.relocation.shift
        if shift is None or failure.failure.epoch != shift.epoch:
            return False
        what = f"{member.name} could not load {shift.slices.get(member.name)} for the next one"
        text = f"the placement stays: {what}: {failure.failure.reason}"
        if failure.failure.code == "no_room":
            self._cramped.add(member.name)
        self._abort(text, change)
        if failure.failure.code == "no_room":
            # With what is known now there may be another order.
            there = {n: r for n, r in self._target.items() if self._membership.get(n) is not None}
            self._set_out(there, self.relocation.reason, change)
        return True

    def lost(self, node: NodeId, now_s: float, change: ClusterChange) -> None:
        for_good = node in self.leavers
        self.leavers.forget(node)
        self._cramped.discard(node)
        self.replanner.changed(now_s)
        if not self.relocation.lost(node, for_good=for_good):
            self._abort(f"the placement stays: {node} is gone, which the next one needs", change)
        self._switch_if_complete(now_s, change)

    # -- leaving --------------------------------------------------------------

    def leave(self, node: NodeId, now_s: float, change: ClusterChange, *, asked: bool) -> None:
        """The node is to go: at once where others hold its layers, else when they do."""
        leaver = self.leavers.add(node, asked=asked, now_s=now_s)
        member = self._membership.get(node)
        alone = member is not None and member.serves and bool(self.alone_with(node))
        leaver.needed = alone and (asked or self.replanner.settings.automatic)
        leaver.tried = not leaver.needed
        change.flow_changed = True
        where = f"to hold {self.alone_with(node)} elsewhere" if leaver.needed else "to end"
        change.note(logging.INFO, f"is leaving: waits for what it serves {where}", node, "leaving")

    def alone_with(self, node: NodeId) -> str:
        """The layers that would be on no other node, in words; empty if there are none."""
        rest = Placement(self._config.num_layers, self._serving_slices(without=node))
        missing = rest.missing()
        return ", ".join(str(r) for r in missing)

    def _let_go(self, crossed: EpochsInUse, now_s: float, change: ClusterChange) -> list[NodeId]:
        """Leavers that may go now."""
        for node in self.leavers.needed():
            leaver = self.leavers.get(node)
            assert leaver is not None
            member = self._membership.get(node)
            holds = member is not None and member.layers is not None
            if not self.relocation.active and not (holds and self.alone_with(node)):
                leaver.needed, change.flow_changed = False, True
        return self.leavers.done(crossed, now_s)

    # -- time -----------------------------------------------------------------

    def tick(
        self, in_use: EpochsInUse, uncovered_s: float | None, now_s: float, change: ClusterChange
    ) -> list[NodeId]:
        """Frees, begins, gives up, searches; gives the nodes that may leave now."""
        if self.relocation.late(now_s):
            self._abort("the placement stays: the next one's nodes took too long to load", change)
        for member, order in self.relocation.orders(self.epoch, in_use, now_s):
            change.effects.append(to_member(member.register, order))
        going = self._let_go(in_use, now_s, change) if self.leavers else []
        if not self.busy and not self._loading():
            needed = bool(self.leavers.undecided())
            occasion = self.replanner.occasion(
                now_s, uncovered_s=uncovered_s, someone_needed=needed
            )
            if occasion is not None:
                self._search(occasion, now_s, change)
        return going

    def _loading(self) -> bool:
        """What there will be in a moment is not known yet."""
        return any(m.state is NodeState.LOADING for m in self._membership)

    def search_first(self, now_s: float, change: ClusterChange) -> None:
        """All expected nodes are here and nothing is placed yet."""
        if self.replanner.searching is None:
            self._search(Occasion.FIRST, now_s, change)

    def place(self, target: Slices, change: ClusterChange) -> None:
        """An operator's own placement. Raises ConfigError or NoWay in words, having done nothing.

        That it loses flow is the operator's business.
        """
        if self.busy or self.replanner.searching is not None:
            raise NoWay("another placement is being looked for or made: try again when it is done")
        missing = uncovered(self._config.num_layers, target.values())
        if missing:
            raise ConfigError(
                f"{describe_ranges(missing)} would be on no node: give them to one that is named",
                param="slices",
            )
        for name, layers in target.items():
            member = self._membership.get(name)
            if member is None or not self._may_hold(member):
                there = ", ".join(m.name for m in self._membership if self._may_hold(m))
                raise ConfigError(
                    f"{name} is not in the cluster, or is leaving it: nodes that may hold layers "
                    f"are {there or 'none'}",
                    param="slices",
                )
            if layers.end > self._config.num_layers:
                raise ConfigError(
                    f"{name}: {layers} do not all exist: the model has {self._config.num_layers} "
                    f"layers, 0 to {self._config.num_layers - 1}",
                    param="slices",
                )
            need = slice_bytes(self._config, layers, member.form)
            if need > member.register.memory_bytes:
                raise ConfigError(
                    f"{name}: {layers} take {need / 2**20:.0f} MiB of weights and the node has "
                    f"{member.register.memory_bytes / 2**20:.0f} MiB: give it fewer layers, or "
                    "raise its `memory`",
                    param="slices",
                )
        now = self._serving_slices()
        if waypoints(self._config.num_layers, now, target, self._room):
            self._set_out(target, "asked for by an operator", change)

    # -- searching ------------------------------------------------------------

    def _search(self, occasion: Occasion, now_s: float, change: ClusterChange) -> None:
        number = self.replanner.search(occasion, now_s)
        self.leavers.searched()
        limit_s = self.replanner.settings.search_s
        wanted = self._problem(limit_s)
        if isinstance(wanted, NothingFound):
            self.found(ev.PlanFound(number, wanted), now_s, change)
            return
        change.note(logging.INFO, f"looking for a placement: {occasion}", kind="search")
        change.effects.append(ev.PlanWanted(number, wanted))

    def _problem(self, limit_s: float) -> Search | NothingFound:
        staying = [m for m in self._membership if self._may_hold(m)]
        machines = []
        for member in staying:
            made = machine_of(member, self._config, self.slowdown.get(member.name, 1.0))
            if made is None:
                return NothingFound(
                    f"the speed of {member.name} is not known: it has not measured itself, and no "
                    f"machine type is known for {member.register.device!r}; set measure.at_start = "
                    "true in its settings and restart it"
                )
            machines.append(made)
        if not machines:
            return NothingFound("no node is there to hold layers: start some")
        try:
            problem = live_problem(self._config, machines, lambda a, b: self.links.get((a, b)))
        except HelixError as e:
            return NothingFound(e.message)
        now = Placement(self._config.num_layers, self._serving_slices())
        names = {m.name for m in machines}
        # With a node that is to leave it is neither a beginning nor a measure.
        comparable = not now.missing() and all(n in names for n in now)
        return Search(problem, now if comparable else None, limit_s)

    def _may_hold(self, member: Member) -> bool:
        return member.state is not NodeState.FAILED and member.name not in self.leavers

    def found(self, event: ev.PlanFound, now_s: float, change: ClusterChange) -> None:
        """A search has ended; moves if its answer is worth it."""
        if self.replanner.searching is None or event.number != self.replanner.number:
            return
        found = event.found
        occasion = self.replanner.over(found=isinstance(found, Found))
        if isinstance(found, NothingFound):
            self._stay(f"no other placement: {found.reason}", change)
            if occasion is Occasion.FIRST:
                change.fallback = True
            return
        gone = any(self._membership.get(n) is None for n in found.slices)
        if self.busy or gone or self.leavers.later():
            # The cluster is another by now.
            self.replanner.changed(now_s)
            return
        if occasion is Occasion.FIRST:
            text = f"placed by {found.method}: max flow {found.tokens_per_s:.0f} tokens/s"
            change.note(logging.INFO, text, kind="placed")
            self._placer.adopt(found.slices)
            change.placed = True
            return
        self._judge(occasion, found, change)

    def _judge(self, occasion: Occasion, found: Found, change: ClusterChange) -> None:
        now = self._serving_slices()
        try:
            way = waypoints(self._config.num_layers, now, found.slices, self._room)
        except NoWay as e:
            self._stay(e.message, change)
            return
        if not way:
            self._stay("the placement stays: there is none with more flow", change)
            return
        loaded = loads(now, way)
        load_bytes, load_s = self._cost(loaded)
        verdict = self.replanner.judge(
            occasion, found.now_tokens_per_s, found.tokens_per_s, load_bytes, load_s
        )
        if not verdict.go:
            self._stay(verdict.text, change)
            return
        self._set_out(found.slices, verdict.text, change)

    def _set_out(self, target: Slices, reason: str, change: ClusterChange) -> None:
        now = self._serving_slices()
        try:
            way = waypoints(self._config.num_layers, now, target, self._room)
        except NoWay as e:
            self._stay(e.message, change)
            return
        self._target = target
        self.replanner.last_text = reason
        self.relocation.begin(way, reason)
        text = f"re-placing in {len(way)} step{'s' if len(way) > 1 else ''}: {changes(now, target)}"
        change.note(logging.INFO, f"{text}; {reason}", kind="replan")

    def _stay(self, text: str, change: ClusterChange) -> None:
        self.replanner.last_text = text
        for node in self.leavers.answered():
            leaver = self.leavers.get(node)
            assert leaver is not None
            leaver.tried = True
            if leaver.asked:
                self.leavers.forget(node)
                why = f"does not leave: {self.alone_with(node)} would be on no node. {text}"
                change.note(logging.WARNING, why, node, "stays")
            else:
                leaver.needed = False
            change.flow_changed = True
        change.note(logging.INFO, text, kind="stays")

    def _abort(self, text: str, change: ClusterChange) -> None:
        self.relocation.abort()
        change.given_up = True
        self._stay(text, change)

    def _room(self, node: NodeId, layers: LayerRange) -> bool:
        """Whether a slice fits beside what the node holds, with some KV room."""
        member = self._membership.get(node)
        if member is None or node in self._cramped or member.ready is None:
            return False
        register = member.register
        weights = slice_bytes(self._config, layers, member.form)
        kv = least_kv_bytes(self._config, layers, register.dtype_bytes)
        return self._least_held(member) + weights + kv <= usable_bytes(register.memory_bytes)

    def _least_held(self, member: Member) -> float:
        """Bytes of what a node holds when it has cut its KV pool down as far as it does for a slice
        that would not fit beside it otherwise."""
        ready, beat = member.ready, member.beat
        assert ready is not None
        held = ready.held_bytes or member.register.memory_bytes
        if beat is None or beat.epoch != ready.epoch:
            return held
        used = beat.kv_total_pages - beat.kv_free_pages
        spare_pages = max(0, ready.kv_pages - KEPT_PER_USED_PAGE * max(0, used))
        per_token = self._config.kv_bytes_per_token_per_layer(member.register.dtype_bytes)
        return max(0.0, held - spare_pages * ready.page_tokens * per_token)

    def _cost(self, loaded: list[tuple[NodeId, LayerRange]]) -> tuple[int, float]:
        """Bytes of weights that are read, and seconds of the node that reads longest."""
        total, longest_s = 0, 0.0
        for node, layers in loaded:
            member = self._membership.get(node)
            assert member is not None
            size = slice_bytes(self._config, layers, member.form)
            total += size
            longest_s = max(longest_s, size / self._load_rate(member))
        return total, longest_s

    def _load_rate(self, member: Member) -> float:
        if member.ready is None or member.layers is None or member.ready.load_s <= 0:
            return SLOWEST_LOAD_BYTES_PER_S
        size = slice_bytes(self._config, member.layers, member.form)
        return max(1.0, size / member.ready.load_s)

    # -- switching ------------------------------------------------------------

    def _switch_if_complete(self, now_s: float, change: ClusterChange) -> None:
        shift = self.relocation.shift
        if shift is None or not shift.complete:
            return
        change.moved += self.relocation.switched(now_s)
        self.epoch = shift.epoch
        for member in self._membership:
            layers = shift.slices.get(member.name)
            if layers is None:
                if member.layers is not None:
                    member.layers, member.ready, member.state = None, None, NodeState.JOINED
                continue
            ready = shift.readies[member.name]
            member.layers, member.epoch, member.ready = layers, shift.epoch, ready
            member.state = NodeState.READY
            change.ready.append((member.name, ready))
        self._placer.adopt({**shift.slices, **shift.absent})
        change.placed = change.flow_changed = True
        text = f"shifted to epoch {shift.epoch}: {_show(shift.slices)}"
        change.note(logging.INFO, text, kind="shifted")

    def _serving_slices(self, without: NodeId | None = None) -> dict[NodeId, LayerRange]:
        return {
            m.name: m.layers
            for m in self._membership.serving()
            if m.layers is not None and m.name != without
        }

    def farewell(self, member: Member, change: ClusterChange) -> None:
        """The last word to a node that may go."""
        goodbye = Leave(member.name, member.register.incarnation, "drained")
        change.effects.append(to_member(member.register, goodbye))


def _show(slices: Slices) -> str:
    return ", ".join(f"{n} {slices[n]}" for n in sorted(slices))
