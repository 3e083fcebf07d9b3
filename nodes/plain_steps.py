"""Steps in which every row is the next token of a text: passed on, or, where its route ends,
a token chosen.

That is what a node does nearly all the time, and between two passes of compiled code everything
that is touched comes from memory: a step's weights have driven it out of the caches, and one call
of PyTorch's costs 60 to 80 us there. So no tensor is made here. What is no such step, or not in
order, is left to the engine's general way, which comes to the same results or says what is wrong.

Where the system has what it takes (native/crew.py), such a step needs no thread of Python's: the
event loop makes it ready and takes its results, compiled threads compute it in between.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

import msgspec
import torch
from msgspec.structs import replace

from helix_mq.errors import LocalError
from helix_mq.ids import ROUTER
from helix_mq.messages.data import TokenItem, TopLogprob
from nodes.batching import SeqKey
from nodes.frame_making import frame_of, frames_of, in_order
from nodes.kv_cache import KvCache
from nodes.model.native.crew import Crew, NoCrew
from nodes.model.native.decodes import NativeDecodes
from nodes.model.native.odds import NOT_WANTED
from nodes.model.native.ready import Given, Ready
from nodes.model.sampler import SamplerState
from nodes.model.sampler_draw import compiled_draws
from nodes.model.sampler_odds import compiled_odds
from nodes.payload import Again
from nodes.steps import Batch, OutFrame, StepResult
from nodes.wire_format import WIRE_NAMES, WireFormats, to_wire

_TOKENS = "int32"

MOST_OWN_ROWS = 64
"""Of a step that the event loop makes ready itself: a few microseconds for each."""


class _Step(msgspec.Struct, frozen=True, gc=False):
    """Rows in the order in which they are computed. `alike`: they leave as one frame. `edited`:
    their samplers want to be told of the tokens. `course`: whose rows they are, all of them and no
    others, if so."""

    works: Batch
    ready: Ready
    alike: bool
    edited: bool
    started_s: float
    course: Again | None = None


class PlainSteps:
    """Of one engine, whose pages and samplers these are; one thread at a time."""

    def __init__(
        self,
        node: str,
        decodes: NativeDecodes,
        cache: KvCache,
        samplers: Mapping[SeqKey, SamplerState],
        formats: WireFormats,
    ) -> None:
        self._node = node
        self._decodes = decodes
        self._cache = cache
        self._samplers = samplers
        self._formats = formats
        self._dtype = WIRE_NAMES[decodes.dtype]
        self._width = decodes.width
        self._draws = compiled_draws() is not None
        self._odds = compiled_odds() is not None
        self._threads = 0
        """As many as the device's thread has, once it had a step. PyTorch's number is each thread's
        own, and the event loop's another while a slice is loaded beside."""
        self._crew: Crew | None = None
        # A slice that one thread computes has more to do on its event loop than beside it. Steps
        # made ready there would say less of how slow the node has become.
        self._no_crew = not decodes.worth_threads
        self._begun: _Step | None = None
        """What the crew computes, since when."""
        self._course: Again | None = None
        """Whose rows they are, or were last: they may be the next ones."""
        self._ready: Ready | None = None
        self._position = 0
        """Theirs: how they are computed, and where the first is."""
        self._posted_s = 0.0

    def run(self, batch: Batch) -> StepResult | None:
        """As Engine.run(); None where the step is none of these, or must be done again to say what
        is wrong. No row has blocks, so there is nothing that others could go on from."""
        if not self._threads:
            self._threads = torch.get_num_threads()
        step = self._step(batch, edits=True)
        if step is None or not self._decodes.now(step.ready):
            return None
        return self._result(step, time.perf_counter(), 0.0)

    def begin(self, batch: Batch) -> int | None:
        """See StepEngine.begin()."""
        if len(batch) > MOST_OWN_ROWS or not self._threads or self._no_crew:
            return None
        # What samplers make of their texts may take long.
        step = self._step(batch, edits=False)
        if step is None:
            return None
        crew = self._crew or self._hire()
        if crew is None:
            return None
        return self._post(step, crew)

    def again(self, batch: Batch, payload: memoryview) -> int | None:
        """See StepEngine.again()."""
        course, ready, crew, first = self._course, self._ready, self._crew, batch[0]
        if (
            course is None
            or course is not first.payload.use.course
            or first.position != self._position + 1
            or ready is None
            or crew is None
            or self._no_crew
        ):
            return None
        started_s = time.perf_counter()
        if not self._decodes.again(ready, payload):
            return None
        # Samplers that had nothing to edit have nothing later on, and draw as before.
        return self._post(_Step(batch, ready, True, False, started_s, course), crew)

    def _post(self, step: _Step, crew: Crew) -> int:
        # Not the step itself, whose rows are the transport's memory.
        self._course, self._ready, self._position = step.course, step.ready, step.works[0].position
        self._begun, self._posted_s = step, time.perf_counter()
        self._decodes.begin(step.ready, crew)
        return crew.bell

    def forget(self) -> None:
        """Pages have moved, or sequences are gone: the next step is made ready from the start."""
        self._course = self._ready = None
        self._decodes.forget()

    def end(self) -> StepResult | None:
        """See StepEngine.end()."""
        step, crew = self._begun, self._crew
        assert step is not None
        assert crew is not None
        bad, began_s, ended_s = crew.took()
        if bad < 0:
            raise LocalError("the compiled threads rang before their step was over")
        self._begun = None
        if bad:
            return None
        idle_s = time.perf_counter() - self._posted_s - (ended_s - began_s)
        return self._result(step, ended_s, idle_s)

    def _hire(self) -> Crew | None:
        try:
            self._crew = Crew(self._threads)
        except NoCrew:
            self._no_crew = True
        return self._crew

    def close(self) -> None:
        """Returns after the step in progress; there is none afterwards."""
        self._no_crew = True
        if self._crew is not None:
            self._crew.close()

    def _step(self, batch: Batch, *, edits: bool) -> _Step | None:
        """None where the batch is none of these steps, or not in order, or has logits to edit where
        that is not wanted."""
        started_s = time.perf_counter()
        first = batch[0]
        layers, taken = first.layers, first.payload.dtype
        ends = first.next_hop == ROUTER
        starts = taken == _TOKENS
        alike, drawn, edited, told = True, False, False, False
        if not starts and taken != self._dtype:
            return None
        for work in batch:
            payload = work.payload
            if (
                work.count != 1
                or not work.sample
                or not work.position
                or (work.next_hop == ROUTER) is not ends
                or payload.dtype != taken
                or payload.spec is not None
                or payload.blocks is not None
                or (work.layers is not layers and work.layers != layers)
            ):
                return None
            if work.next_hop != first.next_hop or payload.epoch != first.payload.epoch:
                alike = False
            if ends:
                sampler = self._samplers[work.seq]
                if sampler.wanted != NOT_WANTED:
                    if not self._odds:
                        return None
                    told = True
                if work.position + 1 < sampler.plain_from:
                    if not self._draws and sampler.params.temperature:
                        return None
                    drawn = True
                    edited = edited or work.position + 1 < sampler.simple_from
        if edited and not edits:
            return None
        works = batch if alike else in_order(batch)
        places = [(w.seq, w.position) for w in works]
        if starts:
            order = sys.byteorder
            given = Given([int.from_bytes(w.payload.data, order, signed=True) for w in works])
        else:
            given = Given((), [w.payload.data for w in works])
        decodes, cache = self._decodes, self._cache
        if ends:
            ready = decodes.tokens(
                places,
                layers,
                cache,
                given,
                [self._samplers[w.seq].choice for w in works] if drawn else (),
                [self._samplers[w.seq].edits_at(w.position + 1) for w in works] if edited else (),
                [self._samplers[w.seq].wanted for w in works] if told else (),
            )
        else:
            ready = decodes.hidden(places, layers, cache, given)
        if ready is None:
            return None
        course = first.payload.use.course
        if not alike or (course is not None and not course.are_all(works)):
            course = None
        return _Step(works, ready, alike, edited, started_s, course)

    def _result(self, step: _Step, computed_s: float, idle_s: float) -> StepResult | None:
        """Of a step that has been computed; None where some logits are no numbers: keys and values
        are stored then, and may be once more. `idle_s`: of the time since it was begun, what
        nothing was done for it in."""
        works, ready = step.works, step.ready
        frames: list[OutFrame] = []
        tokens: list[TokenItem] = []
        if ready.leaving is not None:
            peer = works[0].next_hop
            if step.alike and not self._formats.of(peer):
                frames = [frame_of(self._node, works, self._width, self._dtype, ready.leaving)]
            else:
                frames = self._frames(works, ready.leaving)
        elif ready.best is None or not all(map(math.isfinite, ready.highest or ())):
            return None
        else:
            found = ready.best[:]
            if step.edited:
                for work, token in zip(works, found, strict=True):
                    self._samplers[work.seq].took(token)
            tokens = [
                TokenItem(w.seq.request, w.seq.attempt, w.position + 1, token)
                for w, token in zip(works, found, strict=True)
            ]
            if ready.odds is not None:
                tokens = [
                    replace(token, logprob=logprob, top=tuple(TopLogprob(*pair) for pair in top))
                    for token, (logprob, top) in zip(tokens, ready.odds.told(), strict=True)
                ]
        count, started_s = len(works), step.started_s
        seconds = time.perf_counter() - started_s - idle_s
        layers = works[0].layers
        layer_tokens = count * (layers.end - layers.first)
        return StepResult(frames, tokens, seconds, count, layer_tokens, (), started_s, computed_s)

    def _frames(self, works: Batch, leaving: memoryview) -> list[OutFrame]:
        size = len(leaving) // len(works)

        def wire(start: int, end: int, peer: str) -> tuple[str, memoryview]:
            rows, form = leaving[start * size : end * size], self._formats.of(peer)
            if not form:
                return self._dtype, rows
            numbers = torch.frombuffer(rows, dtype=self._decodes.dtype)
            return to_wire(numbers.view(-1, self._width), form)

        return frames_of(self._node, works, self._width, wire)
