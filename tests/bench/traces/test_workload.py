"""Workloads by specification: what is understood, what is drawn, scaled, limited and refused."""

from __future__ import annotations

import json
import math
import statistics
import tracemalloc
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.traces.draws import Gamma, Lognormal, Poisson, Uniform
from bench.traces.spec import KINDS, parse_spec
from bench.traces.types import Arrival, Lengths
from bench.traces.workload import open_workload
from helix_mq.errors import ConfigError

SYNTHETIC = "synthetic:prompt=lognormal(6.0,1.0),output=240,rate=2.0,arrivals=poisson"
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def azure(write: Write) -> Path:
    rows = [
        f"2023-11-16 18:00:{s:02d}.0000000,{100 * (s + 1)},{10 * (s + 1)}" for s in range(0, 50, 5)
    ]
    return write("azure.csv", "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))


def test_a_synthetic_specification_is_understood() -> None:
    spec = parse_spec(SYNTHETIC)
    assert (spec.prompt, spec.rate, spec.arrivals) == (Lognormal(6.0, 1.0), 2.0, Poisson())
    assert parse_spec("synthetic:prompt=uniform(1,9),output=5").prompt == Uniform(1, 9)
    assert parse_spec("synthetic:prompt=5,output=5,arrivals=gamma(2.5)").arrivals == Gamma(2.5)


def test_commas_in_paths_belong_to_them() -> None:
    spec = parse_spec("reference:a,b/c=d.csv,rate=3,max_prompt=9")
    assert (spec.path, spec.rate, spec.max_prompt) == ("a,b/c=d.csv", 3.0, 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not begin with one of azure-conv:"),
        ("azure-conv", "does not begin with"),
        ("azure-conv:", "needs a path"),
        ("azure-conv:rate=3", "needs a path"),
        ("azure-conv:f.csv,speed=3", "has no option 'speed'; it has rate,"),
        ("azure-conv:f.csv,prompt=3", "has no option 'prompt'"),
        ("azure-conv:f.csv,rate=1,rate=2", "rate is given twice"),
        ("azure-conv:f.csv,rate=fast", "rate: 'fast' is not a finite number"),
        ("azure-conv:f.csv,rate=0", "rate=0 must be more than 0"),
        ("azure-conv:f.csv,rate=nan", "rate: 'nan'"),
        ("azure-conv:f.csv,max_prompt=1.5", "max_prompt='1.5' must be a whole number"),
        ("azure-conv:f.csv,take=0", "take='0' must be"),
        ("azure-conv:f.csv,over=grow", "over='grow' is not one of drop, cut"),
        ("azure-conv:f.csv,arrivals=often", "arrivals='often' is not poisson"),
        ("azure-conv:f.csv,arrivals=gamma(0)", r"gamma\(cv\)=0 is not in"),
        ("sharegpt:f.json,turns=some", "turns='some' is not one of first, all"),
        ("synthetic:", "synthetic needs prompt="),
        ("synthetic:prompt=3", "synthetic needs output="),
        ("synthetic:prompt=normal(3),output=1", r"prompt='normal\(3\)' is not a number or one of"),
        ("synthetic:prompt=lognormal(3),output=1", "lognormal takes 2 numbers, not 1"),
        ("synthetic:prompt=lognormal(99,1),output=1", r"lognormal\(mu, …\)=99 is not in 0..16"),
        ("synthetic:prompt=uniform(9,3),output=1", r"uniform\(…, most\)=3"),
        ("synthetic:prompt=0,output=1", r"fixed\(tokens\)=0"),
        ("synthetic:prompt=1,output=fixed(x)", "output: 'x' is not a finite number"),
        ("synthetic:" + "x" * 5000, "a specification of 5010 characters"),
    ],
)
def test_bad_specifications_name_the_option(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_workload(text)
    assert caught.value.param == "workload"


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from([*KINDS, "other"]),
    rest=st.text("abcdefgmnoprtuxy_=,.()0123456789-+ \n", max_size=60),
)
def test_any_specification_is_read_or_refused(kind: str, rest: str) -> None:
    try:
        parse_spec(f"{kind}:{rest}")
    except ConfigError as e:
        assert str(e).startswith("workload: ")


def test_the_same_seed_draws_the_same_requests_and_another_seed_others() -> None:
    def first(seed: int) -> list[Arrival]:
        return list(islice(open_workload(SYNTHETIC, seed).arrivals(), 50))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_the_rate_does_not_change_the_requests() -> None:
    slow = open_workload(SYNTHETIC).arrivals()
    fast = open_workload(SYNTHETIC.replace("rate=2.0", "rate=9.0")).arrivals()
    for a, b in islice(zip(slow, fast, strict=False), 50):
        assert a.lengths == b.lengths
        assert a.at_s == pytest.approx(b.at_s * 4.5)


def test_drawn_lengths_have_the_stated_distribution() -> None:
    drawn = list(islice(open_workload(SYNTHETIC).lengths(), 20_000))
    logs = [math.log(lengths.prompt_tokens) for lengths in drawn]
    assert statistics.fmean(logs) == pytest.approx(6.0, abs=0.03)
    assert statistics.stdev(logs) == pytest.approx(1.0, abs=0.02)
    assert {lengths.output_tokens for lengths in drawn} == {240}
    other = open_workload("synthetic:prompt=uniform(3,5),output=exponential(100)")
    drawn = list(islice(other.lengths(), 20_000))
    assert {lengths.prompt_tokens for lengths in drawn} == {3, 4, 5}
    assert statistics.fmean(x.output_tokens for x in drawn) == pytest.approx(100, rel=0.03)


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [("poisson", 1.0), ("gamma(3)", 3.0), ("gamma(0.5)", 0.5), ("constant", 0.0)],
)
def test_arrivals_have_the_stated_rate_and_burstiness(arrivals: str, cv: float) -> None:
    source = open_workload(f"synthetic:prompt=1,output=1,rate=4,arrivals={arrivals}")
    times = [arrival.at_s for arrival in islice(source.arrivals(), 20_000)]
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= 0
    assert len(times) / times[-1] == pytest.approx(4.0, rel=0.06)
    assert statistics.pstdev(gaps) * 4 == pytest.approx(cv, rel=0.1, abs=1e-9)


def test_arrivals_by_bins_keep_the_bursts_and_have_the_rate(write: Write) -> None:
    path = write("bins.csv", "requests_in_3s_bin\n8\n0\n0\n0\n")
    source = open_workload(f"synthetic:prompt=1,output=1,rate=4,arrivals=bins({path})")
    times = [arrival.at_s for arrival in islice(source.arrivals(), 80)]
    assert times == sorted(times)
    # 8 requests in 4 bins at 4 requests/s: a bin lasts half a second, and every fourth is full.
    assert {int(at / 0.5) % 4 for at in times} == {0}
    assert times[-1] < 80 / 4
    empty = write("empty.csv", "requests_in_3s_bin\n0\n")
    with pytest.raises(ConfigError, match="no arrivals in any bin"):
        open_workload(f"synthetic:prompt=1,output=1,rate=4,arrivals=bins({empty})").arrivals()


def test_a_trace_keeps_its_times_or_is_stretched_to_a_rate(azure: Path) -> None:
    plain = list(open_workload(f"azure-conv:{azure}").arrivals())
    assert [a.at_s for a in plain] == [float(s) for s in range(0, 50, 5)]
    fast = list(open_workload(f"azure-conv:{azure},rate=2").arrivals())
    assert len(fast) / fast[-1].at_s == pytest.approx(2.0)
    assert [a.lengths for a in fast] == [a.lengths for a in plain]
    ratio = plain[-1].at_s / fast[-1].at_s
    assert [a.at_s * ratio for a in fast] == pytest.approx([a.at_s for a in plain])


def test_lengths_of_a_trace_begin_again_at_its_end(azure: Path) -> None:
    source = open_workload(f"azure-code:{azure}")
    drawn = list(islice(source.lengths(), 25))
    assert drawn[:10] == drawn[10:20]
    assert len(list(open_workload(f"azure:{azure},take=13").lengths())) == 13
    assert len(list(open_workload(f"azure:{azure},take=3").arrivals())) == 3
    assert source.shape().requests == 10
    assert source.shape().prompt_tokens == pytest.approx(2350)


def test_limits_drop_or_cut(azure: Path) -> None:
    limits = f"azure-conv:{azure},max_prompt=2000,max_output=150"
    dropped = list(open_workload(limits).arrivals())
    assert [a.lengths.prompt_tokens for a in dropped] == [100, 600, 1100]
    cut = list(open_workload(f"{limits},over=cut").arrivals())
    assert len(cut) == 10
    assert cut[-1].lengths == Lengths(2000, 150)
    # The rate is that of the requests that are left.
    scaled = list(open_workload(f"{limits},rate=6").arrivals())
    assert scaled[-1].at_s == pytest.approx(0.5)


def test_limits_that_leave_nothing_are_an_error_and_not_a_search_without_end(azure: Path) -> None:
    for text in (f"azure-conv:{azure}", "synthetic:prompt=5,output=7"):
        source = open_workload(f"{text},max_output=6")
        for read in (source.lengths, source.shape):
            with pytest.raises(ConfigError, match="no request is within max_prompt"):
                list(read())  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="no request is within"):
        list(open_workload(f"azure-conv:{azure},max_output=6").arrivals())


def test_untimed_workloads_need_a_rate_for_arrivals(write: Write) -> None:
    path = write("lengths.csv", "input_tokens,output_tokens\n5,6\n7,8\n")
    with pytest.raises(ConfigError, match="needs rate="):
        open_workload(f"reference:{path}").arrivals()
    source = open_workload(f"reference:{path},rate=10")
    assert not source.timed
    drawn = list(islice(source.arrivals(), 5))
    assert [a.lengths.prompt_tokens for a in drawn] == [5, 7, 5, 7, 5]
    assert drawn == list(islice(source.arrivals(), 5))


def test_timed_workloads_can_be_given_drawn_arrivals(azure: Path) -> None:
    source = open_workload(f"azure-conv:{azure},rate=1,arrivals=constant")
    assert [a.at_s for a in islice(source.arrivals(), 12)] == [float(n) for n in range(1, 13)]


def test_a_trace_at_one_instant_cannot_be_stretched(write: Write) -> None:
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,5,5\n"
    with pytest.raises(ConfigError, match="needs a trace that lasts"):
        list(open_workload(f"azure:{write('one.csv', rows)},rate=2").arrivals())


def test_sharegpt_with_a_tokenizer_or_characters(write: Write) -> None:
    turns = [{"from": "human", "value": "a b c d"}, {"from": "gpt", "value": "e f"}]
    path = write("s.json", json.dumps([{"conversations": turns}]))
    assert next(open_workload(f"sharegpt:{path},chars_per_token=2").lengths()) == Lengths(4, 2)
    words = open_workload(f"sharegpt:{path}", count_tokens=lambda text: len(text.split()))
    assert next(words.lengths()) == Lengths(4, 2)


def test_memory_does_not_grow_with_the_trace(write: Write) -> None:
    path = write("long.csv", "input_tokens,output_tokens\n" + "500,250\n" * 40_000)
    source = open_workload(f"reference:{path}")
    tracemalloc.start()
    total = sum(lengths.output_tokens for lengths in islice(source.lengths(), 40_000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 10_000_000
    assert peak_bytes < 200_000


def test_published_files(request: pytest.FixtureRequest) -> None:
    folder = request.config.rootpath.parent / "shared" / "reference" / "traces"
    if not folder.is_dir():
        pytest.skip("the published data are not there")
    conv = open_workload(f"reference:{folder / 'trace_lengths_azure_conv.csv'}").shape()
    assert (conv.requests, conv.prompt_tokens) == (16657, pytest.approx(763.0784655))
    assert conv.output_tokens == pytest.approx(232.4492996)
    online = list(open_workload(f"reference:{folder / 'trace_online_seed0_700.csv'}").arrivals())
    assert len(online) == 1293
