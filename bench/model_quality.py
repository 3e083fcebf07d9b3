"""What a change to weights or activations does to a model's predictions, on a text of our own.

The text is the project's own documentation, in windows that are predicted each by itself. Distances
are between next-token distributions at every position, given the text so far: mean KL divergence
(nats), the largest difference of a logit, and how often the likeliest token is the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn import functional as F

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.resolve import find_demo_gguf, resolve_model
from helix_mq.models.tokenizer import Tokenizer
from nodes.kv_cache import KvCache
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.slice import ModelSlice

TEXTS = ("docs/journey.md", "docs/planner.md", "docs/links.md")
WINDOW_TOKENS = 256

Carry = Callable[[torch.Tensor], torch.Tensor]
"""What becomes of activations [tokens, width] on a link."""


@dataclass(frozen=True, slots=True)
class Text:
    """`digest`: SHA-256 of the text that the tokens are of, for comparing figures."""

    windows: tuple[tuple[int, ...], ...]
    digest: str

    @property
    def tokens(self) -> int:
        return sum(len(w) for w in self.windows)


@dataclass(frozen=True, slots=True)
class Distance:
    kl: float
    largest_logit_difference: float
    same_first: float
    """Share of positions with the same likeliest token."""


def model_folder(given: Path | None) -> Path:
    """The demonstration model's unless another is given; ModelFormatError where there is none."""
    return resolve_model(given if given is not None else find_demo_gguf())


def own_text(folder: Path, windows: int) -> Text:
    """The first so many windows of the documents, as the model's tokens."""
    root = Path(__file__).parents[1]
    text = "\n".join((root / name).read_text("utf-8") for name in TEXTS)
    ids = Tokenizer.from_folder(folder).encode(text)
    starts = range(0, min(len(ids), windows * WINDOW_TOKENS) - 1, WINDOW_TOKENS)
    cut = tuple(tuple(ids[at : at + WINDOW_TOKENS]) for at in starts)
    return Text(cut[:windows], hashlib.sha256(text.encode()).hexdigest())


def thirds(config: ModelConfig) -> list[LayerRange]:
    """The model on three nodes."""
    n = config.num_layers
    cuts = (0, round(n / 3), round(2 * n / 3), n)
    return [LayerRange(a, b) for a, b in pairwise(cuts)]


def predict(slices: Sequence[ModelSlice], text: Text, carry: Carry) -> list[torch.Tensor]:
    """float32 logits [tokens, vocab] of each window; activations go through `carry` between two
    slices."""
    return [_window(slices, window, carry) for window in text.windows]


@torch.inference_mode()
def _window(slices: Sequence[ModelSlice], window: Sequence[int], carry: Carry) -> torch.Tensor:
    caches = [_cache(model, len(window)) for model in slices]
    parts = []
    # A sequence's first row gives logits of one token; from then on rows give them of all.
    for position, ids in ((0, window[:1]), (1, window[1:])):
        hidden: torch.Tensor | None = None
        for model, cache in zip(slices, caches, strict=True):
            last = model.layers.end == model.config.num_layers
            wanted = len(ids) if last else 1
            row = RowSpec(0, position, len(ids), model.layers, last, wanted)
            first = torch.tensor(ids) if hidden is None else None
            out = model.forward(SliceBatch([row], first, hidden), cache)
            if last:
                parts.append(out.logits)
            else:
                hidden = carry(out.hidden)
    return torch.cat(parts)


def _cache(model: ModelSlice, tokens: int) -> KvCache:
    page_tokens = model.page_tokens()
    cache = model.new_cache(len(model.layers) * -(-tokens // page_tokens), page_tokens)
    cache.pool.open(0, model.layers)
    cache.pool.ensure(0, tokens)
    return cache


def perplexity(text: Text, logits: Sequence[torch.Tensor]) -> float:
    """exp of the mean loss of each token but a window's first."""
    loss = sum(
        float(F.cross_entropy(found[:-1], torch.tensor(window[1:]), reduction="sum"))
        for window, found in zip(text.windows, logits, strict=True)
    )
    return math.exp(loss / sum(len(w) - 1 for w in text.windows))


def distance(exact: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Distance:
    """Of `other` from `exact`, over all positions."""
    a, b = torch.cat(list(exact)), torch.cat(list(other))
    log_a, log_b = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
    return Distance(
        kl=float((log_a.exp() * (log_a - log_b)).sum(dim=-1).mean()),
        largest_logit_difference=float((a - b).abs().max()),
        same_first=float((a.argmax(dim=-1) == b.argmax(dim=-1)).float().mean()),
    )
