"""One SDK stream as the router keeps it: everything recorded, and how far its client has it. Pure.

Events are kept until the end has been delivered and a grace has passed, so that a client that comes
back gets exactly what it lacks. `next_message` and `sent` walk the record; `attach` sets the cursor
back for a new connection.
"""

from __future__ import annotations

import secrets

import msgspec

from helix_mq.errors import HelixError, InvalidRequest
from helix_mq.ids import RequestId
from helix_mq.messages import client
from helix_mq.messages.data import TopLogprob
from helix_mq.models.tokenizer import Tokenizer
from helix_mq.sdk.errors import failed
from router.journal_records import Opened
from router.service import Broken, Delta, Finished, StreamEvent, TokenLogprob

_MAX_TOKEN_CHARS = 4096


class ClientStream:
    """`peer` is the connection it goes to, None while its client is away."""

    def __init__(
        self,
        peer: bytes | None,
        user: str | None,
        reference: int,
        now_s: float,
        kept_name: str = "",
    ) -> None:
        """`kept_name`: what it was called before the router restarted."""
        self.peer = peer
        self.user = user
        self.reference = reference
        self.request: RequestId | None = None
        self.name = kept_name or secrets.token_urlsafe(24)
        """Random: whoever knows it may read the stream. Clients know it behind the request's id."""
        self._kept = bool(kept_name)
        self.away_since_s = now_s
        """When the client went away; counts while `peer` is None."""
        self.ended_s: float | None = None
        self.cancelled = False
        self._accepted: client.Accepted | None = None
        self._accept_due = False
        self._accept_wanted = not kept_name
        self._deltas: list[Delta] = []
        self._cursor = 0
        self._end: Finished | HelixError | None = None
        self._end_sent = False

    @classmethod
    def restored(cls, opened: Opened, now_s: float) -> ClientStream:
        """As the journal has it; its client is away."""
        origin = opened.origin
        assert origin.reference is not None
        stream = cls(None, origin.user, origin.reference, now_s, origin.secret)
        stream.accept(opened.request, opened.model, len(opened.generation.prompt_ids))
        return stream

    @property
    def ended(self) -> bool:
        return self._end is not None

    @property
    def delivered(self) -> bool:
        """Its client has been sent everything, the end included."""
        return self._end_sent

    @property
    def kept_deltas(self) -> int:
        return len(self._deltas)

    def accept(self, request: RequestId, model: str, prompt_tokens: int) -> None:
        self.request = request
        # The id is what the router's log says; the name is what a Resume is found by.
        shown = f"{request:x}.{self.name}"
        self._accepted = client.Accepted(self.reference, shown, model, prompt_tokens)
        self._accept_due = self._accept_wanted

    def record(self, event: StreamEvent, now_s: float) -> None:
        match event:
            case Delta():
                self._deltas.append(event)
            case Finished():
                self._finish(event, now_s)
            case Broken():
                self._finish(event.error, now_s)

    def fail(self, error: HelixError, now_s: float) -> None:
        """Ends it with an error, unless it has ended."""
        self._finish(error, now_s)

    def _finish(self, end: Finished | HelixError, now_s: float) -> None:
        if self._end is None:
            self._end = end
            self.ended_s = now_s

    def attach(self, peer: bytes, reference: int, index: int | None) -> None:
        """Goes on over another connection: from delta `index`, or all anew for None.

        Raises InvalidRequest when there is no such delta yet, unless the router has restarted: a
        disk that lost the last moments lets them be computed again.
        """
        if index is not None and index > len(self._deltas) and not self._kept:
            raise InvalidRequest(
                f"cannot resume at delta {index}: there are {len(self._deltas)}", param="index"
            )
        self.peer, self.reference = peer, reference
        self._cursor = index or 0
        self._accept_wanted = index is None
        self._accept_due = self._accept_wanted and self._accepted is not None
        self._end_sent = False

    def detach(self, now_s: float) -> None:
        self.peer = None
        self.away_since_s = now_s

    def next_message(self, tokenizer: Tokenizer) -> msgspec.Struct | None:
        """What its client lacks next; the same until `sent` is called."""
        if self._accept_due:
            assert self._accepted is not None
            return msgspec.structs.replace(self._accepted, reference=self.reference)
        if self._cursor < len(self._deltas):
            return _delta(self.reference, self._deltas[self._cursor], tokenizer)
        if self._end is None or self._end_sent:
            return None
        if isinstance(self._end, HelixError):
            return failed(self.reference, self._end)
        return _done(self.reference, self._end)

    def sent(self) -> None:
        """The message `next_message` gave is on its way."""
        if self._accept_due:
            self._accept_due = False
        elif self._cursor < len(self._deltas):
            self._cursor += 1
        else:
            self._end_sent = True


def _delta(reference: int, delta: Delta, tokenizer: Tokenizer) -> client.Delta:
    logprob = _logprob(delta.logprob, tokenizer) if delta.logprob is not None else None
    return client.Delta(reference, delta.index, delta.token, delta.text, logprob)


def _logprob(logprob: TokenLogprob, tokenizer: Tokenizer) -> client.TokenLogprob:
    text = tokenizer.token_text(logprob.token)[:_MAX_TOKEN_CHARS]
    top = tuple(TopLogprob(token, value) for token, value in logprob.top)
    return client.TokenLogprob(logprob.token, text, logprob.logprob, top)


def _done(reference: int, end: Finished) -> client.Done:
    timings = client.Timings(end.queue_s, end.ttft_s, end.total_s, end.reroutes)
    return client.Done(
        reference,
        end.finish_reason,
        end.prompt_tokens,
        end.output_tokens,
        timings,
        end.cached_tokens,
        end.drafted_tokens,
        end.accepted_tokens,
    )
