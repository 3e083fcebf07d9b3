"""The same weights on the CPU in float32 and on the device in every way: the same tokens.

The reference generates greedily; the others are given its tokens and asked for the next, so that
one difference does not make all that follow differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.engine_gpu.models import config_of, random_slice, recorder_for
from bench.engine_gpu.sequences import Sequences
from bench.engine_gpu.setup import Part, Say, Setup
from nodes.model.attention.choose import AttentionChoice
from nodes.model.attention.gather import GatherAttention
from nodes.model.slice import ModelSlice

_CPU = torch.device("cpu")
_LENGTHS = (3, 17, 40, 65)
_TOKENS = 16
_EXACT = 1e-3
_ROUNDED = 5e-2
"""Largest relative difference of logits, in the norm: in float32, and in 16 bits."""


def parity(setup: Setup, say: Say) -> Part:
    """By way of computing: tokens that are the reference's, and how far logits are off."""
    config = config_of(setup.parity_fields)
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(config.vocab_size, (n,), generator=draw).tolist() for n in _LENGTHS]
    say("parity: the reference on the CPU")
    exact = random_slice(config, config.all_layers, _CPU, torch.float32)
    run = Sequences(exact, prompts, max(_LENGTHS) + _TOKENS)
    logits, tokens = [], []
    for _ in range(_TOKENS):
        logits.append(run.step())
        tokens.append(logits[-1].argmax(1).tolist())
        run.append(tokens[-1])
    found: Part = {}
    for name, model, bound in _ways(setup):
        say(f"parity: {name}")
        again = Sequences(model, prompts, max(_LENGTHS) + _TOKENS)
        equal, worst = 0, 0.0
        for wanted, chosen in zip(logits, tokens, strict=True):
            got = again.step().cpu()
            again.append(chosen)
            equal += sum(a == b for a, b in zip(got.argmax(1).tolist(), chosen, strict=True))
            off = torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted)
            worst = float(off) if not float(off) <= worst else worst
        every = _TOKENS * len(prompts)
        way: Part = {"tokens_equal": equal, "tokens": every, "logits_off": worst}
        way["passed"] = worst <= bound and (bound != _EXACT or equal == every)
        if model.graphs is not None:
            way["replays"] = model.graphs.statistics().replays
            way["passed"] = way["passed"] and way["replays"] > 0
        found[name] = way
    return {"passed": all(way["passed"] for way in found.values()), "ways": found}


def _ways(setup: Setup) -> Iterator[tuple[str, ModelSlice, float]]:
    config, device = config_of(setup.parity_fields), setup.device

    def made(dtype: torch.dtype, choice: AttentionChoice | None) -> ModelSlice:
        return random_slice(config, config.all_layers, device, dtype, choice, drawn_on=_CPU)

    gathered = AttentionChoice(GatherAttention(device=device, dtype=torch.float32), "exact")
    yield "float32, gathered pages", made(torch.float32, gathered), _EXACT
    model = made(torch.bfloat16, setup.attention())
    yield f"bfloat16, {model.attention.backend.name}", model, _ROUNDED
    recorded = made(torch.bfloat16, model.attention)
    if recorded.record_decodes(recorder_for(device)):
        yield "bfloat16, recorded decodes", recorded, _ROUNDED
