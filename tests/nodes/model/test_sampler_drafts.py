"""Tokens behind drafts are those of single steps, whatever was guessed, whoever is in the batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from helix_mq.sampling import SamplingParams
from nodes.model.sampler import Sampled, SamplerState, sample
from nodes.model.sampler_drafts import Ending, sample_endings

VOCAB = 40
EOS = 2
PROMPT = (1, 3, 5, 3)
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, logprobs=True, top_logprobs=3),
    SamplingParams(temperature=0.0, repetition_penalty=1.7, frequency_penalty=1.5),
    SamplingParams(temperature=0.0, min_tokens=6, logit_bias=((EOS, 9.0),)),
    SamplingParams(temperature=0.0, logit_bias=((EOS, 9.0),), ignore_eos=True),
    SamplingParams(seed=7, top_p=0.8),
    SamplingParams(seed=8, top_k=5, presence_penalty=1.2, logprobs=True),
]


def fresh(params: SamplingParams, output: tuple[int, ...] = ()) -> SamplerState:
    return SamplerState(params, len(PROMPT), np.array([*PROMPT, *output], np.int32), (EOS,))


def logits_at(position: int, row: int) -> torch.Tensor:
    """[1, vocab]; close to each other, so that penalties decide."""
    generator = torch.Generator().manual_seed(1000 * row + position)
    return torch.randn(1, VOCAB, generator=generator)


def steps(params: SamplingParams, row: int, start: int, count: int) -> list[Sampled]:
    """One token at a time, `start` of them before."""
    state = fresh(params)
    found = []
    for i in range(start + count):
        at = len(PROMPT) + i
        found += sample(logits_at(at, row), [state], [at])
    return found


@pytest.mark.parametrize("seed", range(12))
def test_tokens_behind_drafts_are_those_of_single_steps(seed: int) -> None:
    rng = random.Random(seed)
    endings, rows, expected = [], [], []
    for row, params in enumerate(rng.sample(PARAMS, len(PARAMS))):
        start, count = rng.randint(0, 5), rng.randint(0, 8)
        alone = steps(params, row, start, count + 1)
        before, behind = alone[:start], [s.token for s in alone[start:]]
        drafts = behind[:count]
        if count and rng.random() < 0.6:
            at = rng.randrange(count)
            drafts[at] = (drafts[at] + 1) % VOCAB
        right = 0
        while right < count and drafts[right] == behind[right] != EOS:
            right += 1
        position = len(PROMPT) + start
        output = tuple(s.token for s in before)
        endings.append(Ending(fresh(params, output), position, tuple(drafts)))
        rows += [logits_at(position + k, row) for k in range(count + 1)]
        expected.append(alone[start : start + right + 1])
    found = sample_endings(torch.cat(rows), endings)
    assert [[s.token for s in row] for row in found] == [[s.token for s in e] for e in expected]
    for got, want in zip(found, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-6)
            assert [t for t, _ in a.top_logprobs] == [t for t, _ in b.top_logprobs]
    for ending, got in zip(endings, found, strict=True):
        if ending.state.seen is not None:
            # What comes after sees exactly the tokens that were given out.
            given = ending.position - len(PROMPT) + len(got)
            assert int(ending.state.seen.counts.sum()) == given


def test_numbers_that_are_none_end_their_own_row_only() -> None:
    params = SamplingParams(temperature=0.0)
    penalised = SamplingParams(temperature=0.0, frequency_penalty=0.1)
    wanted = [s.token for s in steps(params, 0, 0, 4)]
    also = [s.token for s in steps(penalised, 0, 0, 4)]
    good = torch.cat([logits_at(len(PROMPT) + k, 0) for k in range(4)])
    broken_at_2, broken_at_0 = good.clone(), good.clone()
    broken_at_2[2] = torch.nan
    broken_at_0[0] = torch.nan
    drafts, more = tuple(wanted[:3]), tuple(also[:3])
    found = sample_endings(
        torch.cat([good, broken_at_2, broken_at_0, good, broken_at_2]),
        [
            Ending(fresh(params), len(PROMPT), drafts),
            Ending(fresh(params), len(PROMPT), drafts),
            Ending(fresh(params), len(PROMPT), drafts),
            Ending(fresh(penalised), len(PROMPT), more),
            Ending(fresh(penalised), len(PROMPT), more),
        ],
    )
    tokens = [[s.token for s in row] for row in found]
    assert tokens == [wanted, wanted[:2], [], also, also[:2]]


def test_a_wrong_draft_with_broken_numbers_behind_it_harms_nobody() -> None:
    params = SamplingParams(temperature=0.0)
    wanted = [s.token for s in steps(params, 0, 0, 2)]
    wrong = (wanted[0] + 1) % VOCAB
    logits = torch.cat([logits_at(len(PROMPT), 0), torch.full((2, VOCAB), torch.nan)])
    found = sample_endings(logits, [Ending(fresh(params), len(PROMPT), (wrong, wrong))])
    assert [[s.token for s in row] for row in found] == [[wanted[0]]]


def test_rows_of_which_only_the_most_probable_token_is_wanted() -> None:
    """Alone they take a shorter way; a row with more to it, or with broken numbers, takes all along
    the general one."""
    plain = SamplingParams(temperature=0.0)
    late = SamplingParams(temperature=0.0, min_tokens=3)
    places = [(plain, 0), (plain, 1), (late, 2), (late, 3), (plain, 7)]
    logits = torch.cat([logits_at(len(PROMPT) + at, i) for i, (_, at) in enumerate(places)])
    # The end would be the most probable where it is forbidden still, and where it no longer is.
    logits[2:4, EOS] = 50.0
    alone = [
        sample(logits[i : i + 1], [fresh(params)], [len(PROMPT) + at])[0]
        for i, (params, at) in enumerate(places)
    ]
    assert [s.token == EOS for s in alone[2:4]] == [False, True]
    for kept in ([0, 1, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]):
        endings = [Ending(fresh(places[i][0]), len(PROMPT) + places[i][1]) for i in kept]
        assert sample_endings(logits[kept], endings) == [[alone[i]] for i in kept]
        broken = logits[kept].clone()
        broken[1, 5] = torch.nan
        found = sample_endings(broken, endings)
        assert found == [[] if at == 1 else [alone[i]] for at, i in enumerate(kept)]
