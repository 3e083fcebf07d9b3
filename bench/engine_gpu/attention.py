"""Every attention backend that could run here: whether it computes attention, and how fast."""

from __future__ import annotations

from statistics import median

from bench.engine_gpu.models import random_slice
from bench.engine_gpu.setup import Part, Say, Setup
from helix_mq.layers import LayerRange
from nodes.model.attention.base import AttentionBackend, BackendUnavailable
from nodes.model.attention.choose import AttentionChoice, Candidate, cuda_candidates
from nodes.model.attention.trial import find_fault
from nodes.stepping import Span, Stepper, pages_for

_LAYERS = LayerRange(1, 3)
"""Of the model: without embedding and head, which would hide the attention's share."""


def attention(setup: Setup, say: Say) -> Part:
    """By backend: what is wrong with it, or milliseconds of a step of two layers."""
    return {"backends": {c.title: _tried(c, setup, say) for c in _candidates(setup)}}


def _candidates(setup: Setup) -> list[Candidate]:
    given = setup.attention()
    if given is None:
        return cuda_candidates(setup.device, setup.dtype)
    return [Candidate("plain", "plain, for trial", lambda: given.backend)]


def _tried(candidate: Candidate, setup: Setup, say: Say) -> Part:
    say(f"attention: {candidate.title}")
    try:
        backend = candidate.build()
    except BackendUnavailable as e:
        return {"passed": False, "missing": True, "reason": str(e)}
    fault = find_fault(backend, setup.config, setup.device, setup.dtype)
    if fault is not None:
        return {"passed": False, "reason": fault}
    return {"passed": True, "step_ms": _step_ms(backend, setup)}


def _step_ms(backend: AttentionBackend, setup: Setup) -> dict[str, float]:
    choice = AttentionChoice(backend, "")
    model = random_slice(setup.config, _LAYERS, setup.device, setup.dtype, choice)
    rows, prompt = max(setup.batches[:-1]), setup.prompts[0]
    cases = {
        f"{rows} decodes behind {setup.context} tokens": [Span(setup.context, 1)] * rows,
        f"prompt of {prompt} tokens": [Span(0, prompt)],
        f"{prompt} tokens behind {setup.context}": [Span(setup.context, prompt)],
    }
    page = model.page_tokens()
    pages = max(pages_for(spans, len(_LAYERS), page) for spans in cases.values())
    stepper = Stepper(model, model.new_cache(pages, page))
    found = {}
    for name, spans in cases.items():
        with stepper.step(spans) as step:
            step.run_s()
            found[name] = 1e3 * median(step.run_s() for _ in range(setup.tries))
    return found
