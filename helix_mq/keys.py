"""Keys on disk: `NAME.key` (secret), `NAME.pub`, and the allow-list of names and public keys.

All three are TOML, read with bounds and written so that a crash leaves the old file or the new
one. A secret that others on the machine can read is refused. No secret is printed or logged.
"""

from __future__ import annotations

from pathlib import Path

from helix_mq.credentials import UNIT_FALLBACK
from helix_mq.ids import ROUTER
from helix_mq.key_files import (
    KeyFileError,
    check_name,
    name_in,
    parse_toml,
    read_bounded,
    replace_file,
    without_line,
    write_new,
)
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

_MAX_KEY_FILE_BYTES = 4096
_MAX_LIST_BYTES = 4 * 1024 * 1024
_LIST_HEAD = """\
# Public keys that may connect, one line each: NAME = "KEY".
# `helix-mq keys allow` and `helix-mq keys revoke` edit this file and keep its comments.
"""


def save_key(folder: Path, name: str, pair: KeyPair) -> Path:
    """Writes NAME.key (mode 0600) and NAME.pub; gives the path of the first.

    Raises KeyFileError when either is there already: losing a secret by accident locks a process
    out of its cluster.
    """
    check_name(name)
    key, pub = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (key, pub):
        if path.exists():
            raise KeyFileError(f"{path} exists already: delete it first, or choose another name")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(
            key,
            "# Secret key of a helix_mq process. It stays on this machine.\n"
            f'public = "{pair.public}"\nsecret = "{pair.secret}"\n',
            0o600,
        )
        write_new(pub, f'# Public key of {name}.\npublic = "{pair.public}"\n', 0o644)
    except OSError as e:
        raise KeyFileError(f"{e.filename or folder}: cannot be written: {e.strerror}") from None
    return key


def load_key(path: Path) -> KeyPair:
    """The pair in a secret key file. Raises KeyFileError or BadKey."""
    values = parse_toml(read_bounded(path, _MAX_KEY_FILE_BYTES, secret=True), path)
    secret = values.get("secret")
    if UNIT_FALLBACK in values:
        raise KeyFileError(
            f"{values[UNIT_FALLBACK]}: there is no such file, so the service was handed no key: "
            "make one with `helix-mq keys new`"
        )
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
    values = parse_toml(read_bounded(path, _MAX_KEY_FILE_BYTES, secret=secret), path)
    public = values.get("public")
    if not isinstance(public, str):
        raise KeyFileError(f"{path}: has no `public`")
    return check_key(public, f"{path}: `public`")


def read_allow_list(path: Path) -> dict[str, str]:
    """Names and public keys of an allow-list file, to give to AllowList.replace on a reload.

    Raises KeyFileError or BadKey.
    """
    return _entries(read_bounded(path, _MAX_LIST_BYTES, secret=False), path)


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
    check_name(name)
    if name == ROUTER:
        raise KeyFileError(f"name = {name!r}: is the router's own", param="name")
    key = check_key(public, f"the key of {name}", param=name)
    text = read_bounded(path, _MAX_LIST_BYTES, secret=False) if path.exists() else _LIST_HEAD
    allow = AllowList(_entries(text, path))
    allow.add(name, key)
    line = f'"{name}" = "{key}"\n'
    lines = text.splitlines(keepends=True)
    at = [i for i, old in enumerate(lines) if name_in(old) == name]
    if at:
        lines[at[0]] = line
    else:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        lines.append(line)
    replace_file(path, "".join(lines))


def revoke_key(path: Path, name: str) -> bool:
    """Takes a name off the allow-list. False: it was not on it. Raises KeyFileError or BadKey."""
    text = read_bounded(path, _MAX_LIST_BYTES, secret=False)
    entries = _entries(text, path)
    if entries.pop(name, None) is None:
        return False
    replace_file(path, without_line(text, name, entries, lambda kept: _entries(kept, path), path))
    return True


def _entries(text: str, path: Path) -> dict[str, str]:
    entries: dict[str, str] = {}
    for name, key in parse_toml(text, path).items():
        if isinstance(key, dict):
            raise KeyFileError(f'{path}: {name}: put names with dots in quotes, "{name}..." = KEY')
        if not isinstance(key, str):
            raise KeyFileError(f"{path}: {name}: expected a public key in quotes")
        check_name(name)
        entries[name] = check_key(key, f"{path}: the key of {name}", param=name)
    return entries
