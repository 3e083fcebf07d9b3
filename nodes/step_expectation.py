"""What a step should take, by what the slice has measured when it was loaded. Pure.

The ratio of real to expected time tells a node that has become slow from one that has more to do.
Decodes and prompts are looked up apart, since a decode also pays for its logits; a step with both
makes one pass over the weights, so one of the two passes counts once. Rows that run part of the
slice count as that part of a row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from helix_mq.layers import LayerRange
from helix_mq.step_budget import StepProfile


class Row(Protocol):
    """A row of a step; nodes.batching.Work is one."""

    @property
    def count(self) -> int: ...

    @property
    def layers(self) -> LayerRange: ...

    @property
    def is_decode(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class StepExpectation:
    """`decodes`: (rows, seconds) of steps over all layers held, rows rising from 1."""

    num_layers: int
    profile: StepProfile
    decodes: Sequence[tuple[float, float]]

    def seconds(self, rows: Iterable[Row]) -> float:
        """Of a step with these rows; 0 without any."""
        decodes = prompts = 0
        for row in rows:
            if row.is_decode:
                # Drafts cost what as many requests would.
                decodes += row.count * len(row.layers)
            else:
                prompts += row.count * len(row.layers)
        if not prompts:
            return self._decode_s(decodes / self.num_layers) if decodes else 0.0
        prefill_s = self.profile.prefill_s(prompts / self.num_layers)
        if not decodes:
            return prefill_s
        both = prefill_s + self._decode_s(decodes / self.num_layers)
        return max(prefill_s, both - self.profile.pass_s)

    def of_decodes(self, layer_tokens: int) -> float:
        """Of a step of decodes only, with so many tokens times layers; the same as `seconds`."""
        return self._decode_s(layer_tokens / self.num_layers)

    def _decode_s(self, rows: float) -> float:
        """Linear between what was measured, and beyond the last as between the last two."""
        points = self.decodes
        if rows <= points[0][0] or len(points) == 1:
            return points[0][1] * max(1.0, rows / points[0][0])
        after = min(max(1, bisect_left(points, (rows, 0.0))), len(points) - 1)
        (x0, y0), (x1, y1) = points[after - 1], points[after]
        return max(y0, y0 + (y1 - y0) * (rows - x0) / (x1 - x0))
