"""`helix-mq status` and `top` draw the cluster within the screen, whatever it is and says."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from helix_mq.cli.cluster_view import ClusterView, cluster_view, read_as
from helix_mq.cli.show_cluster import count, data_rate, seconds
from helix_mq.cli.show_requests import RequestsView, requests_screen
from helix_mq.cli.status import status_screen
from helix_mq.cli.top import frame
from helix_mq.cli.trace import TraceView, trace_screen
from helix_mq.errors import LocalError
from tests.cli.cluster_states import cluster


def drawn(what: RenderableType, width: int) -> list[str]:
    into = StringIO()
    Console(width=width, file=into, highlight=False, color_system=None).print(what)
    return into.getvalue().splitlines()


def view(state: dict[str, Any]) -> ClusterView:
    return cluster_view(state)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("many", [3, 50])
def test_top_fits_its_screen(width: int, many: int) -> None:
    height = 24 if width == 80 else 50
    lines = drawn(frame(view(cluster(many)), width, height), width)
    assert len(lines) == height if many == 50 and width == 80 else len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "Llama-30B, 60 layers: serving" in text
    assert "; 62% of drafts right" in text
    assert "The two T4s holding layers 3-5" in text
    assert "12 running, 3 of 1,024 waiting; 1,234 admitted, 5 refused (5 queue_full)" in text
    shown = [line for line in lines if line.startswith("node-")]
    if many == 3:
        assert "first token 210 ms (p99 900 ms), next 31 ms (p99 80 ms)" in text
        assert len([line for line in shown if " ready " in line]) == 3
        assert "── lately" in text
        assert "router > node-00: flow 1,290 tok/s, sends 3.4 MB/s" in text
    else:
        # What caps the flow is among those shown, and the rest is counted.
        assert shown[0].startswith("node-01 ")
        assert f"and {50 - len([x for x in shown if ' ready ' in x])} more nodes" in text
    header = next(line for line in lines if line.startswith("node "))
    assert ("region" in header) == (width == 160)
    assert "10%  1,201  1,290    13k  12 ms " in shown[0]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 70),
    st.integers(60, 220),
    st.integers(12, 80),
    st.integers(0, 80),
    st.data(),
)
def test_no_frame_is_larger_than_its_screen(
    many: int, width: int, height: int, skip: int, data: st.DataObject
) -> None:
    state = cluster(many)
    text = st.text(max_size=300)
    for one in state["nodes"]:
        one["suspect"] = data.draw(st.one_of(st.just(""), text))
        one["node"] = data.draw(st.text(min_size=1, max_size=64))
    state["doing"] = data.draw(text)
    state["serving"] = data.draw(st.booleans())
    state["reason"] = data.draw(text)
    state["bottleneck"]["text"] = data.draw(text)
    lines = drawn(frame(view(state), width, height, skip=skip), width)
    assert len(lines) <= height
    assert not any(c != c.strip("\x1b\x07\x9b") for line in lines for c in line)


def test_one_can_move_through_all_nodes() -> None:
    state = view(cluster(50))
    seen: set[str] = set()
    for skip in range(0, 60, 5):
        lines = drawn(frame(state, 80, 24, skip=skip), 80)
        seen |= {line.split()[0] for line in lines if line.startswith("node-")}
    assert seen == {f"node-{i:02}" for i in range(50)}


def test_trouble_comes_first_and_is_said_in_words() -> None:
    state = cluster(50)
    state["nodes"][40] |= {"suspect": "not heard for 2.1 s"}
    state["nodes"][41] |= {"slowdown": 3.04}
    state["nodes"][42] |= {"state": "failed", "failure": "no room for 3 layers"}
    state["links"][7] |= {"down_s": 12.0}
    lines = drawn(frame(view(state), 100, 30), 100)
    text = "\n".join(lines)
    assert "! node-40 may be dead: not heard for 2.1 s; new requests avoid it" in text
    assert "! and 2 more such troubles" in text
    shown = [line.split()[0] for line in lines if line.startswith("node-")]
    assert set(shown[:3]) == {"node-40", "node-41", "node-42"}
    everything = "\n".join(drawn(status_screen(view(state), 100, None), 100))
    assert "! node-41 takes 3.0x as long per step as it measured" in everything
    assert "! node-42 could not load its layers: no room for 3 layers" in everything
    assert "! the link node-06 > node-07 has been down for 12 s" in everything


def test_a_cluster_that_does_not_serve_says_why() -> None:
    state = cluster(0, serving=False, reason="layers 12-17 are on no live node")
    for what in (frame(view(state), 80, 24), status_screen(view(state), 80, 23)):
        text = "\n".join(drawn(what, 80))
        assert "NOT SERVING" in text
        assert "layers 12-17 are on no live node" in text
        assert "start them with `helix-mq node`" in text


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("many", [3, 50])
def test_status_is_one_screen(width: int, many: int) -> None:
    lines = drawn(status_screen(view(cluster(many)), width, 23), width)
    assert len(lines) <= 23
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("node-") for line in lines) >= min(many, 5)
    every = drawn(status_screen(view(cluster(many)), width, None), width)
    assert sum(line.startswith("node-") for line in every) == many
    assert "and 47 more" not in "\n".join(every)


def test_what_terminals_obey_is_taken_out_and_markup_is_text() -> None:
    state = cluster(1)
    state["nodes"][0] |= {"node": "a\x1b[2Jb[red]c", "suspect": "x\x07y\nz"}
    text = "\n".join(drawn(status_screen(view(state), 160, None), 160))
    assert "a?[2Jb[red]c" in text
    assert "x?y?z" in text
    assert "\x1b" not in text


def test_an_older_router_says_less_and_is_shown_all_the_same() -> None:
    old = {
        "serving": True, "reason": "", "epoch": 1, "flow_tokens_per_s": 52.0, "doing": "",
        "verdict": "", "searches": 0,
        "nodes": [{"node": "a", "state": "ready", "layers": "0-5", "leaving": False}],
    }  # fmt: skip
    lines = drawn(frame(view(old), 80, 24), 80)
    assert any(line.startswith("a ") and "0-5" in line for line in lines)
    assert any("Max flow 52" in line or "max flow 52" in line for line in lines)


@pytest.mark.parametrize("state", [{}, [], {"serving": "yes"}, {"serving": True, "nodes": [7]}])
def test_what_is_no_cluster_is_said_so(state: object) -> None:
    with pytest.raises(LocalError, match="cannot read"):
        cluster_view(state)


def test_numbers_are_short() -> None:
    assert [seconds(x) for x in (0.0008, 0.031, 2.42, 59.9, 300, 11_520, 1e6)] == [
        "0.8 ms", "31 ms", "2.4 s", "60 s", "5 min", "3 h 12 min", "11 d",
    ]  # fmt: skip
    assert [count(x) for x in (0, 3.21, 57.4, 1290, 12_400, 3.4e6)] == [
        "0", "3.2", "57", "1,290", "12k", "3.4M",
    ]  # fmt: skip
    assert [data_rate(x) for x in (0, 12_000, 3.4e6, 2.5e9)] == [
        "0 B/s", "12 kB/s", "3.4 MB/s", "2.5 GB/s",
    ]  # fmt: skip


def test_requests_under_way() -> None:
    assert drawn(requests_screen(RequestsView(0)), 80) == ["No request is under way."]
    state = {
        "total": 203,
        "requests": [
            {"id": "1a1fec7098f00001", "state": "decoding", "age_s": 29.0, "prompt_tokens": 42,
             "output_tokens": 44, "max_tokens": 160, "since_token_s": 0.512, "reroutes": 1,
             "route": [{"node": "a[red]"}, {"node": "b"}]},
            {"id": "1a1fec7098f00002", "state": "queued", "age_s": 0.5},
        ],
    }  # fmt: skip
    lines = drawn(requests_screen(read_as(state, RequestsView, "/x")), 120)
    assert "a[red] > b (re-routed 1x)" in lines[1]
    assert lines[1].split()[:9] == [
        "1a1fec7098f00001",
        "decoding",
        "29",
        "s",
        "42",
        "44",
        "160",
        "512",
        "ms",
    ]
    assert "waits for one" in lines[2]
    assert lines[3].strip() == "and 201 newer ones"
    narrow = drawn(requests_screen(read_as(state, RequestsView, "/x")), 80)
    assert max(map(len, narrow)) <= 80
    assert narrow[1].startswith("1a1fec7098f00001 ")


@pytest.mark.parametrize("width", [80, 120])
def test_a_trace_on_a_screen(width: int) -> None:
    prefill = {"steps": 3, "tokens": 300, "queue_s": 0.2, "compute_s": 1.5, "serialise_s": 0.01}
    decode = {"steps": 10, "tokens": 10, "queue_s": 0.02, "compute_s": 0.3, "serialise_s": 0.004}
    hop = {"layers": "layers 0-9", "known": True, "prefill": prefill, "decode": decode}
    state = {
        "id": "18f3", "state": "finished", "outcome": "stop", "prompt_tokens": 300,
        "output_tokens": 11, "attempts": 2, "queue_s": 0.5, "ttft_s": 2.5, "total_s": 3.5,
        "decodes": 10, "decode_s": 1.0,
        "hops": [
            hop | {"node": "gone", "attempt": 0, "known": False},
            hop | {"node": "a\x1b[31m", "attempt": 1},
        ],
        "wires": [{"sender": "@router", "receiver": "a", "decode_s": 0.0201, "round_trip_s": 0.04}],
        "wire_s": 0.0402, "wire_basis": "a rest", "missing": ["gone"],
    }  # fmt: skip
    lines = drawn(trace_screen(read_as(state, TraceView, "/x"), width), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "\x1b" not in text
    flat = " ".join(text.split())
    assert "300 prompt and 11 output tokens in 3.5 s: waited 500 ms for a route" in flat
    assert "first token after 2.5 s, then 10 more, 100 ms each; re-routed once." in flat
    row = next(line for line in lines if line.startswith("a?[31m"))
    steps = {"3", "10"} if width == 120 else set()
    assert steps <= set(row.split())
    # The prompt in sum, decodes by token.
    assert "200 ms 1.5 s 10 ms" in " ".join(row.split())
    assert "2.0 ms 30 ms 0.4 ms" in " ".join(row.split())
    assert next(line for line in lines if line.startswith("gone")).count("?") >= 6
    assert "On the wire 40 ms per token: a rest." in text
    assert "router > a: 20 ms (round trip 40 ms)" in text
    assert "! gone has not told what it measured" in text
