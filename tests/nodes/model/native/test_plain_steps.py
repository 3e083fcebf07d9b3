"""Steps of plain decodes without tensors leave what the engine's general way leaves, bit by bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from helix_mq.sampling import SamplingParams
from nodes import plain_steps
from nodes.model import sampler_draw, sampler_odds
from nodes.model.native import build
from nodes.model.native.calls import COUNT, POINTER, REAL
from nodes.model.native.products import products_for
from nodes.model.native.ready import Given
from nodes.plain_steps import PlainSteps
from nodes.steps import Batch
from tests.nodes.model.native.plain_twins import (
    GREEDY,
    NAMES,
    OTHER,
    PARTS,
    Checkpoint,
    Twins,
)

pytestmark = pytest.mark.skipif(
    products_for(torch.float32) is None or products_for(torch.bfloat16) is None,
    reason=f"no compiled products: {build.built().reason}",
)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each batch was one of plain decodes."""
    seen: list[bool] = []
    run = PlainSteps.run

    def noted(self: PlainSteps, batch: Batch) -> Any:
        found = run(self, batch)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(PlainSteps, "run", noted)
    return seen


@pytest.mark.parametrize("dtype", list(NAMES))
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", ["mistral", "qwen2_sliding", "qwen3_wide_heads"])
def test_plain_steps_leave_what_the_general_way_leaves(
    checkpoint: Checkpoint, taken: list[bool], family: str, part: str, dtype: torch.dtype
) -> None:
    """To one peer or several, of one epoch or two, in any order, in the form of each link."""
    twins = Twins(checkpoint(family).folder, part, dtype)
    for engine in twins.engines:
        engine.formats._forms = {"aside": "int8"} if dtype is torch.float32 else {}
    draw = random.Random(5)
    places = {request: 3 + 5 * request for request in range(6)}
    for request, length in places.items():
        twins.run([twins.work(request, 0, length)])
    for _ in range(24):
        batch = []
        for request in draw.sample(list(places), draw.randint(1, 6)):
            aside = part == "first" and request % 3 == 0
            epoch = 2 if request == 4 else 1
            work = twins.work(request, places[request], route=OTHER if aside else None, epoch=epoch)
            batch.append(work)
            places[request] += 1
        result = twins.run(batch)
        assert len(result.tokens) == (0 if part == "first" else len(batch))
    assert taken == [False] * 6 + [True] * 24
    assert twins.begun == taken


@pytest.mark.parametrize("dtype", list(NAMES))
def test_probabilities_are_told_as_by_the_general_way(
    checkpoint: Checkpoint, taken: list[bool], dtype: torch.dtype
) -> None:
    """Of the logits as the model gave them, whatever is edited afterwards."""
    twins = Twins(checkpoint("mistral").folder, "last", dtype)
    ways = [
        GREEDY,
        SamplingParams(temperature=0.0, logprobs=True),
        SamplingParams(temperature=0.9, seed=4, logprobs=True, top_logprobs=20),
        SamplingParams(temperature=0.0, logit_bias=((150, 90.0),), logprobs=True, top_logprobs=3),
        SamplingParams(
            temperature=1.0, repetition_penalty=1.4, seed=1, logprobs=True, top_logprobs=1
        ),
    ]
    for request, sampling in enumerate(ways):
        twins.run([twins.work(request, 0, 9, sampling=sampling)])
    for step in range(6):
        result = twins.run([twins.work(request, 9 + step) for request in (3, 1, 0, 2, 4)])
        told = {item.request: item for item in result.tokens}
        assert [len(told[request].top) for request in range(5)] == [0, 0, 20, 3, 1]
        assert [told[request].logprob is None for request in range(5)] == [True] + [False] * 4
        # The bias decides, and is not in what is told.
        logprob = told[3].logprob
        assert told[3].token == 150
        assert logprob is not None
        assert logprob < told[3].top[0].logprob < 0.0
    twins.run([twins.work(request, 15) for request in (1, 2)])
    assert taken == [False] * 5 + [True] * 7
    assert twins.begun[-1]


def test_where_pytorch_tells_probabilities_it_tells_them_to_all(
    checkpoint: Checkpoint, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_steps, "compiled_odds", lambda: None)
    monkeypatch.setattr(sampler_odds, "compiled_odds", lambda: None)
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    sampling = SamplingParams(temperature=0.0, logprobs=True, top_logprobs=2)
    twins.run([twins.work(0, 0, 9), twins.work(1, 0, 9, sampling=sampling)])
    result = twins.run([twins.work(0, 9), twins.work(1, 9)])
    assert [len(item.top) for item in result.tokens] == [0, 2]
    twins.run([twins.work(0, 10)])
    assert taken == [False, False, True]


@pytest.mark.parametrize("part", ["whole", "last"])
@pytest.mark.parametrize("dtype", list(NAMES))
def test_tokens_are_chosen_as_by_the_general_way(
    checkpoint: Checkpoint, taken: list[bool], part: str, dtype: torch.dtype
) -> None:
    """By chance, under penalties and bias, with endings put off: each row by its own parameters,
    beside most probable ones and in steps of any rows."""
    history = tuple(random.Random(1).choices(range(151), k=70))
    ways: list[tuple[SamplingParams, tuple[int, ...]]] = [
        (GREEDY, ()),
        (SamplingParams(temperature=1.0, seed=3), ()),
        (SamplingParams(temperature=0.8, top_p=0.9, seed=2**63 - 1), ()),
        (SamplingParams(temperature=1.3, top_k=5, seed=11), ()),
        (SamplingParams(temperature=2.0, min_p=0.05, top_k=40, top_p=0.99), ()),
        (SamplingParams(temperature=1.0, seed=3), ()),
        (SamplingParams(temperature=0.0, repetition_penalty=1.3), history),
        (SamplingParams(temperature=0.7, frequency_penalty=0.7, presence_penalty=-0.3), history),
        (SamplingParams(temperature=0.0, frequency_penalty=1.1, repetition_penalty=0.9), ()),
        (SamplingParams(temperature=0.0, logit_bias=((9, 3.0), (150, -100.0), (9, 0.5))), ()),
        # Of no token of the vocabulary.
        (SamplingParams(temperature=1.0, logit_bias=((151, 50.0), (10**6, 50.0))), (151, 10**6)),
        (SamplingParams(temperature=1.0, min_tokens=30, stop_token_ids=(7, 8, 10**6)), ()),
        (SamplingParams(temperature=0.0, min_tokens=20, stop_token_ids=tuple(range(140))), ()),
    ]
    twins = Twins(checkpoint("mistral").folder, part, dtype)
    for request, (sampling, seen) in enumerate(ways):
        twins.run([twins.work(request, 0, 9, sampling=sampling, history=seen)])
    draw = random.Random(7)
    places = [9] * len(ways)
    tokens: dict[int, list[int]] = {}
    for _ in range(80):
        rows = draw.sample(range(len(ways)), draw.randint(1, len(ways)))
        result = twins.run([twins.work(request, places[request]) for request in rows])
        for item in result.tokens:
            tokens.setdefault(item.request, []).append(item.token)
            places[item.request] += 1
    assert taken == [False] * len(ways) + [True] * 80
    # Those of rows 6 to 9 and of some others have logits to edit.
    assert not any(twins.begun[: len(ways)])
    assert 0 < sum(twins.begun) < 80
    assert all(len(set(found)) > 3 for found in tokens.values())
    assert min(tokens[12][:19]) >= 140 > min(tokens[12])
    # Of requests that count their tokens, the arrays have grown meanwhile.
    assert len(tokens[8]) > 30


def test_where_pytorch_draws_it_draws_for_all(
    checkpoint: Checkpoint, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where compiled draws differ from its own."""
    monkeypatch.setattr(plain_steps, "compiled_draws", lambda: None)
    monkeypatch.setattr(sampler_draw, "compiled_draws", lambda: None)
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    ways = [SamplingParams(temperature=0.8), SamplingParams(temperature=0.0, presence_penalty=1.0)]
    for request, sampling in enumerate(ways):
        twins.run([twins.work(request, 0, 9, sampling=sampling)])
    twins.run([twins.work(0, 9)])
    twins.run([twins.work(1, 9)])
    assert taken == [False, False, False, True]


def test_how_a_token_is_chosen_matters_at_the_end_of_a_route_only(
    checkpoint: Checkpoint, taken: list[bool]
) -> None:
    twins = Twins(checkpoint("mistral").folder, "first", torch.float32)
    twins.run([twins.work(0, 0, 9, sampling=SamplingParams(temperature=0.8, seed=3))])
    twins.run([twins.work(0, 9)])
    assert taken == [False, True]


def test_what_is_not_in_order_goes_the_general_way(
    checkpoint: Checkpoint, taken: list[bool]
) -> None:
    twins = Twins(checkpoint("mistral").folder, "last", torch.bfloat16)
    twins.run([twins.work(0, 0, 9), twins.work(1, 0, 9)])
    # Rows in another form than is computed in, and a prompt beside a decode.
    single = torch.ones((1, twins.width)).numpy().tobytes()
    twins.run([twins.work(0, 9, data=single, dtype="float32")])
    twins.run([twins.work(0, 10), twins.work(2, 0, 4)])
    assert taken == [False] * 3
    short = twins.work(0, 11, data=b"\0" * (2 * twins.width - 2))
    assert twins.engines[0]._plain is not None
    assert twins.engines[0]._plain.run([short]) is None
    same = twins.work(0, 11)
    assert twins.engines[0]._plain.run([same, same]) is None
    assert twins.engines[0]._plain.run([twins.work(0, 500)]) is None
    for bad in ([short], [same, same], [twins.work(0, 500)]):
        assert twins.engines[2].begin(bad) is None


def test_what_does_not_end_where_the_model_does_is_not_taken(checkpoint: Checkpoint) -> None:
    """Whatever a route says: there would be no place for logits, or none to take tokens from."""
    for part, ends in (("last", False), ("first", True)):
        twins = Twins(checkpoint("mistral").folder, part, torch.float32)
        twins.run([twins.work(0, 0, 5)])
        work = twins.work(0, 5)
        decodes = twins.engines[0]._model.decodes(twins.engines[0]._cache)
        assert decodes is not None
        data = work.payload.data
        given = Given([7]) if part == "first" else Given((), [data])
        step = decodes.tokens if ends else decodes.hidden
        assert step([(work.seq, 5)], work.layers, twins.engines[0]._cache, given) is None


def test_logits_that_are_no_numbers_are_refused(checkpoint: Checkpoint, taken: list[bool]) -> None:
    twins = Twins(checkpoint("mistral").folder, "last", torch.float32)
    twins.run([twins.work(0, 0, 5), twins.work(1, 0, 5)])
    odd = torch.full((1, twins.width), float("nan")).numpy().tobytes()
    result = twins.run([twins.work(0, 5, data=odd), twins.work(1, 5)])
    assert [item.code for item in result.refused] == ["logits_not_finite"]
    assert [item.request for item in result.tokens] == [1]
    assert twins.begun[-1], "only its end shows it"


def test_what_left_stays_while_the_next_step_runs(checkpoint: Checkpoint) -> None:
    """Frames may wait for credit."""
    twins = Twins(checkpoint("mistral").folder, "first", torch.float32)
    twins.run([twins.work(0, 0, 5)])
    first = twins.run([twins.work(0, 5)]).frames[0].buffers[0]
    copy = bytes(first)
    second = twins.run([twins.work(0, 6)]).frames[0].buffers[0]
    assert bytes(first) == copy != bytes(second)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 151, 4096])
def test_the_first_of_the_highest_is_found(count: int) -> None:
    """As numpy finds it for the general way."""
    library = build.built().library
    assert library is not None
    library.highest_float32.argtypes = [POINTER, COUNT, POINTER]
    library.highest_float32.restype = REAL
    draw = np.random.default_rng(count)
    for trial in range(50):
        row = draw.integers(-3, 4, count).astype(np.float32)
        if trial % 5 == 1:
            row[draw.integers(count)] = np.nan
        elif trial % 5 == 2:
            row[:] = -np.inf
        elif trial % 5 == 3:
            row[draw.integers(count)] = np.inf
        elif trial % 5 == 4:
            row[row == 0] = -0.0
        at = np.zeros(1, np.int64)
        highest = library.highest_float32(row.ctypes.data, count, at.ctypes.data)
        if np.isnan(row).any():
            assert np.isnan(highest)
        else:
            assert (highest, at[0]) == (row.max(), row.argmax())
