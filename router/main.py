"""Puts a router together from its settings and runs it until told to stop."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from helix_mq.clock import Clock, SystemClock
from helix_mq.errors import ConfigError
from helix_mq.ids import Epoch, RequestId
from helix_mq.layers import Placement
from helix_mq.longlived import keep_what_is_here
from helix_mq.models.config import ModelConfig
from helix_mq.models.digest import model_digest
from helix_mq.models.resolve import resolve_model
from helix_mq.models.tokenizer import Tokenizer
from helix_mq.notify import Announcer
from helix_mq.transport import Transport, ZmqTransport
from router.admission_gate import AdmissionSettings
from router.app import RouterApp
from router.cluster_core import ClusterCore, ClusterSettings
from router.core import Core, CoreSettings
from router.health import RouterHealth
from router.journal import Journal
from router.journal_reader import JournalReader
from router.journal_store import JournalStore
from router.kv_books import KvBooks
from router.link_watch import LinkSettings
from router.moves import MoveSettings
from router.placing import FixedPlacer, Placer, ProportionalPlacer
from router.planned import PlannedPlacement, read_planned
from router.prefix_settings import PrefixSettings
from router.relocation import RelocationSettings
from router.replanner import ReplanSettings
from router.restore_requests import Keeping
from router.schedulers_base import Scheduling
from router.security import RouterSecurity
from router.service import Generation
from router.sessions import State
from router.settings import RouterSettings
from router.spans import start_spans
from router.speculation import SpeculationSettings
from router.text import TextStream

log = logging.getLogger(__name__)


def build_app(
    settings: RouterSettings, folder: Path, transport: Transport, clock: Clock
) -> RouterApp:
    """A router over `transport`, not yet started."""
    config = ModelConfig.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    planned = _planned(settings, config)
    cluster = ClusterCore(
        config,
        model_digest(folder),
        ClusterSettings(
            dead_after_s=settings.dead_after_s,
            quantise=settings.quantise,
            activations=settings.links.activations,
            recover_s=settings.recover_s,
            links=LinkSettings(down_after_s=settings.link_down_after_s),
            moves=_moves(settings),
            solve_apart=True,
        ),
        _placer(settings, config, planned),
        clock,
        # Frames of a router's earlier life are stale: epochs never restart.
        Epoch(int(clock.wall_s() * 1000)),
        planned.problem if planned is not None else None,
    )
    core = Core(
        config,
        core_settings(settings, config),
        cluster,
        KvBooks(settings.admission.kv_high_water),
        clock,
        text_factory(tokenizer),
    )
    name = settings.model_name or settings.model.stem
    security = RouterSecurity(settings.security)
    keeping = _keeping(settings, core, config, tokenizer, model_digest(folder), clock)
    return RouterApp(settings, core, tokenizer, name, transport, security, clock, keeping)


def _keeping(
    settings: RouterSettings,
    core: Core,
    config: ModelConfig,
    tokenizer: Tokenizer,
    digest: str,
    clock: Clock,
) -> Keeping | None:
    """Opens the journal, where the settings name one."""
    wanted = settings.journal
    if wanted.path is None:
        return None
    store = JournalStore(wanted.path, fsync=wanted.fsync, max_bytes=int(wanted.max_bytes))
    journal = Journal(store, wanted.keep_s, clock)

    def is_running(request: RequestId) -> bool:
        session = core.sessions().get(request)
        return session is not None and session.state is State.RUNNING

    reader = JournalReader(journal, text_factory(tokenizer), frozenset(config.eos_ids), is_running)
    return Keeping(journal, reader, digest)


def core_settings(settings: RouterSettings, config: ModelConfig) -> CoreSettings:
    admission = settings.admission
    wanted = admission.max_context or config.max_context
    if wanted > config.max_context:
        raise ConfigError(
            f"admission.max_context = {wanted}: the model's own context is {config.max_context}",
            param="admission.max_context",
        )
    return CoreSettings(
        max_waiting=admission.max_waiting,
        max_context=wanted,
        expected_output_tokens=admission.expected_output_tokens,
        default_deadline_s=admission.default_deadline_s,
        scheduling=Scheduling(
            settings.scheduling.method,
            settings.scheduling.seed,
            settings.scheduling.prefer_near,
        ),
        admission=AdmissionSettings(
            owner_share=admission.owner_share,
            background_share=admission.background_share,
            max_wait_s=admission.max_wait_s,
            refuse_hopeless=admission.refuse_hopeless,
        ),
        token_return=settings.token_return,
        # Names of an earlier life are not known any more: what nodes keep by them goes unused.
        prefixes=PrefixSettings(settings.prefix_cache.share, secrets.token_bytes(32)),
        speculation=SpeculationSettings(
            enabled=settings.speculation.enabled,
            max_drafts=settings.speculation.max_drafts,
            drafts_at_once=settings.speculation.drafts_at_once,
        ),
    )


def _moves(settings: RouterSettings) -> MoveSettings:
    wanted = settings.replan
    placement = settings.placement
    automatic = wanted.automatic
    if automatic is None:
        automatic = not placement.nodes and placement.plan is None
    return MoveSettings(
        RelocationSettings(drain_s=wanted.drain_s),
        ReplanSettings(
            automatic=automatic,
            settle_s=wanted.settle_s,
            every_s=wanted.every_s,
            return_s=wanted.return_s,
            horizon_s=wanted.horizon_s,
            search_s=wanted.search_s,
        ),
    )


def _planned(settings: RouterSettings, config: ModelConfig) -> PlannedPlacement | None:
    path = settings.placement.plan
    return read_planned(path, config.num_layers) if path is not None else None


def _placer(
    settings: RouterSettings, config: ModelConfig, planned: PlannedPlacement | None
) -> Placer:
    """The plan's placement, the one that the settings spell out, or a split by memory."""
    if planned is not None:
        return FixedPlacer(planned.placement)
    ranges = settings.placement.ranges()
    if not ranges:
        return ProportionalPlacer(config, settings.placement.nodes_expected, planned=True)
    try:
        placement = Placement(config.num_layers, ranges)
    except ValueError as e:
        raise ConfigError(f"placement.nodes: {e}", param="placement.nodes") from None
    return FixedPlacer(placement)


def text_factory(tokenizer: Tokenizer) -> Callable[[Generation], TextStream]:
    def new_text(generation: Generation) -> TextStream:
        after = generation.prompt_ids if generation.continues_text else ()
        return TextStream(tokenizer.detokenizer(after=after), generation.stop)

    return new_text


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """The whole router process: sockets, SDK side, HTTP; returns after a clean shutdown."""
    from router.clients import ClientSockets
    from router.gateway import GatewayServer

    folder = await asyncio.to_thread(resolve_model, settings.model)
    transport = ZmqTransport()
    clock = SystemClock()
    app = build_app(settings, folder, transport, clock)
    announcer = Announcer.start(RouterHealth(app, clock), stop)
    spans = start_spans(settings.telemetry, app.traces, clock)
    keep_what_is_here()
    await app.start()
    sdk = ClientSockets(app, transport, settings.clients, app.security, kept=app.kept)
    gateway = GatewayServer(app, settings.http, app.metrics, requests=app.requests, operator=app)
    try:
        await sdk.start()
        await gateway.start()
        log.info(
            "router up: nodes at %s, SDK clients at %s, HTTP at %s; model %s",
            app.control_endpoint,
            sdk.endpoint,
            gateway.url,
            app.model_name,
        )
        announcer.ready()
        await stop.wait()
    finally:
        app.closing = True
        sdk.stop_taking()
        await gateway.stop()
        await sdk.close()
        await app.close()
        if spans is not None:
            await spans.close()
        await transport.close()
        await announcer.close()
