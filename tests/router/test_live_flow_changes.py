"""Flows that follow heartbeats, answers from a thread, and suspects, on the core of the cluster."""

from __future__ import annotations

from helix_mq.clock import VirtualClock
from helix_mq.ids import ROUTER, Epoch, NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.messages.control import Assign, Heartbeat, Ready
from router import events as ev
from router.cluster_core import ClusterCore, ClusterSettings
from router.placing import FixedPlacer
from tests.router.world import CONFIG, DIGEST, PAGE_TOKENS, PAGES, register

ALL = LayerRange(0, 6)


class Replicas:
    """Nodes that hold all layers, with a heartbeat a second and a tick with each."""

    def __init__(self, *names: str, solve_apart: bool = False) -> None:
        self.clock = VirtualClock(start_s=100.0)
        placer = FixedPlacer(Placement(6, {NodeId(n): ALL for n in names}))
        settings = ClusterSettings(solve_apart=solve_apart)
        self.core = ClusterCore(CONFIG, DIGEST, settings, placer, self.clock, Epoch(1))
        self.effects: list[ev.Effect] = []
        self.slowdown = dict.fromkeys(names, 1.0)
        self._step_s = dict.fromkeys(names, 0.0)
        self._expected_s = dict.fromkeys(names, 0.0)
        self._steps = 0
        for number, name in enumerate(names, start=1):
            self.handle(ev.NodeRegistered(register(name, number)))
        for order in [e for e in self.effects if isinstance(e, ev.ToNode)]:
            assert isinstance(order.message, Assign)
            ready = Ready(order.message.epoch, 0, 6, PAGES, PAGE_TOKENS, 0.1, 600.0, "")
            self.handle(ev.NodeReady(NodeId(order.node), order.incarnation, ready))
        self.shares()

    def handle(self, event: ev.Event) -> None:
        self.effects += self.core.handle(event).effects

    def second(self, *silent: str) -> None:
        self.clock.advance(1.0)
        self._steps += 20
        for number, (name, slowdown) in enumerate(self.slowdown.items(), start=1):
            self._step_s[name] += 0.9
            self._expected_s[name] += 0.9 / slowdown
            if name not in silent:
                took, due = self._step_s[name], self._expected_s[name]
                counted = (self._steps, took, 0, 0, 0, (), due)
                self.handle(ev.NodeBeat(Heartbeat(name, number, 0, 1, 0, 0, 0, 0, 0, *counted)))
        self.handle(ev.Tick())

    def shares(self) -> dict[str, float]:
        out = dict(self.core.flow.weights.edges[ROUTER])
        return {str(n): rate / sum(out.values()) for n, rate in out.items()}

    def notes(self) -> list[str]:
        return [f"{e.node}: {e.text}" for e in self.effects if isinstance(e, ev.Note)]

    def wanted(self) -> list[ev.SolveFlow]:
        return [e for e in self.effects if isinstance(e, ev.SolveFlow)]


def test_a_slow_node_loses_its_share_and_is_named() -> None:
    nodes = Replicas("a", "b")
    nodes.second()
    nodes.slowdown["a"] = 3.0
    for _ in range(5):
        nodes.second()
    assert nodes.shares()["a"] < 0.3
    told = [text for text in nodes.notes() if "as long per step as it measured" in text]
    assert told
    assert told[0].startswith("a: takes 2.0x as long per step as it measured: its flow falls from")
    assert all(text.startswith("a: ") for text in told)


def test_a_slowdown_that_moves_no_flow_is_not_told() -> None:
    nodes = Replicas("a", "b", solve_apart=True)
    nodes.second()
    as_before = nodes.core.flow
    for slowdown in (3.0, 1.0) * 2:
        nodes.slowdown["a"] = slowdown
        for _ in range(10):
            nodes.second()
            nodes.handle(ev.FlowSolved(nodes.wanted()[-1].number, as_before))
    assert len(nodes.wanted()) > 4
    assert not [text for text in nodes.notes() if "as long per step" in text]


def test_a_flow_that_is_solved_apart_comes_later_and_the_old_one_serves_meanwhile() -> None:
    nodes = Replicas("a", "b", solve_apart=True)
    nodes.second()
    nodes.slowdown["a"] = 3.0
    nodes.second()
    wanted = nodes.wanted()
    assert len(wanted) == 1
    assert nodes.shares()["a"] == nodes.shares()["b"]
    nodes.handle(ev.FlowSolved(wanted[0].number, wanted[0].problem.solve()))
    assert nodes.shares()["a"] < nodes.shares()["b"]


def test_an_answer_to_a_problem_that_is_past_is_dropped() -> None:
    nodes = Replicas("a", "b", "c", solve_apart=True)
    nodes.second()
    nodes.slowdown["a"] = 3.0
    nodes.second()
    wanted = nodes.wanted()[-1]
    nodes.handle(ev.NodeGone(NodeId("c"), 3, "killed"))
    nodes.handle(ev.FlowSolved(wanted.number, wanted.problem.solve()))
    assert set(nodes.shares()) == {"a", "b"}


def test_only_one_flow_is_solved_at_a_time_and_the_last_word_counts() -> None:
    nodes = Replicas("a", "b", solve_apart=True)
    nodes.second()
    nodes.slowdown["a"] = 3.0
    for _ in range(4):
        nodes.second()
    assert len(nodes.wanted()) == 1
    for answered in range(2):
        wanted = nodes.wanted()[answered]
        nodes.handle(ev.FlowSolved(wanted.number, wanted.problem.solve()))
    assert nodes.shares()["a"] < 0.3


def test_a_silent_node_is_suspect_after_two_beats_until_it_is_heard() -> None:
    nodes = Replicas("a", "b")
    nodes.second()
    nodes.second("a")
    nodes.second("a")
    assert set(nodes.shares()) == {"a", "b"}
    nodes.clock.advance(0.5)
    nodes.handle(ev.Tick())
    assert nodes.core.flows.suspects.reasons == {NodeId("a"): "not heard for 2.5 s"}
    assert set(nodes.shares()) == {"b"}
    assert "a: suspect: not heard for 2.5 s" in nodes.notes()
    nodes.second()
    assert set(nodes.shares()) == {"a", "b"}


def test_a_broken_connection_makes_a_suspect_at_once() -> None:
    nodes = Replicas("a", "b")
    nodes.second()
    nodes.handle(ev.ConnectionBroke(NodeId("a"), 1, "control"))
    assert set(nodes.shares()) == {"b"}
    nodes.second()
    assert set(nodes.shares()) == {"a", "b"}
    nodes.handle(ev.ConnectionBroke(NodeId("a"), 77, "control"))
    assert set(nodes.shares()) == {"a", "b"}, "of another process of that name"


def test_who_alone_has_layers_is_used_though_suspect() -> None:
    nodes = Replicas("a")
    nodes.second()
    nodes.handle(ev.ConnectionBroke(NodeId("a"), 1, "data"))
    assert nodes.core.serving
    assert set(nodes.shares()) == {"a"}
