"""What caps the flow, in words."""

from __future__ import annotations

import pytest

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange
from router.bottleneck import Cut, CutNode, bottleneck_text, rounded

A, B, C, D = (NodeId(n) for n in ("a", "b", "c", "d"))


def test_two_of_a_kind_with_the_same_layers() -> None:
    nodes = {n: CutNode("T4", LayerRange(33, 38)) for n in (A, B)}
    text = bottleneck_text(1287.3, Cut(engines=(A, B)), nodes)
    assert text == "the two T4s holding layers 33-37 (a, b) cap you at 1,290 tokens/s"


def test_one_slow_node() -> None:
    nodes = {A: CutNode("CPU node", LayerRange(0, 1), slowdown=3.14)}
    text = bottleneck_text(52.0, Cut(engines=(A,)), nodes)
    assert text == (
        "the CPU node holding layer 0 (a), 3.1x slower than measured, caps you at 52 tokens/s"
    )


def test_engines_cards_and_links_together() -> None:
    nodes = {A: CutNode("L4", LayerRange(0, 3)), B: CutNode("T4", LayerRange(0, 3))}
    cut = Cut((A, B), nics_in=(C,), links=((ROUTER, C), (C, D)))
    assert bottleneck_text(12_345.0, cut, nodes) == (
        "the L4 holding layers 0-2 (a), the T4 holding layers 0-2 (b), the inbound network card "
        "of c and the two links router > c, c > d together cap you at 12,300 tokens/s"
    )


def test_no_flow_has_no_bottleneck() -> None:
    assert bottleneck_text(0.0, Cut(engines=(A,)), {}) == ""
    assert bottleneck_text(5.0, Cut(), {}) == ""


def test_many_are_counted() -> None:
    names = tuple(NodeId(f"n{i:02}") for i in range(30))
    same = {n: CutNode("T4", LayerRange(0, 2)) for n in names}
    assert bottleneck_text(100.0, Cut(engines=names), same) == (
        "the 30 T4s holding layers 0-1 (n00, n01, n02, n03 and 26 more) cap you at 100 tokens/s"
    )
    each = {n: CutNode("T4", LayerRange(i, i + 1)) for i, n in enumerate(names)}
    text = bottleneck_text(100.0, Cut(engines=names), each)
    assert "and 27 more groups together cap" in text
    assert len(text) < 200


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.523, "0.52"), (9.99, "10"), (52.4, "52"), (512.6, "513"), (1287.0, "1,290"),
     (1_234_567.0, "1,230,000")],
)  # fmt: skip
def test_three_digits_mean_something(rate: float, text: str) -> None:
    assert rounded(rate) == text
