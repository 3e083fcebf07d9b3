"""API keys of the HTTP endpoint: a file of digests, one line per key, with what each may do.

    "alice" = { digest = "<SHA-256 in hex>", created = "2026-11-21", requests_per_min = 60 }

A key is 256 random bits, so a fast digest keeps it as well as a slow one would, which is for
passwords. The key itself is seen once, by whoever makes it. Used by the commands and the router.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from helix_mq.key_files import (
    KeyFileError,
    check_name,
    parse_toml,
    read_bounded,
    replace_file,
    without_line,
)

PREFIX = "hmq-"
"""So that people and scanners of repositories know one when they see it."""
MAX_KEY_CHARS = 4096
MAKER = "helix-mq keys api new NAME"

_MAX_FILE_BYTES = 16 * 1024 * 1024
_FILE_MODE = 0o600
_OTHERS_WRITE = 0o002
_HEAD = """\
# API keys of the HTTP endpoint (`[http] keys_file`): digests only, one line each.
# `helix-mq keys api new` and `helix-mq keys api revoke` edit this file and keep its comments.
"""

_Count = Annotated[int, msgspec.Meta(ge=1, le=10**12)]


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may ask for; None: no limit of its own.

    requests_per_min: requests for text that come within a minute.
    tokens_per_min: of prompts and answers together; what is under way may go over it.
    max_concurrent: sequences that wait or run at a time; a request has `n` of them.
    """

    requests_per_min: _Count | None = None
    tokens_per_min: _Count | None = None
    max_concurrent: _Count | None = None

    def text(self) -> str:
        """`requests_per_min 60, max_concurrent 4`, empty without any."""
        given = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return ", ".join(f"{name} {value}" for name, value in given if value is not None)


class _Line(KeyLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")]
    created: str = ""
    operator: bool = False


class ApiKey(msgspec.Struct, frozen=True):
    """A key as far as it is known here; `operator`: it may drain, re-plan and place."""

    name: str
    digest: bytes
    created: str
    operator: bool
    limits: KeyLimits

    @property
    def mark(self) -> str:
        """The beginning of its digest, to tell keys apart by in logs and lists."""
        return self.digest.hex()[:8]


def digest_of(key: str) -> bytes:
    """Of any text a client may send."""
    return hashlib.sha256(key[:MAX_KEY_CHARS].encode("utf-8", "replace")).digest()


def read_api_keys(path: Path) -> dict[str, ApiKey]:
    """By name. Raises KeyFileError, which never shows what is in a digest's place."""
    return _parse(_read(path), path)


def add_api_key(
    path: Path, name: str, limits: KeyLimits, *, operator: bool, now: datetime | None = None
) -> str:
    """Makes a key, adds its line, and gives the key: nobody can find it out later.

    Makes the file if need be. Raises KeyFileError and leaves the file as it was.
    """
    check_name(name)
    text = _read(path) if path.exists() else _HEAD
    if name in _parse(text, path):
        raise KeyFileError(
            f"{path}: there is a key named {name}: choose another name, or revoke it first with "
            f"`helix-mq keys api revoke {name}`",
            param="name",
        )
    key = PREFIX + secrets.token_urlsafe(32)
    fields = [f'digest = "{digest_of(key).hex()}"']
    fields.append(f'created = "{(now or datetime.now(UTC)):%Y-%m-%d}"')
    if operator:
        fields.append("operator = true")
    for limit in limits.__struct_fields__:
        value = getattr(limits, limit)
        if value is not None:
            fields.append(f"{limit} = {value}")
    if text and not text.endswith("\n"):
        text += "\n"
    text += f'"{name}" = {{ {", ".join(fields)} }}\n'
    # What the router will read, before it is there to be read.
    _parse(text, path)
    replace_file(path, text, _FILE_MODE)
    return key


def revoke_api_key(path: Path, name: str) -> bool:
    """Takes a key's line out. False: there is none. Raises KeyFileError."""
    text = _read(path)
    keys = _parse(text, path)
    if keys.pop(name, None) is None:
        return False
    replace_file(path, without_line(text, name, keys, lambda kept: _parse(kept, path), path))
    return True


def _read(path: Path) -> str:
    text = read_bounded(path, _MAX_FILE_BYTES, secret=False, maker=MAKER)
    if path.stat().st_mode & _OTHERS_WRITE:
        raise KeyFileError(
            f"{path}: everybody on this machine can write keys into it: run `chmod 600 {path}`"
        )
    return text


def _parse(text: str, path: Path) -> dict[str, ApiKey]:
    keys: dict[str, ApiKey] = {}
    names: dict[bytes, str] = {}
    for name, value in parse_toml(text, path).items():
        try:
            line = msgspec.convert(value, _Line)
        except msgspec.ValidationError as e:
            raise KeyFileError(
                f'{path}: {name}: {e}; a line looks like "NAME" = {{ digest = "..." }}, and '
                f"`{MAKER}` writes it",
                param=name,
            ) from None
        check_name(name)
        digest = bytes.fromhex(line.digest)
        if digest in names:
            raise KeyFileError(f"{path}: {names[digest]} and {name} are the same key", param=name)
        names[digest] = name
        limits = KeyLimits(
            requests_per_min=line.requests_per_min,
            tokens_per_min=line.tokens_per_min,
            max_concurrent=line.max_concurrent,
        )
        keys[name] = ApiKey(name, digest, line.created, line.operator, limits)
    return keys
