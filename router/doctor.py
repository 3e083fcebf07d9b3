"""What `helix-mq doctor` looks at for a router."""

from __future__ import annotations

from pathlib import Path

from helix_mq.api_keys import read_api_keys
from helix_mq.doctor.disk import check_disk, collect_disk
from helix_mq.doctor.findings import Finding, ok, problem, warning
from helix_mq.doctor.keys import check_keys, collect_keys
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
from helix_mq.errors import ConfigError
from helix_mq.models.resolve import default_cache
from helix_mq.settings import load
from helix_mq.transport.endpoints import is_loopback
from router.gateway.tls import TlsFiles
from router.settings import HttpSection, RouterSettings


class RouterPart:
    name = "router"
    fields = frozenset(RouterSettings.model_fields)

    async def machine(self) -> list[Finding]:
        return []

    async def settings(self, config: Path, options: Options) -> list[Finding]:
        given = load(
            RouterSettings, config, {"model": options.model, "security.key_file": options.key}
        )
        endpoints = {"clients": given.clients, "control": given.control, "data": given.data}
        remote = _is_remote(given.control)
        found: list[Finding] = []
        for name, endpoint in endpoints.items():
            found += check_scheme(name, endpoint)
            parts = split_endpoint(endpoint)
            if parts is not None:
                found.append(check_port(collect_port(name, *parts)))
        found.append(check_port(collect_port("http", given.http.host, given.http.port)))
        found += check_address(
            AddressFacts("data", given.data, "advertise_data", given.advertise_data or "", remote)
        )
        found += check_keys(
            collect_keys(
                key_file=given.security.key_file,
                allow_file=given.security.allow_file,
                insecure=given.security.insecure,
                endpoints=tuple(endpoints.values()),
            )
        )
        found += check_http_door(given.http.host, bool(given.http.api_keys or given.http.keys_file))
        found += check_http_files(given.http)
        model = collect_model(given.model, weights=False)
        found.append(check_model(model))
        if model.cache_bytes:
            facts = collect_disk("converted model", default_cache(), model.cache_bytes, _CACHE)
            found.append(check_disk(facts))
        found += check_journal(given.journal.path, int(given.journal.max_bytes))
        for peer in options.peers:
            reached = await collect_reach("node", peer)
            found += [check_reach(reached)] if reached is not None else check_scheme("peer", peer)
        return found


_CACHE = "HELIX_MQ_CACHE"


def check_http_door(host: str, has_keys: bool) -> list[Finding]:
    if has_keys or is_loopback(host):
        return []
    return [
        warning(
            "keys",
            f"HTTP on {host} asks nobody for a key",
            "whoever reaches it can use the model, drain nodes and re-plan",
            "make API keys for HTTP (docs/security.md), or bind 127.0.0.1",
        )
    ]


def check_http_files(http: HttpSection) -> list[Finding]:
    """API keys and certificate, loaded as the router will."""
    found = []
    try:
        if http.keys_file is not None:
            count = len(read_api_keys(http.keys_file))
            found.append(ok("keys", f"{http.keys_file} holds {count} API keys"))
        if TlsFiles.of(http) is not None:
            found.append(ok("keys", f"HTTP is TLS, by {http.tls_cert}"))
    except ConfigError as e:
        found.append(problem("keys", str(e), "the router will not start", "see docs/security.md"))
    return found


def check_journal(path: Path | None, max_bytes: int) -> list[Finding]:
    if path is None:
        return [
            warning(
                "disk",
                "there is no journal",
                "what runs when the router dies or is upgraded is lost",
                'set `[journal] path = "/var/lib/helix_mq/router/journal.db"`',
            )
        ]
    facts = collect_disk("journal", path.parent, max_bytes, "`[journal] path`")
    return [check_disk(facts)]


def _is_remote(endpoint: str) -> bool:
    parts = split_endpoint(endpoint)
    return parts is not None and not is_loopback(parts[0])


PART = RouterPart()
