"""What the sampler keeps of one sequence: its parameters, and which tokens it has so far.

Counts are kept up to date token by token, so that a penalty costs the same at the start and at the
end of a long text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from helix_mq.sampling import SamplingParams
from nodes.model.native.calls import pointer
from nodes.model.native.draws import NO_EDITS, Listed, choice_of, edits_of
from nodes.model.native.odds import NOT_WANTED

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class SeenTokens:
    """The different tokens of a sequence, each with its count in the output."""

    def __init__(self, history: npt.NDArray[np.int32], prompt_tokens: int) -> None:
        ids = np.unique(history).astype(np.int64)
        output = history[prompt_tokens:]
        self._size = len(ids)
        self._ids = np.zeros(max(64, 2 * len(ids)), dtype=np.int64)
        self._ids[: self._size] = ids
        self._counts = np.zeros(len(self._ids), dtype=np.int64)
        if len(output):
            self._counts[: self._size] = np.bincount(
                np.searchsorted(ids, output), minlength=self._size
            )
        self._slots = {token: slot for slot, token in enumerate(ids.tolist())}
        self._at = pointer(self._ids), pointer(self._counts)

    @property
    def listed(self) -> Listed:
        """Where `ids` and `counts` are in memory, until the next token comes."""
        return *self._at, self._size

    @property
    def ids(self) -> Ids:
        """Each token of prompt and output once."""
        return self._ids[: self._size]

    @property
    def counts(self) -> Ids:
        """How often each of `ids` is in the output; 0 for tokens of the prompt alone."""
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        """One more output token."""
        slot = self._slots.get(token)
        if slot is None:
            slot = self._slots[token] = self._size
            if slot == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._at = pointer(self._ids), pointer(self._counts)
            self._ids[slot] = token
            self._size += 1
        self._counts[slot] += 1


class SamplerState:
    """One sequence on the node that ends its route."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_tokens: int,
        history: npt.NDArray[np.int32],
        eos_ids: Sequence[int] = (),
    ) -> None:
        """`history`: int32 ids of prompt and output so far; only looked at when a penalty is set.
        `eos_ids`: what ends a text besides `params.stop_token_ids`."""
        self.params = params
        self.prompt_tokens = prompt_tokens
        self.seen = SeenTokens(history, prompt_tokens) if penalises(params) else None
        biases: dict[int, float] = {}
        for token, bias in params.logit_bias:
            biases[token] = biases.get(token, 0.0) + bias
        self.bias_ids: Ids = np.fromiter(biases, dtype=np.int64)
        self.bias_values: Floats = np.fromiter(biases.values(), dtype=np.float32)
        self.endings: Ids = np.unique(np.array([*eos_ids, *params.stop_token_ids], dtype=np.int64))
        self.choice = choice_of(params)
        """How a token is chosen of the logits, as compiled code reads it."""
        self.wanted = params.top_logprobs if params.logprobs else NOT_WANTED
        """Of how many tokens, besides the one that comes, log probabilities are wanted."""
        self.simple_from = self._simple_from()
        """From this position on a token is chosen of the logits as they are."""
        self.plain_from = math.inf if params.temperature else self.simple_from
        """The same, and it is the most probable one."""
        self._biases: Listed = ()
        if len(self.bias_ids):
            self._biases = pointer(self.bias_ids), pointer(self.bias_values), len(self.bias_ids)

    def _simple_from(self) -> float:
        if self.seen is not None or len(self.bias_ids):
            return math.inf
        return self.prompt_tokens + self.params.min_tokens if len(self.endings) else 0

    def edits_at(self, position: int) -> bytes:
        """What the logits for `position` are changed by, as compiled code reads it: with addresses
        of what is kept here, until the next token comes."""
        if position >= self.simple_from:
            return NO_EDITS
        endings = pointer(self.endings), len(self.endings)
        return edits_of(
            self.params,
            self._biases,
            self.seen.listed if self.seen is not None else (),
            endings if self.forbids_endings(position) else (),
        )

    def forbids_endings(self, position: int) -> bool:
        """True while the token at `position` must not end the text (min_tokens)."""
        return position - self.prompt_tokens < self.params.min_tokens and len(self.endings) > 0

    def edits(self, position: int) -> bool:
        """Whether the logits for `position` are changed before a token is chosen."""
        return self.seen is not None or len(self.bias_ids) > 0 or self.forbids_endings(position)

    def took(self, token: int) -> None:
        if self.seen is not None:
            self.seen.add(token)


def penalises(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )
