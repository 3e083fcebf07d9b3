"""What a workload is made of: token counts and arrival times. Frozen values, checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from helix_mq.errors import ConfigError

MAX_TOKENS = 1 << 24
"""More than any model's context: a count beyond is a damaged file, not a request."""


def _check_tokens(value: int, name: str) -> None:
    if type(value) is not int or not 1 <= value <= MAX_TOKENS:
        raise ConfigError(f"{name}={value!r} must be an integer in 1..{MAX_TOKENS}", param=name)


@dataclass(frozen=True, slots=True)
class Lengths:
    """One request's tokens in and out, each at least 1. ConfigError if not."""

    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        _check_tokens(self.prompt_tokens, "prompt_tokens")
        _check_tokens(self.output_tokens, "output_tokens")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `at_s` seconds after the workload's start, finite and not negative."""

    at_s: float
    lengths: Lengths

    def __post_init__(self) -> None:
        if not (math.isfinite(self.at_s) and self.at_s >= 0):
            raise ConfigError(f"at_s={self.at_s!r} must be finite and at least 0", param="at_s")
