"""Next tokens from logits, for many rows at once, each by its own parameters.

Every draw depends on (seed, position) alone, through a counter-based generator: not on the rest of
the batch, the node that samples, or an earlier attempt at the same position. Filters are those of
transformers (repetition penalty, temperature, top-k, top-p, min-p, in that order) and of OpenAI's
API (presence and frequency penalties, logit bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from helix_mq.sampling import SamplingParams

IntArray = npt.NDArray[np.int32]

_SEED_DOMAIN = 0x68656C69785F6D71
"""Second half of the Philox key: keeps these streams apart from other uses of the same seed."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """`logprob` and `top_logprobs` (token, logprob; best first) are of the distribution before any
    filter or penalty; None and empty unless asked for."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class SamplerState:
    """One sequence: its parameters and, when a penalty needs them, its tokens so far.

    `history`: int32 token ids of prompt and output; empty when no penalty is set.
    """

    params: SamplingParams
    prompt_tokens: int
    history: IntArray
    eos_ids: tuple[int, ...] = ()
    _tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = self.history.tolist()

    @property
    def penalised(self) -> bool:
        p = self.params
        return (
            p.repetition_penalty != 1.0 or p.presence_penalty != 0.0 or p.frequency_penalty != 0.0
        )

    @property
    def tokens(self) -> list[int]:
        return self._tokens

    def took(self, token: int) -> None:
        if self.penalised:
            self._tokens.append(token)


def sample(
    logits: torch.Tensor, states: Sequence[SamplerState], positions: Sequence[int]
) -> list[Sampled]:
    """One token per row.

    logits: float32 [rows, vocab]. positions: the place in its sequence that each new token takes
    (prompt included). The states learn the tokens drawn.
    """
    raw_logprobs = _raw_logprobs(logits, states)
    changed = logits
    if any(_edits(state, p) for state, p in zip(states, positions, strict=True)):
        changed = logits.clone()
        for row, (state, position) in enumerate(zip(states, positions, strict=True)):
            _edit(changed[row], state, position)
    greedy = torch.argmax(changed, dim=-1).tolist()
    results = []
    for row, (state, position) in enumerate(zip(states, positions, strict=True)):
        token = greedy[row]
        if state.params.temperature > 0.0:
            token = _draw(changed[row], state.params, position)
        state.took(token)
        results.append(_result(token, state.params, raw_logprobs.get(row)))
    return results


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides the token at `position` under `seed`."""
    bits = np.random.Philox(key=[seed, _SEED_DOMAIN], counter=[position, 0, 0, 0])
    return float(int(bits.random_raw()) >> 11) * 2.0**-53


def _raw_logprobs(logits: torch.Tensor, states: Sequence[SamplerState]) -> dict[int, torch.Tensor]:
    rows = [i for i, s in enumerate(states) if s.params.logprobs]
    if not rows:
        return {}
    values = torch.log_softmax(logits[rows], dim=-1)
    return dict(zip(rows, values, strict=True))


def _result(token: int, params: SamplingParams, logprobs: torch.Tensor | None) -> Sampled:
    if logprobs is None:
        return Sampled(token, None, ())
    top: tuple[tuple[int, float], ...] = ()
    if params.top_logprobs:
        values, ids = torch.topk(logprobs, min(params.top_logprobs, logprobs.shape[0]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Sampled(token, float(logprobs[token]), top)


def _edits(state: SamplerState, position: int) -> bool:
    return bool(state.penalised or state.params.logit_bias or _too_early(state, position))


def _too_early(state: SamplerState, position: int) -> bool:
    """True while ending tokens are not allowed yet."""
    return position - state.prompt_tokens < state.params.min_tokens


def _edit(row: torch.Tensor, state: SamplerState, position: int) -> None:
    """Penalties, bias and forbidden endings, in place."""
    p = state.params
    if state.penalised:
        _penalise(row, state)
    if p.logit_bias:
        ids = torch.tensor([t for t, _ in p.logit_bias], device=row.device)
        row.index_add_(0, ids, torch.tensor([b for _, b in p.logit_bias], device=row.device))
    if _too_early(state, position):
        endings = [*state.eos_ids, *p.stop_token_ids]
        if endings:
            row[torch.tensor(endings, device=row.device)] = -torch.inf


def _penalise(row: torch.Tensor, state: SamplerState) -> None:
    p = state.params
    tokens = np.array(state.tokens, dtype=np.int64)
    if p.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(tokens)).to(row.device)
        values = row[seen]
        row[seen] = torch.where(
            values < 0, values * p.repetition_penalty, values / p.repetition_penalty
        )
    if p.presence_penalty or p.frequency_penalty:
        ids, counts = np.unique(tokens[state.prompt_tokens :], return_counts=True)
        if len(ids):
            amount = p.presence_penalty + p.frequency_penalty * counts
            row[torch.from_numpy(ids).to(row.device)] -= torch.from_numpy(
                amount.astype(np.float32)
            ).to(row.device)


def _draw(row: torch.Tensor, params: SamplingParams, position: int) -> int:
    """A token by temperature and filters: inverse of the cumulative distribution at `uniform`."""
    # Subtracting the maximum first keeps very small temperatures from overflowing.
    scaled = (row.double() - row.max().double()) / params.temperature
    probabilities = torch.softmax(scaled, dim=-1)
    order: torch.Tensor | None = None
    if params.top_k or params.top_p < 1.0:
        # A stable sort, so that equal logits keep their order on every machine.
        probabilities, order = torch.sort(probabilities, descending=True, stable=True)
        if params.top_k:
            probabilities = probabilities[: params.top_k]
            probabilities = probabilities / probabilities.sum()
        if params.top_p < 1.0:
            # Keeps the smallest set that reaches top_p: what comes before a token is below it.
            before = probabilities.cumsum(0) - probabilities
            probabilities = torch.where(before < params.top_p, probabilities, 0.0)
    if params.min_p > 0.0:
        floor = params.min_p * probabilities.max()
        probabilities = torch.where(probabilities >= floor, probabilities, 0.0)
    cumulative = probabilities.cumsum(0)
    target = uniform(params.seed, position) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, target, right=True))
    # Rounding can put the target past the last token that has any probability.
    index = min(index, int(torch.nonzero(probabilities)[-1]))
    return int(order[index]) if order is not None else index
