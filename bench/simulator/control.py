"""The router on the virtual clock: the production core, with links instead of sockets around it.

Feeds `router.core.Core` with what would come from sockets and timers and carries out the effects it
asks for: rows become frames to first hops, releases reach nodes, assignments are loaded, deltas are
recorded. It decides nothing; every decision under simulation is the core's.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import cast

from bench.simulator.flight import Leg, Row, legs_of
from bench.simulator.node import SimNode
from bench.simulator.node_parts import TOKEN, NodeRefusals, NodeTokens
from bench.simulator.records import Recorder
from bench.simulator.timeline import Timeline
from bench.simulator.wires import Wires
from bench.traces.types import Lengths
from helix_mq.errors import HelixError
from helix_mq.ids import ROUTER, Epoch, NodeId, RequestId
from helix_mq.messages.data import Refused, Tokens
from helix_mq.models.config import Family, ModelConfig
from helix_mq.sampling import SamplingParams
from nodes.batching import Work
from router import events as ev
from router.core import Core
from router.service import Broken, Delta, Finished, Generation
from router.text import TextDelta, TextStream
from solver.problem import Problem

EPOCH = Epoch(1)
_NOTHING = TextDelta("")


class NoText(TextStream):
    """Lengths are simulated, not texts."""

    def __init__(self) -> None:
        super().__init__(_NoDetokenizer())

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        return _NOTHING

    def flush(self) -> TextDelta:
        return _NOTHING


class _NoDetokenizer:
    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def model_config(problem: Problem) -> ModelConfig:
    """As much of a model as the router's decisions look at."""
    return ModelConfig(
        family=Family.LLAMA,
        num_layers=problem.num_layers,
        hidden_size=max(1, problem.activation_bytes // 2),
        intermediate_size=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        vocab_size=TOKEN + 1,
        max_context=1 << 30,
        rms_eps=1e-5,
        rope_theta=1e4,
        eos_ids=(),
    )


class Control:
    """The core and what carries out its effects. `nodes` and `wires` are the machines it sees."""

    def __init__(
        self,
        core: Core,
        nodes: Mapping[NodeId, SimNode],
        wires: Wires,
        timeline: Timeline,
        recorder: Recorder,
    ) -> None:
        self.core = core
        self.nodes = nodes
        self.wires = wires
        self.on_order: Callable[[ev.ToNode], None] = _ignored
        """A control message to a node."""
        self.on_progress: Callable[[], None] = _nothing
        """After every event: the feeder looks whether there is room for more."""
        self.submitted = self.finished = self.failed = self.tokens = 0
        self._timeline = timeline
        self._recorder = recorder
        self._first_legs: dict[int, Leg] = {}
        self._unanswered: set[int] = set()
        self._digest = blake2b(digest_size=16)

    @property
    def prefilling(self) -> int:
        """Requests submitted that have neither ended nor a first token."""
        return len(self._unanswered)

    @property
    def event_hash(self) -> str:
        """Of all tokens' times and requests, in order: equal runs have equal hashes."""
        return self._digest.hexdigest()

    # -- what happens -----------------------------------------------------------

    def submit(self, lengths: Lengths, owner: str = "", priority: int = 0) -> RequestId:
        """A request arrives; one that the core refuses at once is recorded as failed."""
        self.submitted += 1
        request = RequestId(self.submitted)
        now = self._timeline.now
        self._recorder.on_arrival(str(request), now, lengths.prompt_tokens, lengths.output_tokens)
        sampling = SamplingParams(
            temperature=0.0, max_tokens=lengths.output_tokens, ignore_eos=True
        )
        prompt = (TOKEN,) * lengths.prompt_tokens
        generation = Generation(prompt, sampling, priority=priority, owner=owner)
        self._unanswered.add(request)
        try:
            self.handle(ev.Submitted(request, generation))
        except HelixError as e:
            self._ended(request, ok=False, reason=e.code)
        return request

    def on_tokens(self, said: NodeTokens) -> None:
        self._digest.update(struct.pack("<d", self._timeline.now))
        self._digest.update(array("Q", [item.request for item in said.items]).tobytes())
        self.handle(ev.TokensArrived(Tokens(EPOCH, said.node, said.items)))

    def on_refusals(self, said: NodeRefusals) -> None:
        self.handle(ev.RowsRefused(Refused(EPOCH, said.node, said.items)))

    def handle(self, event: ev.Event) -> None:
        """One event through the core, and what follows from it."""
        rows: dict[NodeId, list[Row]] = {}
        for effect in self.core.handle(event):
            kind = type(effect)
            if kind is ev.SendRow:
                self._add_row(cast(ev.SendRow, effect), rows)
            elif kind is ev.Emit:
                self._emit(cast(ev.Emit, effect))
            elif kind is ev.SendRelease:
                self._release(cast(ev.SendRelease, effect))
            elif kind is ev.ToNode:
                self.on_order(cast(ev.ToNode, effect))
        for node, frame in rows.items():
            self._send(node, frame)
        self.on_progress()

    # -- effects ----------------------------------------------------------------

    def _add_row(self, effect: ev.SendRow, rows: dict[NodeId, list[Row]]) -> None:
        request, tokens = effect.request, len(effect.token_ids)
        if effect.position == 0:
            leg = self._first_legs[request] = legs_of(effect, self.nodes, self.wires)
            self._recorder.on_way(str(request), effect.direct)
        else:
            leg = self._first_legs[request]
        row = Work(leg.seq, effect.position, tokens, leg.layers, leg.next_hop, True, leg)
        rows.setdefault(leg.node.name, []).append(row)

    def _send(self, node: NodeId, rows: list[Row]) -> None:
        wire = self.wires.between(ROUTER, node)
        if wire is None or not wire.up:
            # What the data plane says of a peer it has lost.
            self._timeline.at(self._timeline.now, self._link_lost, node)
            return
        size = sum(row.count for row in rows) * self.wires.token_bytes
        self.wires.send(wire, size, self.nodes[node].on_rows, rows)

    def _link_lost(self, node: NodeId) -> None:
        self.handle(ev.LinkLost(node))

    def _release(self, effect: ev.SendRelease) -> None:
        at_s = self._timeline.now + self.wires.control_latency_s(ROUTER, effect.node)
        self._timeline.at(at_s, self.nodes[effect.node].on_release, (effect.item,))

    def _emit(self, effect: ev.Emit) -> None:
        request, event = effect.request, effect.event
        if type(event) is Delta:
            self.tokens += 1
            self._unanswered.discard(request)
            self._recorder.on_token(str(request), self._timeline.now, 1)
        elif isinstance(event, Finished):
            self._ended(request, ok=True, reason=event.finish_reason)
        elif isinstance(event, Broken):
            self._ended(request, ok=False, reason=event.error.code)

    def _ended(self, request: RequestId, *, ok: bool, reason: str) -> None:
        self._unanswered.discard(request)
        self._first_legs.pop(request, None)
        self.finished += ok
        self.failed += not ok
        self._recorder.on_end(str(request), self._timeline.now, ok, reason)


def _ignored(order: ev.ToNode) -> None:
    """Until the machines are there."""


def _nothing() -> None:
    """Until there is a feeder."""
