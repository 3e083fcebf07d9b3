"""The n choices of one prompt as n generations, each with a seed of its own. Pure."""

from __future__ import annotations

import dataclasses
import hashlib

from msgspec.structs import replace

from helix_mq.sampling import SamplingParams
from router.gateway.fields import GenerationFields
from router.preparing import decide_sampling
from router.service import Generation, Service

_SEED_MASK = (1 << 63) - 1


def choices_of(
    service: Service,
    request: GenerationFields,
    prompt_ids: tuple[int, ...],
    sampling: SamplingParams,
    *,
    limited: bool,
    continues_text: bool = False,
) -> list[Generation]:
    """`request.n` generations of the same prompt. Raises InvalidRequest or ContextExceeded."""
    seeded = request.seed is not None
    if request.seed is not None:
        sampling = replace(sampling, seed=request.seed & _SEED_MASK)
    first = decide_sampling(service, sampling, len(prompt_ids), seeded=seeded, limited=limited)
    return [
        Generation(
            prompt_ids=prompt_ids,
            sampling=replace(first, seed=derived_seed(first.seed, choice)),
            stop=request.stop,
            deadline_s=request.deadline_s,
            priority=request.priority,
            continues_text=continues_text,
        )
        for choice in range(request.n)
    ]


def owned_by(owner: str, generations: list[Generation]) -> list[Generation]:
    """The same, each as `owner`'s: by whom a request is sent its body does not say."""
    return [dataclasses.replace(generation, owner=owner) for generation in generations]


def derived_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` of a request; choice 0 has the request's own.

    So the first of n choices equals the only one of n=1, and no two choices share their draws.
    """
    if choice == 0:
        return seed
    text = f"{seed}:{choice}".encode("ascii")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") & _SEED_MASK
