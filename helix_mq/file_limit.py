"""How many files a process may have open: raised as far as the system lets it.

Shells and service managers start processes with a soft limit of 1024 for the sake of `select`,
which nothing here uses. Sockets are files: a flood of connections, bounded though it is, would
leave none for the disk.
"""

from __future__ import annotations

import contextlib
import resource

_ENOUGH = 65_536


def raise_file_limit() -> int:
    """The limit that is in force now; what the system does not allow is left as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
