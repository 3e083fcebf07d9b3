"""What an edge does to a request before it submits it: model, token ids, seed, output budget.

Pure apart from asking the Service.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from helix_mq.errors import ContextExceeded, InvalidRequest, UnknownModel
from helix_mq.sampling import MAX_OUTPUT_TOKENS, SamplingParams
from router.service import Service


def check_model(service: Service, name: str) -> None:
    """Raises UnknownModel unless `name` is what is served."""
    if name != service.model_name:
        raise UnknownModel(
            f"there is no model {name[:200]!r} here; this router serves {service.model_name!r}",
            param="model",
        )


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest unless there are some and all are in the vocabulary."""
    if not ids:
        raise InvalidRequest(f"{param}: a list of token ids must not be empty", param=param)
    wrong = min(ids) if min(ids) < 0 else max(ids)
    if not 0 <= wrong < vocab_size:
        raise InvalidRequest(
            f"{param}: token id {wrong} is outside the vocabulary of {vocab_size}", param=param
        )


def decide_sampling(
    service: Service,
    sampling: SamplingParams,
    prompt_tokens: int,
    *,
    seeded: bool,
    limited: bool,
) -> SamplingParams:
    """The parameters with nothing left open, validated.

    Not `seeded`: a seed is drawn. Not `limited`: the output may fill what the context leaves.
    Raises InvalidRequest or ContextExceeded.
    """
    if not seeded:
        sampling = replace(sampling, seed=service.draw_seed())
    if not limited:
        budget = service.output_budget(prompt_tokens)
        if budget < 1:
            raise ContextExceeded(
                f"the prompt has {prompt_tokens} tokens; this cluster holds sequences of at most "
                f"{prompt_tokens + budget}, one of them for the answer: shorten the prompt",
                param="prompt",
            )
        sampling = replace(sampling, max_tokens=min(budget, MAX_OUTPUT_TOKENS))
    sampling.validate(service.vocab_size)
    return sampling
