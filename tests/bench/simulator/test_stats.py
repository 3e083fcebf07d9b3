"""Reports: figures worked out by hand, Little's law, goodput, JSON and text."""

from __future__ import annotations

import json
import random

import pytest

from bench.simulator.records import Recorder
from bench.simulator.stats import Objectives, Report, report
from bench.simulator.stats_spread import of_values
from bench.simulator.stats_text import aligned, seconds
from helix_mq.errors import ConfigError


@pytest.fixture
def small() -> Recorder:
    """Two requests of a warmed-up window of 10 s: one good, one refused; one still open."""
    recorder = Recorder(warmup_s=10, duration_s=10, bins=10)
    recorder.on_waiting(0.0, 0, 2)
    recorder.on_arrival("a", 10.0, 100, 5)
    recorder.on_arrival("b", 10.0, 40, 5)
    recorder.on_end("b", 11.0, False, "queue_full")
    for at_s in (12.0, 12.5, 13.5, 13.6, 14.0):
        recorder.on_token("a", at_s, 1)
    recorder.on_end("a", 14.0, True, "length")
    recorder.on_waiting(15.0, 3, 1)
    recorder.on_arrival("c", 16.0, 10, 5)
    recorder.on_step("n1", 10.0, 12.0, 1, 100, 4)
    recorder.on_step("n1", 12.0, 12.5, 3, 0, 4)
    recorder.on_step("n2", 12.5, 13.5, 1, 0, 4)
    recorder.on_link("n1", "n2", 12.0, 12.5, 5_000_000)
    recorder.on_kv(12.0, "n1", 25, 100)
    recorder.on_queue(10.0, "n1", 2)
    recorder.on_queue(12.0, "n1", 0)
    return recorder


def test_figures_by_hand(small: Recorder) -> None:
    found = report(small, Objectives(ttft_s=2.0, tpot_s=0.5))
    assert (found.arrived, found.finished, found.failed, found.unfinished) == (3, 1, 1, 1)
    assert found.reasons == {"length": 1, "queue_full": 1}
    assert found.decode_tokens_per_s == pytest.approx(0.4)
    assert found.output_tokens_per_s == pytest.approx(0.5)
    assert found.prompt_tokens_per_s == pytest.approx(10.0)
    assert found.total_tokens_per_s == pytest.approx(10.5)
    assert (found.ttft.p50, found.tpot.p50, found.e2e.p50) == (2.0, 0.5, 4.0)
    assert found.itl.count == 4
    assert found.itl.p50 == pytest.approx(0.4, rel=0.01)
    assert found.itl.mean == pytest.approx(0.5)
    assert found.running.mean == pytest.approx(1.5)
    assert (found.waiting.mean, found.waiting.peak) == (1.5, 3)
    assert found.goodput is not None
    assert (found.goodput.requests_per_s, found.goodput.share) == (0.1, 0.5)
    first, second = found.nodes
    assert (first.utilisation, first.prefill_share, second.utilisation) == (0.25, 0.2, 0.1)
    assert (first.decode_batch, first.convoy_batch) == (2.0, 2.5)
    # One row for 2 s beside a prompt, three rows for half a second without.
    assert first.behind_prompts == pytest.approx(2 / 3.5)
    assert (first.kv_mean, first.queue_rows, second.queue_rows) == (0.25, 0.4, None)
    assert found.batches.convoy_batch == pytest.approx(11 / 5)
    assert found.batches.convoy_share == pytest.approx(11 / 5 / 1.5)
    (link,) = found.links
    assert (link.utilisation, link.bytes_per_s) == (0.05, 5e5)
    assert found.timeline.output_tokens_per_s[2:5] == (2.0, 2.0, 1.0)
    assert found.timeline.utilisation["n1"][:4] == (1.0, 1.0, 0.5, 0.0)


def test_percentiles_are_nearest_rank() -> None:
    spread = of_values(range(1, 101))
    assert [spread.p5, spread.p25, spread.p50, spread.p99, spread.max] == [5, 25, 50, 99, 100]
    assert spread.mean == 50.5
    assert (spread.curve[0], spread.curve[100], spread.curve[-1]) == (1, 50, 100)
    assert of_values([7.0]).p5 == 7.0
    assert of_values([]).count == 0


@pytest.mark.parametrize("field", ["ttft_s", "tpot_s", "e2e_s"])
def test_each_objective_counts(small: Recorder, field: str) -> None:
    limits = {"ttft_s": 2.0, "tpot_s": 0.5, "e2e_s": 4.0}
    for factor, share in ((1.0, 0.5), (0.999, 0.0)):
        objectives = Objectives(**{field: limits[field] * factor})
        good = report(small, objectives).goodput
        assert good is not None
        assert good.share == share
    with pytest.raises(ConfigError, match=field):
        Objectives(**{field: 0.0})


def test_little_s_law() -> None:
    """Requests in the system = arrivals per second × mean time in it, over a long steady run."""
    recorder, rng = Recorder(warmup_s=100, duration_s=10_000), random.Random(1)
    events: list[tuple[float, int, str]] = []
    at_s = 0.0
    for number in range(21_000):
        at_s += rng.expovariate(2.0)
        events += [(at_s, 0, str(number)), (at_s + rng.expovariate(0.2), 1, str(number))]
    for when_s, kind, name in sorted(events):
        if kind == 0:
            recorder.on_arrival(name, when_s, 1, 1)
        else:
            recorder.on_token(name, when_s, 1)
            recorder.on_end(name, when_s, True, "length")
    found = report(recorder)
    assert found.in_system.mean == pytest.approx(found.requests_per_s * found.e2e.mean, rel=0.01)
    assert found.in_system.mean == pytest.approx(10.0, rel=0.05)


def test_json_has_the_field_s_names_and_no_numbers_json_lacks(small: Recorder) -> None:
    text = json.dumps(report(small).as_dict(), allow_nan=False)
    read = json.loads(text)
    assert set(read["ttft_s"]) == {
        "count", "mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "max"
    }  # fmt: skip
    assert {"tpot_s", "itl_s", "e2e_s", "goodput", "nodes", "links", "timeline"} <= set(read)
    assert read["goodput"] is None
    assert "timeline" not in report(small).as_dict(timeline=False)


def test_a_run_without_anything_is_reported() -> None:
    for recorder in (Recorder(5, 0), Recorder(5, 10)):
        found = report(recorder, Objectives(ttft_s=1.0))
        assert (found.total_tokens_per_s, found.ttft.count, found.nodes) == (0.0, 0, ())
        assert "0 finished" in found.describe()
        json.dumps(found.as_dict(), allow_nan=False)


def test_the_text_says_what_happened(small: Recorder) -> None:
    text = report(small, Objectives(ttft_s=2.0)).describe()
    for said in (
        "0.4 tokens/s",
        "queue_full 1",
        "n1 → n2",
        "TTFT",
        "25%",
        "goodput",
        "open at the end",
    ):
        assert said in text, said
    assert max(map(len, text.splitlines())) <= 110


def test_many_nodes_are_shortened() -> None:
    recorder = Recorder(0, 10)
    for number in range(40):
        recorder.on_step(f"n{number:02d}", 0.0, number / 8, 1, 0, 1)
    lines = report(recorder).describe().splitlines()
    assert any(line.startswith("n39") for line in lines)
    assert any("28 between" in line for line in lines)
    assert any(line.startswith("mean of 40 nodes") for line in lines)


def test_the_order_of_nodes_and_links_does_not_show() -> None:
    def run(order: list[int]) -> Report:
        recorder = Recorder(0, 10)
        for number in order:
            recorder.on_step(f"n{number}", 0.0, 0.1 * number, number, 3, 1)
            recorder.on_link(f"n{number}", "m", 0.0, 0.1 * number, number)
        return report(recorder)

    assert run([1, 2, 3, 4]) == run([4, 2, 1, 3])


def test_seconds_and_alignment() -> None:
    assert [seconds(v) for v in (0, 3.2e-5, 0.00123, 0.5, 1.234, 250.4)] == [
        "0 ms", "32 µs", "1.23 ms", "500 ms", "1.23 s", "250 s"
    ]  # fmt: skip
    assert aligned([("a", "b"), ("cc", "ddd")]) == ["a     b", "cc  ddd"]
