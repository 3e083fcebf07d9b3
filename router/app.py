"""The router process: sockets, tasks and shutdown. Decides nothing; see router.core.

Turns what arrives into events for the core and carries its effects out. Implements the Service that
the HTTP gateway and the SDK sockets stand on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
from collections import Counter
from collections.abc import Sequence

import msgspec

from helix_mq.clock import Clock
from helix_mq.dataplane import DataPlane, InLink, PlaneHandlers, PlaneIdentity
from helix_mq.errors import FrameError, HelixError, NotServing
from helix_mq.frames import Message, decode, encode
from helix_mq.ids import ROUTER, NodeId, RequestId, id_after
from helix_mq.messages import control, data
from helix_mq.models.tokenizer import Tokenizer
from helix_mq.outlink import PeerAddress
from helix_mq.transport import Delivery, Listener, ServerSecurity, Transport
from router import events as ev
from router.control_door import NO_HELLO, ControlDoor
from router.core import Core
from router.journal_reader import JournalReader
from router.journal_streams import JournaledStreams
from router.kept_placement import PLACEMENT, kept_placement, placement_bytes
from router.metrics import RouterMetrics
from router.operator_side import OperatorSide
from router.outgoing import Outgoing
from router.planning import PlanningProcess
from router.restore_clients import KeptStreams
from router.restore_requests import Keeping, restore_requests
from router.security import RouterSecurity
from router.seeing import Seeing
from router.service import NO_ORIGIN, EventStream, Generation, Origin, ServiceStatus
from router.settings import RouterSettings
from router.status import service_status
from router.tokenising import Tokenising
from router.trace_desk import TraceDesk
from router.what_if_desk import WhatIfDesk

log = logging.getLogger(__name__)

TICK_S = 0.25


class RouterApp(OperatorSide):
    """One router. `start` binds and begins; `close` tells the nodes and ends every stream."""

    def __init__(
        self,
        settings: RouterSettings,
        core: Core,
        tokenizer: Tokenizer,
        model_name: str,
        transport: Transport,
        security: RouterSecurity,
        clock: Clock,
        keeping: Keeping | None = None,
    ) -> None:
        """`keeping`: the journal that requests are written to, and restored from at the start."""
        self.model_name = model_name
        self.tokenizer = tokenizer
        self.core = core
        self.max_context = core.max_context
        self.vocab_size = core.vocab_size
        self.bad_messages: Counter[tuple[str, str]] = Counter()
        self._settings = settings
        self._transport = transport
        self.security = security
        self._clock = clock
        self._incarnation = secrets.randbits(62)
        self._keeping = keeping
        self._highest_request: int = int(clock.wall_s() * 1000) << 20
        self._door = ControlDoor(security, core.cluster.membership.is_current)
        self._control: Listener | None = None
        self._plane = DataPlane(
            PlaneIdentity(ROUTER, self._incarnation, security.key, security.insecure),
            PlaneHandlers(self._on_data, self._on_data_lost, lambda: None),
            transport,
            clock,
            settings.window,
            settings.link_down_after_s,
        )
        self._outgoing = Outgoing(self._plane.send)
        self._planning = PlanningProcess()
        self.what_ifs = WhatIfDesk(core.cluster)
        self._flush_pending = False
        self._tokenising = Tokenising(tokenizer, lambda: core.output_budget(0))
        self._tasks: set[asyncio.Task[None]] = set()
        self._peers_changed = asyncio.Event()
        self._data_endpoint = ""
        self.metrics = RouterMetrics(clock)
        self.seeing = Seeing(self.metrics, core.cluster.membership, clock)
        self.traces = TraceDesk(core, self._to_node, self.own_links, clock)
        journal = keeping.journal if keeping is not None else None
        self._streams = JournaledStreams(journal, clock, self.metrics, self.cancel)
        self.kept: KeptStreams | None = None
        """Streams of SDK clients of the router's earlier life, after `start`."""
        self.closing = False
        self.ticked_s, self.died = clock.now_s(), ""

    # -- life ---------------------------------------------------------------

    async def start(self) -> None:
        """Binds control and data sockets. Raises ConfigError when an address cannot be used."""
        if self._keeping is not None:
            self._restore(self._keeping)
        control_security: ServerSecurity | None = self.security.server()
        self._control = await self._transport.listen(
            self._settings.control,
            self._on_control,
            security=control_security,
            insecure=self.security.insecure,
            on_disconnect=self._on_control_lost,
        )
        bound = await self._plane.bind(self._settings.data, self.security.server())
        self._data_endpoint = self._settings.advertise_data or bound
        self._spawn(self._tick_for_ever(), "ticks")
        self._spawn(self._sync_peers_for_ever(), "peers")
        self._spawn(self.security.watch(self.core.cluster.membership, self.apply), "keys")

    def _restore(self, keeping: Keeping) -> None:
        # Also where the clock was set back: nodes know the old ids.
        self._highest_request = max(self._highest_request, keeping.journal.highest_request)
        keeping.journal.start()
        if keeping.journal.life > 1:
            self.core.cluster.expect_back()
        layers = self.core.num_layers
        placement = kept_placement(keeping.journal.get(PLACEMENT), layers)
        if placement is not None and self.core.cluster.moves.replanner.settings.automatic:
            self.core.cluster.resume(placement)
        self.kept = restore_requests(keeping, self._clock, self._streams, self.apply)

    @property
    def requests(self) -> JournalReader | None:
        """Requests by their name, where there is a journal."""
        return self._keeping.reader if self._keeping is not None else None

    @property
    def control_endpoint(self) -> str:
        assert self._control is not None
        return self._control.endpoint

    async def close(self) -> None:
        """Ends open streams with an error that says so, then closes the sockets. What is in the
        journal goes on with the next start."""
        self.closing = True
        if self._keeping is not None:
            await self._keeping.journal.close()
        self._streams.break_all(NotServing("the router is shutting down", retry_after_s=5.0))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._planning.close()
        self.what_ifs.close()
        if self._control is not None:
            await self._control.close()
        await self._plane.close()

    def _spawn(self, coroutine: object, name: str) -> None:
        assert asyncio.iscoroutine(coroutine)
        task: asyncio.Task[None] = asyncio.create_task(coroutine, name=f"router-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("task %s died", task.get_name(), exc_info=task.exception())
            self.died = task.get_name()

    # -- the service --------------------------------------------------------

    def submit(self, generation: Generation, origin: Origin = NO_ORIGIN) -> EventStream:
        if self.closing:
            raise NotServing("the router is shutting down", retry_after_s=5.0)
        self._highest_request = request = id_after(self._highest_request)
        stream = self._streams.open(request, len(generation.prompt_ids), origin)
        try:
            self._streams.check()
            self.apply(ev.Submitted(request, generation))
        except HelixError as e:
            self._streams.forget(request)
            self.metrics.refused(e)
            raise
        self.metrics.accepted(request, stream.prompt_tokens)
        if self._keeping is not None:
            deadline_ms = self.core.sessions()[request].deadline_ms
            served = (self.model_name, self._keeping.model_digest)
            self._streams.opened(stream, generation, origin, deadline_ms, served)
        return stream

    def cancel(self, request: RequestId) -> None:
        if self.closing and self._keeping is not None:
            # Clients go because the router goes. It comes back, and so may they.
            return
        self.apply(ev.Cancelled(request))

    def status(self) -> ServiceStatus:
        journal = self._keeping.journal.statistics() if self._keeping is not None else None
        return service_status(self.core, self._plane.statistics(), journal)

    def draw_seed(self) -> int:
        return secrets.randbits(62)

    def check_room(self, owner: str, priority: int, deadline_s: float | None) -> None:
        try:
            self.core.check_room(owner, priority, deadline_s)
        except HelixError as e:
            self.metrics.refused(e)
            raise

    def output_budget(self, prompt_tokens: int) -> int:
        return self.core.output_budget(prompt_tokens)

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        return await self._tokenising.text(text, special=special)

    async def tokenize_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        return await self._tokenising.chat(messages)

    # -- events in ----------------------------------------------------------

    def apply(self, event: ev.Event) -> None:
        """Lets the core decide about an event, and carries out what it wants."""
        for effect in self.core.handle(event):
            self._carry_out(effect)
        self.seeing.saw(event)
        if not self._outgoing.empty and not self._flush_pending:
            # One flush per turn of the loop: rows decided by several messages share frames.
            self._flush_pending = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _on_control(self, delivery: Delivery) -> None:
        try:
            message = decode(delivery.parts)
            if isinstance(message.header, control.Traces):
                self.traces.told(self._door.sender(delivery)[0], message.header)
                return
            event = self._door.event(message, delivery)
        except FrameError as e:
            self._count_bad(delivery.peer.decode("latin1")[:80], e)
            return
        self.apply(event)
        self._door.forget_stranger(message.header)

    def _on_data(self, sender: str, message: Message, nbytes: int, link: InLink) -> None:
        header = message.header
        match header:
            case data.Tokens() if header.node == sender:
                self.apply(ev.TokensArrived(header))
            case data.Refused() if header.node == sender:
                self.apply(ev.RowsRefused(header))
            case data.FrameHeader():
                link.consumed(nbytes)
                raise_bad = FrameError("the router runs no layers", reason="kind")
                self._count_bad(sender, raise_bad)
            case _:
                self._count_bad(sender, FrameError(f"stray {message.kind.name}", reason="kind"))

    def _on_link_lost(self, peer: str) -> None:
        self.apply(ev.LinkLost(NodeId(peer)))

    def _on_data_lost(self, peer: str) -> None:
        # First, or requests that lose their way would be sent the same way again.
        self.apply(ev.ConnectionBroke(NodeId(peer), None, "data"))
        self._on_link_lost(peer)

    def _on_control_lost(self, routing_id: bytes) -> None:
        process = self._door.process(routing_id)
        if process is not None:
            self.apply(ev.ConnectionBroke(*process, "control"))

    def _count_bad(self, who: str, error: FrameError) -> None:
        key = (who, error.reason)
        if len(self.bad_messages) < 10_000 or key in self.bad_messages:
            self.bad_messages[key] += 1
        self.metrics.bad_message(error.reason)
        if self.bad_messages[key] != 1:
            # Not the first, or, at 0, one of those that are no longer told apart.
            return
        if error.reason == NO_HELLO:
            # A node that was taken for lost, or has not heard that the router is another: the
            # answer to its next heartbeat says so.
            log.info("a message of a process that is no member, %r, is left out: %s", who, error)
            return
        log.warning("bad message from %s (%s): %s", who, error.reason, error)

    # -- effects out --------------------------------------------------------

    def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Emit():
                self._streams.emit(effect.request, effect.event, past=effect.past)
                self.traces.emitted(effect)
            case ev.SendRow():
                self._outgoing.add_row(effect)
                self.traces.routed(effect)
            case ev.SendRelease():
                self._outgoing.add_release(effect)
            case ev.ToNode():
                self._to_node(effect.node, effect.incarnation, effect.message)
            case ev.PeersChanged():
                self._peers_changed.set()
            case ev.PlanWanted():
                self._spawn(self._plan(effect), "planning")
            case ev.SolveFlow():
                self._spawn(self._solve_flow(effect), "flow")
            case ev.PlacementKept():
                self._keep_placement(effect)
            case ev.Note():
                self.seeing.noted(effect)
                extra = {"node": effect.node, "request": effect.request}
                log.log(effect.level, "%s", effect.text, extra=extra)

    def _to_node(self, node: str, incarnation: int, message: msgspec.Struct) -> None:
        routing_id = self._door.routing_id(node, incarnation)
        if routing_id is not None and self._control is not None:
            self._control.send(routing_id, encode(message))

    def _flush(self) -> None:
        self._flush_pending = False
        for node in self._outgoing.flush():
            # No link yet although the node is ready: try those requests again in a moment.
            asyncio.get_running_loop().call_later(TICK_S, self._on_link_lost, node)

    async def _plan(self, wanted: ev.PlanWanted) -> None:
        found = await self._planning.search(wanted.search)
        self.apply(ev.PlanFound(wanted.number, found))

    async def _solve_flow(self, wanted: ev.SolveFlow) -> None:
        try:
            flow = await asyncio.to_thread(wanted.problem.solve)
        except Exception:
            log.exception("the flow could not be solved anew: the present one stays")
            flow = None
        self.apply(ev.FlowSolved(wanted.number, flow))

    def _keep_placement(self, kept: ev.PlacementKept) -> None:
        if self._keeping is not None and kept.slices:
            self._keeping.journal.put(PLACEMENT, placement_bytes(kept.slices))

    # -- tasks --------------------------------------------------------------

    async def _tick_for_ever(self) -> None:
        for ticks in itertools.count(1):
            await asyncio.sleep(TICK_S)
            now_s = self._clock.now_s()
            self.core.cluster.membership.looked(now_s, now_s - self.ticked_s)
            self.ticked_s = now_s
            try:
                self.apply(ev.Tick())
                if ticks % 4 == 0:
                    self._look_after_links()
            except Exception:
                # Without ticks nothing expires and nobody is missed: worse than a tick that fails.
                log.exception("a tick failed")

    def _look_after_links(self) -> None:
        # Before frames are given up: their requests must not come the same way again.
        links = self.own_links()
        down_s = {NodeId(link.peer): link.down_s for link in links}
        for member in self.core.cluster.membership.serving():
            # Its address is none that can be connected to.
            down_s.setdefault(member.name, math.inf)
        self.apply(ev.OwnLinks(tuple(down_s.items()), links))
        self._plane.refresh()

    async def _sync_peers_for_ever(self) -> None:
        """Whenever membership changes: own connections, the allow-list, and everyone's list."""
        while True:
            await self._peers_changed.wait()
            self._peers_changed.clear()
            members = [m.register for m in self.core.cluster.membership]
            self._door.keep({(r.node, r.incarnation) for r in members})
            peers = [
                control.Peer(r.node, r.incarnation, r.data_endpoint, r.data_public_key)
                for r in members
            ]
            me = control.Peer(
                ROUTER, self._incarnation, self._data_endpoint, self.security.public_key
            )
            await self._plane.set_peers(
                {
                    p.node: PeerAddress(p.node, p.incarnation, p.endpoint, p.public_key)
                    for p in peers
                }
            )
            for register in members:
                theirs = self.core.cluster.flows.forms.peers(NodeId(register.node), peers)
                message = control.Peers(self.core.cluster.epoch, (*theirs, me))
                self._to_node(register.node, register.incarnation, message)
