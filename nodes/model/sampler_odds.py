"""Log probabilities of tokens for whoever asks, of the logits as the model gave them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from nodes.model.native.build import built
from nodes.model.native.odds import NOT_WANTED, NOTHING, OddsOf, Told
from nodes.model.sampler_state import SamplerState

_CLOSE = 1e-5


def told(
    logits: torch.Tensor, tokens: torch.Tensor, states: Sequence[SamplerState]
) -> Sequence[Told]:
    """Of each row, as it wants it. logits: float32 [rows, vocab]; tokens: int64 [rows]."""
    wanted = [state.wanted for state in states]
    if all(best == NOT_WANTED for best in wanted):
        return [NOTHING] * len(wanted)
    compiled = compiled_odds() if logits.device.type == "cpu" else None
    if compiled is not None:
        return compiled.told(logits, tokens, wanted, torch.get_num_threads())
    return _told(logits, tokens, wanted)


@functools.cache
def compiled_odds() -> OddsOf | None:
    """None where there is none, or where it says otherwise than PyTorch here."""
    library = built().library
    if library is None or not hasattr(library, "odds_float32"):
        return None
    compiled = OddsOf(library)
    # Each logit twice, and none of a pair left out: PyTorch leaves open which comes first.
    logits = torch.linspace(-6.0, 6.0, 1000).repeat_interleave(2).roll(371)[None]
    tokens, wanted = torch.tensor([5]), [18]
    for (one, best), (other, others) in zip(
        _told(logits, tokens, wanted), compiled.told(logits, tokens, wanted, 1), strict=True
    ):
        assert one is not None
        assert other is not None
        same = [a for a, _ in best] == [a for a, _ in others]
        pairs = [(one, other), *((a, b) for (_, a), (_, b) in zip(best, others, strict=False))]
        if not same or not all(math.isclose(a, b, rel_tol=0.0, abs_tol=_CLOSE) for a, b in pairs):
            return None
    return compiled


def _told(logits: torch.Tensor, tokens: torch.Tensor, wanted: Sequence[int]) -> list[Told]:
    asking = [row for row, best in enumerate(wanted) if best != NOT_WANTED]
    rows = torch.tensor(asking, device=logits.device)
    values = torch.log_softmax(logits[rows], dim=-1)
    chosen = values.gather(1, tokens[rows, None]).squeeze(-1).tolist()
    counts = [min(wanted[row], logits.shape[1]) for row in asking]
    best, best_ids = (t.tolist() for t in torch.topk(values, max(counts), dim=-1))
    found = [NOTHING] * len(wanted)
    for at, (row, count) in enumerate(zip(asking, counts, strict=True)):
        # Equal ones by id: devices leave their order open.
        pairs = sorted(zip(best_ids[at], best[at], strict=True), key=lambda p: (-p[1], p[0]))
        found[row] = (chosen[at], tuple(pairs[:count]))
    return found
