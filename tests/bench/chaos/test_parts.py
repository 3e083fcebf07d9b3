"""The pure parts of a chaos run: the schedule of faults, growth, logs, figures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.chaos.catalogue import draw_asks
from bench.chaos.cluster import LAYOUT, OTHER_LAYOUT, slices_of
from bench.chaos.faults import Kind, Mix, Round, rounds
from bench.chaos.logs import alarms
from bench.chaos.picture import read_picture
from bench.chaos.placing import held_slices, other_than
from bench.chaos.processes import Holds
from bench.chaos.report import spread
from bench.chaos.watch import WARM_ROUNDS, Watch, slope
from helix_mq.layers import LayerRange

NAMES = tuple(sorted(LAYOUT))


def schedule(seed: int, count: int, only: tuple[Kind, ...] = ()) -> list[Round]:
    return list(itertools.islice(rounds(Mix(seed, NAMES, only)), count))


@given(st.integers(0, 1000))
def test_the_seed_decides_the_faults_and_never_more_than_two_nodes_are_hit(seed: int) -> None:
    drawn = schedule(seed, 40)
    assert drawn == schedule(seed, 40)
    assert [r.number for r in drawn] == list(range(1, 41))
    for round_ in drawn:
        nodes = [f.node for f in round_.faults]
        assert 1 <= len(set(nodes)) == len(nodes) <= 2
        assert all(f.source != f.node for f in round_.faults)
    kinds = set(Kind) - {Kind.ROUTER}
    assert {r.faults[0].kind for r in drawn[: len(kinds)]} == kinds
    journal = itertools.islice(rounds(Mix(seed, NAMES, journal=True)), len(Kind))
    assert {r.faults[0].kind for r in journal} == set(Kind)


def test_another_seed_is_another_schedule_and_only_means_only() -> None:
    assert schedule(1, 20) != schedule(2, 20)
    kinds = {f.kind for r in schedule(1, 50, (Kind.KILL,)) for f in r.faults}
    assert kinds == {Kind.KILL}
    assert any(len(r.faults) == 2 for r in schedule(1, 50, (Kind.KILL,)))

    assert not any(r.harmless for r in schedule(1, 50, (Kind.KILL,)))


def test_a_re_placement_is_harmless_by_itself_only() -> None:
    rounds_ = schedule(1, 200, (Kind.REPLACE, Kind.KILL))
    assert {r.harmless for r in rounds_ if r.faults[0].kind is Kind.REPLACE} == {True, False}
    assert not any(f.kind is Kind.REPLACE for r in rounds_ for f in r.faults[1:])
    assert all(len(r.faults) == 1 for r in schedule(1, 50, (Kind.REPLACE,)))


def test_re_placements_change_every_node_there_and_back() -> None:
    first = {n: [int(e) for e in s.split(":")] for n, s in slices_of(6, LAYOUT).items()}
    other = other_than(first, 6)
    assert first.keys() == other.keys()
    assert all(first[n] != other[n] for n in first)
    assert other_than(other, 6) == first
    lacking = {n: r for n, r in first.items() if n != "beta"}
    assert other_than(lacking, 6) == other
    nodes = [{"node": "a", "layers": "0-3"}, {"node": "b", "layers": ""}]
    assert held_slices({"nodes": nodes}) == {"a": [0, 4]}


@pytest.mark.parametrize("layout", [LAYOUT, OTHER_LAYOUT])
@pytest.mark.parametrize("num_layers", [6, 12, 30, 32, 80])
def test_any_two_nodes_may_be_lost(
    num_layers: int, layout: Mapping[str, tuple[float, float]]
) -> None:
    parsed = {n: tuple(map(int, s.split(":"))) for n, s in slices_of(num_layers, layout).items()}
    held = {n: LayerRange(first, end) for n, (first, end) in parsed.items()}
    for lost in itertools.combinations(NAMES, 2):
        reached = {0}
        while True:
            more = {
                held[n].end
                for n in NAMES
                if n not in lost and any(at in held[n] for at in reached if at < num_layers)
            }
            if more <= reached:
                break
            reached |= more
        assert num_layers in reached, f"without {lost}"


def test_the_requests_are_of_both_kinds_and_fit() -> None:
    asks = draw_asks(1, 40, 256, 300)
    assert asks == draw_asks(1, 40, 256, 300)
    assert {a.temperature == 0 for a in asks} == {True, False}
    assert all(len(a.prompt) + a.max_tokens <= 300 for a in asks)


def holds(rss_mib: int, descriptors: int = 60) -> Holds:
    return Holds(rss_mib << 20, descriptors, 5)


def test_growth_after_warming_up_is_told_and_a_plateau_is_not() -> None:
    watch = Watch()
    for i in range(WARM_ROUNDS + 20):
        watch.add("flat", 1, holds(300 + min(i, WARM_ROUNDS) * 40))
        watch.add("grows", 1, holds(300 + 2 * i))
        watch.add("breathes", 1, holds(300 + 90 * (i % 7 == 3) + i // 2))
        watch.add("leaks", 1, holds(300, 60 + i))
        watch.add("moves", 1, holds(300 + 100 * (i > 12)), "0-3" if i <= 12 else "2-5")
        watch.add("short", i, holds(300 + 50 * i, 60 + i))
    words = watch.growth()
    assert [w.split(" ")[0] for w in words] == ["grows", "leaks"]
    assert "memory" in words[0]
    assert "descriptors" in words[1]


def test_a_slope_is_not_moved_by_single_samples() -> None:
    assert slope([5.0, 7.0, 9.0, 11.0]) == 2.0
    assert slope([5.0, 7.0, 900.0, 11.0, 13.0, 15.0]) == 2.0
    assert slope([9.0, 9.0]) == 0.0


def test_alarms_are_lines_that_no_fault_excuses() -> None:
    log = "INFO fine\nTraceback (most recent call last):\nWARNING left: not heard\n"
    assert alarms("alpha", log) == ["alpha: Traceback (most recent call last):"]
    assert len(alarms("alpha", "CRITICAL x\n" * 50)) == 6
    assert alarms("alpha", "INFO fine\n") == []


METRICS = """# TYPE helix_mq_queued_requests gauge
helix_mq_queued_requests 0.0
# TYPE helix_mq_running_requests gauge
helix_mq_running_requests {running}
# TYPE helix_mq_node_kv_pages gauge
helix_mq_node_kv_pages{{kind="used",node="a"}} {used}
helix_mq_node_kv_pages{{kind="total",node="a"}} 9.0
# TYPE helix_mq_link_down_seconds gauge
helix_mq_link_down_seconds{{receiver="a",sender="@router"}} 0.0
helix_mq_link_down_seconds{{receiver="@router",sender="a"}} {down}
"""


@pytest.mark.parametrize(
    ("figures", "state", "whole", "idle"),
    [
        ({"running": 0, "used": 0, "down": 0}, "ready 0-5", True, True),
        ({"running": 0, "used": 2, "down": 0}, "ready 0-5", True, False),
        ({"running": 1, "used": 0, "down": 0}, "ready 0-5", True, False),
        ({"running": 0, "used": 0, "down": 1.5}, "ready 0-5", False, True),
        ({"running": 0, "used": 0, "down": 0}, "loading 0-5", False, True),
        ({"running": 0, "used": 0, "down": 0}, "ready 0-5, suspect", False, True),
    ],
)
def test_a_picture_of_the_router(
    figures: dict[str, float], state: str, whole: bool, idle: bool
) -> None:
    ready = {"status": "ready", "reason": "", "nodes": {"a": state}}
    picture = read_picture(ready, METRICS.format(**figures))
    assert picture.is_whole(frozenset({"a"})) == whole
    assert not picture.is_whole(frozenset({"a", "b"}))
    assert picture.is_idle == idle


def test_the_spread_of_figures() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"count": 3, "median": 2.0, "p90": 3.0, "most": 3.0}
    assert spread([])["count"] == 0
