"""What requests are refused for at once, and what ends them when time is up."""

from __future__ import annotations

from helix_mq.errors import (
    ContextExceeded,
    DeadlineExceeded,
    HelixError,
    InvalidRequest,
    NotServing,
)
from router.service import Generation
from router.sessions import Session


def check_fits(generation: Generation, budget: int, vocab_size: int) -> None:
    """`budget`: most output tokens for such a prompt. Raises ContextExceeded or InvalidRequest."""
    prompt = len(generation.prompt_ids)
    wanted = generation.sampling.max_tokens
    if prompt < 1:
        raise ContextExceeded("the prompt is empty: give at least one token", param="prompt")
    highest = max(generation.prompt_ids)
    if highest >= vocab_size:
        # A node would refuse the frame it comes in, with the rows of all others.
        raise InvalidRequest(
            f"the prompt has token id {highest}, which the model's vocabulary of "
            f"{vocab_size} does not hold: the text names a token of the tokenizer that "
            "the model was not made for",
            param="prompt",
        )
    if wanted > budget:
        raise ContextExceeded(
            f"{prompt} prompt tokens and max_tokens={wanted} are {prompt + wanted} together, "
            f"this cluster holds sequences of at most {prompt + budget}: shorten the prompt "
            "or ask for fewer tokens",
            param="messages" if budget < 1 else "max_tokens",
        )


def deadline_error(session: Session, now_s: float, why_not_serving: str) -> HelixError:
    """Names what is missing where that is why nothing came."""
    waited_s = now_s - session.arrived_s
    got = f"{len(session.output)} of at most {session.generation.sampling.max_tokens} tokens"
    if why_not_serving:
        return NotServing(f"no answer within {waited_s:.0f} s ({got}): {why_not_serving}")
    return DeadlineExceeded(
        f"the deadline of {waited_s:.3g} s has passed with {got}: give it more time (deadline_s), "
        "or ask for fewer tokens"
    )
