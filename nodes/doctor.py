"""What `helix-mq doctor` looks at for a node."""

from __future__ import annotations

import asyncio
from pathlib import Path

from helix_mq.doctor.clock import ClockFacts, check_clock
from helix_mq.doctor.disk import check_disk, collect_disk
from helix_mq.doctor.findings import Finding, Level
from helix_mq.doctor.keys import check_keys, collect_keys, is_handed_over
from helix_mq.doctor.model import check_model, collect_model
from helix_mq.doctor.parts import Options
from helix_mq.doctor.ports import (
    AddressFacts,
    check_address,
    check_port,
    check_scheme,
    collect_port,
    split_endpoint,
)
from helix_mq.doctor.reach import check_reach, collect_reach
from helix_mq.doctor.router_http import check_router_http, collect_router_http
from helix_mq.errors import ConfigError
from helix_mq.models.resolve import default_cache
from helix_mq.settings import load
from helix_mq.transport import ClientSecurity
from helix_mq.transport.endpoints import is_loopback
from nodes.doctor_device import (
    check_attention,
    check_device,
    check_memory,
    collect_attention,
    collect_device,
    collect_memory,
)
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings

_LEAST_CACHE_BYTES = 64 << 20
"""Measured step times are kept there."""


class NodePart:
    name = "node"
    fields = frozenset(NodeSettings.model_fields)

    async def machine(self) -> list[Finding]:
        return check_device(await asyncio.to_thread(collect_device))

    async def settings(self, config: Path, options: Options) -> list[Finding]:
        given = load(
            NodeSettings, config, {"model": options.model, "security.key_file": options.key}
        )
        found = _ports(given)
        key_findings = check_keys(
            collect_keys(
                key_file=given.security.key_file,
                router_public_key=given.security.router_public_key,
                insecure=given.security.insecure,
                endpoints=(given.listen, given.router),
            )
        )
        found += key_findings
        model = await asyncio.to_thread(collect_model, given.model, weights=True)
        found.append(check_model(model))
        need = max(model.cache_bytes, _LEAST_CACHE_BYTES)
        found.append(check_disk(collect_disk("cache", default_cache(), need, "HELIX_MQ_CACHE")))
        memory = await asyncio.to_thread(collect_memory, given)
        found += check_memory(memory)
        if not model.fault and not model.cache_bytes:
            attention = await asyncio.to_thread(collect_attention, given)
            found += check_attention(attention)
        usable = all(f.level is not Level.PROBLEM for f in key_findings)
        usable = usable and not is_handed_over(given.security.key_file)
        security = _client(given) if usable else None
        plain = given.security.key_file is None and given.security.router_public_key is None
        found += await _reach(given, options, security, plain=plain)
        return found


def _ports(given: NodeSettings) -> list[Finding]:
    found = check_scheme("listen", given.listen)
    parts = split_endpoint(given.listen)
    if parts is not None:
        found.append(check_port(collect_port("listen", *parts)))
    router = split_endpoint(given.router)
    remote = router is not None and not is_loopback(router[0])
    facts = AddressFacts("listen", given.listen, "advertise", given.advertise or "", remote)
    return found + check_address(facts)


async def _reach(
    given: NodeSettings, options: Options, security: ClientSecurity | None, *, plain: bool
) -> list[Finding]:
    found = check_scheme("router", given.router)
    control = await collect_reach(
        "the router's control", given.router, security=security, plain=plain
    )
    if control is None:
        return found
    found.append(check_reach(control))
    parts = split_endpoint(given.router)
    host = parts[0] if parts is not None else "127.0.0.1"
    url = options.url or f"http://{f'[{host}]' if ':' in host else host}:8000"
    http = await collect_router_http(url, given=options.url is not None)
    found.append(check_router_http(http))
    if http.clock is not None:
        # The state of NTP is among the machine's own findings.
        found += check_clock(ClockFacts(*http.clock))[:1]
    for peer in options.peers:
        reached = await collect_reach("peer", peer)
        found += [check_reach(reached)] if reached is not None else check_scheme("peer", peer)
    return found


def _client(given: NodeSettings) -> ClientSecurity | None:
    try:
        return NodeSecurity(given.security).client()
    except ConfigError:
        return None


PART = NodePart()
