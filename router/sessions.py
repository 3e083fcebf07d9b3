"""One request's life in the router: its tokens, its route, its state. Pure.

    QUEUED ──start──> RUNNING ──finish──> ENDED
       ^                 │
       └────re-route─────┘          (a node died or had no page; attempt + 1)

Every transition goes through `move`, which refuses any other. Tokens are accepted only under the
current attempt, from the route's last node, at exactly the next position: a late or repeated one
changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from helix_mq.drafting import Drafter
from helix_mq.ids import Attempt, Epoch, RequestId
from helix_mq.layers import Route
from helix_mq.messages.data import SampleSpec, TokenItem
from helix_mq.prefix_blocks import span_names
from router.events import SendRow
from router.service import Delta, Finished, Generation, TokenLogprob
from router.text import TextStream
from router.token_return import BY_ROUTER, Way


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


_TRANSITIONS = {
    (State.QUEUED, State.RUNNING),
    (State.QUEUED, State.ENDED),
    (State.RUNNING, State.QUEUED),
    (State.RUNNING, State.ENDED),
}


@dataclass(frozen=True, slots=True)
class Prefix:
    """What of its tokens a session need not have computed on its route, since all hops have kept
    it, and the names of all their blocks; none where nothing is to be kept."""

    skipped_tokens: int = 0
    names: bytes = b""


NO_PREFIX = Prefix()


@dataclass(slots=True)
class Session:
    request: RequestId
    generation: Generation
    text: TextStream
    arrived_s: float
    deadline_s: float
    """On the core's clock."""
    deadline_ms: int
    """The same instant as Unix time, for nodes."""
    eos_ids: frozenset[int]
    output: list[int] = field(default_factory=list)
    state: State = State.QUEUED
    attempt: Attempt = Attempt(0)
    route: Route | None = None
    epoch: Epoch = Epoch(0)
    started_s: float | None = None
    first_token_s: float | None = None
    sent_s: float = 0.0
    """When its last row was sent: a decode goes out with the token before it. Of a direct one, when
    its last token came: as far apart as its rows."""
    routed_tokens: int = 0
    """What it had to prefill when it was given its present route."""
    reroutes: int = 0
    direct: bool = False
    """Its last hop hands each token to the first itself, and tells the router."""
    drafter: Drafter | None = None
    drafts: tuple[int, ...] = ()
    """Of the decode under way, those that no token has come for yet."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of those drafted, by whomever, what turned out to be the next tokens."""
    prefix: Prefix = NO_PREFIX
    """On its present route."""
    prefix_misses: int = 0
    cached_tokens: int = 0
    """Of its prompt, what was not computed before its first token."""
    nameless: bool = False
    """What is computed of it is not to be shared."""
    squeezed: bool = False
    """It once ran out of pages: from then on it reserves all it may ever need."""
    overflows: int = 0
    """How often what was computed of it came to no numbers."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.generation.prompt_ids)

    @property
    def length_tokens(self) -> int:
        # Asked several times per token.
        return len(self.generation.prompt_ids) + len(self.output)

    @property
    def prefilling(self) -> bool:
        """On a route, whose first token has not come yet."""
        return len(self.generation.prompt_ids) + len(self.output) == self.routed_tokens

    @property
    def last_possible_tokens(self) -> int:
        return self.prompt_tokens + self.generation.sampling.max_tokens

    def expected_tokens(self, expected_output_tokens: int) -> int:
        """KV room to reserve: what is there, plus the output that may be expected."""
        if self.squeezed:
            return self.last_possible_tokens
        expected = self.prompt_tokens + expected_output_tokens
        return min(max(expected, self.length_tokens + 1), self.last_possible_tokens)

    def move(self, state: State) -> None:
        if (self.state, state) not in _TRANSITIONS:
            raise AssertionError(f"request {self.request}: {self.state} -> {state}")
        self.state = state

    def start(self, route: Route, epoch: Epoch, now_s: float, way: Way = BY_ROUTER) -> SendRow:
        """Goes on a route: the prompt, with all tokens emitted so far and without what `prefix`
        says is kept there, as one row to prefill."""
        self.move(State.RUNNING)
        self.route, self.epoch, self.sent_s, self.direct = route, epoch, now_s, way.direct
        if self.started_s is None:
            self.started_s = now_s
        tokens = (*self.generation.prompt_ids, *self.output)
        self.routed_tokens, skipped = len(tokens), self.prefix.skipped_tokens
        if not self.output:
            self.cached_tokens = skipped
        needs_history = _needs_history(self.generation)
        return SendRow(
            request=self.request,
            attempt=self.attempt,
            position=skipped,
            token_ids=tokens[skipped:],
            route=route,
            epoch=epoch,
            deadline_ms=self.deadline_ms,
            spec=SampleSpec(
                self.generation.sampling, self.prompt_tokens, len(tokens) if needs_history else 0
            ),
            history=tokens if needs_history else (),
            direct=way.direct,
            drafting=way.drafting,
            together=way.together,
            blocks=span_names(self.prefix.names, skipped, len(tokens) - skipped),
        )

    def requeue(self, *, counted: bool = True) -> None:
        """Off its route, to be routed anew under the next attempt; not `counted` where nobody is to
        know."""
        self.move(State.QUEUED)
        self.route, self.drafts = None, ()
        self.attempt = Attempt(self.attempt + 1)
        self.reroutes += counted

    def came_to(self, *, squeezed: bool, damaged: bool) -> None:
        """Why its route was no good: no pages, no numbers."""
        self.squeezed |= squeezed
        self.overflows += damaged

    def expects(self, node: str, item: TokenItem) -> bool:
        """True if this is the next token of the current attempt, from where it must come."""
        return (
            self.state is State.RUNNING
            and self.route is not None
            and item.attempt == self.attempt
            and item.position == self.length_tokens
            and self.route.hops[-1].node == node
        )

    def missed(self, node: str, item: TokenItem) -> bool:
        """True if tokens before this one were lost on their way here: those of a direct sequence
        come whether the last one did or not, and nothing would ever send it again."""
        return (
            self.direct
            and self.route is not None
            and item.attempt == self.attempt
            and item.position > self.length_tokens
            and self.route.hops[-1].node == node
        )

    def take(self, item: TokenItem, now_s: float) -> tuple[Delta, str | None, str | int | None]:
        """Adds the token; gives its delta, and finish and stop reason if the text ends with it."""
        index = len(self.output)
        self.output.append(item.token)
        self.drafts = self.drafts[1:] if item.more else ()
        if not item.more:
            self.sent_s = now_s
        if self.first_token_s is None:
            self.first_token_s = now_s
        logprob = None
        if item.logprob is not None and self.generation.sampling.logprobs:
            top = tuple((t.token, t.logprob) for t in item.top)
            logprob = TokenLogprob(item.token, item.logprob, top)
        sampling = self.generation.sampling
        if item.token in self.eos_ids and not sampling.ignore_eos:
            # The end marker is not text; what was held back is, and comes out with it.
            return Delta(index, item.token, self.text.flush().text, logprob), "stop", None
        if item.token in sampling.stop_token_ids:
            text = self.text.flush().text
            return Delta(index, item.token, text, logprob), "stop", item.token
        pushed = self.text.push((item.token,))
        text, finish, stop = pushed.text, None, None
        if pushed.finished_by_stop is not None:
            finish, stop = "stop", pushed.finished_by_stop
        elif len(self.output) >= sampling.max_tokens:
            text += self.text.flush().text
            finish = "length"
        return Delta(index, item.token, text, logprob), finish, stop

    def decode_row(self, drafts: tuple[int, ...] = ()) -> SendRow:
        """The newest token, on its way to the first hop for the next step, and what may follow."""
        assert self.route is not None
        self.drafts = drafts
        return SendRow(
            request=self.request,
            attempt=self.attempt,
            position=self.length_tokens - 1,
            token_ids=(self.output[-1], *drafts),
            route=self.route,
            epoch=self.epoch,
            deadline_ms=self.deadline_ms,
            verify=bool(drafts),
        )

    def finished(self, reason: str, now_s: float, stop_reason: str | int | None = None) -> Finished:
        started_s = self.started_s if self.started_s is not None else now_s
        first_s = self.first_token_s if self.first_token_s is not None else now_s
        return Finished(
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            output_tokens=len(self.output),
            queue_s=started_s - self.arrived_s,
            ttft_s=first_s - self.arrived_s,
            total_s=now_s - self.arrived_s,
            reroutes=self.reroutes,
            stop_reason=stop_reason,
            cached_tokens=self.cached_tokens,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
        )


def _needs_history(generation: Generation) -> bool:
    """Penalties look at the tokens so far; without them the last hop need not see any."""
    s = generation.sampling
    return s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0
