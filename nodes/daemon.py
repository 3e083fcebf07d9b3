"""The node process: control connection, data plane, and the slices it is assigned.

Registers with the router, again after every reconnect; hands its orders to `nodes.slices`, and
frames to the slice that serves their epoch; sends heartbeats; on SIGTERM asks to be let go, and
waits for that. Everything that computes runs on one device thread, or on compiled threads that take
turns with it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from functools import partial

import msgspec

import helix_mq
from helix_mq.clock import Clock
from helix_mq.dataplane import DataPlane, InLink, PlaneHandlers, PlaneIdentity
from helix_mq.errors import ConfigError, FrameError, HelixError, LocalError
from helix_mq.features import FEATURES
from helix_mq.frames import Message, decode, encode
from helix_mq.ids import ROUTER
from helix_mq.messages import control, data
from helix_mq.transport import Connection, Delivery, LinkState, Transport
from nodes.device import DeviceThread
from nodes.health import NodeState, status_text, stuck_text
from nodes.identity import NodeIdentity
from nodes.inbox import check_sender
from nodes.loader import Load
from nodes.loading import Loaded, load
from nodes.metrics import NodeFigures
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.slices import Slices
from nodes.wire_format import addresses
from nodes.worker import Worker

log = logging.getLogger(__name__)

_DRAIN_REPORT_S = 5.0
_ROUTER_GONE_S = 5.0
"""A leaving node waits no longer for a router that is not connected."""


class NodeDaemon:
    """One node. `run` serves until `stop` is called or the router rejects it."""

    def __init__(
        self,
        settings: NodeSettings,
        identity: NodeIdentity,
        transport: Transport,
        security: NodeSecurity,
        clock: Clock,
        load: Load = load,
    ) -> None:
        """`load`: what makes slices; a bench's may run them slower than this machine does."""
        self.settings = settings
        self.rejection: HelixError | None = None
        self.up = asyncio.Event()
        """The data socket is bound and the router is being dialled."""
        self._identity = identity
        self._transport = transport
        self._security = security
        self._clock = clock
        self._incarnation = secrets.randbits(62)
        self._device = DeviceThread(clock)
        self._plane = DataPlane(
            PlaneIdentity(settings.name, self._incarnation, security.key, security.insecure),
            PlaneHandlers(self._on_data, self._on_link_lost, self._on_credit),
            transport,
            clock,
            settings.window,
            settings.link_down_after_s,
        )
        self._slices = Slices(
            settings,
            identity,
            clock=clock,
            device=self._device,
            links=self._plane,
            say=self._say,
            on_broken=self._on_broken,
            load=load,
        )
        self._control: Connection | None = None
        self._control_up = False
        self._peers: asyncio.Queue[control.Peers] = asyncio.Queue()
        self._sequence = 0
        self._bad_messages = 0
        self._data_endpoint = ""
        self._draining = False
        self._stopping = asyncio.Event()
        self._left = asyncio.Event()

    @property
    def worker(self) -> Worker | None:
        """The worker of the slice that serves the newest epoch."""
        held = self._slices.newest
        return held.slice.worker if held is not None else None

    @property
    def workers(self) -> list[Worker]:
        return self._slices.workers

    @property
    def loaded(self) -> Loaded | None:
        """The slice that serves the newest epoch."""
        held = self._slices.newest
        return held.slice.loaded if held is not None else None

    async def run(self) -> None:
        """Serves until stopped; raises the router's rejection if there was one."""
        bound = await self._plane.bind(self.settings.listen, self._security.server())
        self._data_endpoint = self.settings.advertise or bound
        self._control = await self._transport.connect(
            self.settings.router,
            self._on_control,
            routing_id=self.settings.name.encode(),
            security=self._security.client(),
            insecure=self._security.insecure,
            on_state=self._on_control_state,
        )
        log.info(
            "%s: data on %s, connecting to the router at %s",
            self.settings.name,
            self._data_endpoint,
            self.settings.router,
        )
        self.up.set()
        tasks = [
            asyncio.create_task(self._heartbeats(), name="heartbeats"),
            asyncio.create_task(self._slices.run(), name="orders"),
            asyncio.create_task(self._peers_for_ever(), name="peers"),
        ]
        stopping: asyncio.Task[bool] = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            await self._drain()
        finally:
            stopping.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            await self._close()
        if self.rejection is not None:
            raise self.rejection

    def state(self) -> NodeState:
        """What the service manager is told."""
        return NodeState(
            router=self.settings.router,
            connected=self._control_up,
            waits_to_leave=self._draining,
            serving=self._slices.layers,
            loading=self._slices.loading,
            open_requests=self._slices.statistics().open_requests,
            device_busy_s=self._device.busy_s(),
        )

    def status(self) -> str:
        return status_text(self.state())

    def stuck(self) -> str:
        return stuck_text(self.state(), self.settings.stuck_after_s)

    def stop(self) -> None:
        """Asks for a clean end: drain, say goodbye, close. Asked again, it leaves at once."""
        if self._stopping.is_set():
            self._left.set()
        self._stopping.set()

    async def _drain(self) -> None:
        """Until the router lets the node go, which it does when nothing needs it any more."""
        if not self._control_up or self.rejection is not None or self._left.is_set():
            return
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self.settings.drain_s
        gone_s = loop.time()
        self._draining = True
        self._say_drain()
        while not self._left.is_set():
            now_s = loop.time()
            if self._control_up:
                gone_s = now_s
            if now_s >= ends_s or now_s - gone_s >= _ROUTER_GONE_S:
                log.warning("%s: leaving without the router's word", self.settings.name)
                return
            try:
                async with asyncio.timeout(min(_DRAIN_REPORT_S, ends_s - now_s)):
                    await self._left.wait()
            except TimeoutError:
                log.info(
                    "%s: waiting for the router to let it go: %d requests are open here, for "
                    "%.0f s more at most",
                    self.settings.name,
                    self._slices.statistics().open_requests,
                    max(0.0, ends_s - loop.time()),
                )

    def _say_drain(self) -> None:
        self._say(control.Drain(self.settings.name, self._incarnation))

    async def _close(self) -> None:
        await self._slices.close()
        if self._control is not None:
            await self._control.close()
        await self._plane.close()
        self._device.shutdown(wait=True, cancel_futures=True)

    # -- control ------------------------------------------------------------

    def _say(self, message: msgspec.Struct) -> None:
        if self._control is not None:
            self._control.send(encode(message))

    def _on_control_state(self, state: LinkState) -> None:
        was, self._control_up = self._control_up, state.connected
        if state.connected:
            self._register()
            if self._draining:
                # The router that heard it may be gone.
                self._say_drain()
        elif was or state.reason:
            log.warning("router at %s: %s", self.settings.router, state.reason or "disconnected")

    def _register(self) -> None:
        if self._left.is_set():
            # Asked for by a heartbeat that crossed the router's goodbye: it would join anew.
            return
        self._say(
            control.Register(
                node=self.settings.name,
                incarnation=self._incarnation,
                data_endpoint=self._data_endpoint,
                data_public_key=self._security.public_key,
                device=self._identity.device_text,
                memory_bytes=self._identity.memory_bytes,
                dtype_bytes=self._identity.dtype.itemsize,
                model_digest=self._identity.model_digest,
                version=helix_mq.__version__,
                holding=self._slices.holding,
                heartbeat_s=self.settings.heartbeat_s,
                times=self._identity.times,
                region=self.settings.region,
                quantise=self.settings.quantise,
                features=FEATURES,
                device_id=self._identity.device_id,
            )
        )

    def _on_control(self, delivery: Delivery) -> None:
        try:
            message = decode(delivery.parts)
        except FrameError as e:
            self._bad_messages += 1
            log.warning("bad message from the router (%s): %s", e.reason, e)
            return
        match message.header:
            case control.Assign() | control.Retain() as order:
                if not self._slices.order(order):
                    self._bad_messages += 1
                    log.warning("too many orders from the router; one is dropped")
            case control.Peers() as peers:
                self._peers.put_nowait(peers)
            case control.TraceWanted() as wanted:
                self._say(self._slices.tracer.answer(wanted))
            case control.RegisterAgain():
                self._register()
                if self._draining:
                    self._say_drain()
            case control.Rejected() as no:
                self.rejection = ConfigError(f"the router rejects this node: {no.reason}")
                self._stopping.set()
            case control.Leave():
                self._left.set()
                self._stopping.set()
            case other:
                self._bad_messages += 1
                log.warning("stray %s from the router", type(other).__name__)

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self.settings.heartbeat_s)
            self._plane.refresh()
            if self._control_up:
                self._say(self._heartbeat())
                for traces in self._slices.tracer.take():
                    self._say(traces)

    def _heartbeat(self) -> control.Heartbeat:
        self._sequence += 1
        work, holding = self._slices.statistics(), self._slices.holding
        return control.Heartbeat(
            node=self.settings.name,
            incarnation=self._incarnation,
            sequence=self._sequence,
            epoch=holding.epoch if holding is not None else 0,
            open_requests=work.open_requests,
            waiting_rows=work.waiting_rows,
            waiting_tokens=work.waiting_tokens,
            kv_free_pages=work.kv_free_pages,
            kv_total_pages=work.kv_total_pages,
            steps=work.steps,
            step_s=work.step_s,
            tokens=work.tokens,
            layer_tokens=work.layer_tokens,
            expected_s=work.expected_s,
            bad_messages=self._bad_messages + sum(self._plane.bad_messages.values()),
            links=tuple(s.report() for s in self._plane.statistics()),
        )

    async def _peers_for_ever(self) -> None:
        while True:
            peers = await self._peers.get()
            self._security.allow_peers(peers)
            self._slices.formats.follow(peers.peers)
            await self._plane.set_peers(addresses(peers.peers))

    def figures(self) -> NodeFigures:
        """For its metrics."""
        return NodeFigures(
            node=self.settings.name,
            work=self._slices.statistics(),
            links=tuple(s.report() for s in self._plane.statistics()),
            layers=tuple(self._slices.layers),
            bad_messages=self._bad_messages + sum(self._plane.bad_messages.values()),
            connected=self._control_up,
        )

    # -- data ---------------------------------------------------------------

    def _on_data(self, sender: str, message: Message, nbytes: int, link: InLink) -> None:
        header = message.header
        if type(header) is not data.FrameHeader:
            self._on_word(sender, message)
            return
        try:
            if header.sender != sender:
                raise FrameError("another's name", reason="identity")
            check_sender(header)
        except FrameError as e:
            link.consumed(nbytes)
            self._plane.count_bad(sender, e)
            return
        worker = self._slices.worker(header.epoch)
        if worker is None:
            link.consumed(nbytes)
            self._refuse(header, *self._unserved(header.epoch))
        elif link.overdrawn or worker.overloaded:
            # Its sender counts wrong, or has counted on memory that is not there.
            link.consumed(nbytes)
            self._refuse(header, "overloaded", f"too much waits on {self.settings.name}")
        else:
            try:
                strange = worker.on_frame(header, message.buffers, partial(link.consumed, nbytes))
                if strange:
                    reason = f"{strange} tokens returned by who is not their requests' last hop"
                    self._plane.count_bad(sender, FrameError(reason, reason="identity"))
            except FrameError as e:
                self._plane.count_bad(sender, e)
                self._refuse(header, "bad_frame", str(e)[:1024])

    def _on_word(self, sender: str, message: Message) -> None:
        """What is no frame."""
        if isinstance(message.header, data.Release) and sender == ROUTER:
            for worker in self.workers:
                worker.on_release(message.header)
        else:
            self._plane.count_bad(sender, FrameError(f"stray {message.kind.name}", reason="kind"))

    def _refuse(self, header: data.FrameHeader, code: str, reason: str) -> None:
        items = tuple(data.RefusedItem(r.request, r.attempt, code, reason) for r in header.rows)
        self._plane.send(ROUTER, data.Refused(header.epoch, self.settings.name, items))

    def _unserved(self, epoch: int) -> tuple[str, str]:
        name, serves = self.settings.name, self._slices.epochs
        if not serves:
            return "not_ready", f"{name} holds no layers"
        return "stale_epoch", f"placement epoch {epoch}, {name} serves {serves}"

    def _on_link_lost(self, peer: str) -> None:
        for worker in self.workers:
            worker.on_link_lost(peer)

    def _on_credit(self) -> None:
        for worker in self.workers:
            worker.wake()

    def _on_broken(self, fault: BaseException) -> None:
        log.critical("%s: a step loop died: %s", self.settings.name, fault, exc_info=fault)
        # Not drained: what is open here can go on only elsewhere, the sooner the better.
        self._left.set()
        self.rejection = LocalError(f"{self.settings.name} stops: {fault}")
        self._stopping.set()
