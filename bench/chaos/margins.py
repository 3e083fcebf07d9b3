"""Which answers are the only right ones: how near each token was to being another. No sockets.

Float sums depend on how rows are batched and on where a prompt was cut, in their last bits. A token
whose choice hangs on these bits has two right values: a greedy one whose best two logits lie
together, a drawn one whose random number lies on the border between two tokens. The model is run
here once more, apart from the cluster, over the answers that are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.chaos.catalogue import Known
from helix_mq.errors import LocalError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.sampling import SamplingParams

if TYPE_CHECKING:
    import torch

MIN_GAP = 1e-3
"""Between the best two logits; float32 sums differ by some 1e-5."""
MIN_SHARE = 1e-4
"""Of all probability, between a random number and the border to another token."""
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Margin:
    """The nearest of an answer's tokens: its place, and how far it is from another one, in units of
    what is too near (below 1: two right values; below -1: it is not what the model says)."""

    token: int
    least: float


def margins(folder: Path, known: Sequence[Known]) -> list[Margin]:
    """One per answer, in order."""
    import torch

    found: list[Margin] = []
    threads = torch.get_num_threads()
    # Rows are few, and threads that wait for each other on a busy machine took 15 times as long.
    torch.set_num_threads(1)
    try:
        for at in range(0, len(known), AT_ONCE):
            found += _some(folder, known[at : at + AT_ONCE])
    finally:
        torch.set_num_threads(threads)
    return found


def with_one_answer(folder: Path, known: Sequence[Known]) -> list[Known]:
    """Those with only one right answer. Raises LocalError when there are none, or when the cluster
    answered what the model does not."""
    left = []
    for one, margin in zip(known, margins(folder, known), strict=True):
        if margin.least < -1.0:
            raise LocalError(
                f"the undisturbed node's token {margin.token} for seed {one.ask.seed} is "
                f"{one.token_ids[margin.token]}, which the model itself does not say"
            )
        if margin.least >= 1.0:
            left.append(one)
    if not left:
        raise LocalError("no request of the catalogue has one right answer: use another seed")
    return left


def _some(folder: Path, known: Sequence[Known]) -> list[Margin]:
    import numpy as np
    import torch

    from nodes.model.batch import RowSpec, SliceBatch
    from nodes.model.sampler_edits import edited
    from nodes.model.sampler_state import SamplerState
    from nodes.model.slice import ModelSlice

    config = ModelConfig.from_folder(folder)
    layers = LayerRange(0, config.num_layers)
    model = ModelSlice.load(folder, layers, device=torch.device("cpu"), dtype=torch.float32)
    lengths = [len(k.ask.prompt) + len(k.token_ids) for k in known]
    page_tokens = model.page_tokens()
    cache = model.new_cache(len(layers) * sum(-(-n // page_tokens) for n in lengths))
    states = []
    for i, one in enumerate(known):
        cache.pool.open(str(i), layers)
        prompt = np.array(one.ask.prompt, np.int32)
        states.append(SamplerState(_params(one), len(prompt), prompt, config.eos_ids))
    least = [Margin(0, float("inf"))] * len(known)
    for step in range(max(len(k.token_ids) for k in known)):
        running = [i for i, one in enumerate(known) if step < len(one.token_ids)]
        ids: list[int] = []
        rows = []
        for i in running:
            prompt_ids, output = known[i].ask.prompt, known[i].token_ids
            fed = prompt_ids if not step else output[step - 1 : step]
            position = 0 if not step else len(prompt_ids) + step - 1
            rows.append(RowSpec(str(i), position, len(fed), layers, wants_logits=True))
            cache.pool.ensure(str(i), position + len(fed))
            ids += fed
        logits = model.forward(SliceBatch(rows, torch.tensor(ids)), cache).logits
        chosen = [states[i] for i in running]
        places = [len(known[i].ask.prompt) + step for i in running]
        changed = edited(logits, chosen, places)
        for i, row, place in zip(running, changed, places, strict=True):
            token = known[i].token_ids[step]
            margin = Margin(step, _margin(row, token, states[i].params, place))
            least[i] = min(least[i], margin, key=lambda m: m.least)
            states[i].took(token)
    return least


def _margin(logits: torch.Tensor, token: int, params: SamplingParams, position: int) -> float:
    """logits: float32 [vocab], after penalties."""
    import torch

    from nodes.model.sampler_draw import uniform

    if params.temperature == 0.0:
        others = logits.clone()
        others[token] = -torch.inf
        return float(logits[token] - others.max()) / MIN_GAP
    shares = torch.softmax(logits.double() / params.temperature, dim=-1).cumsum(-1)
    number = uniform(params.seed, position)
    below = float(shares[token - 1]) if token else 0.0
    # The last border is no border: rounding there takes the last token.
    above = float(shares[token]) if float(shares[token]) < 1.0 else float("inf")
    return min(number - below if token else float("inf"), above - number) / MIN_SHARE


def _params(known: Known) -> SamplingParams:
    ask = known.ask
    return SamplingParams(
        max_tokens=ask.max_tokens,
        temperature=ask.temperature,
        seed=ask.seed,
        repetition_penalty=ask.penalty,
    )
