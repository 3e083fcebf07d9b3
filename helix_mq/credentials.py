"""Secrets that the service manager hands over: `$CREDENTIALS_DIRECTORY/NAME` in a setting.

systemd copies such a file to memory that only the service can read, so that the file itself may
belong to root and the service to nobody (`LoadCredential=`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath

from helix_mq.errors import ConfigError

VARIABLE = "CREDENTIALS_DIRECTORY"
UNIT_FALLBACK = "no_key_at"
"""Handed over by the units in place of a key that is missing, with where it was to be."""
_SPELLINGS = (f"${VARIABLE}", f"${{{VARIABLE}}}")

_NOBODY_ELSE = 0o077
_HANDED_OVER = 0o037
"""Shown with the group's right to read, where the service's own user may read by an access list."""


def credential_name(path: PurePath) -> str | None:
    """NAME of `$CREDENTIALS_DIRECTORY/NAME`; None for any other path. Raises ConfigError."""
    if not path.parts or path.parts[0] not in _SPELLINGS:
        return None
    if len(path.parts) != 2 or path.parts[1] == "..":
        raise ConfigError(f"{path}: write ${VARIABLE}/NAME, with one name")
    return path.parts[1]


def locate(path: Path, environ: Mapping[str, str] = os.environ) -> tuple[Path, int]:
    """Where the file is, and the permission bits that a secret there may not have.

    Raises ConfigError where a credential is named and this process was given none.
    """
    name = credential_name(path)
    if name is None:
        return path, _NOBODY_ELSE
    folder = environ.get(VARIABLE, "")
    if not folder.startswith("/"):
        raise ConfigError(
            f"{path}: this process was given no credentials: start it as the service that "
            "`helix-mq install-service` sets up, or name the file itself"
        )
    return Path(folder) / name, _HANDED_OVER
