"""When a placement is looked for, and when one that was found is worth the move."""

from __future__ import annotations

from router.replanner import Occasion, Replanner, ReplanSettings

SETTINGS = ReplanSettings(settle_s=10, every_s=60, return_s=15, horizon_s=600)


def occasion(r: Replanner, now_s: float, uncovered_s: float | None = None) -> Occasion | None:
    return r.occasion(now_s, uncovered_s=uncovered_s, someone_needed=False)


def test_a_change_is_followed_by_one_search_when_things_have_settled() -> None:
    r = Replanner(SETTINGS)
    assert occasion(r, 0) is None
    r.changed(100)
    assert occasion(r, 105) is None
    r.changed(106)
    assert occasion(r, 115) is None
    assert occasion(r, 116) is Occasion.CHANGED
    assert r.search(Occasion.CHANGED, 116) == 1
    assert occasion(r, 117) is None
    assert r.over(found=True) is Occasion.CHANGED
    assert occasion(r, 1000) is None
    r.changed(120)
    assert occasion(r, 175) is None
    assert occasion(r, 176) is Occasion.CHANGED


def test_layers_on_no_node_are_waited_for_and_then_given_to_others() -> None:
    r = Replanner(SETTINGS)
    r.changed(100)
    assert occasion(r, 114, uncovered_s=14) is None
    assert occasion(r, 115, uncovered_s=15) is Occasion.UNCOVERED
    r.search(Occasion.UNCOVERED, 115)
    r.over(found=False)
    assert occasion(r, 200, uncovered_s=100) is None
    r.changed(201)
    assert occasion(r, 201, uncovered_s=101) is Occasion.UNCOVERED


def test_who_asks_gets_a_search_whatever_the_settings() -> None:
    r = Replanner(ReplanSettings(automatic=False))
    r.changed(0)
    assert occasion(r, 1000, uncovered_s=900) is None
    assert r.occasion(1000, uncovered_s=None, someone_needed=True) is Occasion.LEAVING
    r.ask()
    assert occasion(r, 1000) is Occasion.ASKED
    r.search(Occasion.ASKED, 1000)
    r.over(found=True)
    assert occasion(r, 1001) is None


def test_a_gain_must_pay_for_what_is_moved() -> None:
    r = Replanner(SETTINGS)
    small = r.judge(Occasion.CHANGED, 100, 104, 1 << 30, 10)
    assert not small.go
    assert "max flow 100 -> 104 tokens/s is no gain of 5% or more" in small.text
    good = r.judge(Occasion.CHANGED, 100, 150, 1 << 30, 10)
    assert good.go
    assert "within 600 s that gives 29500 tokens and costs 300" in good.text
    slow = r.judge(Occasion.CHANGED, 100, 110, 1 << 40, 550)
    assert not slow.go
    assert "1048576 MiB to load in about 550 s" in slow.text


def test_what_does_not_serve_has_nothing_to_lose() -> None:
    r = Replanner(SETTINGS)
    for why in (Occasion.FIRST, Occasion.UNCOVERED, Occasion.LEAVING):
        assert r.judge(why, 0, 10, 1 << 40, 1e5).go
    assert r.judge(Occasion.LEAVING, 100, 50, 1 << 20, 1).go
