"""The slices of a node, and the router's orders about them: Assign and Retain, one after the other.

Guarantees: what is held serves on while another slice loads, whatever becomes of the load; a slice
that serves no epoch any more is stopped and its memory released before the next order is taken;
nothing is loaded that a later order has already left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, replace

import msgspec
import torch

from helix_mq.clock import Clock
from helix_mq.errors import ConfigError, HelixError
from helix_mq.layers import LayerRange
from helix_mq.messages import control
from helix_mq.models.quantisation import Quantisation
from nodes.device import DeviceThread
from nodes.holdings import Changed, Held, Holdings
from nodes.identity import NodeIdentity
from nodes.loader import Load, Loader, Unwanted, release_memory
from nodes.loading import Loaded, LoadRequest, load
from nodes.serving import ServingSlice, make_worker
from nodes.settings import NodeSettings
from nodes.steps import Links, WorkerStatistics
from nodes.tracing import Tracer
from nodes.wire_format import WireFormats
from nodes.worker import Worker

log = logging.getLogger(__name__)

Order = control.Assign | control.Retain
MAX_ORDERS = 256
"""Waiting; a router that sends more while one slice loads is not ours."""

_NO_WORK = WorkerStatistics(0, 0, 0, 0, 0, 0, 0.0, 0, 0)


class Slices:
    """`say` sends a message to the router; `on_broken` is called when a step loop dies."""

    def __init__(
        self,
        settings: NodeSettings,
        identity: NodeIdentity,
        *,
        clock: Clock,
        device: DeviceThread,
        links: Links,
        say: Callable[[msgspec.Struct], None],
        on_broken: Callable[[BaseException], None],
        load: Load = load,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._clock = clock
        self._device = device
        self._links = links
        self._say = say
        self._on_broken = on_broken
        self._loader = Loader(device, load)
        self._holdings: Holdings[ServingSlice] = Holdings()
        self._orders: deque[Order] = deque()
        self._ordered = asyncio.Event()
        self._loading: control.Assign | None = None
        self._retired = _NO_WORK
        self.tracer = Tracer(clock)
        self.formats = WireFormats()

    # -- what is held ---------------------------------------------------------

    @property
    def newest(self) -> Held[ServingSlice] | None:
        return self._holdings.newest

    @property
    def holding(self) -> control.SliceRef | None:
        """The newest slice that serves."""
        held = self._holdings.newest
        if held is None:
            return None
        return control.SliceRef(held.newest, held.layers.first, held.layers.end)

    @property
    def epochs(self) -> list[int]:
        return self._holdings.epochs

    @property
    def layers(self) -> list[LayerRange]:
        """Of the slices that serve, the newest first."""
        return [held.layers for held in sorted(self._holdings, key=lambda h: -h.newest)]

    @property
    def loading(self) -> LayerRange | None:
        order = self._loading
        return LayerRange(order.first, order.end) if order is not None else None

    @property
    def workers(self) -> list[Worker]:
        return [held.slice.worker for held in self._holdings]

    def worker(self, epoch: int) -> Worker | None:
        """The one that serves `epoch`."""
        held = self._holdings.serving(epoch)
        return held.slice.worker if held is not None else None

    def statistics(self) -> WorkerStatistics:
        """Sums over all slices; counters include those of slices that are gone."""
        return _total(self._retired, *(w.statistics() for w in self.workers))

    # -- orders ---------------------------------------------------------------

    def order(self, order: Order) -> bool:
        """Takes an order; False when far too many wait."""
        if len(self._orders) >= MAX_ORDERS:
            return False
        self._orders.append(order)
        self._ordered.set()
        if isinstance(order, control.Retain) and not self._load_wanted(order):
            self._loader.give_up()
        return True

    def _load_wanted(self, retain: control.Retain) -> bool:
        """What is being loaded serves a retained epoch, or will: a router that restarted assigns
        the same layers anew, and to begin again would help nobody."""
        now = self._loading
        if now is None:
            return True
        return any(
            (o.first, o.end) == (now.first, now.end) and o.epoch in retain.epochs
            for o in (now, *self._orders)
            if isinstance(o, control.Assign)
        )

    async def run(self) -> None:
        """Carries out orders for ever."""
        while True:
            while self._orders:
                await self._carry_out(self._orders.popleft())
            self._ordered.clear()
            await self._ordered.wait()

    async def close(self) -> None:
        """Stops everything and frees it. `run` must have ended."""
        await self._loader.close()
        await self._free(self._holdings.clear())

    async def _carry_out(self, order: Order) -> None:
        if isinstance(order, control.Retain):
            await self._retain(order)
            return
        if any(isinstance(o, control.Retain) and order.epoch not in o.epochs for o in self._orders):
            return
        try:
            await self._assign(order)
        except Unwanted:
            log.info("%s: gave up loading for epoch %d", self._settings.name, order.epoch)
        except HelixError as e:
            self._failed(order, e.code, e.message)
        except (torch.OutOfMemoryError, MemoryError) as e:
            log.exception("no memory for layers %d-%d", order.first, order.end - 1)
            self._failed(order, "no_room" if len(self._holdings) else "load_failed", str(e))
        except (RuntimeError, OSError) as e:
            # torch reports device faults as RuntimeError.
            log.exception("loading layers %d-%d failed", order.first, order.end - 1)
            self._failed(order, "load_failed", f"loading failed: {e}")
        else:
            return
        # Outside the handlers: until they end the exception holds what had been loaded.
        release_memory(self._identity.device, after_fault=True)
        await self._grow()

    def _failed(self, order: control.Assign, code: str, reason: str) -> None:
        log.error("cannot take layers %d-%d: %s", order.first, order.end - 1, reason)
        self._say(control.AssignFailed(order.epoch, code, reason[:1024]))

    async def _assign(self, order: control.Assign) -> None:
        layers = _range(order)
        held = self._holdings.of(layers)
        if held is not None:
            if order.epoch in held.epochs:
                # The router lost sight of this node, and with it of what is open here.
                held.slice.worker.close_epoch(order.epoch)
            changed = self._holdings.serve(held, order.epoch)
            held.slice.worker.serve(frozenset(held.epochs), order.depth)
        else:
            loaded = await self._load(order, layers)
            serving = self._start(order, loaded)
            changed = self._holdings.add(layers, order.epoch, serving)
        await self._apply(changed)
        ready = self._holdings.serving(order.epoch)
        if ready is not None:
            self._say_ready(ready, order.epoch)

    async def _load(self, order: control.Assign, layers: LayerRange) -> Loaded:
        request = self._request(layers)
        self._loading = order
        try:
            if await self._make_room(request):
                request = self._request(layers)
            return await self._loader.load(
                request,
                lambda text: log.info("%s: %s", request.node, text),
                beside=bool(len(self._holdings)),
            )
        finally:
            self._loading = None

    def _request(self, layers: LayerRange) -> LoadRequest:
        return LoadRequest(
            node=self._settings.name,
            folder=self._identity.folder,
            layers=layers,
            device=self._identity.device,
            dtype=self._identity.dtype,
            attention=self._settings.attention,
            quantise=Quantisation(self._settings.quantise),
            memory_bytes=self._identity.memory_bytes,
            others_bytes=sum(h.slice.loaded.held_bytes for h in self._holdings),
            tensor_parallel=self._settings.tensor_parallel,
            cuda_graphs=self._settings.cuda_graphs,
        )

    async def _make_room(self, request: LoadRequest) -> bool:
        """Cuts down the KV pools of slices that a new one would not fit beside; True if any was.
        They grow again when the memory comes free."""
        cut = False
        for held in self._holdings:
            loaded = held.slice.loaded
            pages, had = loaded.pages_left_beside(request), loaded.kv_pages
            if pages >= had:
                continue
            await held.slice.shrink(pages)
            release_memory(self._identity.device)
            cut = cut or loaded.kv_pages < had
            log.info(
                "%s: KV pool of %s cut from %d to %d pages to make room for %s",
                self._settings.name,
                held.layers,
                had,
                loaded.kv_pages,
                request.layers,
            )
            self._say_ready(held, held.newest)
        return cut

    def _start(self, order: control.Assign, loaded: Loaded) -> ServingSlice:
        loaded.engine.formats = self.formats
        worker = make_worker(
            self._settings.name,
            loaded,
            epoch=order.epoch,
            depth=order.depth,
            batch=self._settings.batch,
            clock=self._clock,
            device=self._device,
            links=self._links,
            tracer=self.tracer,
        )
        return ServingSlice(self._settings.name, loaded, worker, self._steps_done)

    def _steps_done(self, task: asyncio.Task[None]) -> None:
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            self._on_broken(fault)

    def _say_ready(self, held: Held[ServingSlice], epoch: int) -> None:
        loaded = held.slice.loaded
        self._say(
            control.Ready(
                epoch=epoch,
                first=held.layers.first,
                end=held.layers.end,
                kv_pages=loaded.kv_pages,
                page_tokens=loaded.page_tokens,
                load_s=loaded.load_s,
                layer_tokens_per_s=loaded.layer_tokens_per_s,
                notes=loaded.notes[:1024],
                held_bytes=loaded.held_bytes,
            )
        )
        log.info(
            "%s: ready with %s for epoch %d, loaded in %.1f s, %d KV pages",
            self._settings.name,
            held.layers,
            epoch,
            loaded.load_s,
            loaded.kv_pages,
        )

    # -- freeing and growing --------------------------------------------------

    async def _retain(self, order: control.Retain) -> None:
        changed = self._holdings.retain(order.epochs)
        freed = bool(changed.freed)
        await self._apply(changed)
        # The last reference to what was freed.
        del changed
        if freed:
            release_memory(self._identity.device)
            await self._grow()

    async def _apply(self, changed: Changed[ServingSlice]) -> None:
        for held in changed.stay:
            held.slice.worker.serve(frozenset(held.epochs))
        await self._free(changed.freed)

    async def _free(self, freed: tuple[Held[ServingSlice], ...]) -> None:
        for held in freed:
            # All at once: until the last of them has stopped, its rows belong to nobody.
            held.slice.worker.retire()
        for held in freed:
            await held.slice.stop()
            gone = held.slice.worker.statistics()
            self._retired = _total(
                self._retired,
                replace(
                    gone, open_requests=0, waiting_rows=0, waiting_tokens=0,
                    kv_free_pages=0, kv_total_pages=0, kv_cached_pages=0,
                ),
            )  # fmt: skip
            log.info("%s: freed %s", self._settings.name, held.layers)

    async def _grow(self) -> None:
        """Slices whose KV pools were cut short get what room has come free, the newest first."""
        for held in sorted(self._holdings, key=lambda h: -h.newest):
            loaded = held.slice.loaded
            others = sum(h.slice.loaded.held_bytes for h in self._holdings if h is not held)
            pages = loaded.kv_pages_beside(others)
            if pages == loaded.kv_pages:
                continue
            try:
                await held.slice.grow(pages)
            except (MemoryError, RuntimeError) as e:
                log.warning("%s: the KV pool of %s stays: %s", self._settings.name, held.layers, e)
                continue
            finally:
                release_memory(self._identity.device)
            self._say_ready(held, held.newest)


def _range(order: control.Assign) -> LayerRange:
    try:
        return LayerRange(order.first, order.end)
    except ValueError as e:
        raise ConfigError(str(e), param="layers") from None


def _total(*parts: WorkerStatistics) -> WorkerStatistics:
    return WorkerStatistics(*(sum(column) for column in zip(*map(astuple, parts), strict=True)))
