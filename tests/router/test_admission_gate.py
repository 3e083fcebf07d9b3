"""Who is refused, with which error, and when they are told to come back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import ClusterFull, QueueFull
from helix_mq.ids import RequestId
from router.admission import BACKGROUND, INTERACTIVE, WaitingQueue
from router.admission_gate import AdmissionGate, AdmissionSettings, Load, Wish
from router.admission_lines import Waiting
from router.admission_pace import KNOWN_S, LinePaces
from router.admission_rate import HALF_LIFE_S, FlowMeter

FLOW = 100.0
LOAD = Load(FLOW, running=3, running_tokens=250)
WISH = Wish("ada", INTERACTIVE, cost_tokens=10, deadline_s=600.0)


def busy_meter(share: float = 1.0, seconds: int = 60) -> FlowMeter:
    """Saturated for so long, passing `share` of the flow, a request of 10 tokens at a time."""
    meter = FlowMeter(0.0)
    meter.at(0.0, FLOW, saturated=True)
    for second in range(seconds):
        for _ in range(10):
            meter.served(share * FLOW / 10)
            meter.mark()
        meter.at(second + 1.0, FLOW, saturated=True)
    return meter


def gate(
    waiting: dict[str, int],
    settings: AdmissionSettings | None = None,
    most: int = 100,
    meter: FlowMeter | None = None,
    paces: LinePaces | None = None,
) -> AdmissionGate:
    """So many requests of each owner wait, of 10 tokens each."""
    queue = WaitingQueue()
    request = 0
    for owner, count in waiting.items():
        for _ in range(count):
            request += 1
            queue.push(Waiting(RequestId(request), owner, INTERACTIVE, float(request), 10))
    return AdmissionGate(
        settings or AdmissionSettings(), most, queue, meter or busy_meter(), paces or LinePaces()
    )


def test_one_key_may_take_its_share_of_the_queue_and_no_more() -> None:
    gate({"ada": 49}).check(WISH, LOAD)
    full = gate({"ada": 50})
    with pytest.raises(QueueFull, match=r"50 requests of key ada .* 50 of 100") as caught:
        full.check(WISH, LOAD)
    assert caught.value.http_status == 429
    assert caught.value.retry_after_s == pytest.approx(2.5, rel=0.1), "half of 500 tokens at 100/s"
    full.check(dataclasses.replace(WISH, owner="bob"), LOAD)


def test_without_keys_the_queue_is_everybodys() -> None:
    gate({"": 99}).check(dataclasses.replace(WISH, owner=""), LOAD)
    with pytest.raises(ClusterFull, match="100 requests are waiting already with 1000 tokens"):
        gate({"": 100}).check(dataclasses.replace(WISH, owner=""), LOAD)


def test_a_full_queue_is_the_clusters_doing() -> None:
    full = gate({"bob": 50, "cy": 50})
    with pytest.raises(ClusterFull, match="no more may; try again in 6 s") as caught:
        full.check(WISH, LOAD)
    assert (caught.value.http_status, caught.value.code) == (503, "cluster_full")
    assert "behind 3 running with 250" in str(caught.value)
    assert "max flow of 100" in str(caught.value)


def test_retry_after_follows_the_flow_at_once_and_what_it_really_passes() -> None:
    def retry_s(meter: FlowMeter, flow: float) -> float:
        with pytest.raises(ClusterFull) as caught:
            gate({"bob": 50, "cy": 50}, meter=meter).check(WISH, Load(flow, 3, 250))
        assert caught.value.retry_after_s is not None
        return caught.value.retry_after_s

    assert retry_s(FlowMeter(0.0), FLOW) == pytest.approx(5.0), "the flow, while nothing is known"
    assert retry_s(busy_meter(0.25), FLOW) == pytest.approx(20.0, rel=0.15)
    assert retry_s(busy_meter(1.0), FLOW / 2) == pytest.approx(10.0, rel=0.05)
    assert retry_s(busy_meter(1.0), 0.0) == 5.0, "no flow: nobody knows"
    assert retry_s(busy_meter(1.0), 1.0) == 60.0
    assert retry_s(busy_meter(1.0), 1e6) == 1.0


def test_interactive_requests_that_would_wait_too_long_are_refused() -> None:
    settings = AdmissionSettings(max_wait_s=4.0)
    # 40 of her own and 40 of bob's, 10 tokens each at 100/s: 8 s.
    two = {"ada": 40, "bob": 40}
    with pytest.raises(ClusterFull, match=r"wait for about 8 s, and max_wait_s .* 4 s") as caught:
        gate(two, settings).check(WISH, LOAD)
    assert caught.value.retry_after_s == pytest.approx(4.0, rel=0.1)
    gate(two, settings).check(dataclasses.replace(WISH, owner="cy"), LOAD)
    gate(two, settings).check(dataclasses.replace(WISH, priority=BACKGROUND), LOAD)
    gate(two).check(WISH, LOAD)


def test_a_line_that_is_served_slower_than_its_share_is_believed() -> None:
    """Others come again and again before it, and none of them waits when a request is judged."""
    paces, line = LinePaces(), ("ada", INTERACTIVE)
    paces.waits(line, 0.0)
    for second in range(1, 31):
        paces.took(line, 20, float(second))
    settings = AdmissionSettings(max_wait_s=9.0)
    # 20 requests of 10 tokens: 2 s at the cluster's 100/s, 10 s at the 20/s it was given.
    late = dataclasses.replace(LOAD, now_s=30.0)
    with pytest.raises(ClusterFull, match="wait for about 10 s"):
        gate({"ada": 20}, settings, paces=paces).check(WISH, late)
    gate({"ada": 20}, settings).check(WISH, late)
    background = dataclasses.replace(WISH, priority=BACKGROUND)
    gate({"ada": 20}, settings, paces=paces).check(background, late)


def test_a_line_that_has_stood_for_a_moment_refuses_nobody() -> None:
    """Who asks before its text is tokenised says a cost of one token, and nothing of the line has
    started: it does not wait for as many times that moment as the line has tokens."""
    paces, settings = LinePaces(), AdmissionSettings(max_wait_s=4.0)
    paces.waits(("ada", INTERACTIVE), 0.0)
    asking = dataclasses.replace(WISH, cost_tokens=1)
    soon = dataclasses.replace(LOAD, now_s=2 * KNOWN_S)
    assert gate({"ada": 1}, settings, paces=paces).wait_s(asking, soon) == pytest.approx(1.0)
    gate({"ada": 1}, settings, paces=paces).check(asking, soon)
    with pytest.raises(ClusterFull, match=r"10 requests are .* wait for about 10 s"):
        gate({"ada": 10}, settings, paces=paces).check(asking, soon)
    with pytest.raises(ClusterFull, match=r"^1 request is waiting"):
        gate({"ada": 1}, settings, paces=paces).check(asking, dataclasses.replace(LOAD, now_s=9.0))


@given(
    costs=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    others=st.lists(st.integers(1, 400), max_size=12),
    taken=st.integers(0, 500),
    stood_s=st.floats(0.0, 100.0),
    cost=st.integers(1, 5000),
    priority=st.sampled_from([INTERACTIVE, BACKGROUND]),
)
def test_who_has_not_said_its_size_is_refused_only_where_any_would_be(
    costs: list[int], others: list[int], taken: int, stood_s: float, cost: int, priority: int
) -> None:
    """Refusals before a text is tokenised: no request of any size is let in where they stand."""
    queue, paces = WaitingQueue(), LinePaces()
    owners = ["ada"] * len(costs) + ["bob"] * len(others)
    for number, (owner, tokens) in enumerate(zip(owners, [*costs, *others], strict=True)):
        queue.push(Waiting(RequestId(number), owner, priority, float(number), tokens))
    paces.waits(("ada", priority), 0.0)
    paces.took(("ada", priority), taken, 0.0)
    judge = AdmissionGate(AdmissionSettings(), 100, queue, busy_meter(), paces)
    load = dataclasses.replace(LOAD, now_s=stood_s)
    sized = dataclasses.replace(WISH, cost_tokens=cost, priority=priority)
    before = judge.wait_s(dataclasses.replace(sized, cost_tokens=1), load)
    after = judge.wait_s(sized, load)
    assert before is not None
    assert after is not None
    assert before <= after


def test_a_line_that_was_empty_is_judged_anew() -> None:
    paces, line = LinePaces(), ("ada", INTERACTIVE)
    paces.waits(line, 0.0)
    assert paces.wait_s(line, 100, 10, KNOWN_S / 2) == 0.0, "too early to say"
    assert paces.wait_s(line, 100, 10, 10.0) == pytest.approx(100.0, rel=0.05), (
        "nothing of it was started"
    )
    paces.emptied(line)
    paces.waits(line, 10.0)
    assert paces.wait_s(line, 100, 10, 10.0) == 0.0


def test_a_request_that_would_only_wait_for_its_deadline_is_refused() -> None:
    hurried = dataclasses.replace(WISH, deadline_s=2.0)
    with pytest.raises(ClusterFull, match="its deadline is in 2 s"):
        gate({"ada": 40}).check(hurried, LOAD)
    gate({"ada": 13}).check(hurried, LOAD)
    gate({"ada": 40}, AdmissionSettings(refuse_hopeless=False)).check(hurried, LOAD)


@pytest.mark.parametrize("seconds", [0, 2])
def test_until_the_share_is_certain_the_whole_flow_is_believed(seconds: int) -> None:
    meter = busy_meter(0.01, seconds)
    settings = AdmissionSettings(max_wait_s=4.5)
    gate({"ada": 40}, settings, meter=meter).check(WISH, LOAD)
    with pytest.raises(ClusterFull, match="wait for about 5 s"):
        gate({"ada": 49}, settings, meter=meter).check(WISH, LOAD)


def test_an_empty_queue_refuses_nobody() -> None:
    nothing = gate({}, AdmissionSettings(max_wait_s=0.001), most=1, meter=busy_meter(1e-6))
    nothing.check(dataclasses.replace(WISH, deadline_s=0.001), LOAD)


def test_time_without_a_queue_says_nothing() -> None:
    meter = busy_meter(0.5)
    before = meter.tokens_per_s(FLOW)
    meter.at(60.0, FLOW, saturated=False)
    meter.served(1e6)
    meter.at(10_000.0, FLOW, saturated=True)
    assert meter.tokens_per_s(FLOW) == before


def test_what_the_flow_passes_is_forgotten_with_time() -> None:
    meter = busy_meter(1.0)
    for second in range(60, 60 + 5 * int(HALF_LIFE_S)):
        meter.served(0.2 * FLOW)
        meter.at(second + 1.0, FLOW, saturated=True)
    assert meter.statistics().share == pytest.approx(0.2, rel=0.25)
