"""Tokens by chance from compiled code are those that the distribution says, and PyTorch's."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.sampling import SamplingParams
from nodes.model import sampler_draw
from nodes.model.native import build
from nodes.model.native.draws import (
    CHOICE_BYTES,
    EDITS_BYTES,
    NO_EDITS,
    Draws,
    choice_of,
    edits_of,
)

pytestmark = pytest.mark.skipif(
    not hasattr(build.built().library, "draw_float32"),
    reason=f"no compiled draws: {build.built().reason}",
)

VOCAB = 700
ROUNDING = 1e-5
"""Of a weight in float32, and of a sum of them."""


@pytest.fixture(scope="module")
def draws() -> Draws:
    library = build.built().library
    assert library is not None
    return Draws(library)


def candidates(logits: np.ndarray, params: SamplingParams, slack: float) -> np.ndarray:
    """Weights of the tokens that stay, by definition, in float64; with `slack` above 0 of all those
    that rounding may let stay, below 0 of those only that it cannot put out."""
    scaled = (logits - logits.max()) / params.temperature
    weights = np.exp(scaled)
    stays = np.ones(len(logits), bool)
    order = np.argsort(-weights, kind="stable")
    if params.top_k:
        stays &= weights >= weights[order[min(params.top_k, len(order)) - 1]] * (1 - slack)
    kept = np.where(stays, weights, 0.0) if params.top_k else weights
    ranked = kept[np.argsort(-kept, kind="stable")]
    before = np.concatenate([[0.0], ranked.cumsum()[:-1]])
    count = int((before < params.top_p * (1 + slack) * kept.sum()).sum())
    if params.top_p < 1.0:
        stays &= weights >= ranked[max(count, 1) - 1] * (1 - slack)
    if params.min_p:
        # Against the best one, whatever else is cut off.
        stays &= weights >= params.min_p * (1 - slack)
    return np.where(stays, weights, 0.0)


sampled = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.05, 0.5, 0.8, 1.0, 2.0, 30.0]),
    top_p=st.sampled_from([1.0, 1e-6, 0.3, 0.9, 0.999]),
    top_k=st.sampled_from([0, 1, 2, 40, VOCAB, 5000]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


@settings(max_examples=300, deadline=None)
@given(
    params=sampled,
    number=st.floats(0.0, 1.0, exclude_max=True),
    width=st.integers(1, VOCAB),
    spread=st.sampled_from([0.0, 0.1, 1.0, 6.0]),
    coarse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_token_is_the_one_its_number_falls_on(
    draws: Draws,
    params: SamplingParams,
    number: float,
    width: int,
    spread: float,
    coarse: bool,
    seed: int,
) -> None:
    """`coarse`: many equal logits, some of them impossible."""
    made = np.random.default_rng(seed)
    logits = (made.normal(size=width) * spread).astype(np.float32)
    if coarse:
        logits = np.round(logits)
        logits[1::3] = -np.inf
    [token] = draws.draw(torch.from_numpy(logits)[None], [params], [number]).tolist()
    most, least = (candidates(logits.astype(np.float64), params, s) for s in (1e-4, -1e-4))
    assert most[token] > 0
    # Where the sets differ, rounding may decide, and with it where the number falls.
    if (most > 0).sum() == (least > 0).sum():
        ends = most.cumsum() / most.sum()
        assert ends[token] >= number - ROUNDING
        assert (ends[token - 1] if token else 0.0) <= number + ROUNDING


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 1000, 49_152])
def test_tokens_are_pytorchs(draws: Draws, vocab: int) -> None:
    made = torch.Generator().manual_seed(vocab)
    rows = 40
    logits = torch.randn((rows, vocab), generator=made) * 4
    logits[3] = logits[3].round()
    highest = logits.amax(dim=1)
    pick = random.Random(vocab)
    params = [
        SamplingParams(
            temperature=pick.choice([0.4, 1.0, 1.7]),
            top_p=pick.choice([1.0, 0.95, 0.5]),
            top_k=pick.choice([0, 50]),
            min_p=pick.choice([0.0, 0.05]),
        )
        for _ in range(rows)
    ]
    numbers = [pick.random() for _ in range(rows)]
    expected = [
        sampler_draw._draw(
            logits[i : i + 1], highest[i : i + 1], params[i : i + 1], numbers[i : i + 1]
        )
        for i in range(rows)
    ]
    assert torch.equal(draws.draw(logits, params, numbers), torch.cat(expected))


def test_numbers_are_numpys(draws: Draws) -> None:
    pick = random.Random(1)
    seeds = [0, 1, 2**63 - 1, *(pick.getrandbits(63) for _ in range(200))]
    places = [0, 1, 2**31 - 1, *(pick.getrandbits(31) for _ in range(200))]
    for seed, position in zip(seeds, places, strict=True):
        assert draws.uniform(seed, position) == sampler_draw.uniform(seed, position)


def test_the_most_probable_token_without_a_temperature(draws: Draws) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [9.0, 0.0, 0.0, 9.5]])
    params = [SamplingParams(temperature=0.0, top_k=3, min_p=0.5)] * 2
    assert draws.draw(logits, params, [0.99, 0.0]).tolist() == [1, 3]
    # So cold that the best token has it all.
    assert draws.draw(logits, [SamplingParams(temperature=1e-40)] * 2, [0.9, 0.4]).tolist() == [
        2,
        3,
    ]


def test_logits_that_are_no_numbers_give_some_token_of_the_vocabulary(draws: Draws) -> None:
    """Whoever asked has looked, or will."""
    odd = torch.randn((3, 50))
    odd[0, 7], odd[1, 8] = math.nan, math.inf
    odd[2] = -math.inf
    params = [SamplingParams(temperature=1.0, top_k=4, top_p=0.9)] * 3
    assert all(0 <= token < 50 for token in draws.draw(odd, params, [0.5] * 3).tolist())


def test_a_choice_is_as_long_as_compiled_code_reads_it() -> None:
    params = SamplingParams(temperature=0.7)
    assert len(choice_of(params)) == CHOICE_BYTES == 32
    assert len(edits_of(params, (), (), ())) == len(NO_EDITS) == EDITS_BYTES == 88


def test_draws_that_differ_from_pytorchs_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "draw", lambda self, logits, params, numbers: torch.zeros(1).long())
    sampler_draw.compiled_draws.cache_clear()
    try:
        assert sampler_draw.compiled_draws() is None
    finally:
        monkeypatch.undo()
        sampler_draw.compiled_draws.cache_clear()
    assert sampler_draw.compiled_draws() is not None
