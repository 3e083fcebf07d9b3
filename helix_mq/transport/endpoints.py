"""Addresses: which schemes exist, and which may go without encryption.

Pure; nothing is resolved or opened here.
"""

from __future__ import annotations

import ipaddress
import re

from helix_mq.errors import ConfigError


class BadEndpoint(ConfigError):
    """An address that cannot be understood."""

    code = "bad_endpoint"


class InsecureEndpoint(ConfigError):
    """Plain sockets were asked for on an address other machines can reach."""

    code = "insecure_endpoint"


class EndpointUnavailable(ConfigError):
    """The system would not let us bind or connect there."""

    code = "endpoint_unavailable"


_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]/]+):(?P<port>\d{1,5}|\*)")


def require_security(endpoint: str, secured: bool, insecure: bool, schemes: frozenset[str]) -> None:
    """Refuses bad addresses, and plain sockets beyond this machine unless `insecure`.

    Raises BadEndpoint or InsecureEndpoint.
    """
    scheme = endpoint.partition("://")[0]
    if "://" not in endpoint or scheme not in schemes:
        known = ", ".join(f"{s}://" for s in sorted(schemes))
        raise BadEndpoint(f"endpoint = {endpoint!r}: must begin with one of {known}")
    if endpoint == f"{scheme}://":
        raise BadEndpoint(f"endpoint = {endpoint!r}: nothing after the scheme")
    if scheme != "tcp":
        return
    match = _TCP.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > 65535):
        raise BadEndpoint(
            f"endpoint = {endpoint!r}: expected tcp://HOST:PORT, with an IPv6 host in brackets"
        )
    if not (secured or insecure or is_loopback(match["host"])):
        raise InsecureEndpoint(
            f"endpoint = {endpoint!r} is reachable from other machines and has no keys: make "
            "them with `helix-mq keys new`, or set `insecure = true` on a network you trust"
        )


def is_loopback(host: str) -> bool:
    """Whether an address or name, an IPv6 one with or without brackets, is this machine's own."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
