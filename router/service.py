"""What the router offers to its edges (HTTP gateway, SDK sockets): submit, stream, cancel, status.

Edges turn their own formats into a Generation and read an EventStream; they decide nothing. The
Service protocol is implemented by `router.app`; edges know only this module.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from helix_mq.errors import HelixError
from helix_mq.ids import RequestId
from helix_mq.models.tokenizer import Tokenizer
from helix_mq.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to generate. `sampling.seed` and `max_tokens` are decided already."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    deadline_s: float | None = None
    """Seconds from now; None takes the router's default."""
    priority: int = 0
    """0 = interactive, 1 = background."""
    owner: str = ""
    """Whose request it is, for sharing fairly: an API key's digest or a client key's name; empty
    where there are no keys."""
    continues_text: bool = False
    """The output goes on where the prompt's text ends (completions), so a space at its start
    stays; a chat answer is a text of its own."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, logprob), best first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Delta number `index`: one per output token in order; a last one may carry only text."""

    index: int
    token: int | None
    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a stream that went well; `finish_reason` is `stop`, `length` or `cancelled`."""

    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    queue_s: float
    ttft_s: float
    total_s: float
    reroutes: int
    stop_reason: str | int | None = None
    """The stop string or token that ended it, where one did."""
    cached_tokens: int = 0
    """Of the prompt, those that nodes had kept from other requests."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of those drafted, what turned out to be the next tokens."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The end of a stream that could not be finished."""

    error: HelixError


StreamEvent = Delta | Finished | Broken


@dataclass(frozen=True, slots=True)
class Origin:
    """Who submitted a request and how it is asked for later, also after a restart.

    `user` and `reference` are an SDK client's: its key's name and its number for the stream.
    `first` and `choice` belong to HTTP: n choices are asked for by the name of the first.
    """

    secret: str = ""
    """What makes the name unguessable; drawn by the service where it is empty."""
    user: str | None = None
    reference: int | None = None
    first: RequestId | None = None
    choice: int = 0


NO_ORIGIN = Origin()


class EventStream:
    """One generation's events, in order, for one reader. Bounded by max_tokens + 2 events."""

    def __init__(
        self, request: RequestId, prompt_tokens: int, secret: str = "", *, accepted: bool = True
    ) -> None:
        """Not `accepted`: `accept` or `refuse` will follow."""
        self.request = request
        self.prompt_tokens = prompt_tokens
        self.secret = secret
        # Not a queue of asyncio's, which takes a dozen calls per token.
        self._events: deque[StreamEvent] = deque()
        self._reader: asyncio.Future[None] | None = None
        """Waits for the next one."""
        self._decided = asyncio.Event()
        self._refusal: HelixError | None = None
        if accepted:
            self._decided.set()
        self.ended = False

    @property
    def name(self) -> str:
        """What a client calls the request."""
        return f"{self.request:x}.{self.secret}" if self.secret else f"{self.request:x}"

    @property
    def undecided(self) -> bool:
        """Submitted, but not accepted yet."""
        return not self._decided.is_set()

    def accept(self) -> None:
        """From now on the request cannot be lost."""
        self._decided.set()

    def refuse(self, error: HelixError) -> None:
        """It could not be accepted after all."""
        self._refusal = error
        self._decided.set()
        self.push(Broken(error))

    async def accepted(self) -> None:
        """Returns once the client may be told that its request is accepted. Raises its refusal."""
        await self._decided.wait()
        if self._refusal is not None:
            raise self._refusal

    def push(self, event: StreamEvent) -> None:
        self._events.append(event)
        reader = self._reader
        if reader is not None:
            self._reader = None
            if not reader.done():
                reader.set_result(None)

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Yields events up to and including Finished or Broken."""
        while not self.ended:
            while not self._events:
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
            event = self._events.popleft()
            self.ended = not isinstance(event, Delta)
            yield event


@dataclass(frozen=True, slots=True)
class NodeStatus:
    node: str
    state: str
    layers: str
    device: str
    kv_used_pages: int
    kv_total_pages: int
    open_requests: int
    waiting_rows: int
    suspect: str = ""
    """Why new requests avoid it: `not heard for 2.1 s`; empty if they do not."""
    slowdown: float = 1.0
    """Its steps take so many times as long as it measured; what the flow is computed with."""
    rate_tokens_per_s: float = 0.0
    """What the flow takes it to pass at most."""
    flow_tokens_per_s: float = 0.0
    """What passes it in the max flow."""
    kind: str = ""
    region: str = ""
    caps: bool = False
    """It is part of what caps the flow."""
    tokens: int = 0
    """Cumulative, as the steps and the seconds they took and should have taken."""
    steps: int = 0
    step_s: float = 0.0
    expected_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One directed data link; `sent_bytes` is cumulative since its sender started, `down_s` says
    for how long it has been unconnected."""

    sender: str
    receiver: str
    sent_bytes: int
    backlog_bytes: int
    down_s: float = 0.0
    bytes_per_s: float = 0.0
    """Acknowledged lately at best; 0 where nothing was, as for the round trip."""
    round_trip_s: float = 0.0
    probed_bytes_per_s: float = 0.0
    """What it can carry, by probes; 0 where none were lately."""
    blocked_s: float = 0.0
    """Cumulative: frames waited for the receiver's credit."""
    flow_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """`failing`: nothing can be written at present. `pending_records`: given, not kept yet."""

    failing: bool
    pending_records: int
    pending_bytes: int
    commits: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A frozen picture of the service for /metrics and the console."""

    serving: bool
    reason: str
    """Why not serving, in words: `layers 12-17 are on no live node`; empty when serving."""
    recovering: bool
    """Not serving, but it was a moment ago: new requests may wait."""
    queued: int
    running: int
    flow_tokens_per_s: float = 0.0
    """Max flow over the live nodes; 0 when they do not cover the model."""
    nodes: tuple[NodeStatus, ...] = ()
    links: tuple[LinkStatus, ...] = ()
    journal: JournalStatus | None = None
    epoch: int = 0
    searches: int = 0
    """For a placement, that have ended."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of those drafted, by router or first hops, what turned out to be the next tokens."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether requests can be served; the first three of ServiceStatus."""

    serving: bool
    reason: str
    recovering: bool


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """The beginning of NodeStatus, and `suspect`."""

    node: str
    state: str
    layers: str
    suspect: str


class Service(Protocol):
    """Implemented by the router's app; used by the gateway and the SDK sockets."""

    model_name: str
    max_context: int
    vocab_size: int
    tokenizer: Tokenizer

    def submit(self, generation: Generation, origin: Origin = NO_ORIGIN) -> EventStream:
        """Admits or queues; raises CallerError or CapacityError when refused at once.

        Wait for the stream's `accepted` before telling anyone.
        """
        ...

    def cancel(self, request: RequestId) -> None:
        """Ends a stream with `finish_reason` cancelled; unknown or ended ones are ignored."""
        ...

    def status(self) -> ServiceStatus:
        """Goes over every link, milliseconds in a large cluster: for /metrics, not for requests."""
        ...

    def standing(self) -> Standing:
        """At no cost while the model is served: for every request and message."""
        ...

    def node_standings(self) -> tuple[NodeStanding, ...]:
        """By name. Goes over the nodes, but not over their links."""
        ...

    def draw_seed(self) -> int:
        """A seed for a request that did not choose one."""
        ...

    def output_budget(self, prompt_tokens: int) -> int:
        """Most output tokens a request with this prompt may get here; < 1 if it does not fit."""
        ...

    def check_room(self, owner: str, priority: int, deadline_s: float | None) -> None:
        """Raises what `submit` would raise for any request of this owner now, however short: said
        before its text is tokenised, which costs more than a refusal."""
        ...

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text, off the event loop when it is long."""
        ...

    async def tokenize_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of (role, content) messages under the model's chat template."""
        ...
