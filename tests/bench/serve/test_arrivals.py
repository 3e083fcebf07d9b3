"""When requests are due: ramps, parts, limits."""

from __future__ import annotations

from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.serve.arrivals import own_part, own_places, parse_ramp, ramp_times_s, whole_load
from bench.serve.options import Ways, limits, parse_extra
from bench.serve.prompts import Prompts
from bench.serve.types import Arrivals, Closed, HttpTarget, Job, Own, Ramp, Rate
from bench.traces.workload import open_workload
from helix_mq.errors import ConfigError

LENGTHS = "synthetic:prompt=uniform(1,90),output=exponential(20)"


def job(arrivals: Arrivals, **more: object) -> Job:
    given: dict[str, object] = {
        "target": HttpTarget("http://127.0.0.1:1/v1", "m"),
        "workload": LENGTHS,
        "arrivals": arrivals,
        "seed": 3,
        "requests": None,
        "seconds": None,
        "warmup": 0,
        "deadline_s": 1.0,
        **more,
    }
    return Job(**given)  # type: ignore[arg-type]


def test_a_ramp_has_as_many_arrivals_as_the_area_under_its_rate() -> None:
    ramp = Ramp(10.0, 50.0, 100.0)
    first = list(takewhile(lambda t: t < 25, ramp_times_s(ramp, 1)))
    rising = list(takewhile(lambda t: t < 100, ramp_times_s(ramp, 1)))
    after = [t for t in takewhile(lambda t: t < 150, ramp_times_s(ramp, 1)) if t >= 100]
    # Means 375, 3000 and 2500; four deviations of a Poisson count.
    assert abs(len(first) - 375) < 4 * 375**0.5
    assert abs(len(rising) - 3000) < 4 * 3000**0.5
    assert abs(len(after) - 2500) < 4 * 2500**0.5
    assert rising == sorted(rising)


def test_a_flat_ramp_is_a_poisson_process_and_a_falling_one_ends_at_its_lower_rate() -> None:
    flat = list(islice(ramp_times_s(Ramp(20.0, 20.0, 50.0), 2), 4000))
    assert flat[-1] == pytest.approx(200, rel=0.1)
    falling = list(takewhile(lambda t: t < 200, ramp_times_s(Ramp(40.0, 1.0, 20.0), 2)))
    late = [t for t in falling if t >= 20]
    assert abs(len(falling) - len(late) - 410) < 4 * 410**0.5
    assert abs(len(late) - 180) < 4 * 180**0.5


@given(st.floats(0, 100), st.floats(0.1, 100), st.floats(0.1, 1000), st.integers(0, 1000))
def test_times_of_any_ramp_ascend(low: float, high: float, seconds: float, seed: int) -> None:
    times = list(islice(ramp_times_s(Ramp(low, high, seconds), seed), 50))
    assert all(a <= b for a, b in pairwise(times))
    assert times[0] > 0


@pytest.mark.parametrize(
    "text", ["", "1:2", "1:2:3:4", "a:2:3", "1:0:3", "-1:2:3", "1:2:0", "1:nan:3"]
)
def test_a_ramp_that_is_none_is_told_so(text: str) -> None:
    with pytest.raises(ConfigError, match="ramp"):
        parse_ramp(text)


@pytest.mark.parametrize("arrivals", [Closed(7), Rate(12.0), Ramp(1.0, 9.0, 20.0)])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_processes_share_one_load_and_change_nothing_of_it(arrivals: Arrivals, parts: int) -> None:
    source = open_workload(LENGTHS, 3)
    whole = list(whole_load(job(arrivals, requests=101), source))
    assert [due.number for due in whole] == list(range(101))
    shared = [
        due
        for part in range(parts)
        for due in own_part(job(arrivals, requests=101, part=part, parts=parts), source)
    ]
    assert sorted(shared, key=lambda due: due.number) == whole


def test_a_load_ends_where_its_seconds_do() -> None:
    whole = list(whole_load(job(Rate(50.0), seconds=4.0), open_workload(LENGTHS, 3)))
    times = [due.at_s for due in whole if due.at_s is not None]
    assert len(times) == len(whole)
    assert max(times) < 4.0
    assert abs(len(times) - 200) < 60


@given(st.integers(1, 500), st.integers(1, 20))
def test_places_are_shared_out_whole(at_once: int, parts: int) -> None:
    shares = [own_places(at_once, part, parts) for part in range(parts)]
    assert sum(shares) == at_once
    assert max(shares) - min(shares) <= 1


def test_ways_to_arrive_exclude_each_other() -> None:
    assert Ways().arrivals() == Closed(8)
    assert Ways(rate=2.5).arrivals() == Rate(2.5)
    assert Ways(trace=True).arrivals() == Own()
    assert Ways(ramp="1:2:3").arrivals() == Ramp(1, 2, 3)
    with pytest.raises(ConfigError, match="--concurrency and --rate"):
        Ways(concurrency=3, rate=1.0).arrivals()
    with pytest.raises(ConfigError, match="rate=0"):
        Ways(rate=0.0).arrivals()


def test_where_a_run_ends_without_a_word() -> None:
    assert limits(Closed(3), LENGTHS, None, None) == (100, None)
    assert limits(Closed(3), LENGTHS, None, 9.0) == (None, 9.0)
    assert limits(Ramp(1, 2, 30), LENGTHS, None, None) == (None, 30)
    assert limits(Own(), "azure:trace.csv", None, None) == (None, None)
    assert limits(Own(), f"{LENGTHS},rate=2", None, None) == (100, None)
    with pytest.raises(ConfigError, match="no times of its own"):
        limits(Own(), LENGTHS, 5, None)


def test_extra_fields_are_json() -> None:
    assert bytes(parse_extra(['stop=["x"]'])["stop"]) == b'["x"]'
    for bad in ("top_p", "=1", "top_p=zero"):
        with pytest.raises(ConfigError, match="FIELD=JSON"):
            parse_extra([bad])


def test_prompts_differ_by_number_and_seed_and_repeat_themselves() -> None:
    prompts = Prompts(1)
    assert len(prompts.text(4, 30).split()) == 30
    assert prompts.text(4, 30) == Prompts(1).text(4, 30)
    assert len({prompts.text(n, 30) for n in range(50)}) == 50
    assert prompts.text(4, 30) != Prompts(2).text(4, 30)
