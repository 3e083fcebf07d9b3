"""Next tokens from logits, for many rows at once, each by its own parameters.

Changes to the logits are in sampler_edits.py, the random choice in sampler_draw.py, probabilities
in sampler_odds.py, what is kept of a sequence in sampler_state.py. A row's token depends on nothing
but its own row, so a request gets the same tokens on any node, in any batch, and after any number
of re-routes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from helix_mq.errors import LocalError
from nodes.model.sampler_draw import draw
from nodes.model.sampler_edits import edited
from nodes.model.sampler_odds import told
from nodes.model.sampler_state import SamplerState

__all__ = ["LogitsNotFinite", "Sampled", "SamplerState", "sample"]

TopLogprobs = tuple[tuple[int, float], ...]


class Sampled(NamedTuple):
    """`logprob` and `top_logprobs` (token, logprob; best first) are of the distribution before any
    filter or penalty; None and empty unless asked for."""

    token: int
    logprob: float | None
    top_logprobs: TopLogprobs


class LogitsNotFinite(LocalError):
    """Some rows' logits are no numbers: overflow in 16 bits, or broken weights. `rows` are theirs;
    no state has changed, so the other rows can be sampled again."""

    code = "logits_not_finite"

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(
            f"the model gave logits that are no numbers for {len(rows)} rows: its weights are "
            "damaged, or its activations overflow the compute dtype (use bfloat16 or float32)"
        )
        self.rows = tuple(rows)


def sample(
    logits: torch.Tensor, states: Sequence[SamplerState], positions: Sequence[int]
) -> list[Sampled]:
    """One token per row; the states learn the tokens.

    logits: float32 [rows, vocab]. positions: the place in its sequence that each new token takes
    (prompt included). Temperature 0 takes the most probable token. Raises LogitsNotFinite.
    """
    changed = edited(logits, states, positions)
    maxima, tokens = _best(changed)
    random = [i for i, state in enumerate(states) if state.params.temperature > 0.0]
    if random:
        everything = len(random) == len(states)
        rows = torch.tensor(random, device=logits.device)
        tokens[rows] = draw(
            changed if everything else changed[rows],
            torch.where(torch.isfinite(maxima), maxima, 0.0)[rows],
            [states[i].params for i in random],
            [positions[i] for i in random],
        )
    odds = told(logits, tokens, states)
    # One transfer for all rows: everything above only queues work on a GPU.
    bad = [i for i, highest in enumerate(maxima.tolist()) if not math.isfinite(highest)]
    if bad:
        raise LogitsNotFinite(bad)
    results = []
    for state, token, (logprob, top) in zip(states, tokens.tolist(), odds, strict=True):
        state.took(token)
        results.append(Sampled(token, logprob, top))
    return results


def most_probable(logits: torch.Tensor) -> list[Sampled] | None:
    """The most probable token of each row, where nothing else is wanted of any; None when some
    logits are no numbers."""
    maxima, tokens = _best(logits)
    if not all(map(math.isfinite, maxima.tolist())):
        return None
    return [Sampled(token, None, ()) for token in tokens.tolist()]


def _best(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest logit of each row, NaN where there is one, and the first token that has it."""
    if logits.device.type != "cpu":
        return torch.max(logits, dim=-1)
    # 3 us for a row of 49,152, torch.max takes 44.
    numbers = logits.numpy()
    tokens = numbers.argmax(axis=-1)
    maxima = numbers[np.arange(len(tokens)), tokens]
    return torch.from_numpy(maxima), torch.from_numpy(tokens)
