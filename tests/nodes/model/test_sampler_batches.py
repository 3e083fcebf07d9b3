"""A row's token depends on its row alone: not on the batch, the node or an earlier attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from helix_mq.sampling import SamplingParams
from nodes.model.sampler import SamplerState, sample

VOCAB = 50


def random_logits(
    seed: int, rows: int = 1, vocab: int = VOCAB, spread: float = 3.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * spread


def state(
    params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = ()
) -> SamplerState:
    return SamplerState(params, len(prompt), np.array([*prompt, *output], dtype=np.int32), (2,))


MIXED = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_p=0.7, logprobs=True, top_logprobs=2),
    SamplingParams(seed=3, top_k=5, min_p=0.02),
    SamplingParams(temperature=0.0, repetition_penalty=1.4, min_tokens=50),
    SamplingParams(seed=4, temperature=1.7, frequency_penalty=1.0, logit_bias=((3, 2.0),)),
    SamplingParams(seed=5, top_p=0.999, top_k=4000),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab", [VOCAB, 4099])
def test_a_row_is_the_same_alone_and_in_any_batch(
    vocab: int, threads: int, with_threads: Callable[[int], None]
) -> None:
    with_threads(threads)
    order = torch.randperm(3 * len(MIXED), generator=torch.Generator().manual_seed(1)).tolist()
    params = [MIXED[i % len(MIXED)] for i in order]
    logits = random_logits(11, rows=len(params), vocab=vocab)
    positions = [20 + i for i in range(len(params))]

    def fresh(p: SamplingParams) -> SamplerState:
        return state(p, prompt=range(10), output=range(5, 15))

    together = sample(logits, [fresh(p) for p in params], positions)
    alone = [
        sample(logits[i : i + 1], [fresh(p)], positions[i : i + 1])[0] for i, p in enumerate(params)
    ]
    assert together == alone


@pytest.fixture
def with_threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("params", MIXED)
def test_a_stream_taken_up_elsewhere_goes_on_with_the_same_tokens(params: SamplingParams) -> None:
    """As after a lost node: a new state from prompt and the tokens so far, in another batch."""
    params = over_the_wire(params)
    prompt = [1, 2, 3]

    def logits_at(position: int) -> torch.Tensor:
        return random_logits(position, spread=2.0)

    running = state(params, prompt)
    whole = [sample(logits_at(at), [running], [at])[0].token for at in range(3, 43)]
    resumed = state(params, prompt, whole[:17])
    other = state(SamplingParams(seed=99), prompt)
    for position in range(20, 43):
        both = torch.cat([random_logits(0), logits_at(position)])
        drawn = sample(both, [other, resumed], [position + 1, position])
        assert drawn[1].token == whole[position - 3]


def over_the_wire(params: SamplingParams) -> SamplingParams:
    """A copy that went over the wire, as the next node gets it."""
    return msgspec.convert(msgspec.to_builtins(params), SamplingParams)


def test_no_rows_no_tokens() -> None:
    assert sample(torch.zeros(0, VOCAB), [], []) == []
