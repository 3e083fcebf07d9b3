"""Rounds to medians, ratios and the share of the memory's speed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.engine.types import Case, Figures, Times
from helix_mq.models.config import ModelConfig


def figures(case: Case, rounds: Sequence[Times]) -> Figures:
    steps = case.new_tokens - 1
    left_s = median(t.total_s - t.first_s for t in rounds)
    step_s = left_s / steps if left_s > 0 else None
    return Figures(
        tokens_per_s=median(case.batch * case.new_tokens / t.total_s for t in rounds),
        decode_tokens_per_s=case.batch / step_s if step_s is not None else None,
        prefill_tokens_per_s=median(case.batch * case.context / t.first_s for t in rounds),
        step_s=step_s,
        peak_bytes=max(t.peak_bytes for t in rounds),
    )


def ratio(ours: Sequence[Times], theirs: Sequence[Times]) -> float:
    """Their time over ours: above 1 we are faster. Whole times, prefill included; round by round,
    since rounds of one number ran next to each other."""
    return median(t.total_s / o.total_s for o, t in zip(ours, theirs, strict=True))


def decode_ratio(ours: Sequence[Times], theirs: Sequence[Times]) -> float | None:
    """As ratio(), of the decode steps alone: without the time to the first tokens. None where that
    leaves nothing of some round."""
    left = [
        (o.total_s - o.first_s, t.total_s - t.first_s) for o, t in zip(ours, theirs, strict=True)
    ]
    if any(min(pair) <= 0 for pair in left):
        return None
    return median(t / o for o, t in left)


def same_answers(ours: Times, theirs: Times) -> float:
    """Share of the answers that are the same token by token."""
    pairs = list(zip(ours.tokens, theirs.tokens, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def step_bytes(config: ModelConfig, case: Case, itemsize: int) -> int:
    """What a decode step must read: all weights but the embedding's table once (a tied one is the
    head's), and the keys and values of the tokens before it, at the middle of the answer."""
    weights = config.slice_weight_bytes(config.all_layers, itemsize)
    if not config.tie_embeddings:
        weights -= config.embed_bytes(itemsize)
    kept = config.num_layers * config.kv_bytes_per_token_per_layer(itemsize)
    return weights + case.batch * (case.context + case.new_tokens // 2) * kept


def roofline(
    config: ModelConfig, case: Case, itemsize: int, step_s: float, bytes_per_s: float
) -> float:
    """Share of the memory's speed that a step gets."""
    return step_bytes(config, case, itemsize) / step_s / bytes_per_s
