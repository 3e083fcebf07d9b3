"""Sampling against transformers' processors, OpenAI's formulas, and itself in other batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from helix_mq.sampling import SamplingParams
from nodes.model import sampler_draw
from nodes.model.native.draws import Draws
from nodes.model.sampler import LogitsNotFinite, Sampled, SamplerState, sample
from nodes.model.sampler_draw import uniform


@pytest.fixture(autouse=True, params=["compiled", "pytorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens drawn by compiled code where this machine has it, and by PyTorch."""
    if request.param == "pytorch":
        monkeypatch.setattr(sampler_draw, "compiled_draws", lambda: None)


VOCAB = 50
EOS = (2,)

QUICK = settings(max_examples=150, deadline=None)


def random_logits(
    seed: int, rows: int = 1, vocab: int = VOCAB, spread: float = 3.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * spread


def state(
    params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = ()
) -> SamplerState:
    history = np.array([*prompt, *output], dtype=np.int32)
    return SamplerState(params, len(prompt), history, EOS)


def one(logits: torch.Tensor, params: SamplingParams, position: int = 7) -> Sampled:
    return sample(logits, [state(params)], [position])[0]


GREEDY = SamplingParams(temperature=0.0)


def but(params: SamplingParams, **changes: Any) -> SamplingParams:
    return msgspec.structs.replace(params, **changes)


# The distribution.


def by_transformers(logits: torch.Tensor, p: SamplingParams) -> torch.Tensor:
    """float64 [vocab]: probabilities after transformers' warpers, in its order."""
    scores = logits.double()
    no_ids: Any = torch.zeros(1, 0, dtype=torch.long)
    warpers: list[Any] = [hf.TemperatureLogitsWarper(p.temperature)]
    if p.top_k:
        warpers.append(hf.TopKLogitsWarper(p.top_k))
    if p.top_p < 1.0:
        warpers.append(hf.TopPLogitsWarper(p.top_p))
    if p.min_p:
        warpers.append(hf.MinPLogitsWarper(p.min_p))
    for warper in warpers:
        scores = warper(no_ids, scores)
    return torch.softmax(scores, dim=-1)[0]


@QUICK
@given(
    seed=st.integers(0, 2**32),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.05, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.9)),
    spread=st.floats(0.01, 8),
)
def test_each_number_draws_the_token_that_transformers_distribution_has_there(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, spread: float
) -> None:
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    logits = random_logits(seed, spread=spread)
    cumulative = by_transformers(logits, params).cumsum(0)
    for position in range(20):
        number = uniform(seed, position)
        if float((cumulative - number).abs().min()) < 1e-5:
            continue  # too near a border for two ways of rounding
        expected = int(torch.searchsorted(cumulative, number, right=True))
        assert one(logits, params, position).token == expected


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_that_reaches_far_into_a_large_vocabulary(spread: float, top_p: float) -> None:
    logits = random_logits(1, vocab=5000, spread=spread)
    if spread == 0.0:
        logits += torch.arange(5000) * 1e-4  # nearly flat, without equals
    params = SamplingParams(top_p=top_p, temperature=0.8, seed=5)
    cumulative = by_transformers(logits, params).cumsum(0)
    for position in range(100):
        expected = int(torch.searchsorted(cumulative, uniform(5, position), right=True))
        assert one(logits, params, position).token == expected


def test_draws_follow_the_distribution() -> None:
    """Pearson's test at the 0.1 % level, over 20,000 draws with different seeds and positions."""
    logits = random_logits(3, vocab=12, spread=1.0)
    params = [SamplingParams(temperature=0.7, top_p=0.95, seed=i) for i in range(100)]
    counts: Counter[int] = Counter()
    for position in range(200):
        states = [state(p) for p in params]
        drawn = sample(logits.expand(100, -1), states, [position] * 100)
        counts.update(s.token for s in drawn)
    expected = by_transformers(logits, params[0]) * 20_000
    kept = [i for i, e in enumerate(expected.tolist()) if e > 0]
    assert set(counts) <= set(kept)
    distance = sum((counts[i] - float(expected[i])) ** 2 / float(expected[i]) for i in kept)
    freedom = len(kept) - 1
    # Wilson and Hilferty's approximation of the chi-square quantile at z = 3.09.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert distance < limit


def test_the_numbers_are_even_and_stay_what_they_are() -> None:
    numbers = np.array([uniform(seed, at) for seed in range(100) for at in range(100)])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert float(((counts - 500.0) ** 2 / 500.0).sum()) < 43.8  # 0.1 % level, 19 degrees
    correlation = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
    assert abs(correlation) < 0.04
    # Other processes, other releases: a stream must continue with the same numbers.
    assert [uniform(0, 0), uniform(12345, 678), uniform(2**63 - 1, 2**20)] == GOLDEN


GOLDEN = [0.1580103717691823, 0.19028923558710176, 0.9449770382340396]


@QUICK
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 70), st.integers(1, 4))
def test_of_equal_tokens_the_first_is_the_best_one(
    seed: int, rows: int, vocab: int, values: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(values, (rows, vocab), generator=generator).float()
    got = sample(logits, [state(GREEDY) for _ in range(rows)], [5] * rows)
    assert [s.token for s in got] == [row.index(max(row)) for row in logits.tolist()]


def test_equal_tokens_stay_or_go_together() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 5.0, -1.0]])
    for params in (SamplingParams(top_k=1), SamplingParams(top_p=0.1)):
        drawn = {one(logits, but(params, seed=seed)).token for seed in range(60)}
        assert drawn == {1, 2, 3}


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5, 0.0])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    for seed in range(20):
        logits = random_logits(seed)
        params = SamplingParams(temperature=temperature, seed=seed, top_p=0.9, min_p=0.1)
        assert one(logits, params).token == int(logits.argmax())


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_range_draw_tokens_that_have_a_probability(
    monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    monkeypatch.setattr(sampler_draw, "uniform", lambda seed, position: number)
    monkeypatch.setattr(Draws, "uniform", lambda self, seed, position: number)
    logits = torch.full((1, VOCAB), -200.0)
    logits[0, 10:20] = 1.0
    assert one(logits, SamplingParams()).token == (10 if number == 0.0 else 19)
    assert one(logits, SamplingParams(top_p=0.5, top_k=10)).token == (10 if number == 0.0 else 19)


# Changes before the choice.


def penalised_by_hand(
    logits: torch.Tensor, p: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> torch.Tensor:
    """transformers' bias and repetition penalty, then OpenAI's formula token by token."""
    scores: Any = logits.clone()
    ids: Any = torch.tensor([[*prompt, *output]], dtype=torch.long)
    if p.logit_bias:
        bias: Any = [[[token], value] for token, value in p.logit_bias]
        scores = hf.SequenceBiasLogitsProcessor(bias)(ids, scores)
    if p.repetition_penalty != 1.0:
        scores = hf.RepetitionPenaltyLogitsProcessor(p.repetition_penalty)(ids, scores)
    for token, count in Counter(output).items():
        scores[0, token] -= count * p.frequency_penalty + p.presence_penalty
    return torch.as_tensor(scores)


tokens = st.integers(0, VOCAB - 1)


@QUICK
@given(
    seed=st.integers(0, 2**32),
    prompt=st.lists(tokens, min_size=1, max_size=30),
    output=st.lists(tokens, max_size=30),
    repetition=st.floats(0.5, 3),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.dictionaries(tokens, st.floats(-20, 20), max_size=4),
    temperature=st.sampled_from([0.0, 0.9]),
)
def test_penalties_and_bias_are_those_of_transformers_and_openai(
    seed: int,
    prompt: list[int],
    output: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
    temperature: float,
) -> None:
    params = SamplingParams(
        temperature=temperature,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=tuple(bias.items()),
        seed=seed,
        ignore_eos=True,
    )
    logits = random_logits(seed)
    before = logits.clone()
    expected = penalised_by_hand(logits, params, prompt, output)
    top = expected.topk(2).values[0]
    if float(top[0] - top[1]) < 1e-4:
        return  # too near a tie for two ways of rounding
    position = len(prompt) + len(output)
    (drawn,) = sample(logits, [state(params, prompt, output)], [position])
    if temperature == 0.0:
        assert drawn.token == int(expected.argmax())
    else:
        cumulative = by_transformers(expected, but(params, top_p=1.0)).cumsum(0)
        number = uniform(seed, position)
        if float((cumulative - number).abs().min()) > 1e-5:
            assert drawn.token == int(torch.searchsorted(cumulative, number, right=True))
    assert torch.equal(logits, before)


def test_counts_kept_token_by_token_are_those_of_the_whole_text() -> None:
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.7
    )
    prompt = [1, 1, 4, 9]
    running = state(params, prompt)
    output: list[int] = []
    for step in range(200):
        logits = random_logits(step, spread=1.0)
        fresh = state(params, prompt, output)
        position = len(prompt) + len(output)
        (a,), (b,) = (sample(logits, [s], [position]) for s in (running, fresh))
        assert a == b
        output.append(a.token)
    assert len(set(output)) > 30


def test_endings_cannot_come_before_min_tokens() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=3, stop_token_ids=(5, 6))
    logits = random_logits(0)
    for rank, token in enumerate((2, 5, 6, 30)):
        logits[0, token] = 100.0 - rank
    prompt = [1] * 10
    tokens = [sample(logits, [state(params, prompt)], [at])[0].token for at in range(10, 15)]
    assert tokens == [30, 30, 30, 2, 2]
    nothing = SamplerState(SamplingParams(temperature=0.0, min_tokens=3), 10, np.zeros(0, np.int32))
    assert sample(logits, [nothing], [10])[0].token == 2


def test_repeated_biases_of_one_token_add_up() -> None:
    logits = torch.zeros(1, VOCAB)
    params = SamplingParams(temperature=0.0, logit_bias=((4, 1.0), (7, 1.5), (4, 1.0)))
    assert one(logits, params).token == 4


def test_ids_outside_the_vocabulary_change_nothing() -> None:
    params = SamplingParams(
        temperature=0.0,
        logit_bias=((VOCAB, 100.0), (2**31 - 1, 100.0)),
        stop_token_ids=(VOCAB + 7,),
        min_tokens=100,
        repetition_penalty=2.0,
    )
    logits = random_logits(4)
    logits[0, 2] = -100.0
    odd = SamplerState(params, 2, np.array([VOCAB, -1], dtype=np.int32), (VOCAB + 1,))
    assert sample(logits, [odd], [2])[0].token == int(logits.argmax())


# Log probabilities.


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = random_logits(8)
    raw = torch.log_softmax(logits.double(), dim=-1)[0]
    params = SamplingParams(
        temperature=0.3, top_k=5, logit_bias=((3, 50.0),), logprobs=True, top_logprobs=4
    )
    drawn = one(logits, params)
    assert drawn.token == 3
    assert drawn.logprob == pytest.approx(float(raw[3]), abs=1e-5)
    best = raw.topk(4)
    assert [t for t, _ in drawn.top_logprobs] == best.indices.tolist()
    assert [v for _, v in drawn.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_only_for_those_who_ask_and_as_many() -> None:
    wants = [0, None, 3, None, 20]
    params = [GREEDY if n is None else but(GREEDY, logprobs=True, top_logprobs=n) for n in wants]
    drawn = sample(random_logits(2, rows=5), [state(p) for p in params], [0] * 5)
    assert [d.logprob is None for d in drawn] == [n is None for n in wants]
    assert [len(d.top_logprobs) for d in drawn] == [n or 0 for n in wants]


def test_equally_probable_tokens_come_in_the_order_of_their_ids() -> None:
    logits = torch.zeros(1, 6)
    drawn = one(logits, but(GREEDY, logprobs=True, top_logprobs=6))
    assert [t for t, _ in drawn.top_logprobs] == list(range(6))


def test_more_logprobs_than_tokens() -> None:
    drawn = one(torch.zeros(1, 6), but(GREEDY, logprobs=True, top_logprobs=20))
    assert len(drawn.top_logprobs) == 6


# What cannot be sampled.


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=1, top_p=0.9, logprobs=True)])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_rows(
    bad: float, params: SamplingParams
) -> None:
    logits = random_logits(5, rows=4)
    logits[1, 17] = bad
    logits[3] = -math.inf
    penalised = but(params, repetition_penalty=1.2)
    states = [state(penalised, prompt=[1]) for _ in range(4)]
    with pytest.raises(LogitsNotFinite) as error:
        sample(logits, states, [5] * 4)
    assert error.value.rows == (1, 3)
    # Nothing was counted, so the others can be sampled again.
    assert all(s.seen is not None and s.seen.counts.sum() == 0 for s in states)
    fine = sample(logits[[0, 2]], [states[0], states[2]], [5, 5])
    assert len(fine) == 2


def test_results_are_plain_values() -> None:
    drawn = one(random_logits(1), SamplingParams(logprobs=True, top_logprobs=1))
    assert [type(v) for v in drawn] == [int, float, tuple]
    assert type(drawn.top_logprobs[0][0]) is int
