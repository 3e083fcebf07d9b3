"""The figures, on outcomes made by hand, and two results side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.serve.compare import compare_results, read_result
from bench.serve.report import parse_goodput, report
from bench.serve.run import Measured
from bench.serve.tallies import BySecond, Gaps, add_served
from bench.serve.types import BROKEN, REFUSED, SERVED, Outcome
from bench.simulator.stats import Objectives
from helix_mq.errors import ConfigError, PeerError


def outcome(
    number: int, sent_s: float, first_s: float, last_s: float, tokens: int, **more: object
) -> Outcome:
    given: dict[str, object] = {
        "kind": SERVED,
        "reason": "",
        "asked_tokens": tokens,
        "prompt_tokens": 10,
        "events": tokens,
        "due_s": sent_s,
        "ended_s": last_s,
        **more,
    }
    return Outcome(
        number=number,
        sent_s=sent_s,
        first_s=first_s,
        last_s=last_s,
        tokens=tokens,
        **given,  # type: ignore[arg-type]
    )


def measured() -> Measured:
    found = Measured(cpu_shares=[0.1])
    found.outcomes = [
        outcome(0, 0.0, 0.5, 2.5, 5),
        outcome(1, 1.0, 2.0, 3.0, 11),
        outcome(2, 1.5, 1.6, 1.6, 0, kind=REFUSED, reason="503 cluster_full"),
        outcome(3, 2.0, 2.1, 4.0, 3, kind=BROKEN, reason="cut"),
    ]
    add_served(found.gaps, found.tokens_by_s, [0.5, 1.0, 1.5, 2.0, 2.5], 5)
    add_served(found.gaps, found.tokens_by_s, [2.0 + i / 10 for i in range(11)], 11)
    return found


def test_figures_have_the_names_and_meanings_of_vllm() -> None:
    found = report(measured(), Objectives(ttft_s=0.8, tpot_s=1.0)).as_dict()
    assert found["duration"] == 4.0
    assert (found["completed"], found["failed"]) == (2, 2)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (20, 16)
    assert found["request_throughput"] == 0.5
    assert found["output_throughput"] == 4.0
    assert found["total_token_throughput"] == 9.0
    assert found["request_goodput"] == 0.25
    assert found["mean_ttft_ms"] == pytest.approx(750)
    assert found["std_ttft_ms"] == pytest.approx(250)
    assert found["p99_ttft_ms"] == pytest.approx(1000)
    assert found["median_ttft_ms"] == pytest.approx(500)
    assert found["mean_tpot_ms"] == pytest.approx((500 + 100) / 2)
    assert found["mean_itl_ms"] == pytest.approx((4 * 500 + 10 * 100) / 14)
    assert found["std_itl_ms"] == pytest.approx(180.7, abs=0.1)
    assert found["p50_itl_ms"] == pytest.approx(100, rel=0.01)
    assert found["p99_itl_ms"] == pytest.approx(500, rel=0.01)
    assert found["p90_e2el_ms"] == pytest.approx(2500)
    assert found["max_output_tokens_per_s"] == pytest.approx(12)
    assert found["max_concurrent_requests"] == 3
    ours = found["helix_mq"]
    assert isinstance(ours, dict)
    assert ours["outcomes"] == {"served": 2, "refused": 1, "late": 0, "broken": 1, "wrong": 0}
    assert ours["reasons"] == {"refused: 503 cluster_full": 1, "broken: cut": 1}
    assert ours["good_share"] == 0.25
    assert ours["running_by_s"] == [1, 3, 3, 2]
    assert json.loads(json.dumps(found)) == found


def test_no_objectives_no_goodput_and_nothing_served_no_failure() -> None:
    found = report(Measured(), None).as_dict()
    assert found["request_goodput"] is None
    assert found["mean_ttft_ms"] == 0
    assert found["request_throughput"] == 0


def test_a_load_that_was_itself_the_limit_says_so() -> None:
    assert report(measured(), None).warnings == ()
    late = measured()
    late.outcomes = [outcome(n, 0.006 + n, 1.0 + n, 2.0 + n, 5, due_s=n) for n in range(50)]
    assert [w.split(" at p99")[0] for w in report(late, None).warnings] == [
        "requests were sent 6.0 ms late"
    ]
    busy = measured()
    busy.cpu_shares = [0.2, 0.71]
    assert "71% of a core" in report(busy, None).warnings[0]
    slow = measured()
    for _ in range(10):
        slow.lag.add(0.02)
    assert "event loop" in report(slow, None).warnings[0]


def test_events_of_several_tokens_are_told_and_leave_tpot_right() -> None:
    found = Measured()
    found.outcomes = [outcome(0, 0.0, 1.0, 2.0, 21, events=6)]
    gathered = report(found, None)
    assert gathered.latencies.tpot.mean == pytest.approx(1.0 / 20)
    assert "3.50 tokens" in gathered.warnings[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(1e-6, 100), max_size=30), max_size=5))
def test_counts_of_processes_add_up_to_those_of_one(parts: list[list[float]]) -> None:
    whole, merged = Gaps(), Gaps()
    for part in parts:
        own = Gaps()
        for value in part:
            own.add(value)
            whole.add(value)
        merged.merge(own.counts())
    assert merged.histogram.counts == whole.histogram.counts
    assert merged.histogram.count == whole.histogram.count
    assert merged.histogram.largest == whole.histogram.largest
    assert merged.histogram.smallest == whole.histogram.smallest
    assert merged.deviation_s == pytest.approx(whole.deviation_s, abs=1e-4)


def test_counts_that_do_not_add_up_are_refused() -> None:
    gaps = Gaps()
    gaps.add(1.0)
    counts = gaps.counts()
    for buckets in ({-1: 1}, {10**9: 1}, {3: 2}, {3: -1, 4: 2}):
        bad = type(counts)(buckets, 1, 1.0, 1.0, 1.0, 1.0)
        with pytest.raises(PeerError):
            gaps.merge(bad)


def test_tokens_are_counted_in_the_second_of_their_event() -> None:
    by_second = BySecond()
    add_served(Gaps(), by_second, [0.2, 2.9], 6)
    assert by_second.amounts == [3.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], None),
        (["ttft:2.0"], Objectives(ttft_s=2.0)),
        (["tpot:100ms", "e2el:30s"], Objectives(tpot_s=0.1, e2e_s=30.0)),
    ],
)
def test_objectives_are_read(pairs: list[str], expected: Objectives | None) -> None:
    assert parse_goodput(pairs) == expected


@pytest.mark.parametrize("pair", ["ttft", "itl:1", "ttft:", "ttft:fast", "ttft:0", "tpot:-1ms"])
def test_objectives_that_are_none_are_told_so(pair: str) -> None:
    with pytest.raises(ConfigError, match="goodput"):
        parse_goodput([pair])
    with pytest.raises(ConfigError, match="twice"):
        parse_goodput(["ttft:1", "ttft:2"])


def test_two_results_are_compared_in_words() -> None:
    a = {"completed": 10, "output_throughput": 100.0, "mean_ttft_ms": 50.0, "p99_itl_ms": 10.0}
    b = {"completed": 10, "output_throughput": 112.0, "mean_ttft_ms": 50.2, "p99_itl_ms": 31.0}
    rows = {row.figure: row for row in compare_results(a | {"failed": 0}, b | {"failed": 2})}
    assert rows["completed"].words == "the same"
    assert rows["failed"].words == "new"
    assert rows["failed"].ratio is None
    assert rows["output_throughput"].words == "12.0% higher"
    assert rows["output_throughput"].difference == pytest.approx(12)
    assert rows["mean_ttft_ms"].words == "the same within 1%"
    assert rows["p99_itl_ms"].words == "3.1 times as slow"
    back = {row.figure: row for row in compare_results(b, a)}
    assert back["p99_itl_ms"].words == "67.7% faster"
    assert "request_goodput" not in rows


def test_what_is_no_result_is_told_so(tmp_path: Path) -> None:
    for text in ("", "[]", '{"a": 1}', "[" * 100_000):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match=r"x\.json"):
            read_result(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="No such file"):
        read_result(tmp_path / "y.json")
