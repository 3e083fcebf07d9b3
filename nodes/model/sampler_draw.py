"""Random choice of tokens: temperature, top-k, top-p, min-p, and one number per draw.

A draw depends on its row's logits, parameters, seed and position alone: not on the rest of the
batch, the node, or an earlier attempt. Filters become one threshold per row, so that tokens of
equal probability stay or go together, in whatever order a device sorts them; the distribution
is summed up in the order of token ids, so that small differences in logits between two kinds of
device seldom change the token.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from helix_mq.sampling import SamplingParams
from nodes.model.native.build import built
from nodes.model.native.draws import COLDEST, Draws

_SEED_DOMAIN = 0x68656C69785F6D71
"""Second half of the Philox key: keeps these streams apart from other uses of the same seed."""

_HEAD = 128
_HEAD_GROWTH = 16
"""How many of the best tokens PyTorch sorts first, and how many times more where top-p reaches
further. On one CPU core 128 of 49,152 take 0.1 ms, 1,024 take 0.5 ms, all of them 3.5 ms."""


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides the token at `position` under `seed`."""
    bits = np.random.Philox(key=[seed, _SEED_DOMAIN], counter=[position, 0, 0, 0])
    return float(int(bits.random_raw()) >> 11) * 2.0**-53


def draw(
    logits: torch.Tensor,
    maxima: torch.Tensor,
    params: Sequence[SamplingParams],
    positions: Sequence[int],
) -> torch.Tensor:
    """One token per row, int64 [rows].

    logits: float32 [rows, vocab]; maxima: [rows], each row's largest logit. All temperatures are
    above 0. A row with logits that are no numbers gets some token of the vocabulary.
    """
    compiled = compiled_draws() if logits.device.type == "cpu" else None
    number = compiled.uniform if compiled is not None else uniform
    numbers = [number(p.seed, at) for p, at in zip(params, positions, strict=True)]
    if compiled is not None:
        return compiled.draw(logits, params, numbers)
    if logits.device.type == "cpu":
        # Row by row the intermediate results stay in the cache.
        pieces = [slice(i, i + 1) for i in range(len(params))]
    else:
        pieces = [slice(0, len(params))]
    return torch.cat([_draw(logits[p], maxima[p], params[p], numbers[p]) for p in pieces])


@functools.cache
def compiled_draws() -> Draws | None:
    """None where there is none, or where it draws otherwise than PyTorch here."""
    library = built().library
    if library is None or not hasattr(library, "draw_float32"):
        return None
    draws = Draws(library)
    logits = torch.linspace(-6.0, 6.0, 1000).roll(371)[None]
    for params in (
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=40, top_p=0.9),
        SamplingParams(temperature=1.5, min_p=0.1),
    ):
        for number in (0.0, 0.3, 0.9):
            drawn = _draw(logits, logits.amax(1), [params], [number])
            if not torch.equal(drawn, draws.draw(logits, [params], [number])):
                return None
    return draws


def _draw(
    logits: torch.Tensor,
    maxima: torch.Tensor,
    params: Sequence[SamplingParams],
    numbers: Sequence[float],
) -> torch.Tensor:
    temperatures = _column(logits, [max(p.temperature, COLDEST) for p in params])
    scaled = (logits - maxima[:, None]).div_(temperatures)
    weights = torch.exp(scaled)
    floor = _floor(scaled, weights, params)
    if floor is not None:
        weights = weights * (scaled >= floor)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    totals = cumulative[:, -1:].contiguous()
    targets = _column(logits, numbers, torch.float64) * totals
    chosen = torch.searchsorted(cumulative, targets, right=True)
    # Rounding can bring a target up to the total: then it is the last token that has a weight.
    last = torch.searchsorted(cumulative, totals)
    return torch.minimum(chosen, last).squeeze(-1).clamp_max(logits.shape[1] - 1)


def _floor(
    scaled: torch.Tensor, weights: torch.Tensor, params: Sequence[SamplingParams]
) -> torch.Tensor | None:
    """[rows, 1]: the least scaled logit that stays a candidate; None where no row filters.

    `scaled` is at most 0, which each row's best token reaches: at least that one always stays.
    """
    cut = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1.0]
    if not cut and not any(p.min_p for p in params):
        return None
    # Against the best token's probability, which is exp(0).
    floor = _column(scaled, [math.log(p.min_p) if p.min_p else -math.inf for p in params])
    if len(cut) == len(params):
        head = max(_HEAD, *(p.top_k for p in params))
        floor = torch.maximum(floor, _top_floor(scaled, weights, params, head))
    elif cut:
        some = [params[i] for i in cut]
        rows = torch.tensor(cut, device=scaled.device)
        head = max(_HEAD, *(p.top_k for p in some))
        floor[rows] = torch.maximum(
            floor[rows], _top_floor(scaled[rows], weights[rows], some, head)
        )
    return floor


def _top_floor(
    scaled: torch.Tensor, weights: torch.Tensor, params: Sequence[SamplingParams], head: int
) -> torch.Tensor:
    """[rows, 1]: the threshold of top-k and top-p, looking at the `head` best tokens first."""
    vocab = scaled.shape[1]
    head = min(head, vocab)
    best = torch.topk(scaled, head, dim=-1).values
    ks = torch.tensor([[min(p.top_k or vocab, vocab)] for p in params], device=scaled.device)
    floor = torch.where(ks <= head, best.gather(1, (ks - 1).clamp_max(head - 1)), -torch.inf)
    ps = _column(scaled, [p.top_p for p in params], torch.float64)
    kept = weights if not any(p.top_k for p in params) else weights * (scaled >= floor)
    totals = kept.sum(-1, keepdim=True, dtype=torch.float64)
    before = torch.exp(best).cumsum(-1, dtype=torch.float64)
    # The smallest set that reaches top_p: a token stays if what comes before it is below.
    before = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], dim=1)
    stays = before < ps * totals
    count = stays.sum(-1, keepdim=True)
    nucleus = torch.where(ps < 1.0, best.gather(1, (count - 1).clamp_min(0)), -torch.inf)
    reaches_further = ((ps < 1.0) & (count == head) & (ks > head)).squeeze(-1)
    floor = torch.maximum(floor, nucleus)
    if head < vocab and bool(reaches_further.any()):
        rows = torch.nonzero(reaches_further).squeeze(-1)
        some = [params[i] for i in rows.tolist()]
        floor[rows] = _top_floor(scaled[rows], weights[rows], some, head * _HEAD_GROWTH)
    return floor


def _column(
    like: torch.Tensor, values: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]
