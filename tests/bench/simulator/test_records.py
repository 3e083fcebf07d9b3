"""The recorder: what counts inside its window, histograms within 1%, time integrals, memory."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulator.records import Recorder
from bench.simulator.records_tallies import SMALLEST_S, Histogram, Series, Window
from helix_mq.errors import ConfigError


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(1e-7, 9e5), min_size=1, max_size=200),
    share=st.floats(0, 1),
)
def test_histogram_quantiles_are_within_one_percent(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.01)
    assert (histogram.count, histogram.largest) == (len(values), max(values))
    assert histogram.total == pytest.approx(sum(values))


def test_histogram_takes_what_is_outside_its_buckets() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0.0
    histogram.add(0.0, 3)
    histogram.add(1e9)
    assert histogram.count == 4
    assert histogram.quantile(0.5) <= SMALLEST_S * 1.02
    assert histogram.quantile(1.0) == 1e9


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), max_size=40),
    bins=st.integers(1, 13),
)
def test_series_integrates_what_is_held_inside_the_window(
    steps: list[tuple[float, int]], bins: int
) -> None:
    window = Window(3.0, 17.0, bins)
    series = Series(window)
    at_s, held, expected = 0.0, 0, 0.0
    edges: list[tuple[float, float, int]] = []
    for gap_s, value in steps:
        edges.append((at_s, at_s + gap_s, held))
        at_s, held = at_s + gap_s, value
        series.set(at_s, value)
    edges.append((at_s, 1e9, held))
    series.close()
    series.close()
    per_bin = [0.0] * bins
    for start_s, end_s, value in edges:
        for index in range(bins):
            first = 3.0 + index * window.bin_s
            inside_s = min(end_s, first + window.bin_s) - max(start_s, first)
            per_bin[index] += max(0.0, inside_s) * value
    expected = sum(per_bin)
    assert series.integral == pytest.approx(expected, abs=1e-9)
    assert series.by_bin == pytest.approx(per_bin, abs=1e-9)


@pytest.mark.parametrize(
    ("warmup_s", "duration_s", "bins", "name"),
    [
        (-1, 5, 5, "warmup_s"),
        (0, math.inf, 5, "duration_s"),
        (0, -1, 5, "duration_s"),
        (0, 5, 0, "bins"),
    ],
)
def test_impossible_windows_are_refused(
    warmup_s: float, duration_s: float, bins: int, name: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Recorder(warmup_s, duration_s, bins)
    assert caught.value.param == name


def test_only_what_happens_inside_the_window_counts() -> None:
    recorder = Recorder(warmup_s=10, duration_s=10, bins=10)
    recorder.on_arrival("early", 1.0, 100, 3)
    recorder.on_token("early", 9.0, 1)
    recorder.on_arrival("inside", 9.5, 50, 2)
    recorder.on_token("early", 10.0, 1)
    recorder.on_token("early", 10.5, 1)
    recorder.on_end("early", 10.5, True, "length")
    recorder.on_token("inside", 11.0, 1)
    recorder.on_arrival("late", 19.0, 70, 2)
    recorder.on_token("inside", 20.0, 1)
    recorder.on_end("inside", 20.0, True, "length")
    recorder.on_token("late", 20.5, 1)
    # "early" had its first token before the window, "inside" its end after it.
    assert [r.request for r in recorder.records] == ["early"]
    assert recorder.ttft == [1.5]
    assert (recorder.tokens, recorder.first_tokens, recorder.prompt_tokens) == (3, 1, 50)
    assert recorder.gaps.count == 2
    assert recorder.gaps.total == pytest.approx(1.5)
    assert (recorder.arrived, recorder.unfinished) == (1, 1)
    record = recorder.records[0]
    assert (record.ttft_s, record.tpot_s, record.e2e_s) == (8.0, 0.75, 9.5)
    recorder.close()
    # In the system: 2 requests to 10.5, 1 to 19, 2 to the end.
    assert recorder.in_system.integral == pytest.approx(2 * 0.5 + 8.5 + 2)


def test_tokens_that_come_together_share_the_gap() -> None:
    recorder = Recorder(0, 10)
    recorder.on_arrival("r", 0.0, 5, 4)
    recorder.on_token("r", 1.0, 1)
    recorder.on_token("r", 2.5, 3)
    assert (recorder.gaps.count, recorder.gaps.largest) == (3, 0.5)
    assert recorder.tokens == 4


def test_steps_and_frames_are_clipped_at_the_edges() -> None:
    recorder = Recorder(warmup_s=10, duration_s=10, bins=5)
    recorder.on_step("n", 9.0, 11.0, 4, 0, 8)
    recorder.on_step("n", 12.0, 15.0, 2, 6, 8)
    recorder.on_step("n", 19.0, 23.0, 3, 0, 8)
    recorder.on_step("n", 23.0, 24.0, 3, 0, 8)
    tally = recorder.nodes["n"]
    assert tally.busy.integral == pytest.approx(1 + 3 + 1)
    assert tally.busy.by_bin == pytest.approx([1, 2, 1, 0, 1])
    assert (tally.steps, tally.decode_rows, tally.prefill_tokens) == (2, 5, 6)
    assert (tally.mixed_row_s, tally.decode_row_s) == (6.0, 18.0)
    recorder.on_link("a", "b", 9.5, 10.5, 100)
    recorder.on_link("a", "b", 19.5, 21.0, 1000)
    recorder.on_link("a", "b", 1.0, 2.0, 7)
    link = recorder.links["a", "b"]
    assert (link.busy_s, link.frames, link.sent_bytes) == (1.0, 1, 100)


def test_pages_by_node_and_by_bin() -> None:
    recorder = Recorder(warmup_s=0, duration_s=10, bins=2)
    recorder.on_kv(1.0, "a", 5, 10)
    recorder.on_kv(1.0, "b", 30, 40)
    recorder.on_kv(6.0, "a", 10, 10)
    recorder.on_kv(11.0, "a", 0, 10)
    assert recorder.kv_used_by_bin == [35, 10]
    assert recorder.kv_total_by_bin == [50, 10]
    assert recorder.kv_peak_by_bin == [0.75, 1.0]
    assert (recorder.kv["a"].total, recorder.kv["a"].peak, recorder.kv["a"].samples) == (1.5, 1, 2)


def test_an_empty_window_takes_every_call() -> None:
    recorder = Recorder(warmup_s=5, duration_s=0)
    recorder.on_arrival("r", 5.0, 1, 1)
    recorder.on_token("r", 5.0, 1)
    recorder.on_end("r", 5.0, True, "length")
    recorder.on_step("n", 5.0, 6.0, 1, 0, 1)
    recorder.on_waiting(5.0, 1, 1)
    recorder.close()
    assert (recorder.tokens, recorder.records, recorder.nodes["n"].steps) == (0, [], 0)


def test_memory_does_not_grow_with_tokens_and_steps() -> None:
    recorder = Recorder(0, 1e6)
    rng = random.Random(0)
    recorder.on_arrival("r", 0.0, 10, 10**9)

    def run(rounds: int) -> None:
        for _ in range(rounds):
            at_s = rng.random()
            recorder.on_token("r", at_s, 1)
            recorder.on_step("n", at_s, at_s + 0.01, 3, 100, 8)
            recorder.on_link("n", "m", at_s, at_s + 0.01, 1000)
            recorder.on_kv(at_s, "n", 3, 10)
            recorder.on_waiting(at_s, 3, 10)

    run(100)
    tracemalloc.start()
    run(20_000)
    grown_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown_bytes < 20_000


def test_waiting_for_prompts_counts_inside_the_window() -> None:
    recorder = Recorder(warmup_s=10.0, duration_s=10.0)
    for at_s, waiting_s in ((9.0, 5.0), (10.0, 1.0), (19.0, 2.0), (20.0, 5.0)):
        recorder.on_behind(at_s, waiting_s)
    assert recorder.behind_s == 3.0
