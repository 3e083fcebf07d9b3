"""The sampler against transformers' logits processors, an own Philox, and chi-square.

Distributions are measured exactly: with the uniform number swept over a fine grid, each token is
drawn as often as its probability says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import nodes.model.sampler
from helix_mq.sampling import SamplingParams
from nodes.model.sampler import Sampled, SamplerState, sample, uniform

VOCAB = 40
GRID = 500
NO_HISTORY = np.empty(0, dtype=np.int32)


def logits_of(seed: int, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, VOCAB, generator=generator) * 3


def state(
    history: Sequence[int] = (), prompt: int = 0, eos: tuple[int, ...] = (), **params: Any
) -> SamplerState:
    return SamplerState(SamplingParams(**params), prompt, np.array(history, np.int32), eos)


def reference(logits: torch.Tensor, params: SamplingParams, history: Sequence[int] = ()) -> Any:
    """Probabilities [VOCAB] that transformers gives one row of logits."""
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    ids: Any = torch.tensor([list(history)], dtype=torch.long)
    return torch.softmax(steps(ids, logits.clone())[0].double(), dim=-1).numpy()


def measured(logits: torch.Tensor, one: SamplerState, position: int = 0) -> Any:
    """Share [VOCAB] of the grid of uniform numbers on which each token is drawn."""
    shares = np.zeros(VOCAB)
    before, patch = list(one.tokens), pytest.MonkeyPatch()
    try:
        for step in range(GRID):
            number = (step + 0.5) / GRID
            patch.setattr(nodes.model.sampler, "uniform", lambda seed, at, u=number: u)
            shares[sample(logits, [one], [position])[0].token] += 1 / GRID
            one.tokens[:] = before
    finally:
        patch.undo()
    return shares


def assert_same(shares: Any, probabilities: Any) -> None:
    """Equal up to the grid, and nothing drawn that has no probability."""
    assert np.abs(shares - probabilities).max() <= 1.01 / GRID
    assert not shares[probabilities == 0.0].any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.05, 4.0),
    top_k=st.sampled_from([0, 1, 2, 7, VOCAB, VOCAB + 5]),
    top_p=st.one_of(st.just(1.0), st.floats(0.02, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.9)),
)
def test_temperature_and_filters_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = logits_of(seed)
    one = SamplerState(params, 0, NO_HISTORY)
    assert_same(measured(logits, one), reference(logits, params))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    penalty=st.floats(0.5, 3.0),
    history=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
)
def test_the_repetition_penalty_is_that_of_transformers(
    seed: int, penalty: float, history: list[int]
) -> None:
    params = SamplingParams(repetition_penalty=penalty, temperature=0.8, top_p=0.95)
    logits = logits_of(seed)
    one = SamplerState(params, len(history) // 2, np.array(history, np.int32))
    assert_same(measured(logits, one, len(history)), reference(logits, params, history))


def test_presence_and_frequency_count_the_output_only() -> None:
    """OpenAI: logit - count * frequency - (count > 0) * presence, over sampled tokens."""
    history = [1, 2, 2, 3, 5, 5, 5, 1]
    logits = logits_of(4)
    one = state(history, prompt=3, presence_penalty=0.7, frequency_penalty=0.4)
    expected = logits.clone()
    for token, count in Counter(history[3:]).items():
        expected[0, token] -= 0.7 + 0.4 * count
    assert_same(measured(logits, one, 8), torch.softmax(expected[0].double(), -1).numpy())


def test_tokens_that_are_drawn_are_penalised_from_then_on() -> None:
    logits = torch.zeros(1, VOCAB)
    one = state(temperature=0.0, presence_penalty=1.0)
    drawn = [sample(logits, [one], [at])[0].token for at in range(VOCAB)]
    assert sorted(drawn) == list(range(VOCAB)), "each once before any twice"


def test_the_sampler_leaves_the_logits_alone() -> None:
    logits = logits_of(1)
    before = logits.clone()
    one = state([1, 2], repetition_penalty=2.0, logit_bias=((3, 5.0),), min_tokens=9, eos=(4,))
    sample(logits, [one], [2])
    assert torch.equal(logits, before)


def test_greedy_is_the_first_largest() -> None:
    logits = logits_of(7, rows=5)
    logits[2, 11] = logits[2, 30] = 50.0
    rows = sample(logits, [state(temperature=0.0, seed=i) for i in range(5)], [0] * 5)
    assert [r.token for r in rows] == torch.argmax(logits, -1).tolist()
    assert rows[2].token == 11


def test_extreme_temperatures_stay_finite() -> None:
    logits = logits_of(8)
    assert sample(logits * 1000, [state(temperature=1e-6)], [3])[0].token == int(logits.argmax())
    shares = measured(logits, state(temperature=100.0))
    assert shares.max() < 3 / VOCAB


def test_logit_bias_forces_bans_and_adds_up() -> None:
    logits = logits_of(9)
    forced = state(logit_bias=((17, 100.0),), temperature=1.0)
    assert measured(logits, forced)[17] == pytest.approx(1.0)
    banned = state(logit_bias=tuple((t, -100.0) for t in range(VOCAB) if t != 5))
    assert measured(logits, banned)[5] == pytest.approx(1.0)
    twice = state(logit_bias=((3, 1.5), (3, 1.5)))
    expected = logits.clone()
    expected[0, 3] += 3.0
    assert_same(measured(logits, twice), torch.softmax(expected[0].double(), -1).numpy())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_endings_cannot_be_drawn_before_min_tokens(temperature: float) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = logits[0, 9] = 60.0
    one = state(prompt=10, eos=(7,), stop_token_ids=(9,), min_tokens=3, temperature=temperature)
    tokens = [sample(logits, [one], [position])[0].token for position in range(10, 14)]
    assert not {7, 9} & set(tokens[:3])
    assert tokens[3] in (7, 9)


def test_logprobs_are_of_the_distribution_before_any_change() -> None:
    logits = logits_of(11)
    one = state(
        [3], temperature=0.3, top_k=2, repetition_penalty=1.5, logit_bias=((4, 9.0),),
        logprobs=True, top_logprobs=5,
    )  # fmt: skip
    (result,) = sample(logits, [one], [1])
    expected = torch.log_softmax(logits[0], -1)
    assert result.logprob == pytest.approx(float(expected[result.token]))
    values, ids = torch.topk(expected, 5)
    assert [t for t, _ in result.top_logprobs] == ids.tolist()
    assert [v for _, v in result.top_logprobs] == pytest.approx(values.tolist())
    (plain,) = sample(logits, [state(top_k=2, temperature=0.3)], [1])
    assert (plain.logprob, plain.top_logprobs) == (None, ())
    (bare,) = sample(logits, [state(logprobs=True)], [1])
    assert bare.logprob is not None
    assert bare.top_logprobs == ()


VARIED = st.lists(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7, 1.3]),
        top_k=st.sampled_from([0, 5]),
        top_p=st.sampled_from([1.0, 0.8]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        logit_bias=st.sampled_from([(), ((3, 2.0),)]),
        seed=st.integers(0, 1 << 62),
        min_tokens=st.sampled_from([0, 20]),
        logprobs=st.booleans(),
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(params=VARIED, order=st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_its_neighbours(params: list[SamplingParams], order: Any) -> None:
    logits = logits_of(12, rows=len(params))

    def one(index: int) -> SamplerState:
        return SamplerState(params[index], 2, np.array([1, index, 5], np.int32), (7,))

    alone = [sample(logits[i : i + 1], [one(i)], [3 + i])[0] for i in range(len(params))]
    shuffled = list(range(len(params)))
    order.shuffle(shuffled)
    together: list[Sampled] = sample(
        logits[shuffled], [one(i) for i in shuffled], [3 + i for i in shuffled]
    )
    assert together == [alone[i] for i in shuffled]


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64, 10 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC11)."""
    mask = (1 << 64) - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 1 << 64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


@given(st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 31) - 1))
def test_the_uniform_number_is_philox_of_seed_and_position(seed: int, position: int) -> None:
    """Pinned: a resumed request must draw the same tokens under every release of its libraries."""
    bits = philox4x64([position + 1, 0, 0, 0], [seed, 0x68656C69785F6D71])[0]
    assert uniform(seed, position) == (bits >> 11) / 2**53


def test_draws_over_positions_and_over_seeds_follow_the_distribution() -> None:
    """Chi-square with fixed seeds; 99.99 % of honest samplers pass at 39 degrees of freedom."""
    logits = logits_of(13) / 2
    expected = torch.softmax(logits[0].double(), -1).numpy()
    draws = 4000
    for name, seeds, positions in (
        ("positions", [42] * draws, list(range(draws))),
        ("seeds", list(range(draws)), [17] * draws),
    ):
        states = [state(seed=s) for s in seeds]
        results = sample(logits.expand(draws, VOCAB), states, positions)
        counts = np.bincount([r.token for r in results], minlength=VOCAB)
        rare = expected * draws < 5
        cells = [*counts[~rare], counts[rare].sum()]
        wanted = [*(expected[~rare] * draws), expected[rare].sum() * draws]
        chi = sum((c - w) ** 2 / w for c, w in zip(cells, wanted, strict=True) if w > 0)
        assert chi < 81.0, name


def test_the_same_seed_gives_the_same_tokens_and_another_one_others() -> None:
    logits = logits_of(14) / 3

    def tokens(seed: int) -> list[int]:
        one = state(seed=seed)
        return [sample(logits, [one], [at])[0].token for at in range(50)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
