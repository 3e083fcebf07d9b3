"""Tokens behind drafts: a row's logits at several places, sampled as if they had come one by one.

After each token the next draft is compared with what was sampled: what is behind the first
difference was computed for a text that is not this one. Penalties and random draws are those of
the single steps, so a request gets the same tokens with drafts and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from nodes.model.sampler import LogitsNotFinite, Sampled, SamplerState, most_probable, sample


class Ending(NamedTuple):
    """A row that is sampled after: `position` is the place of its first new token, `drafts` what
    was guessed to stand there and behind."""

    state: SamplerState
    position: int
    drafts: tuple[int, ...] = ()


def sample_endings(logits: torch.Tensor, endings: Sequence[Ending]) -> list[list[Sampled]]:
    """The new tokens of each row, one more than drafts were right; none for a row whose logits are
    no numbers. The states learn the tokens.

    logits: float32 [rows and their drafts, vocab], each row's behind each other.
    """
    if all(
        e.position >= e.state.plain_from and not e.drafts and not e.state.params.logprobs
        for e in endings
    ):
        # Most steps, and short: what it touches comes from memory after a step's weights.
        plain = most_probable(logits)
        if plain is not None:
            return [[result] for result in plain]
    starts = list(accumulate((1 + len(e.drafts) for e in endings[:-1]), initial=0))
    found: list[list[Sampled]] = [[] for _ in endings]
    going = list(range(len(endings)))
    while going:
        # Without penalties nothing depends on the tokens before, so all places go at once; with
        # them a place waits for the one before it.
        places = [
            (i, k)
            for i in going
            for k in range(len(found[i]), 1 + len(_known(endings[i], len(found[i]))))
        ]
        numbers = [starts[i] + k for i, k in places]
        whole = len(numbers) == len(logits)
        rows = logits if whole else logits[torch.tensor(numbers, device=logits.device)]
        states = [endings[i].state for i, _ in places]
        positions = [endings[i].position + k for i, k in places]
        right = set(going)
        for (i, k), result in zip(places, _sample_fine(rows, states, positions), strict=True):
            if i not in right:
                continue
            if result is not None:
                found[i].append(result)
            if result is None or not _goes_on(endings[i], k, result.token):
                right.remove(i)
        going = [i for i in going if i in right]
    return found


def _known(ending: Ending, so_far: int) -> tuple[int, ...]:
    """Drafts that may be taken for right before they are compared."""
    return ending.drafts if ending.state.seen is None else ending.drafts[:so_far]


def _goes_on(ending: Ending, k: int, token: int) -> bool:
    """Whether what was computed behind the `k`-th new token counts."""
    # Who ignores endings just takes another pass for what is behind one.
    return k < len(ending.drafts) and ending.drafts[k] == token not in ending.state.endings


def _sample_fine(
    logits: torch.Tensor, states: Sequence[SamplerState], positions: Sequence[int]
) -> list[Sampled | None]:
    """As `sample`; None for rows whose logits are no numbers, which must not cost the others of the
    step theirs."""
    try:
        return list(sample(logits, states, positions))
    except LogitsNotFinite as e:
        bad = set(e.rows)
    fine = [i for i in range(len(states)) if i not in bad]
    results: list[Sampled | None] = [None] * len(states)
    if fine:
        kept = logits[torch.tensor(fine, device=logits.device)]
        sampled = sample(kept, [states[i] for i in fine], [positions[i] for i in fine])
        for i, result in zip(fine, sampled, strict=True):
            results[i] = result
    return results
