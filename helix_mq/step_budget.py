"""How many prompt tokens a step takes beside its decodes, from measured step times. Pure.

Each decode that reaches a node waits for the step in progress, at every node of its route, so steps
should be short; but each step with prefill reads all weights, so chunks that take no longer than
that reading waste it. Between the two: as many tokens as make a step somewhat longer than a pass
over the weights, and no fewer than use the device well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from helix_mq.errors import ConfigError

LONGER: Final = 1.5
"""Than a pass of one token: what prefill may make of a step (docs/simulator.md has what others
give)."""
WASTE: Final = 1.5
"""Where devices gain little from batching (CPUs): chunks whose tokens cost at most so many times
the cheapest ones."""
MIN_TOKENS: Final = 16

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Seconds of a step over all layers held: of one token, and of prefills by tokens.

    Times between sizes are linear, beyond the last on with its mean rate. ConfigError unless all
    are positive and sizes rise.
    """

    pass_s: float
    prefill: Points

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.prefill]
        times = [self.pass_s, *(seconds for _, seconds in self.prefill)]
        if not sizes or sizes != sorted(set(sizes)) or sizes[0] <= 0 or min(times) <= 0:
            raise ConfigError("a step profile needs rising sizes and positive times", param="steps")

    def prefill_s(self, tokens: float) -> float:
        """Never less than a pass of one token."""
        before = (0.0, 0.0)
        for size, seconds in self.prefill:
            if tokens <= size:
                share = (tokens - before[0]) / (size - before[0])
                return max(self.pass_s, before[1] + share * (seconds - before[1]))
            before = (size, seconds)
        return max(self.pass_s, before[1] * tokens / before[0])


def prefill_tokens(profile: StepProfile, objective_s: float | None = None) -> int:
    """Prompt tokens for one step, at least 1; `objective_s` is the longest they may take."""
    short = _most(profile, LONGER * profile.pass_s)
    cheapest, at = min((profile.prefill_s(size) / size, size) for size, _ in profile.prefill)
    useful = MIN_TOKENS
    while useful < at and profile.prefill_s(useful) / useful > WASTE * cheapest:
        useful += max(1, useful // 8)
    tokens = max(short, useful)
    if objective_s is not None:
        tokens = min(tokens, _most(profile, objective_s))
    return max(1, tokens)


def _most(profile: StepProfile, seconds: float) -> int:
    """The most tokens that take no longer than so many seconds; 0 if one takes longer."""
    low, high = 0, 1
    while high < 1 << 20 and profile.prefill_s(high) <= seconds:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if profile.prefill_s(middle) <= seconds else (low, middle)
    return low
