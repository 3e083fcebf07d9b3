"""A FaultWorld whose nodes work: frames, batches, drafts, tokens that go back directly, and kept
beginnings of prompts are production's; see `working_node`.

Texts often repeat themselves, so that drafts are right; prompts begin alike; stop strings,
penalties and least lengths are among what is asked for.
"""

from __future__ import annotations

import random
from contextlib import suppress

from helix_mq.errors import HelixError
from helix_mq.ids import ROUTER, Attempt, Epoch, NodeId, RequestId
from helix_mq.messages.data import TokenItem
from helix_mq.sampling import SamplingParams
from helix_mq.token_return import TokenReturn
from router import events as ev
from router.core import CoreSettings
from router.outgoing import build_frame
from router.prefix_settings import PrefixSettings
from router.restore import ATTEMPTS_PER_LIFE
from router.service import Generation
from tests.router.fault_world import SLICES, FaultWorld
from tests.router.fault_world_node import PAGES
from tests.router.working_node import WorkingNode, WorkingSlice, framed, pieces, spoken
from tests.router.world import EOS, Letters, Stream

BEGINNINGS = tuple(
    tuple(random.Random(number).randrange(96) for _ in range(200)) for number in range(3)
)


def wanted(token_return: TokenReturn) -> CoreSettings:
    return CoreSettings(
        expected_output_tokens=16,
        token_return=token_return,
        prefixes=PrefixSettings("all", b"key"),
    )


class WorkingWorld(FaultWorld):
    def __init__(self, seed: int, token_return: TokenReturn, pages: int = PAGES) -> None:
        """`pages`: of each node."""
        self._rights: dict[Generation, tuple[list[int], str]] = {}
        self._pages = pages
        self._life = 0
        super().__init__(seed, wanted(token_return))

    def new_node(self, name: str, incarnation: int) -> WorkingNode:
        return WorkingNode(self, name, incarnation, self._pages)

    @property
    def working(self) -> list[WorkingNode]:
        return [node for node in self.nodes.values() if isinstance(node, WorkingNode)]

    def generation(self, prompt: tuple[int, ...], max_tokens: int, seed: int) -> Generation:
        draw = random.Random(seed)
        beginning = draw.choice(BEGINNINGS)[: draw.choice((0, 64, 128, 150))]
        ignore_eos = draw.random() < 0.5
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=ignore_eos,
            presence_penalty=draw.choice((0.0, 0.0, 0.5)),
            min_tokens=0 if ignore_eos else min(max_tokens, draw.choice((0, 10))),
        )
        letters = [chr(33 + draw.randrange(96)) for _ in range(2)]
        stop = tuple(letters) if draw.random() < 0.25 else ()
        return Generation((*beginning, *prompt), sampling, stop=stop, deadline_s=1e6)

    def right(self, generation: Generation) -> tuple[list[int], str]:
        if generation not in self._rights:
            self._rights[generation] = _alone(generation)
        return self._rights[generation]

    def _send_row(self, row: ev.SendRow) -> None:
        first = row.route.hops[0].node
        parts = [framed(*part) for part in pieces(*build_frame([row], row.epoch), 4 * 50)]
        went = [self.send(ROUTER, first, part) for part in parts]
        if not all(went):
            self.later(0.25, lambda: self.handle(ev.LinkLost(first)))

    # -- faults -----------------------------------------------------------------

    def restart_router(self) -> None:
        """Another router goes on from the journal, in which the last tokens are missing: no client
        has seen those."""
        self._life += 1
        self.network.router_ended()
        self.core = self._new_core(Epoch(7 + 1000 * self._life))
        self.core.cluster.expect_back()
        for request, stream in self.streams.items():
            if stream.end is None:
                del stream.tokens[len(stream.tokens) - self.draw.randrange(4) :]
                self.handle(self._kept(request, stream))

    def _kept(self, request: RequestId, stream: Stream) -> ev.Restored:
        tokens = tuple(TokenItem(request, 0, 0, token) for token in stream.tokens)
        return ev.Restored(
            *(request, stream.generation, tokens, Attempt(self._life * ATTEMPTS_PER_LIFE)),
            restarts=self._life,
            age_s=1.0,
            first_token_s=0.5 if tokens else None,
            deadline_ms=int((self.time.clock.wall_s() + 1e6) * 1000),
        )

    def _emit(self, effect: ev.Emit) -> None:
        if not effect.past:
            super()._emit(effect)

    def place(self) -> None:
        """Other slices, of which any two nodes may go, too; if all are there."""
        names, slices = sorted(SLICES), list(SLICES.values())
        self.draw.shuffle(slices)
        with suppress(HelixError):
            wanted = {NodeId(n): layers for n, layers in zip(names, slices, strict=True)}
            self.handle(ev.PlacementWanted(wanted))

    def squeeze(self, name: str) -> None:
        for slice_ in self._slices_of(name):
            slice_.engine.refuse_next += 1

    def break_step(self, name: str) -> None:
        for slice_ in self._slices_of(name):
            slice_.model.fail_next += 1

    def move_pages(self, name: str) -> None:
        for slice_ in self._slices_of(name):
            slice_.resize_next = True

    def _slices_of(self, name: str) -> list[WorkingSlice]:
        return [s for node in self.working if node.name == name for s in node.slices]


def _alone(generation: Generation) -> tuple[list[int], str]:
    """The tokens and the finish reason of one machine that is never disturbed."""
    sampling, output, text = generation.sampling, list[int](), ""
    while len(output) < sampling.max_tokens:
        token = spoken((*generation.prompt_ids, *output))
        if token == EOS and len(output) < sampling.min_tokens:
            token = 0
        output.append(token)
        if token == EOS and not sampling.ignore_eos:
            return output, "stop"
        text += Letters().push(token)
        if any(stop in text for stop in generation.stop):
            return output, "stop"
    return output, "length"
