"""Which slice serves which epoch: one each, whatever the order of assignments and retains."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.layers import LayerRange
from nodes.holdings import MAX_EPOCHS, Holdings

LOW, HIGH = LayerRange(0, 3), LayerRange(3, 6)


def test_an_epoch_is_served_until_a_retain_leaves_it_out() -> None:
    holdings: Holdings[str] = Holdings()
    holdings.add(LOW, 1, "low")
    holdings.add(HIGH, 2, "high")
    assert holdings.epochs == [1, 2]
    changed = holdings.retain((2, 77))
    assert [h.slice for h in changed.freed] == ["low"]
    assert holdings.serving(1) is None
    served = holdings.serving(2)
    assert served is not None
    assert (served.slice, holdings.newest) == ("high", served)


def test_a_slice_that_serves_a_retained_epoch_too_stays_with_that_one() -> None:
    holdings: Holdings[str] = Holdings()
    holdings.add(LOW, 1, "low")
    held = holdings.of(LOW)
    assert held is not None
    holdings.serve(held, 2)
    changed = holdings.retain((2,))
    assert changed.stay == (held,)
    assert changed.freed == ()
    assert held.epochs == {2}
    assert holdings.retain((2,)).stay == (), "nothing changes the second time"


def test_another_slice_for_an_epoch_takes_it_from_the_one_before() -> None:
    holdings: Holdings[str] = Holdings()
    holdings.add(LOW, 1, "low")
    changed = holdings.add(HIGH, 1, "high")
    assert [h.slice for h in changed.freed] == ["low"]
    assert len(holdings) == 1


def test_a_slice_serves_so_many_epochs_and_no_more() -> None:
    holdings: Holdings[str] = Holdings()
    holdings.add(LOW, 0, "low")
    held = holdings.of(LOW)
    assert held is not None
    for epoch in range(1, 2 * MAX_EPOCHS):
        assert holdings.serve(held, epoch).stay[0] is held
    assert holdings.epochs == list(range(MAX_EPOCHS, 2 * MAX_EPOCHS))


ORDERS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 5), st.integers(0, 3)),
        st.lists(st.integers(0, 5), max_size=3).map(tuple).map(lambda e: ("retain", e)),
    ),
    max_size=30,
)


@given(ORDERS)
@settings(deadline=None)
def test_what_is_freed_serves_nothing_and_what_is_held_serves_something(
    orders: list[tuple[object, object]],
) -> None:
    """Against a plain map from epoch to layers."""
    holdings: Holdings[int] = Holdings()
    wanted: dict[int, int] = {}
    freed: list[int] = []
    made = 0
    for what, of in orders:
        if what == "retain":
            assert isinstance(of, tuple)
            wanted = {e: s for e, s in wanted.items() if e in of}
            changed = holdings.retain(of)
        else:
            assert isinstance(what, int)
            assert isinstance(of, int)
            layers = LayerRange(of, of + 1)
            wanted[what] = of
            held = holdings.of(layers)
            if held is not None:
                changed = holdings.serve(held, what)
            else:
                changed = holdings.add(layers, what, made)
                made += 1
        freed += [h.slice for h in changed.freed]
        assert {e: h.layers.first for e in range(6) if (h := holdings.serving(e))} == wanted
        assert {h.layers.first for h in holdings} == set(wanted.values())
        assert all(h.epochs for h in holdings)
    assert sorted(freed + [h.slice for h in holdings]) == list(range(made)), "none lost, none twice"
