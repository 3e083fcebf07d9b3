"""The node's keys: its own, the router's, and the peers' as the router lists them."""

from __future__ import annotations

from helix_mq.errors import ConfigError
from helix_mq.keys import load_key
from helix_mq.messages.control import Peers
from helix_mq.transport import AllowList, ClientSecurity, ServerSecurity
from nodes.settings import SecuritySection


class NodeSecurity:
    """Everything CURVE needs of a node; all None on plain sockets."""

    def __init__(self, settings: SecuritySection) -> None:
        if (settings.key_file is None) != (settings.router_public_key is None):
            missing = "key_file" if settings.key_file is None else "router_public_key"
            raise ConfigError(
                f"security.{missing} is missing: a node needs its own key and the router's "
                "public key (see `helix-mq keys`), or neither on loopback",
                param=f"security.{missing}",
            )
        self.key = load_key(settings.key_file) if settings.key_file is not None else None
        self.insecure = settings.insecure
        self._router_public = settings.router_public_key
        self._allow = AllowList()
        if self._router_public is not None:
            self._allow.add("@router", self._router_public)

    @property
    def public_key(self) -> str:
        return self.key.public if self.key is not None else ""

    def client(self) -> ClientSecurity | None:
        """For the connection to the router's control socket."""
        if self.key is None or self._router_public is None:
            return None
        return ClientSecurity(self.key, self._router_public)

    def server(self) -> ServerSecurity | None:
        """For the data socket: the router, and the peers it has listed."""
        return ServerSecurity(self.key, self._allow) if self.key is not None else None

    def allow_peers(self, peers: Peers) -> None:
        """Replaces the peers that may connect; the router always may."""
        if self.key is None or self._router_public is None:
            return
        listed = {p.node: p.public_key for p in peers.peers if p.public_key}
        listed["@router"] = self._router_public
        self._allow.replace(listed)
