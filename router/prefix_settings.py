"""Settings and figures of the prefix cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Share = Literal["key", "all", "off"]


@dataclass(frozen=True, slots=True)
class PrefixSettings:
    """`share`: whose prompts may go on from whose: those of one API key, all, or none. `key`: at
    most 64 secret bytes that names are made with."""

    share: Share = "off"
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """`hit_tokens` of `prompt_tokens` were not computed again, of prompts that got a first token.
    `misses`: times a node did not keep what it was believed to."""

    prompt_tokens: int = 0
    hit_tokens: int = 0
    misses: int = 0
    known_blocks: int = 0
