"""Which process the settings are for, and who knows its checks.

Packages announce a Part each as an entry point (group `helix_mq.doctor`), so that the core need not
import them: a machine with the router alone has no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from helix_mq.doctor.findings import Finding
from helix_mq.errors import InvalidRequest

GROUP = "helix_mq.doctor"


class Part(Protocol):
    @property
    def name(self) -> str:
        """`router`, `node`: what `--as` takes."""
        ...

    @property
    def fields(self) -> frozenset[str]:
        """Top-level settings of this process."""
        ...

    async def machine(self) -> list[Finding]:
        """What can be said without settings."""
        ...

    async def settings(self, config: Path, options: Options) -> list[Finding]:
        """What can be said with them. Raises ConfigError where they are wrong."""
        ...


class Options(Protocol):
    @property
    def model(self) -> Path | None:
        """In place of the settings' own."""
        ...

    @property
    def key(self) -> Path | None:
        """A secret key file in place of the settings' own."""
        ...

    @property
    def url(self) -> str | None:
        """The router's HTTP endpoint, where it was given."""
        ...

    @property
    def peers(self) -> Sequence[str]:
        """Data endpoints of other nodes to be reached."""
        ...


def installed_parts() -> dict[str, Part]:
    points = sorted(entry_points(group=GROUP), key=lambda p: p.name)
    return {p.name: p.load() for p in points}


def choose_part(
    parts: Mapping[str, Part], values: Mapping[str, Any], wanted: str | None, config: Path
) -> Part:
    """Whose settings these are: the one who is named, or who knows most of their names."""
    if wanted is not None:
        part = parts.get(wanted)
        if part is None:
            raise InvalidRequest(
                f"--as {wanted!r}: not installed here; known: {', '.join(parts) or 'none'}",
                param="as",
            )
        return part
    known = {name: len(part.fields & values.keys()) for name, part in parts.items()}
    best = max(known.values(), default=0)
    names = [name for name, count in known.items() if count == best and count]
    if len(names) != 1:
        raise InvalidRequest(
            f"{config}: cannot tell whose settings these are; say --as router or --as node",
            param="as",
        )
    return parts[names[0]]
