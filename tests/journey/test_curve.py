"""A whole cluster behind CURVE: those with keys serve, nobody else gets a word in, nor those whose
key was revoked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError, FrameError
from helix_mq.keys import allow_key, load_key, save_key
from helix_mq.models.digest import model_digest
from helix_mq.transport import InsecureEndpoint, KeyPair, ZmqTransport
from nodes.daemon import NodeDaemon
from nodes.identity import NodeIdentity
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.settings import SecuritySection as NodeSecuritySection
from router.main import build_app
from router.security import RouterSecurity
from router.settings import PlacementSection, RouterSettings, SecuritySection
from tests.cluster import Cluster, greedy

PLACEMENT = {"a": "0:4", "b": "3:6"}


@asynccontextmanager
async def secured(
    folder: Path,
    keys: Path,
    names: Mapping[str, str],
    placement: Mapping[str, str] = PLACEMENT,
    clients: tuple[str, ...] = (),
) -> AsyncIterator[Cluster]:
    """A cluster whose router allows the nodes of `placement`, and `clients`; `names` says with
    whose key each node comes."""
    router_key = save_key(keys, "router", KeyPair.new())
    allow = keys / "allow.toml"
    for name in (*placement, *clients, "stranger"):
        save_key(keys, name, KeyPair.new())
    for name in (*placement, *clients):
        allow_key(allow, name, load_key(keys / f"{name}.key").public)
    transport = ZmqTransport()
    settings = RouterSettings(
        model=folder,
        control="tcp://127.0.0.1:0",
        data="tcp://127.0.0.1:0",
        placement=PlacementSection(nodes=dict(placement)),
        security=SecuritySection(key_file=router_key, allow_file=allow),
    )
    app = build_app(settings, folder, transport, SystemClock())
    await app.start()
    running = Cluster(app, folder, transport)
    public = load_key(router_key).public
    try:
        for name, key in names.items():
            section = NodeSecuritySection(key_file=keys / f"{key}.key", router_public_key=public)
            node = NodeSettings(
                name=name,
                router=app.control_endpoint,
                listen="tcp://127.0.0.1:0",
                model=folder,
                heartbeat_s=0.1,
                security=section,
            )
            identity = NodeIdentity(
                folder, model_digest(folder), torch.device("cpu"), "cpu", torch.float32, 64 << 20
            )
            daemon = NodeDaemon(node, identity, transport, NodeSecurity(section), SystemClock())
            running.daemons[name] = daemon
            running.tasks[name] = asyncio.create_task(daemon.run())
        yield running
    finally:
        for name, daemon in running.daemons.items():
            daemon.stop()
            if name not in app.core.cluster.membership:
                # Nobody would ever let it go.
                daemon.stop()
        await asyncio.gather(*running.tasks.values(), return_exceptions=True)
        await app.close()
        await transport.close()


async def test_a_cluster_with_keys_serves(tiny_folder: Path, tmp_path: Path) -> None:
    async with secured(tiny_folder, tmp_path, {"a": "a", "b": "b"}) as c:
        await c.ready()
        result = await c.run(greedy(tuple(range(30)), 10))
        assert len(result.token_ids) == 10
        await c.quiet()


async def test_a_strangers_key_does_not_get_in(tiny_folder: Path, tmp_path: Path) -> None:
    async with secured(tiny_folder, tmp_path, {"a": "a", "b": "stranger"}) as c:
        await c.until(lambda: "waiting for node b" in c.app.status().reason, "a is ready")
        await c.until(lambda: [n.state for n in c.app.status().nodes] == ["ready"], "a is ready")
        assert [n.node for n in c.app.status().nodes] == ["a"]
        assert not c.app.status().serving


async def test_a_node_cannot_take_anothers_name(tiny_folder: Path, tmp_path: Path) -> None:
    async with secured(tiny_folder, tmp_path, {"a": "a", "b": "a"}) as c:
        await c.until(
            lambda: any(reason == "identity" for _, reason in c.app.bad_messages), "refused"
        )
        assert "b" not in [n.node for n in c.app.status().nodes]


def test_the_key_of_a_client_is_no_nodes(tmp_path: Path) -> None:
    """A node sees requests of others: `keys allow --client` lists a key under no node's name."""
    router, alice = save_key(tmp_path, "router", KeyPair.new()), KeyPair.new()
    allow = tmp_path / "allow.toml"
    allow_key(allow, "@alice", alice.public)
    security = RouterSecurity(SecuritySection(key_file=router, allow_file=allow))
    assert security.allows(alice.public)
    for name in ("alice", "a", "@alice", "@router"):
        with pytest.raises(FrameError) as refused:
            security.check_name(name, alice.public, alice.public)
        assert refused.value.reason == "identity"


def test_half_a_security_section_is_refused(tmp_path: Path) -> None:
    key = save_key(tmp_path, "x", KeyPair.new())
    with pytest.raises(ConfigError, match=r"security\.router_public_key is missing"):
        NodeSecurity(NodeSecuritySection(key_file=key))


async def test_a_router_does_not_open_to_the_world_without_keys(tiny_folder: Path) -> None:
    transport = ZmqTransport()
    settings = RouterSettings(
        model=tiny_folder, control="tcp://0.0.0.0:0", data="tcp://127.0.0.1:0"
    )
    app = build_app(settings, tiny_folder, transport, SystemClock())
    with pytest.raises(InsecureEndpoint, match="keys"):
        await app.start()
    await app.close()
    await transport.close()
