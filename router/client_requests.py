"""What an SDK client submits, as a Generation: checked, tokenised, with nothing left open."""

from __future__ import annotations

from helix_mq.errors import InvalidRequest
from helix_mq.messages import client
from router.preparing import check_model, check_token_ids, decide_sampling
from router.service import Generation, Service


async def generation_of(service: Service, submit: client.Submit, owner: str) -> Generation:
    """Raises what is wrong with it, or what refuses it now."""
    if submit.model:
        check_model(service, submit.model)
    service.check_room(owner, submit.priority, submit.deadline_s)
    ids = await _prompt_ids(service, submit)
    sampling = decide_sampling(
        service, submit.sampling, len(ids), seeded=submit.seeded, limited=submit.limited
    )
    return Generation(
        tuple(ids),
        sampling,
        submit.stop,
        submit.deadline_s,
        submit.priority,
        owner,
        continues_text=submit.messages is None,
    )


async def _prompt_ids(service: Service, submit: client.Submit) -> list[int] | tuple[int, ...]:
    given = (submit.prompt, submit.messages, submit.token_ids)
    if sum(one is not None for one in given) != 1:
        raise InvalidRequest("give exactly one of prompt, messages and token_ids", param="prompt")
    if submit.messages is not None:
        if not submit.messages:
            raise InvalidRequest("messages is empty", param="messages")
        turns = [(m.role, m.content) for m in submit.messages]
        return await service.tokenize_chat(turns)
    if submit.prompt is not None:
        return await service.tokenize(submit.prompt, special=True)
    ids = submit.token_ids or ()
    check_token_ids(ids, service.vocab_size, "prompt")
    return ids
