"""Files of keys and lists of them: read with bounds, and written so that a crash leaves the old
file or the new one. What is in them is for helix_mq.keys and helix_mq.api_keys to say.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from helix_mq.credentials import locate
from helix_mq.errors import ConfigError

_NAME = re.compile(r"@?[A-Za-z0-9._-]{1,64}")


class KeyFileError(ConfigError):
    """A key file, an allow-list or a list of API keys cannot be used."""

    code = "bad_key_file"


def name_in(line: str) -> str | None:
    """The name a line of a list is about; None for comments and blank lines."""
    try:
        return next(iter(tomllib.loads(line)), None)
    except tomllib.TOMLDecodeError:
        return None


def check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None or set(name) <= {".", "@"}:
        raise KeyFileError(
            f"name = {name!r}: 1 to 64 letters, digits, `.`, `_` or `-` are allowed", param="name"
        )


def parse_toml(text: str, path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise KeyFileError(f"{path}: not valid TOML: {e}") from None


def read_bounded(
    path: Path, max_bytes: int, *, secret: bool, maker: str = "helix-mq keys new"
) -> str:
    """The text of a regular file. `secret`: only its owner may be able to read it. `maker`: the
    command that makes such a file. Raises KeyFileError, or ConfigError where `path` is that of a
    credential and there are none."""
    path, forbidden = locate(path)
    try:
        # Opened before it is checked, so that what is checked is what is read; a pipe put there
        # must not hold us up.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            found = os.fstat(f.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeyFileError(f"{path}: not a regular file")
            if secret and found.st_mode & forbidden:
                raise KeyFileError(
                    f"{path}: other users of this machine can read or change this secret "
                    f"(mode {found.st_mode & 0o777:04o}): run `chmod 600 {path}`; if they may have "
                    "read it, make a new key"
                )
            data = f.read(max_bytes + 1)
    except OSError as e:
        hint = f"; make one with `{maker}`" if isinstance(e, FileNotFoundError) else ""
        raise KeyFileError(f"{path}: cannot be read: {e.strerror}{hint}") from None
    if len(data) > max_bytes:
        raise KeyFileError(f"{path}: larger than {max_bytes} bytes, so not a file of keys")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: not a text file") from None


def write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as f:
        os.fchmod(descriptor, mode)
        f.write(text)
        f.flush()
        os.fsync(descriptor)


def without_line(
    text: str,
    name: str,
    left: Mapping[str, object],
    parse: Callable[[str], Mapping[str, object]],
    path: Path,
) -> str:
    """A list without the line about `name`. KeyFileError where that does not leave exactly `left`:
    TOML has other ways to write an entry than a line, and no half of one may stay."""
    kept = "".join(x for x in text.splitlines(keepends=True) if name_in(x) != name)
    try:
        done = parse(kept) == left
    except ConfigError:
        done = False
    if not done:
        raise KeyFileError(f"{path}: {name} is not on a line of its own: take it out by hand")
    return kept


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Puts the new text in place of the old at once, with its permissions, `mode` where there is
    none yet. Raises KeyFileError."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else mode
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as f:
            os.fchmod(descriptor, mode)
            f.write(text)
            f.flush()
            os.fsync(descriptor)
            if path.exists():
                # The list stays readable for whom it belongs to, whoever edits it.
                owner = path.stat()
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
        # Through a link, so that a linked list stays a link.
        os.replace(temporary, path.resolve())
    except OSError as e:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise KeyFileError(f"{path}: cannot be written: {e.strerror}") from None
