"""The prefill budget: short steps, no wasted passes, the objective kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from helix_mq.step_budget import LONGER, MIN_TOKENS, WASTE, StepProfile, prefill_tokens


def gpu(pass_s: float, token_s: float) -> StepProfile:
    """Weights read once, then compute: the usual shape on a GPU."""
    sizes = (16, 64, 100, 256, 1024)
    return StepProfile(pass_s, tuple((n, max(pass_s, n * token_s)) for n in sizes))


def test_chunks_make_a_step_somewhat_longer_than_the_weights() -> None:
    # 10 ms for the weights, 0.1 ms a token: 100 tokens cost no more than one.
    tokens = prefill_tokens(gpu(0.010, 0.0001))
    assert tokens == pytest.approx(LONGER * 100, abs=2)


def test_a_device_that_gains_little_from_batching_gets_chunks_that_use_it() -> None:
    # 1 ms for one token, 0.3 ms for each of many: five tokens would make the step long enough, but
    # cost it 0.4 ms each.
    times = tuple((n, 0.001 + 0.0003 * n) for n in (16, 32, 64, 128, 256))
    profile = StepProfile(0.0013, times)
    tokens = prefill_tokens(profile)
    assert tokens >= MIN_TOKENS
    assert profile.prefill_s(tokens) / tokens <= WASTE * times[-1][1] / 256


def test_the_objective_bounds_the_step() -> None:
    profile = gpu(0.010, 0.0001)
    assert prefill_tokens(profile, 0.012) == 120
    assert prefill_tokens(profile, 0.001) == 1, "a pass takes longer anyway; it still gets on"


@given(
    st.floats(1e-6, 1),
    st.lists(st.tuples(st.integers(1, 4096), st.floats(1e-6, 10)), min_size=1, max_size=8),
    st.one_of(st.none(), st.floats(1e-6, 10)),
)
def test_any_profile_gives_a_budget(
    pass_s: float, points: list[tuple[int, float]], objective_s: float | None
) -> None:
    prefill = tuple(sorted(dict(points).items()))
    profile = StepProfile(pass_s, prefill)
    tokens = prefill_tokens(profile, objective_s)
    assert tokens >= 1
    if objective_s is not None and tokens > 1:
        assert profile.prefill_s(tokens) <= objective_s
    for size, seconds in prefill:
        assert profile.prefill_s(size) == pytest.approx(max(pass_s, seconds))


@pytest.mark.parametrize(
    ("pass_s", "prefill"),
    [(0.0, ((1, 1.0),)), (1.0, ()), (1.0, ((2, 1.0), (1, 1.0))), (1.0, ((1, 0.0),))],
)
def test_profiles_that_say_nothing_are_refused(
    pass_s: float, prefill: tuple[tuple[float, float], ...]
) -> None:
    with pytest.raises(ConfigError, match="step profile"):
        StepProfile(pass_s, prefill)
