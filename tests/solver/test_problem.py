"""A problem that contradicts itself is refused, and the error names the field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helix_mq.ids import NodeId
from solver.problem import SINK, SOURCE, Problem, ProblemError, ProblemLink, ProblemNode

A, B = NodeId("a"), NodeId("b")


def node(name: NodeId) -> ProblemNode:
    return ProblemNode(name, "t", "", 2, (10.0, 5.0), (), 1.0, 1.0, 1)


def problem(*links: ProblemLink) -> Problem:
    return Problem("p", 4, 2, 100, (node(A), node(B)), links)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", SOURCE),
        ("max_layers", -1),
        ("max_layers", 3),
        ("tokens_per_s_by_layers", (10.0, float("nan"))),
        ("tokens_per_s_by_layers", (10.0, float("inf"))),
        ("kv_tokens_by_layers", (-1.0,)),
        ("nic_in_bytes_per_s", -1.0),
        ("vram_bytes", -5),
    ],
)
def test_a_node_with_a_bad_field_is_refused(field: str, value: object) -> None:
    with pytest.raises(ProblemError) as error:
        replace(node(A), **{field: value})
    assert error.value.param in (field, "tokens_per_s_by_layers")
    assert "node " in str(error.value)


@pytest.mark.parametrize(
    ("link", "word"),
    [
        (ProblemLink(A, NodeId("c"), 1.0, 0.0), "both ends"),
        (ProblemLink(SINK, A, 1.0, 0.0), "both ends"),
        (ProblemLink(A, SOURCE, 1.0, 0.0), "both ends"),
        (ProblemLink(A, A, 1.0, 0.0), "loop"),
        (ProblemLink(SOURCE, SINK, 1.0, 0.0), "loop"),
        (ProblemLink(A, B, -1.0, 0.0), "bytes_per_s=-1.0"),
        (ProblemLink(A, B, 1.0, float("inf")), "latency_s=inf"),
    ],
)
def test_a_link_that_cannot_be_is_refused(link: ProblemLink, word: str) -> None:
    with pytest.raises(ProblemError, match=word):
        problem(link)


def test_links_given_twice_and_names_given_twice_are_refused() -> None:
    link = ProblemLink(A, B, 1.0, 0.0)
    with pytest.raises(ProblemError, match="twice"):
        problem(link, link)
    with pytest.raises(ProblemError, match="node a is named twice"):
        Problem("p", 4, 2, 100, (node(A), node(A)), ())


def test_removing_a_node_removes_its_links() -> None:
    whole = problem(ProblemLink(A, B, 1.0, 0.0), ProblemLink(SOURCE, B, 1.0, 0.0))
    less = whole.without([A])
    assert [n.name for n in less.nodes] == [B]
    assert [(k.src, k.dst) for k in less.links] == [(SOURCE, B)]
    with pytest.raises(ProblemError, match="no node is called zz"):
        whole.without([NodeId("zz")])
