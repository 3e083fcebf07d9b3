"""Keys on disk: `NAME.key` (secret), `NAME.pub`, and the allow-list of names and public keys.

All three are TOML, read with bounds and written so that a crash leaves the old file or the new
one. A secret that others on the machine can read is refused. No secret is printed or logged.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import tomllib
from pathlib import Path

from helix_mq.errors import ConfigError
from helix_mq.transport.security import AllowList, BadKey, KeyPair, check_key, fingerprint

__all__ = [
    "AllowList",
    "BadKey",
    "KeyFileError",
    "KeyPair",
    "allow_key",
    "fingerprint",
    "load_allow_list",
    "load_key",
    "load_public_key",
    "read_allow_list",
    "revoke_key",
    "save_key",
]

_NAME = re.compile(r"@?[A-Za-z0-9._-]{1,64}")
_MAX_KEY_FILE_BYTES = 4096
_MAX_LIST_BYTES = 4 * 1024 * 1024
_LIST_HEAD = """\
# Public keys that may connect, one line each: NAME = "KEY".
# `helix-mq keys allow` and `helix-mq keys revoke` edit this file and keep its comments.
"""


class KeyFileError(ConfigError):
    """A key file or an allow-list cannot be used."""

    code = "bad_key_file"


def save_key(folder: Path, name: str, pair: KeyPair) -> Path:
    """Writes NAME.key (mode 0600) and NAME.pub; gives the path of the first.

    Raises KeyFileError when either is there already: losing a secret by accident locks a process
    out of its cluster.
    """
    _check_name(name)
    key, pub = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (key, pub):
        if path.exists():
            raise KeyFileError(f"{path} exists already: delete it first, or choose another name")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(
            key,
            "# Secret key of a helix_mq process. It stays on this machine.\n"
            f'public = "{pair.public}"\nsecret = "{pair.secret}"\n',
            0o600,
        )
        _write(pub, f'# Public key of {name}.\npublic = "{pair.public}"\n', 0o644)
    except OSError as e:
        raise KeyFileError(f"{e.filename or folder}: cannot be written: {e.strerror}") from None
    return key


def load_key(path: Path) -> KeyPair:
    """The pair in a secret key file. Raises KeyFileError or BadKey."""
    values = _parse(_read(path, _MAX_KEY_FILE_BYTES, secret=True), path)
    secret = values.get("secret")
    if not isinstance(secret, str):
        raise KeyFileError(f"{path}: has no `secret`; name a NAME.key file, not NAME.pub")
    try:
        pair = KeyPair.of_secret(secret)
    except BadKey as e:
        raise BadKey(f"{path}: {e}") from None
    public = values.get("public", pair.public)
    if public != pair.public:
        raise BadKey(f"{path}: `public` does not belong to `secret`; make a new pair")
    return pair


def load_public_key(path: Path) -> str:
    """The public key in a NAME.pub or NAME.key file. Raises KeyFileError or BadKey."""
    secret = path.suffix == ".key"
    values = _parse(_read(path, _MAX_KEY_FILE_BYTES, secret=secret), path)
    public = values.get("public")
    if not isinstance(public, str):
        raise KeyFileError(f"{path}: has no `public`")
    return check_key(public, f"{path}: `public`")


def read_allow_list(path: Path) -> dict[str, str]:
    """Names and public keys of an allow-list file, to give to AllowList.replace on a reload.

    Raises KeyFileError or BadKey.
    """
    return _entries(_read(path, _MAX_LIST_BYTES, secret=False), path)


def load_allow_list(path: Path) -> AllowList:
    """An AllowList of the file as it is now. Raises KeyFileError or BadKey."""
    try:
        return AllowList(read_allow_list(path))
    except BadKey as e:
        raise BadKey(f"{path}: {e}", param=e.param) from None


def allow_key(path: Path, name: str, public: str) -> None:
    """Adds a line to the allow-list, or gives `name` another key; makes the file if need be.

    Raises KeyFileError or BadKey, and leaves the file as it was.
    """
    _check_name(name)
    key = check_key(public, f"the key of {name}", param=name)
    text = _read(path, _MAX_LIST_BYTES, secret=False) if path.exists() else _LIST_HEAD
    allow = AllowList(_entries(text, path))
    allow.add(name, key)
    line = f'"{name}" = "{key}"\n'
    lines = text.splitlines(keepends=True)
    at = [i for i, old in enumerate(lines) if _name_in(old) == name]
    if at:
        lines[at[0]] = line
    else:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        lines.append(line)
    _replace_list(path, "".join(lines))


def revoke_key(path: Path, name: str) -> bool:
    """Takes a name off the allow-list. False: it was not on it. Raises KeyFileError or BadKey."""
    text = _read(path, _MAX_LIST_BYTES, secret=False)
    if name not in _entries(text, path):
        return False
    kept = [line for line in text.splitlines(keepends=True) if _name_in(line) != name]
    _replace_list(path, "".join(kept))
    return True


def _entries(text: str, path: Path) -> dict[str, str]:
    entries: dict[str, str] = {}
    for name, key in _parse(text, path).items():
        if isinstance(key, dict):
            raise KeyFileError(f'{path}: {name}: put names with dots in quotes, "{name}..." = KEY')
        if not isinstance(key, str):
            raise KeyFileError(f"{path}: {name}: expected a public key in quotes")
        _check_name(name)
        entries[name] = check_key(key, f"{path}: the key of {name}", param=name)
    return entries


def _name_in(line: str) -> str | None:
    """The name an allow-list line is about; None for comments and blank lines."""
    try:
        return next(iter(tomllib.loads(line)), None)
    except tomllib.TOMLDecodeError:
        return None


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None or set(name) <= {".", "@"}:
        raise KeyFileError(
            f"name = {name!r}: 1 to 64 letters, digits, `.`, `_` or `-` are allowed", param="name"
        )


def _parse(text: str, path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise KeyFileError(f"{path}: not valid TOML: {e}") from None


def _read(path: Path, max_bytes: int, *, secret: bool) -> str:
    try:
        # Opened before it is checked, so that what is checked is what is read; a pipe put there
        # must not hold us up.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            found = os.fstat(f.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeyFileError(f"{path}: not a regular file")
            if secret and found.st_mode & 0o077:
                raise KeyFileError(
                    f"{path}: other users of this machine can read or change this secret "
                    f"(mode {found.st_mode & 0o777:04o}): run `chmod 600 {path}`; if they may have "
                    "read it, make a new key"
                )
            data = f.read(max_bytes + 1)
    except OSError as e:
        hint = "; make one with `helix-mq keys new`" if isinstance(e, FileNotFoundError) else ""
        raise KeyFileError(f"{path}: cannot be read: {e.strerror}{hint}") from None
    if len(data) > max_bytes:
        raise KeyFileError(f"{path}: larger than {max_bytes} bytes, so not a file of keys")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: not a text file") from None


def _write(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as f:
        os.fchmod(descriptor, mode)
        f.write(text)
        f.flush()
        os.fsync(descriptor)


def _replace_list(path: Path, text: str) -> None:
    """Puts the new list in place of the old one at once, with its permissions."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as f:
            os.fchmod(descriptor, mode)
            f.write(text)
            f.flush()
            os.fsync(descriptor)
        # Through a link, so that a linked list stays a link.
        os.replace(temporary, path.resolve())
    except OSError as e:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise KeyFileError(f"{path}: cannot be written: {e.strerror}") from None
