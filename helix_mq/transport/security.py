"""CURVE keys in memory: pairs, allow-lists, and what a socket needs of them.

No files here (helix_mq.keys has them), no sockets. Secrets never appear in repr, str or errors.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

from helix_mq.errors import ConfigError

KEY_CHARS = 40
"""A CURVE key is 32 bytes, written as 40 characters of Z85 (ZeroMQ RFC 32)."""


class BadKey(ConfigError):
    """A text that should be a CURVE key is none."""

    code = "bad_key"


def check_key(text: str, what: str, *, param: str | None = None) -> str:
    """`text` if it is a z85 key of 32 bytes. BadKey names `what`, never the text: it may be secret.

    Surrounding white space is dropped: keys are often pasted.
    """
    key = text.strip()
    try:
        raw = z85.decode(key)
    except (ValueError, KeyError, struct.error):
        raw = b""
    if len(key) != KEY_CHARS or len(raw) != KEY_CHARS * 4 // 5:
        raise BadKey(
            f"{what} is not a CURVE key: {len(key)} characters, expected {KEY_CHARS} of Z85; "
            "`helix-mq keys show NAME` prints a public key",
            param=param,
        )
    return key


def fingerprint(public: str) -> str:
    """Short name of a public key for people to compare: 16 hex digits of its SHA-256."""
    digest = hashlib.sha256(public.encode("ascii")).hexdigest()[:16]
    return ":".join(digest[i : i + 4] for i in range(0, 16, 4))


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, both halves in z85. Raises BadKey when they are no pair."""

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        check_key(self.public, "the public key")
        check_key(self.secret, "the secret key")
        if zmq.curve_public(self.secret.encode("ascii")).decode("ascii") != self.public:
            raise BadKey("the public key does not belong to the secret key")

    @classmethod
    def new(cls) -> KeyPair:
        """A fresh pair from the system's random source."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode("ascii"), secret.decode("ascii"))

    @classmethod
    def of_secret(cls, secret: str) -> KeyPair:
        """The pair a secret key belongs to."""
        checked = check_key(secret, "the secret key")
        return cls(zmq.curve_public(checked.encode("ascii")).decode("ascii"), checked)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)


Revoked = Callable[[frozenset[str]], None]
"""Gets the keys that no longer stand: off the list, or listed under another name now."""


class AllowList:
    """Public keys that may connect, each under a name; changeable while sockets use it.

    A name has one key and a key one name. A key taken off is refused at once, on connections that
    are already open too: listeners watch the list and cut those.
    """

    def __init__(self, names_to_keys: Mapping[str, str] | None = None) -> None:
        self._names: dict[str, str] = {}
        self._watchers: list[Revoked] = []
        self.replace(names_to_keys or {})

    def watch(self, revoked: Revoked) -> None:
        """Has `revoked` called after each change that leaves keys without their standing."""
        self._watchers.append(revoked)

    def unwatch(self, revoked: Revoked) -> None:
        if revoked in self._watchers:
            self._watchers.remove(revoked)

    def _become(self, names: dict[str, str]) -> None:
        before, self._names = self._names, names
        gone = frozenset(key for key, name in before.items() if names.get(key) != name)
        if gone:
            for revoked in tuple(self._watchers):
                revoked(gone)

    def add(self, name: str, public: str) -> None:
        """Allows `public` as `name`; the key the name had before is no longer allowed."""
        key = check_key(public, f"the key of {name}", param=name)
        taken = self._names.get(key)
        if taken not in (None, name):
            raise BadKey(f"{name} and {taken} have the same key; make one for each", param=name)
        self._become({k: n for k, n in self._names.items() if n != name} | {key: name})

    def remove(self, name: str) -> bool:
        """Takes `name` and its key off. False: it was not on the list."""
        kept = {key: n for key, n in self._names.items() if n != name}
        removed = len(kept) < len(self._names)
        self._become(kept)
        return removed

    def replace(self, names_to_keys: Mapping[str, str]) -> None:
        """Makes this the whole list; on a bad entry the old list stays and BadKey is raised."""
        names: dict[str, str] = {}
        for name in sorted(names_to_keys):
            key = check_key(names_to_keys[name], f"the key of {name}", param=name)
            if key in names:
                raise BadKey(
                    f"{names[key]} and {name} have the same key; make one for each", param=name
                )
            names[key] = name
        self._become(names)

    def name_of(self, public: str) -> str | None:
        """The name a key is listed under, None when it is not listed."""
        return self._names.get(public)

    def __contains__(self, public: str) -> bool:
        return public in self._names

    def __len__(self) -> int:
        return len(self._names)

    def entries(self) -> tuple[tuple[str, str], ...]:
        """(name, public key) of every entry, by name."""
        return tuple(sorted((name, key) for key, name in self._names.items()))


@dataclass(frozen=True, slots=True)
class ServerSecurity:
    """A listener's own key, and whom it lets in."""

    key: KeyPair
    allow: AllowList


@dataclass(frozen=True, slots=True)
class ClientSecurity:
    """A connection's own key, and the public key its listener must prove to hold."""

    key: KeyPair
    server_public: str

    def __post_init__(self) -> None:
        check_key(self.server_public, "the server's public key")
