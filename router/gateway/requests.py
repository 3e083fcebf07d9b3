"""GET /v1/helix/requests/{id}: a request by the id its answer carries, while it runs and after.

For streams that broke off with the router, and for whoever lost an answer. The id cannot be
guessed; where there are API keys, only the key that submitted the request may ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from helix_mq.errors import CallerError, HelixError
from router.gateway.auth import ApiKeys
from router.gateway.faults import ErrorFields, error_fields, error_response
from router.gateway.logprobs import chat_logprobs, joined_chat_logprobs
from router.gateway.replies import ChatLogprobs, StopReason, Tokens, Usage
from router.journal_reader import FoundRequest, JournalReader
from router.service import Broken, Finished, Service


class UnknownRequest(CallerError):
    code = "not_found"
    http_status = 404


class KeptChoice(msgspec.Struct, frozen=True):
    index: int
    status: str
    text: str
    token_ids: list[int]
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: StopReason
    error: ErrorFields | None


class KeptRequest(msgspec.Struct, frozen=True):
    """`status`: queued, running, finished, failed (as soon as one choice is)."""

    id: str
    created: int
    model: str
    status: str
    choices: list[KeptChoice]
    usage: Usage
    error: ErrorFields | None
    """The first error of a choice."""
    object: str = "helix.request"


class RequestPages:
    def __init__(self, service: Service, keys: ApiKeys, reader: JournalReader | None) -> None:
        self._service = service
        self._keys = keys
        self._reader = reader

    async def request(self, request: Request) -> Response:
        try:
            answer = await self._answer(request)
        except HelixError as e:
            return error_response(e)
        # It changes from one moment to the next, and is nobody else's.
        headers = {"cache-control": "no-store"}
        return Response(msgspec.json.encode(answer), 200, headers, "application/json")

    async def _answer(self, request: Request) -> KeptRequest:
        if self._reader is None:
            raise UnknownRequest(
                "this router keeps no journal, so requests cannot be fetched; its operator can set "
                "journal.path",
                param="id",
            )
        name: str = request.path_params["name"]
        found = await self._reader.named(name)
        if not found or not self._keys.owns(request.headers, found[0].opened.generation.owner):
            # The same answer for both: whether another's request exists is not to be told.
            raise UnknownRequest(
                f"there is no request {name[:100]!r}, or it ended too long ago", param="id"
            )
        return self._kept(name, found)

    def _kept(self, name: str, found: Sequence[FoundRequest]) -> KeptRequest:
        choices = [self._choice(one) for one in found]
        first = found[0].opened
        return KeptRequest(
            name,
            first.arrived_ms // 1000,
            first.model,
            _together([choice.status for choice in choices]),
            choices,
            _usage(found),
            next((choice.error for choice in choices if choice.error is not None), None),
        )

    def _choice(self, found: FoundRequest) -> KeptChoice:
        end = found.end
        logprobs = [chat_logprobs(delta, self._service.tokenizer) for delta in found.deltas]
        return KeptChoice(
            found.opened.origin.choice,
            _status(found),
            found.text,
            list(found.token_ids),
            joined_chat_logprobs([one for one in logprobs if one is not None]),
            end.finish_reason if isinstance(end, Finished) else None,
            end.stop_reason if isinstance(end, Finished) else None,
            error_fields(end.error) if isinstance(end, Broken) else None,
        )


def _status(found: FoundRequest) -> str:
    match found.end:
        case Finished():
            return "finished"
        case Broken():
            return "failed"
        case None:
            return "running" if found.running else "queued"


def _together(states: Sequence[str]) -> str:
    for state in ("failed", "running", "queued"):
        if state in states:
            return state
    return "finished"


def _usage(found: Sequence[FoundRequest]) -> Usage:
    """As in answers: each prompt once, however many choices it has."""
    prompts = {one.opened.generation.prompt_ids: one for one in reversed(found)}
    tokens = Tokens(prompt=sum(map(len, prompts)))
    for one in found:
        if isinstance(one.end, Finished):
            tokens.add(one.end)
    tokens.output = sum(len(one.token_ids) for one in found)
    tokens.cached = sum(
        one.end.cached_tokens for one in prompts.values() if isinstance(one.end, Finished)
    )
    return tokens.usage()
