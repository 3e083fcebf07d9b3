"""The router's keys: its own pair, and the allow-list of nodes and clients by name.

The list is read again while the router runs. Whoever has lost its key is cut off by the sockets;
what else follows is up to those who ask to be told (`on_revoked`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from helix_mq.errors import ConfigError, FrameError
from helix_mq.keys import load_allow_list, load_key, read_allow_list
from helix_mq.transport import AllowList, ServerSecurity
from helix_mq.transport.security import Revoked
from helix_mq.watched_files import WatchedFiles, reload_for_ever
from router import events as ev
from router.membership import Member
from router.settings import SecuritySection

log = logging.getLogger(__name__)


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
        self.allow: AllowList | None = None
        self.insecure = settings.insecure
        self._allow_file = settings.allow_file
        if settings.allow_file is not None:
            self._watched = WatchedFiles(settings.allow_file)
            self.allow = load_allow_list(settings.allow_file)

    @property
    def public_key(self) -> str:
        return self.key.public if self.key is not None else ""

    def server(self) -> ServerSecurity | None:
        """For control, data and client sockets: whoever is on the allow-list."""
        if self.key is None or self.allow is None:
            return None
        return ServerSecurity(self.key, self.allow)

    def allows(self, user: str | None) -> bool:
        """Whether this key is let in now; everybody is on plain sockets."""
        return self.allow is None or (user is not None and user in self.allow)

    def on_revoked(self, revoked: Revoked) -> None:
        """Has `revoked` called with keys that are no longer let in, or under another name."""
        if self.allow is not None:
            self.allow.watch(revoked)

    async def watch(self, members: Iterable[Member], apply: Callable[[ev.Event], None]) -> None:
        """Reads the allow-list again whenever its file changes, and has members go at once whose
        key was taken back. Returns where there is no list."""
        if self._allow_file is None:
            return

        def revoked(keys: frozenset[str]) -> None:
            for event in revoked_nodes(members, keys):
                apply(event)

        self.on_revoked(revoked)
        await reload_for_ever(self._watched, self.reload, str(self._allow_file))

    def reload(self) -> None:
        """Raises KeyFileError or BadKey, and leaves the list as it was."""
        if self.allow is None or self._allow_file is None:
            return
        before = set(self.allow.entries())
        self.allow.replace(read_allow_list(self._allow_file))
        after = set(self.allow.entries())
        changes = [_names("let in", after - before), _names("no longer let in", before - after)]
        told = "; ".join(text for text in changes if text) or "nothing new"
        log.info("%s was read again: %s", self._allow_file, told)

    def check_name(self, name: str, user: str | None, data_public_key: str) -> None:
        """A key speaks only for the node it is listed as. FrameError otherwise."""
        if name.startswith("@"):
            raise FrameError(
                f"{name} is no name for a node: with @ begin the router's and those of clients",
                reason="identity",
            )
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
            raise FrameError(
                f"{name} names another key for its data socket than the one it connects with: "
                "restart it, its key file has changed",
                reason="identity",
            )


def revoked_nodes(members: Iterable[Member], keys: frozenset[str]) -> list[ev.NodeGone]:
    """What their going means to the core: whatever their sockets do, they are gone at once."""
    reason = "its key was taken off the allow-list"
    return [
        ev.NodeGone(member.name, member.register.incarnation, reason)
        for member in members
        if member.register.data_public_key in keys
    ]


def _names(what: str, entries: set[tuple[str, str]]) -> str:
    names = sorted(name for name, _ in entries)
    return f"{what}: {', '.join(names)}" if names else ""
