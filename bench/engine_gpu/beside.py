"""The engine beside transformers: so many prompts, so many tokens more, both on random weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.engine_gpu.models import random_slice, recorder_for
from bench.engine_gpu.roofline import synchronize
from bench.engine_gpu.sequences import Sequences
from bench.engine_gpu.setup import Part, Say, Setup

_WANTED_RATIO = 3.0
_TRIES = 2


def beside_transformers(setup: Setup, say: Say) -> Part:
    """Decode tokens/s of both: all but the first token of each answer, over the time for them."""
    prompt = setup.prompts[0]
    ids = torch.randint(
        setup.config.vocab_size, (setup.beside_batch, prompt),
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    say(f"beside transformers: ours, batch {setup.beside_batch}")
    ours = _ours(setup, ids.tolist())
    _free(setup.device)
    say(f"beside transformers: theirs, batch {setup.beside_batch}")
    theirs, version = _theirs(setup, ids)
    ratio = ours / theirs
    return {
        "batch": setup.beside_batch,
        "prompt_tokens": prompt,
        "new_tokens": setup.new_tokens,
        "ours_tokens_per_s": ours,
        "transformers_tokens_per_s": theirs,
        "transformers": version,
        "ratio": ratio,
        "passed": ratio >= _WANTED_RATIO,
    }


def _ours(setup: Setup, prompts: list[list[int]]) -> float:
    config = setup.config
    model = random_slice(config, config.all_layers, setup.device, setup.dtype, setup.attention())
    model.record_decodes(recorder_for(setup.device))
    rates = []
    for _ in range(_TRIES):
        # A cache of its own each time; the first tries what is recorded then.
        run = Sequences(model, prompts, len(prompts[0]) + setup.new_tokens)
        run.append(run.step().argmax(1).tolist())
        run.append(run.step().argmax(1).tolist())
        synchronize(setup.device)
        began = time.perf_counter()
        for _ in range(setup.new_tokens - 2):
            # On the host, as the engine has it: it is sent on from there.
            run.append(run.step().argmax(1).tolist())
        rates.append(len(prompts) * (setup.new_tokens - 2) / (time.perf_counter() - began))
    return max(rates)


def _theirs(setup: Setup, ids: torch.Tensor) -> tuple[float, str]:
    import transformers

    fields = {k: v for k, v in setup.fields.items() if k not in ("model_type", "architectures")}
    fields.pop("torch_dtype")
    config = transformers.LlamaConfig(**fields)
    make: Callable[..., Any] = transformers.AutoModelForCausalLM.from_config
    with torch.device(setup.device):
        model = make(config, dtype=setup.dtype).eval()
    on_device = ids.to(setup.device)

    def seconds(tokens: int) -> float:
        synchronize(setup.device)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                on_device,
                attention_mask=torch.ones_like(on_device),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        synchronize(setup.device)
        return time.perf_counter() - began

    seconds(2)
    rates = []
    for _ in range(_TRIES):
        first_s = seconds(1)
        rest_s = max(seconds(setup.new_tokens) - first_s, 1e-9)
        rates.append(len(ids) * (setup.new_tokens - 1) / rest_s)
    return max(rates), str(transformers.__version__)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
