"""One stream as the client knows it: what has come, what comes next, how it ended. Pure.

Deltas are numbered. One that was seen already changes nothing, one that comes too early says that
something was lost: then the stream resumes at `next_index`. So no token is repeated or skipped,
whatever happened to the connection.
"""

from __future__ import annotations

from collections import deque

from helix_mq.errors import HelixError
from helix_mq.messages import client
from helix_mq.sdk.results import (
    Completion,
    Timings,
    Token,
    TokenLogprob,
    TopLogprob,
    Usage,
)


class StreamState:
    def __init__(self, submit: client.Submit, now_s: float) -> None:
        self.submit = submit
        self.request: str | None = None
        """The router's name for it, once accepted."""
        self.next_index = 0
        self.done: client.Done | None = None
        self.error: HelixError | None = None
        self._model = submit.model
        self._waiting: deque[Token] = deque()
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._submitted_s = now_s
        self._first_s: float | None = None
        self._ended_s = now_s

    @property
    def reference(self) -> int:
        return self.submit.reference

    @property
    def ended(self) -> bool:
        """Nothing more will arrive."""
        return self.done is not None or self.error is not None

    def accepted(self, message: client.Accepted) -> None:
        self.request = message.request
        self._model = message.model

    def delta(self, message: client.Delta, now_s: float) -> bool:
        """Takes a delta. False: one before it is missing, so the stream must resume."""
        if self.ended or message.index < self.next_index:
            return True
        if message.index > self.next_index:
            return False
        self.next_index += 1
        logprob = _logprob(message.logprob)
        if message.token is not None:
            self._token_ids.append(message.token)
            if self._first_s is None:
                self._first_s = now_s
        if logprob is not None:
            self._logprobs.append(logprob)
        self._texts.append(message.text)
        self._waiting.append(Token(message.text, message.token, message.index, logprob))
        return True

    def finish(self, message: client.Done, now_s: float) -> bool:
        """The end. False: deltas before it are missing, so the stream must resume."""
        if self.ended:
            return True
        if len(self._token_ids) < message.output_tokens:
            return False
        self.done = message
        self._ended_s = now_s
        return True

    def fail(self, error: HelixError) -> None:
        if not self.ended:
            self.error = error

    def take(self) -> Token | None:
        """The next token for the caller; None when there is none now."""
        return self._waiting.popleft() if self._waiting else None

    @property
    def readable(self) -> bool:
        """The caller has something to get: a token, or the end."""
        return bool(self._waiting) or self.ended

    def completion(self) -> Completion:
        """The whole; only after a good end."""
        assert self.done is not None
        done = self.done
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=done.finish_reason,
            usage=Usage(
                done.prompt_tokens,
                done.output_tokens,
                done.cached_tokens,
                done.drafted_tokens,
                done.accepted_tokens,
            ),
            timings=self._timings(done),
            model=self._model,
            request=self.request or "",
            logprobs=tuple(self._logprobs) if self.submit.sampling.logprobs else None,
        )

    def _timings(self, done: client.Done) -> Timings:
        first_s = self._first_s if self._first_s is not None else self._ended_s
        total_s = self._ended_s - self._submitted_s
        tokens, over_s = len(self._token_ids), total_s
        if tokens > 1:
            tokens, over_s = tokens - 1, self._ended_s - first_s
        return Timings(
            ttft_s=first_s - self._submitted_s,
            total_s=total_s,
            tokens_per_s=tokens / over_s if over_s > 0 else 0.0,
            queue_s=done.timings.queue_s,
            reroutes=done.timings.reroutes,
        )


def _logprob(message: client.TokenLogprob | None) -> TokenLogprob | None:
    if message is None:
        return None
    top = tuple(TopLogprob(t.token, t.logprob) for t in message.top)
    return TokenLogprob(message.token, message.text, message.logprob, top)
