"""Which link carries activations in which form, and what flows make of it."""

from __future__ import annotations

import pytest

from helix_mq.ids import ROUTER, NodeId
from helix_mq.messages.control import Peer
from router.link_forms import (
    AUTO_BFLOAT16_BYTES_PER_S,
    AUTO_INT8_BYTES_PER_S,
    WIDEN,
    Activations,
    LinkForms,
)
from router.link_watch import Edge

A, B, OLD = NodeId("a"), NodeId("b"), NodeId("old")
WIDTH = 576


class Links:
    """Speeds that a test sets; `old` runs a release that knows no 8 bits."""

    def __init__(self, setting: Activations) -> None:
        self.speeds: dict[Edge, float] = {}
        self.forms = LinkForms(
            setting, WIDTH, lambda n: n != OLD, lambda e: self.speeds.get(e, 0.0)
        )

    def review(self) -> bool:
        return self.forms.review([A, B, OLD])


def test_by_default_nothing_is_narrowed() -> None:
    links = Links("same")
    links.speeds[A, B] = 1e3
    assert not links.review()
    assert links.forms.of((A, B)) == ""
    assert links.forms.gain((A, B)) == 1.0
    peers = [Peer("b", 1, "mem://b", "")]
    assert links.forms.peers(A, peers) == peers


@pytest.mark.parametrize("form", ["bfloat16", "float16", "int8"])
def test_a_form_that_is_asked_for_holds_between_all_nodes(form: Activations) -> None:
    forms = Links(form).forms
    assert forms.of((A, B)) == form
    assert forms.of((A, ROUTER)) == ""
    assert forms.of((ROUTER, A)) == ""


def test_a_node_that_cannot_read_8_bits_gets_16() -> None:
    forms = Links("int8").forms
    assert forms.of((A, OLD)) == "bfloat16"
    assert forms.of((OLD, A)) == "int8"
    said = forms.peers(A, [Peer(n, 1, "mem://", "") for n in (B, OLD)])
    assert [p.activations for p in said] == ["int8", "bfloat16"]


def test_flows_count_with_the_bytes_that_go_over_the_link() -> None:
    forms = Links("int8").forms
    assert forms.gain((A, OLD)) == 2.0
    assert forms.gain((A, B)) == pytest.approx(4 / (1 + 4 / 64))
    assert forms.gain((ROUTER, A)) == 1.0


def test_auto_narrows_slow_links_and_only_those() -> None:
    links = Links("auto")
    assert not links.review()
    links.speeds = {
        (A, B): AUTO_INT8_BYTES_PER_S * 0.9,
        (B, A): AUTO_BFLOAT16_BYTES_PER_S * 0.9,
        (B, OLD): AUTO_BFLOAT16_BYTES_PER_S * 1.1,
        (A, OLD): AUTO_INT8_BYTES_PER_S * 0.9,
    }
    assert links.review()
    assert not links.review()
    forms = [links.forms.of(e) for e in ((A, B), (B, A), (B, OLD), (A, OLD))]
    assert forms == ["int8", "bfloat16", "", "bfloat16"]


def test_a_link_that_is_just_over_the_limit_keeps_its_form() -> None:
    links = Links("auto")
    for speed, form in (
        (AUTO_INT8_BYTES_PER_S * 0.9, "int8"),
        (AUTO_INT8_BYTES_PER_S * 1.2, "int8"),
        (0.0, "int8"),
        (AUTO_INT8_BYTES_PER_S * WIDEN * 1.1, "bfloat16"),
        (AUTO_BFLOAT16_BYTES_PER_S * 1.2, "bfloat16"),
        (AUTO_INT8_BYTES_PER_S * 1.1, "bfloat16"),
        (AUTO_BFLOAT16_BYTES_PER_S * WIDEN * 1.1, ""),
        (AUTO_INT8_BYTES_PER_S * 0.9, "int8"),
        (1e12, ""),
    ):
        before = links.forms.of((A, B))
        links.speeds[A, B] = speed
        assert links.review() is (before != form)
        assert links.forms.of((A, B)) == form, speed


def test_links_of_nodes_that_are_gone_are_forgotten() -> None:
    links = Links("auto")
    links.speeds[A, B] = 1e6
    links.review()
    assert links.forms.review([A])
    assert links.forms.of((A, B)) == ""
