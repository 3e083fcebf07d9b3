"""What a step costs on a node: the tables of one machine type, as arrays for the inner loop.

Built from `solver.objective.StepTimes` under a stated assumption on prompt chunks. The cost of a
step is the sum over the layers it walks of prefill(tokens there) + decode(rows there), as the
measurements behind the tables were taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.step_budget import StepProfile, prefill_tokens
from nodes.batching import BatchLimits
from solver.objective import Points, StepTimes


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """How the time of a piece of a prompt is derived from a table measured on whole prompts.

    `floor`: a layer with any prefill takes no less than a pass of one token over its weights.
    `per_chunk_s`: added per layer that has prefill: kernel launches and reading the earlier KV.
    `shared_weights`: a step with both prefill and decodes reads the weights once, so the cheaper
    part's one-token pass is taken off; without it the two parts are added up in full.
    """

    floor: bool = True
    per_chunk_s: float = 0.0
    shared_weights: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_chunk_s) and self.per_chunk_s >= 0):
            raise ConfigError(
                f"chunk_cost.per_chunk_s={self.per_chunk_s} must be finite and not negative",
                param="per_chunk_s",
            )


class StepTable:
    """Seconds of one layer: `prefill_s[tokens]`, `decode_s[rows]`, for all sizes that the limits of
    a step let it have. Rows with drafts count as prefill and may come to more, which is worked out
    each time.

    `both_s` is what a layer with prefill and decodes takes less than their sum.
    """

    __slots__ = ("_cost", "_pass_s", "_times", "both_s", "decode_s", "limits", "prefill_s")

    def __init__(self, times: StepTimes, limits: BatchLimits, cost: ChunkCost) -> None:
        self.limits = limits
        self._times, self._cost = times, cost
        self._pass_s = one_token_pass_s(times)
        self.decode_s = [self._decodes_s(rows) for rows in range(limits.max_rows + 1)]
        self.prefill_s = [self._prefills_s(tokens) for tokens in range(limits.prefill_tokens + 1)]
        self.both_s = self._pass_s if cost.shared_weights else 0.0

    def layer_s(self, prefill_tokens: int, decode_rows: int) -> float:
        """Seconds of one layer with so many prefill tokens and so many decodes."""
        try:
            together_s = self.prefill_s[prefill_tokens] + self.decode_s[decode_rows]
        except IndexError:
            together_s = self._prefills_s(prefill_tokens) + self._decodes_s(decode_rows)
        return together_s - self.both_s if prefill_tokens and decode_rows else together_s

    def _prefills_s(self, tokens: int) -> float:
        if not tokens:
            return 0.0
        floor_s = self._pass_s if self._cost.floor else 0.0
        return max(floor_s, interpolated(self._times.prefill, tokens)) + self._cost.per_chunk_s

    def _decodes_s(self, rows: int) -> float:
        return max(self._pass_s, interpolated(self._times.decode, rows)) if rows else 0.0

    def pieces_s(self, pieces: Mapping[LayerRange, Sequence[int]]) -> float:
        """Seconds of a step whose rows run different layers: range -> (prefill tokens, decodes)."""
        edges = sorted({edge for held in pieces for edge in (held.first, held.end)})
        total_s = 0.0
        for first, end in pairwise(edges):
            tokens = rows = 0
            for held, (held_tokens, held_rows) in pieces.items():
                if held.first <= first and end <= held.end:
                    tokens += held_tokens
                    rows += held_rows
            total_s += (end - first) * self.layer_s(tokens, rows)
        return total_s


def one_token_pass_s(times: StepTimes) -> float:
    """Seconds that one layer takes at least: its smallest measured decode batch."""
    return next(seconds for size, seconds in times.decode if size > 0)


def budget_of(times: StepTimes) -> int:
    """Prompt tokens per step as a node with these times would choose them. They are of one layer,
    and all layers of a slice take alike, so its length makes no difference."""
    sizes = tuple((size, seconds) for size, seconds in times.prefill if size > 0)
    return prefill_tokens(StepProfile(one_token_pass_s(times), sizes))


def interpolated(points: Points, size: float) -> float:
    """Linear between points; beyond the last, on with the mean rate there."""
    last_size, last_s = points[-1]
    if size >= last_size:
        return last_s * size / last_size
    low, high = next((a, b) for a, b in pairwise(points) if size < b[0])
    return low[1] + (high[1] - low[1]) * (size - low[0]) / (high[0] - low[0])


def step_tables(
    step_times: Mapping[str, StepTimes],
    types: Sequence[str],
    limits: BatchLimits,
    cost: ChunkCost,
    *,
    derive_budget: bool,
) -> dict[str, StepTable]:
    """One table per machine type in `types`; ConfigError if one has no step times.

    `derive_budget`: each type's prefill budget follows from its own times, as nodes derive theirs
    from what they measure.
    """
    tables: dict[str, StepTable] = {}
    for name in sorted(set(types)):
        if name not in step_times:
            known = ", ".join(sorted(step_times)) or "none"
            raise ConfigError(
                f"machine type {name} has no step times (there are some for: {known})",
                param="step_times",
            )
        times = step_times[name]
        own = replace(limits, prefill_tokens=budget_of(times)) if derive_budget else limits
        tables[name] = StepTable(times, own, cost)
    return tables
