"""The node process: control connection, data plane, and a worker for the assigned slice.

Registers with the router, again after every reconnect; loads what it is assigned; sends heartbeats;
on SIGTERM asks to be drained. Everything that computes runs on one device thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor

import msgspec

import helix_mq
from helix_mq.clock import Clock
from helix_mq.dataplane import DataPlane, InLink, PlaneHandlers, PlaneIdentity
from helix_mq.errors import ConfigError, FrameError, HelixError
from helix_mq.frames import Message, decode, encode
from helix_mq.ids import ROUTER
from helix_mq.layers import LayerRange
from helix_mq.messages import control, data
from helix_mq.outlink import PeerAddress
from helix_mq.transport import Connection, Delivery, LinkState, Transport
from nodes.batching import BatchLimits
from nodes.identity import NodeIdentity
from nodes.inbox import NodeView, check_sender
from nodes.loading import Loaded, LoadRequest, load
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.worker import Worker, WorkerOptions

log = logging.getLogger(__name__)


class NodeDaemon:
    """One node. `run` serves until `stop` is called or the router rejects it."""

    def __init__(
        self,
        settings: NodeSettings,
        identity: NodeIdentity,
        transport: Transport,
        security: NodeSecurity,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.rejection: HelixError | None = None
        self._identity = identity
        self._transport = transport
        self._security = security
        self._clock = clock
        self._incarnation = secrets.randbits(62)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._plane = DataPlane(
            PlaneIdentity(settings.name, self._incarnation, security.key, security.insecure),
            PlaneHandlers(self._on_data, self._on_link_lost, self._on_credit),
            transport,
            clock,
            settings.window,
        )
        self.worker: Worker | None = None
        self._steps: asyncio.Task[None] | None = None
        self._control: Connection | None = None
        self._control_up = False
        self._assignments: asyncio.Queue[control.Assign] = asyncio.Queue()
        self._peers: asyncio.Queue[control.Peers] = asyncio.Queue()
        self._holding: control.SliceRef | None = None
        self.loaded: Loaded | None = None
        self._sequence = 0
        self._bad_messages = 0
        self._data_endpoint = ""
        self._stopping = asyncio.Event()
        self._left = asyncio.Event()

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
        tasks = [
            asyncio.create_task(self._heartbeats(), name="heartbeats"),
            asyncio.create_task(self._assign_for_ever(), name="assignments"),
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

    def stop(self) -> None:
        """Asks for a clean end: drain, say goodbye, close."""
        self._stopping.set()

    async def _drain(self) -> None:
        if not self._control_up or self.rejection is not None:
            return
        self._say(control.Drain(self.settings.name, self._incarnation))
        try:
            async with asyncio.timeout(min(5.0, self.settings.drain_s)):
                await self._left.wait()
        except TimeoutError:
            log.warning("the router did not answer the goodbye; leaving anyway")

    async def _close(self) -> None:
        await self._stop_worker()
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
        elif was or state.reason:
            log.warning("router at %s: %s", self.settings.router, state.reason or "disconnected")

    def _register(self) -> None:
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
                holding=self._holding,
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
            case control.Assign() as order:
                self._assignments.put_nowait(order)
            case control.Peers() as peers:
                self._peers.put_nowait(peers)
            case control.RegisterAgain():
                self._register()
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

    def _heartbeat(self) -> control.Heartbeat:
        self._sequence += 1
        work = self.worker.statistics() if self.worker is not None else None
        return control.Heartbeat(
            node=self.settings.name,
            incarnation=self._incarnation,
            sequence=self._sequence,
            epoch=self._holding.epoch if self._holding is not None else 0,
            open_requests=work.open_requests if work else 0,
            waiting_rows=work.waiting_rows if work else 0,
            waiting_tokens=work.waiting_tokens if work else 0,
            kv_free_pages=work.kv_free_pages if work else 0,
            kv_total_pages=work.kv_total_pages if work else 0,
            steps=work.steps if work else 0,
            step_s=work.step_s if work else 0.0,
            tokens=work.tokens if work else 0,
            layer_tokens=work.layer_tokens if work else 0,
            bad_messages=self._bad_messages + sum(self._plane.bad_messages.values()),
            links=tuple(
                control.LinkReport(
                    s.peer, s.sent_bytes, s.sent_frames, s.backlog_bytes, s.blocked_s, s.down_s
                )
                for s in self._plane.statistics()
            ),
        )

    async def _peers_for_ever(self) -> None:
        while True:
            peers = await self._peers.get()
            self._security.allow_peers(peers)
            await self._plane.set_peers(
                {
                    p.node: PeerAddress(p.node, p.incarnation, p.endpoint, p.public_key)
                    for p in peers.peers
                }
            )

    # -- assignments --------------------------------------------------------

    async def _assign_for_ever(self) -> None:
        while True:
            order = await self._assignments.get()
            try:
                await self._assign(order)
            except HelixError as e:
                log.error("cannot take layers %d-%d: %s", order.first, order.end - 1, e)
                self._say(control.AssignFailed(order.epoch, e.code, e.message[:1024]))
            except (MemoryError, RuntimeError) as e:
                # torch reports exhausted memory and device faults as RuntimeError.
                log.exception("loading layers %d-%d failed", order.first, order.end - 1)
                text = f"loading failed: {e}"
                self._say(control.AssignFailed(order.epoch, "load_failed", text[:1024]))

    async def _assign(self, order: control.Assign) -> None:
        layers = LayerRange(order.first, order.end)
        await self._stop_worker()
        loaded = self.loaded
        if loaded is None or loaded.layers != layers:
            self.loaded = None
            loaded = self.loaded = await self._load(layers)
        # Otherwise the router lost sight of this node, or restarted: the slice is still here.
        self._start_worker(order, loaded)
        self._holding = control.SliceRef(order.epoch, order.first, order.end)
        self._say(
            control.Ready(
                epoch=order.epoch,
                first=order.first,
                end=order.end,
                kv_pages=loaded.kv_pages,
                page_tokens=loaded.page_tokens,
                load_s=loaded.load_s,
                layer_tokens_per_s=loaded.layer_tokens_per_s,
                notes=loaded.notes[:1024],
            )
        )
        log.info("%s: ready with %s in %.1f s", self.settings.name, layers, loaded.load_s)

    async def _load(self, layers: LayerRange) -> Loaded:
        request = LoadRequest(
            node=self.settings.name,
            folder=self._identity.folder,
            layers=layers,
            device=self._identity.device,
            dtype=self._identity.dtype,
            attention=self.settings.attention,
            memory_bytes=self._identity.memory_bytes,
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._device, load, request, lambda text: log.info("%s: %s", request.node, text)
        )

    def _start_worker(self, order: control.Assign, loaded: Loaded) -> None:
        config = loaded.config
        batch = self.settings.batch
        self.worker = Worker(
            NodeView(
                node=self.settings.name,
                epochs=frozenset({order.epoch}),
                held=loaded.layers,
                num_layers=config.num_layers,
                hidden_size=config.hidden_size,
                vocab_size=config.vocab_size,
                max_context=config.max_context,
            ),
            loaded.engine,
            options=WorkerOptions(
                order.epoch,
                order.depth,
                BatchLimits(
                    batch.prefill_tokens or loaded.prefill_budget(batch.prefill_objective_s),
                    batch.max_rows,
                    batch.min_decodes,
                    batch.spread,
                ),
            ),
            clock=self._clock,
            device=self._device,
            links=self._plane,
        )
        self._steps = asyncio.create_task(self.worker.run(), name="steps")
        self._steps.add_done_callback(self._steps_done)

    def _steps_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("the step loop died", exc_info=task.exception())
            self._stopping.set()

    async def _stop_worker(self) -> None:
        self._holding = None
        worker, self.worker = self.worker, None
        if self._steps is not None:
            self._steps.cancel()
            await asyncio.gather(self._steps, return_exceptions=True)
            self._steps = None
        if worker is not None:
            worker.close_all()

    # -- data ---------------------------------------------------------------

    def _on_data(self, sender: str, message: Message, nbytes: int, link: InLink) -> None:
        match message.header:
            case data.FrameHeader() as header:
                self._on_frame(sender, header, message, nbytes, link)
            case data.Release() as release if sender == ROUTER:
                if self.worker is not None:
                    self.worker.on_release(release)
            case _:
                reason = FrameError(f"stray {message.kind.name}", reason="kind")
                self._plane.count_bad(sender, reason)

    def _on_frame(
        self, sender: str, header: data.FrameHeader, message: Message, nbytes: int, link: InLink
    ) -> None:
        try:
            if header.sender != sender:
                raise FrameError("another's name", reason="identity")
            check_sender(header)
        except FrameError as e:
            link.consumed(nbytes)
            self._plane.count_bad(sender, e)
            return
        worker = self.worker
        if worker is None:
            link.consumed(nbytes)
            self._refuse(header, "not_ready", f"{self.settings.name} holds no layers")
        elif link.overdrawn or worker.overloaded:
            # Its sender counts wrong, or has counted on memory that is not there.
            link.consumed(nbytes)
            self._refuse(header, "overloaded", f"too much waits on {self.settings.name}")
        else:
            try:
                worker.on_frame(header, message.buffers, lambda: link.consumed(nbytes))
            except FrameError as e:
                self._plane.count_bad(sender, e)
                self._refuse(header, "bad_frame", str(e)[:1024])

    def _refuse(self, header: data.FrameHeader, code: str, reason: str) -> None:
        items = tuple(data.RefusedItem(r.request, r.attempt, code, reason) for r in header.rows)
        self._plane.send(ROUTER, data.Refused(header.epoch, self.settings.name, items))

    def _on_link_lost(self, peer: str) -> None:
        if self.worker is not None:
            self.worker.on_link_lost(peer)

    def _on_credit(self) -> None:
        if self.worker is not None:
            self.worker.wake()
