"""The router's keys: its own pair, and the allow-list of nodes and clients by name."""

from __future__ import annotations

from helix_mq.errors import ConfigError, FrameError
from helix_mq.keys import load_allow_list, load_key
from helix_mq.transport import AllowList, ServerSecurity
from router.settings import SecuritySection


class RouterSecurity:
    """Everything CURVE needs of a router; all None on plain sockets."""

    def __init__(self, settings: SecuritySection) -> None:
        if (settings.key_file is None) != (settings.allow_file is None):
            missing = "key_file" if settings.key_file is None else "allow_file"
            raise ConfigError(
                f"security.{missing} is missing: a router needs its own key and an allow-list "
                "(see `helix-mq keys`), or neither on loopback",
                param=f"security.{missing}",
            )
        self.key = load_key(settings.key_file) if settings.key_file is not None else None
        self.allow: AllowList | None = (
            load_allow_list(settings.allow_file) if settings.allow_file is not None else None
        )
        self.insecure = settings.insecure

    @property
    def public_key(self) -> str:
        return self.key.public if self.key is not None else ""

    def server(self) -> ServerSecurity | None:
        """For control, data and client sockets: whoever is on the allow-list."""
        if self.key is None or self.allow is None:
            return None
        return ServerSecurity(self.key, self.allow)

    def check_name(self, name: str, user: str | None, data_public_key: str) -> None:
        """A key speaks only for the node it is listed as. FrameError otherwise."""
        if name.startswith("@"):
            raise FrameError(f"{name} is no name for a node: @ is the router's", reason="identity")
        if self.allow is None or user is None:
            return
        listed = self.allow.name_of(user)
        if listed != name:
            raise FrameError(
                f"a node registers as {name} with the key listed as {listed}: set its `name`, or "
                "allow the key under that name",
                reason="identity",
            )
        if data_public_key != user:
            raise FrameError(f"{name} names another key for its data socket", reason="identity")
