"""Log probabilities from compiled code are those that the logits say, equal ones by id."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.sampling import SamplingParams
from nodes.model import sampler_odds
from nodes.model.native import build
from nodes.model.native.odds import NOT_WANTED, NOTHING, Odds, OddsOf, Told
from nodes.model.sampler_state import SamplerState

pytestmark = pytest.mark.skipif(
    not hasattr(build.built().library, "odds_float32"),
    reason=f"no compiled log probabilities: {build.built().reason}",
)


@pytest.fixture(scope="module")
def odds() -> OddsOf:
    library = build.built().library
    assert library is not None
    return OddsOf(library)


def by_definition(logits: np.ndarray, token: int, wanted: int) -> Told:
    """In float64."""
    if wanted == NOT_WANTED:
        return NOTHING
    wide = logits.astype(np.float64)
    values = wide - wide.max() - math.log(np.exp(wide - wide.max()).sum())
    best = np.argsort(-wide, kind="stable")[:wanted]
    return float(values[token]), tuple((int(n), float(values[n])) for n in best)


def close(one: Told, other: Told) -> bool:
    (a, best), (b, others) = one, other
    if a is None or b is None:
        return one == other
    pairs = [(a, b), *((x, y) for (_, x), (_, y) in zip(best, others, strict=True))]
    same = [n for n, _ in best] == [n for n, _ in others]
    return same and all(math.isclose(x, y, rel_tol=1e-6, abs_tol=3e-6) for x, y in pairs)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 100),
    wanted=st.lists(st.integers(NOT_WANTED, 20), min_size=1, max_size=5),
    spread=st.sampled_from([0.0, 0.1, 1.0, 6.0, 200.0]),
    around=st.sampled_from([0.0, 1000.0]),
    coarse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_they_are_what_the_logits_say(
    odds: OddsOf,
    width: int,
    wanted: list[int],
    spread: float,
    around: float,
    coarse: bool,
    seed: int,
) -> None:
    """`coarse`: many equal logits, some of them impossible."""
    made = np.random.default_rng(seed)
    logits = (made.normal(size=(len(wanted), width)) * spread + around).astype(np.float32)
    if coarse:
        logits = np.round(logits)
        logits[:, 1::3] = -np.inf
    tokens = made.integers(0, width, len(wanted))
    given = logits.copy()
    found = odds.told(torch.from_numpy(logits), torch.from_numpy(tokens), wanted, 2)
    assert np.array_equal(logits, given)
    for row, told in enumerate(found):
        assert close(told, by_definition(logits[row], int(tokens[row]), wanted[row])), row


@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_of_a_whole_vocabulary(odds: OddsOf, order: str) -> None:
    """The best ones last, first, anywhere."""
    logits = torch.randn(49_152, generator=torch.Generator().manual_seed(3)) * 4
    if order != "mixed":
        logits = logits.sort(descending=order == "falling").values
    (told,) = odds.told(logits[None], torch.tensor([40_000]), [20], 1)
    assert close(told, by_definition(logits.numpy(), 40_000, 20))


def test_logits_that_are_no_numbers_tell_nothing_wrong(odds: OddsOf) -> None:
    """Whoever asked has looked, or will; what is told is of the vocabulary."""
    logits = torch.randn((3, 50))
    logits[0, 7], logits[1, 8] = math.nan, math.inf
    logits[2] = -math.inf
    for told, best in odds.told(logits, torch.tensor([1, 2, 3]), [20] * 3, 1):
        assert told is not None
        assert not math.isfinite(told)
        ids = [n for n, _ in best]
        assert len(set(ids)) == 20
        assert all(0 <= n < 50 for n in ids)


def test_memory_of_rows_that_want_nothing_is_nobodys() -> None:
    assert Odds([NOT_WANTED, NOT_WANTED], 50).told() == [NOTHING] * 2
    assert Odds([0], 50).told() == [(0.0, ())]


def state(wanted: int) -> SamplerState:
    asked = wanted != NOT_WANTED
    params = SamplingParams(temperature=0.0, logprobs=asked, top_logprobs=wanted if asked else 0)
    return SamplerState(params, 1, np.zeros(0, np.int32))


def test_pytorch_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn((6, 3000), generator=torch.Generator().manual_seed(1)) * 3
    tokens, states = logits.argmax(1), [state(n) for n in (NOT_WANTED, 0, 1, 5, 20, NOT_WANTED)]
    compiled = sampler_odds.told(logits, tokens, states)
    monkeypatch.setattr(sampler_odds, "compiled_odds", lambda: None)
    plain = sampler_odds.told(logits, tokens, states)
    assert compiled is not plain
    assert all(close(one, other) for one, other in zip(compiled, plain, strict=True))
    assert [value is None for value, _ in plain] == [True, False, False, False, False, True]


def test_compiled_ones_that_differ_from_pytorchs_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = OddsOf.told

    def otherwise(self: OddsOf, *args: object) -> list[Told]:
        return [(chosen, best[1:] + best[:1]) for chosen, best in told(self, *args)]  # type: ignore[arg-type]

    monkeypatch.setattr(OddsOf, "told", otherwise)
    sampler_odds.compiled_odds.cache_clear()
    try:
        assert sampler_odds.compiled_odds() is None
    finally:
        monkeypatch.undo()
        sampler_odds.compiled_odds.cache_clear()
    assert sampler_odds.compiled_odds() is not None
