"""The router's decisions: `handle(event) -> list[Effect]`, on plain data and an injected clock.

Ties together membership, placement, flow weights, KV books, the waiting queue and the sessions.
No sockets, no tasks, no time of its own: the app, the tests and the simulator all drive this class.

Guarantees: a request is in exactly one of queue, running, ended; pages are booked for exactly the
running ones; each stream ends with exactly one Finished or Broken; a token is emitted once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from helix_mq.clock import Clock
from helix_mq.errors import HelixError, NotServing
from helix_mq.ids import Epoch, NodeId, RequestId
from helix_mq.layers import Hop
from helix_mq.messages.data import RefusedItem, TokenItem
from helix_mq.models.config import ModelConfig
from router import events as ev
from router.admission_desk import AdmissionDesk
from router.affected import Affected, crossing_links, crossing_node, sent_over
from router.change import ClusterChange
from router.cluster_core import ClusterCore
from router.core_settings import CoreSettings as CoreSettings
from router.core_settings import CoreStatistics
from router.kv_books import KvBooks
from router.outstaying import review
from router.prefix_desk import PrefixDesk
from router.refusals import AvoidedNodes, Expired, FromStart, GiveUp, MoveOn, judge, tokens_lost
from router.releases import Releases
from router.request_checks import check_fits, deadline_error
from router.restore import rebuild
from router.routes import widest_route_tokens
from router.schedulers import new_scheduler
from router.service import Broken, Generation, StreamEvent
from router.sessions import Session, State
from router.speculation import Speculation, token_fault
from router.text import TextStream
from router.token_return import ReturnWays

MOVING = ev.Tick | ev.NodeDraining | ev.DrainWanted | ev.ReplanWanted | ev.PlacementWanted
"""Events after which re-placements may go on: as time passes, and at once where somebody waits."""


class Core:
    def __init__(
        self,
        config: ModelConfig,
        settings: CoreSettings,
        cluster: ClusterCore,
        books: KvBooks,
        clock: Clock,
        new_text: Callable[[Generation], TextStream],
    ) -> None:
        self.cluster = cluster
        self._config = config
        self._settings = settings
        self._clock = clock
        self._new_text = new_text
        self._books = books
        self._scheduler = new_scheduler(settings.scheduling, cluster.flow.weights)
        self._scheduled_flow = cluster.flow.tokens_per_s
        self._weights_stale = False
        """The cluster has another flow than the scheduler: computed when a route is wanted."""
        self._desk = AdmissionDesk(
            settings.admission,
            settings.max_waiting,
            settings.expected_output_tokens,
            clock.now_s(),
        )
        self._queue = self._desk.queue
        self._sessions: dict[RequestId, Session] = {}
        self._releases = Releases(cluster.membership)
        self._prefixes = PrefixDesk(settings.prefixes, cluster.membership, books)
        self._avoided = AvoidedNodes()
        self._speculation = Speculation(settings.speculation, cluster.membership, books)
        self._ways = ReturnWays(
            settings.token_return,
            cluster.membership,
            cluster.links,
            cluster.flows.round_trip_s,
            self._speculation.at_first_hop,
        )
        self._effects: list[ev.Effect] = []
        self._may_start = False
        """Something has happened that may let a waiting request start. Tokens come far more often
        than room, and looking for a route costs more than a token."""
        self._widest: int | None = None

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        """What follows from an event. Raises only for Submitted and PlacementWanted, when they are
        refused at once."""
        self._effects = []
        match event:
            case ev.TokensArrived():
                for item in event.tokens.items:
                    self._token(event.tokens.node, item)
            case ev.Submitted():
                self._submit(event)
            case ev.Restored():
                self._restore(event)
            case ev.Cancelled():
                self._cancel(event.request)
            case ev.RowsRefused():
                for refused in event.refused.items:
                    self._refused(event.refused.node, refused)
            case ev.LinkLost():
                self._link_lost(event.node)
            case _:
                self._membership(event)
                if isinstance(event, ev.Tick):
                    self._expire()
                if isinstance(event, MOVING):
                    self._move_on()
        self._pump()
        flow = self._scheduled_flow if self.cluster.serving else 0.0
        self._desk.at(self._clock.now_s(), flow)
        return self._effects

    @property
    def max_context(self) -> int:
        return self._settings.max_context

    @property
    def num_layers(self) -> int:
        return self._config.num_layers

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    def _membership(self, event: ev.Event) -> None:
        self._changed(self.cluster.handle(event))
        if isinstance(event, ev.NodeBeat):
            beat = event.beat
            if self.cluster.membership.is_current(beat.node, beat.incarnation):
                self._scheduler.on_beat(beat)

    def _changed(self, change: ClusterChange) -> None:
        self._effects.extend(change.effects)
        for node in change.gone:
            self._avoided.forget(node)
            self._books.drop_node(node)
            self._releases.forget(node)
            self._reroute(crossing_node(self._sessions.values(), node, "is gone"))
            self._desk.prefills.forget(node)
        self._prefixes.forget([*change.gone, *change.moved])
        for node in change.moved:
            # What is on its former slice has been booked on a pool that is to go.
            self._books.drop_node(node)
        for node, ready in change.ready:
            self._books.set_node(node, ready.kv_pages, ready.page_tokens)
        if change.closed:
            self._reroute(crossing_links(self._sessions.values(), frozenset(change.closed)))
        self._weights_stale |= change.flow_changed
        if change.gone or change.ready or change.moved or change.flow_changed:
            self._widest, self._may_start = None, True

    def _move_on(self) -> None:
        """Re-placements go on as requests leave old slices, or are moved when their time is up."""
        moves, in_use = self.cluster.moves, dict[NodeId, set[Epoch]]()
        if moves.unsettled:
            overdue = moves.relocation.overdue(self._clock.now_s())
            leave, in_use = review(self._sessions.values(), moves.epoch, overdue)
            for session, why in leave:
                self._note(logging.INFO, f"re-routed: {why}", session)
                self._requeue(session)
        self._changed(self.cluster.move_on(in_use))

    def _sync_weights(self) -> None:
        if self._weights_stale:
            self._weights_stale = False
            self._scheduler.replace(self.cluster.flow.weights)
            self._scheduled_flow = self.cluster.flow.tokens_per_s

    def output_budget(self, prompt_tokens: int) -> int:
        """Most output tokens a prompt of this length may get; < 1 if it does not fit at all."""
        limit = self._settings.max_context
        if self.cluster.serving:
            limit = min(limit, self._widest_tokens())
        return limit - prompt_tokens

    def check_room(self, owner: str, priority: int, deadline_s: float | None) -> None:
        """Raises QueueFull or ClusterFull if any request of this owner would be refused now."""
        self._desk.check(owner, priority, deadline_s or self._settings.default_deadline_s)

    def _submit(self, event: ev.Submitted) -> None:
        generation, now_s = event.generation, self._clock.now_s()
        budget = self.output_budget(len(generation.prompt_ids))
        check_fits(generation, budget, self.vocab_size)
        # New requests wait only while an outage may pass by itself; see ClusterCore.
        if not (self.cluster.serving or self.cluster.recovering):
            raise NotServing(self.cluster.why_not_serving(), retry_after_s=5.0)
        wait_s = generation.deadline_s or self._settings.default_deadline_s
        self._desk.check(generation.owner, generation.priority, wait_s, generation)
        session = Session(
            request=event.request,
            generation=generation,
            text=self._new_text(generation),
            arrived_s=now_s,
            deadline_s=now_s + wait_s,
            deadline_ms=int((self._clock.wall_s() + wait_s) * 1000),
            eos_ids=frozenset(self._config.eos_ids),
        )
        self._sessions[session.request] = session
        self._desk.arrive(session)
        self._may_start = True

    def _restore(self, event: ev.Restored) -> None:
        """Whatever was accepted once is served: no check may refuse it now."""
        now_s, eos_ids = self._clock.now_s(), frozenset(self._config.eos_ids)
        text = self._new_text(event.generation)
        past = rebuild(event, text, eos_ids, now_s, self._clock.wall_s())
        session = self._sessions[event.request] = past.session
        self._desk.arrive(session)
        self._may_start = True
        self._effects.extend(ev.Emit(event.request, delta, past=True) for delta in past.deltas)
        if past.finish is not None:
            # Only its end was not written down any more.
            reason, stop = past.finish
            self._end(session, session.finished(reason, now_s, stop))

    def _pump(self) -> None:
        """Admits waiting requests while the next one finds a route with room."""
        if self._avoided and self._avoided.expire(self._clock.now_s()):
            self._may_start = True
        if not (self._may_start and len(self._queue) and self.cluster.serving):
            return
        self._may_start = False
        self._sync_weights()
        too_long: list[Session] = []
        self._scheduler.wants(self._desk.look(self._clock.now_s()))
        while (request := self._queue.head()) is not None:
            session = self._sessions[request]
            if session.deadline_s <= self._clock.now_s():
                # It would be computed for nobody; the others need not wait for the next tick.
                self._break(session, self._deadline_error(session))
                continue
            tokens = session.expected_tokens(self._settings.expected_output_tokens)
            room_for = partial(self._has_room, tokens=tokens, session=session)
            route = self._scheduler.choose(session.length_tokens, room_for)
            if route is not None:
                session.prefix = self._prefixes.begin(session, route)
                self._desk.start(session, route, self._clock.now_s())
                self._books.reserve(request, route, tokens)
                now_s, way = self._clock.now_s(), self._ways.of(route)
                self._effects.append(session.start(route, self.cluster.epoch, now_s, way))
            elif tokens > self._widest_tokens():
                # It waits for a node that is gone; those behind it need not.
                too_long.append(session)
                self._desk.remove(session)
            else:
                break
        for session in too_long:
            self._desk.arrive(session)

    def _has_room(self, hop: Hop, tokens: int, session: Session) -> bool:
        return (
            hop.node not in self._avoided
            and self._books.has_room(hop, tokens)
            and self._desk.node_has_room(hop.node, session)
        )

    def _widest_tokens(self) -> int:
        """Longest sequence that the live cluster could hold if it had nothing else to do."""
        if self._widest is None:
            self._sync_weights()
            self._widest = widest_route_tokens(
                self.cluster.flow.weights, self._scheduler.next_nodes, self._books.capacity_tokens
            )
        return self._widest

    def _token(self, node: str, item: TokenItem) -> None:
        session = self._sessions.get(RequestId(item.request))
        if session is None or not session.expects(node, item):
            if session is not None and session.missed(node, item):
                self._refused(node, tokens_lost(item))
            self._effects.extend(self._releases.stale(session, NodeId(node), item))
            return
        if (fault := token_fault(session, item, self.vocab_size)) is not None:
            self._refused(node, fault)
            return
        now_s = self._clock.now_s()
        assert session.route is not None
        if not (session.prefilling or item.more):
            self._scheduler.on_token(session.route, now_s - session.sent_s)
        self.cluster.links.worked(session.route, direct=session.direct)
        self._prefixes.token(session, self.cluster.epoch)
        self._speculation.token(session, item)
        delta, finish, stop = session.take(item, now_s)
        self._effects.append(ev.Emit(session.request, delta))
        self._may_start |= self._desk.token(session, now_s)
        if finish is not None:
            self._end(session, session.finished(finish, now_s, stop))
            return
        if item.more:
            return
        drafts = self._speculation.drafts(session, len(self._sessions) - len(self._queue))
        self._books.grow(session.request, session.route, session.length_tokens + len(drafts) + 1)
        if not session.direct:
            self._effects.append(session.decode_row(drafts))

    def _refused(self, node: str, item: RefusedItem) -> None:
        session = self._sessions.get(RequestId(item.request))
        if session is None:
            return
        match judge(session, NodeId(node), item):
            case GiveUp(error):
                self._break(session, error)
            case Expired():
                self._break(session, self._deadline_error(session))
            case FromStart():
                self._prefixes.missing(session, NodeId(node))
                self._requeue(session, counted=False)
            case MoveOn(avoid, link, squeezed, damaged):
                level = logging.INFO if squeezed else logging.WARNING
                self._note(level, f"re-routed: {node}: {item.reason}", session)
                session.came_to(squeezed=squeezed, damaged=damaged)
                if damaged:
                    self._prefixes.distrust(session)
                self._requeue(session)
                if avoid is not None:
                    self._avoided.add(avoid, self._clock.now_s())
                if link is not None:
                    self._changed(self.cluster.link_lost(link))

    def _cancel(self, request: RequestId) -> None:
        session = self._sessions.get(request)
        if session is not None:
            self._end(session, session.finished("cancelled", self._clock.now_s()))

    def _reroute(self, affected: Affected) -> None:
        for session, why in list(affected):
            self._note(logging.WARNING, f"re-routed: {why}", session)
            self._requeue(session)

    def _link_lost(self, node: NodeId) -> None:
        """The router's own link broke: rows and releases that were in it may be lost."""
        self._effects.extend(self._releases.again(node))
        self._reroute(sent_over(self._sessions.values(), node))

    def _requeue(self, session: Session, *, counted: bool = True) -> None:
        self._release(session)
        session.requeue(counted=counted)
        self._desk.arrive(session)
        self._may_start = True

    def _release(self, session: Session) -> None:
        """Frees the request's pages on every hop that is still there, and its bookings."""
        self._books.release(session.request)
        self._desk.off_route(session)
        if session.route is not None:
            self._scheduler.on_left(session.route, session.routed_tokens)
            self._effects.extend(self._releases.of(session))

    def _end(self, session: Session, last: StreamEvent) -> None:
        self._desk.ended(session)
        self._release(session)
        self._desk.remove(session)
        session.move(State.ENDED)
        del self._sessions[session.request]
        self._may_start = True
        self._effects.append(ev.Emit(session.request, last))

    def _break(self, session: Session, error: HelixError) -> None:
        self._note(logging.WARNING, f"failed: {error}", session)
        self._end(session, Broken(error))

    def _expire(self) -> None:
        now_s = self._clock.now_s()
        for session in [s for s in self._sessions.values() if s.deadline_s <= now_s]:
            self._break(session, self._deadline_error(session))

    def _deadline_error(self, session: Session) -> HelixError:
        return deadline_error(session, self._clock.now_s(), self.cluster.why_not_serving())

    def _note(self, level: int, text: str, session: Session) -> None:
        self._effects.append(ev.Note(level, text, request=session.request))

    def statistics(self) -> CoreStatistics:
        return CoreStatistics(
            waiting=len(self._queue),
            running=len(self._sessions) - len(self._queue),
            flow_tokens_per_s=self.cluster.flow.tokens_per_s,
            prefixes=self._prefixes.statistics(),
            drafts=self._speculation.statistics(),
        )

    def sessions(self) -> Mapping[RequestId, Session]:
        return self._sessions

    def check(self) -> None:
        """Raises AssertionError if a request or a booking is unaccounted for."""
        running = [r for r, s in self._sessions.items() if s.state is State.RUNNING]
        self._books.check(running)
        for request, session in self._sessions.items():
            assert (session.state is State.QUEUED) == (request in self._queue), request
