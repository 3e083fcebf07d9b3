"""Tensor parallelism: two ranks against one, on weights that are written for it; a small model.

Where there is one GPU only, at least what ranks say to each other is said: by one to itself.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.engine_gpu.models import config_of, write_config
from bench.engine_gpu.sequences import Sequences
from bench.engine_gpu.setup import Part, Say, Setup
from helix_mq.models.tensor_names import slice_tensors
from nodes.model.parallel.lead import PartRequest, load_lead
from nodes.model.parallel.ranks import ProcessRanks
from nodes.model.slice import ModelSlice

_RANKS = 2
_TOKENS = 16
_LENGTHS = (3, 40)
_OFF = 5e-2


def ranks(setup: Setup, say: Say) -> Part:
    """How far the logits of two ranks are from those of one, given the same tokens."""
    say("ranks: one alone")
    alone = alone_fault(setup.device)
    found: Part = {"alone": alone or "sums, spreads and collects"}
    if alone:
        return found | {"passed": False, "reason": alone}
    if setup.device.type == "cuda" and torch.cuda.device_count() < _RANKS:
        return found | {"left_out": f"{_RANKS} ranks: there is one GPU only", "passed": True}
    return found | _two(setup, say)


def alone_fault(device: torch.device) -> str:
    """What is wrong with the operations of a group of one; nothing where they work."""
    wanted = torch.arange(6.0).view(2, 3)
    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as place:
        alone = ProcessRanks(Path(place) / "meeting", 0, 1, device)
        tensor = wanted.to(device)
        alone.spread(tensor)
        got = [alone.sum(tensor), *alone.collect(tensor)]
        found = [part.cpu() for part in got]
        alone.abort()
    if len(found) == 2 and all(torch.equal(part, wanted) for part in found):
        return ""
    return f"of {wanted.tolist()}, one rank alone makes {[part.tolist() for part in found]}"


def _two(setup: Setup, say: Say) -> Part:
    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as place:
        folder = Path(place)
        config = config_of(setup.parity_fields)
        _write(setup, folder)
        say("ranks: one")
        one = ModelSlice.load(folder, config.all_layers, device=setup.device, dtype=setup.dtype)
        say("ranks: two")
        two = load_lead(
            PartRequest(folder, config.all_layers, setup.device, setup.dtype, "auto", _RANKS),
            None,
        )
        try:
            return _compared(one, two)
        finally:
            two.close()


def _write(setup: Setup, folder: Path) -> None:
    config = config_of(setup.parity_fields)
    write_config(setup.parity_fields, folder)
    draw = torch.Generator().manual_seed(7)
    tensors = {
        name: torch.ones(shape, dtype=setup.dtype)
        if name.endswith("norm.weight")
        else (torch.randn(shape, generator=draw) * 0.02).to(setup.dtype)
        for name, shape in slice_tensors(config, config.all_layers).items()
    }
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})


def _compared(one: ModelSlice, two: ModelSlice) -> Part:
    draw = torch.Generator().manual_seed(9)
    prompts = [
        torch.randint(one.config.vocab_size, (n,), generator=draw).tolist() for n in _LENGTHS
    ]
    runs = [Sequences(model, prompts, max(_LENGTHS) + _TOKENS) for model in (one, two)]
    equal, worst = 0, 0.0
    for _ in range(_TOKENS):
        wanted, got = (run.step() for run in runs)
        chosen = wanted.argmax(1).tolist()
        equal += sum(a == b for a, b in zip(got.argmax(1).tolist(), chosen, strict=True))
        off = float(torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted))
        worst = off if not off <= worst else worst
        for run in runs:
            run.append(chosen)
    every = _TOKENS * len(prompts)
    return {
        "ranks": _RANKS,
        "tokens_equal": equal,
        "tokens": every,
        "logits_off": worst,
        "passed": worst <= _OFF,
    }
