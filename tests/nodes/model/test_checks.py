"""Every breach of the forward contract is named, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helix_mq.layers import LayerRange
from nodes.kv_cache import KvCache
from nodes.model.attention.choose import AttentionChoice
from nodes.model.attention.kernels import FlashAttention2
from nodes.model.attention.paged import PagedAttention
from nodes.model.batch import BatchError, RowSpec, SliceBatch
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")

ALL, TAIL = LayerRange(1, 4), LayerRange(2, 4)


def _row(**change: Any) -> RowSpec:
    fields: dict[str, Any] = {"seq": "a", "position": 0, "count": 2, "layers": ALL}
    return RowSpec(**fields | change)


HIDDEN = torch.zeros(2, 64)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (SliceBatch([]), "at least one row"),
        (SliceBatch([_row(), _row()], hidden=torch.zeros(4, 64)), "only one row"),
        (SliceBatch([_row(layers=LayerRange(0, 4))], torch.zeros(2, dtype=torch.int64)),
         r"wants layers 0-3; this slice holds layers 1-3"),
        (SliceBatch([_row(layers=LayerRange(1, 3), wants_logits=True)], hidden=HIDDEN),
         "wants logits but stops after layers 1-2"),
        (SliceBatch([_row(position=255)], hidden=HIDDEN), "reaches token 257 of 256"),
        (SliceBatch([_row(seq="x")], hidden=HIDDEN), "'x': the sequence is not open"),
        (SliceBatch([_row(seq="tail")], hidden=HIDDEN), "its pages are of layers 2-3"),
        (SliceBatch([_row(position=7)], hidden=HIDDEN), "reaches token 9; it has pages for 8"),
        (SliceBatch([_row()]), r"hidden is missing; the rows need \[2, 64\]"),
        (SliceBatch([_row()], hidden=torch.zeros(3, 64)), r"hidden is torch.float32 \[3, 64\]"),
        (SliceBatch([_row()], hidden=torch.zeros(2, 63)), r"\[2, 63\]; the rows need floats"),
        (SliceBatch([_row()], hidden=HIDDEN.to(torch.int32)), "the rows need floats"),
        (SliceBatch([_row()], torch.zeros(1, dtype=torch.int64), HIDDEN), r"int64 \[0\]"),
    ],
)  # fmt: skip
def test_breaches(
    checkpoint: Callable[[str], Any], chain: Callable[..., Any], batch: SliceBatch, message: str
) -> None:
    nodes = chain(checkpoint("llama2"), [(1, 4)])
    cache = nodes.caches[0]
    for seq, layers in (("a", ALL), ("tail", TAIL)):
        cache.pool.open(seq, layers)
        cache.pool.ensure(seq, 8)
    with pytest.raises(BatchError, match=message):
        nodes.slices[0].forward(batch, cache)
    assert cache.keys.isnan().all()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, "token_ids is missing; the rows need 2"),
        (torch.tensor([1, 151]), r"token id 151 is not in 0\.\.150"),
        (torch.tensor([-1, 1]), r"token id -1 is not in 0\.\.150"),
        (torch.tensor([1, 2], dtype=torch.int32), r"torch.int32 \[2\]; the rows need int64 \[2\]"),
        (torch.tensor([[1, 2]]), r"\[1, 2\]; the rows need int64"),
    ],
)
def test_token_ids(
    checkpoint: Callable[[str], Any],
    chain: Callable[..., Any],
    ids: torch.Tensor | None,
    message: str,
) -> None:
    nodes = chain(checkpoint("llama2"))
    with pytest.raises(BatchError, match=message):
        nodes.run(0, [_row(layers=LayerRange(0, 4))], ids)
    assert nodes.caches[0].keys.isnan().all()


@pytest.mark.parametrize(("position", "count"), [(-1, 1), (0, 0), (3, -2)])
def test_rows_without_tokens_cannot_be_made(position: int, count: int) -> None:
    with pytest.raises(BatchError, match="position must be at least 0"):
        RowSpec("a", position, count, ALL)


def test_the_callers_tensors_stay_as_they_were(
    checkpoint: Callable[[str], Any], chain: Callable[..., Any]
) -> None:
    """Hidden states may be views of a receive buffer that is read only."""
    nodes = chain(checkpoint("llama2"), [(1, 4)])
    hidden = torch.randn(2, 64)
    before = hidden.clone()
    out = nodes.run(0, [_row(layers=LayerRange(1, 3))], None, hidden)
    assert torch.equal(hidden, before)
    assert out.hidden.shape == (2, 64)
    assert not torch.equal(out.hidden, before)


def test_a_cache_of_another_kind_is_refused(checkpoint: Callable[[str], Any]) -> None:
    folder = checkpoint("llama2").folder
    part = ModelSlice.load(folder, ALL, device=CPU, dtype=torch.float32)
    other = ModelSlice.load(folder, ALL, device=CPU, dtype=torch.bfloat16)
    batch = SliceBatch([_row()], hidden=HIDDEN)
    with pytest.raises(BatchError, match=r"KV cache is torch\.bfloat16 on cpu, the slice computes"):
        part.forward(batch, other.new_cache(8))

    def nothing(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("no kernel may run")

    backend = PagedAttention("fa2", FlashAttention2(nothing, nothing), CPU)
    part.attention = AttentionChoice(backend, "")
    assert part.new_cache(2).page_tokens == 256
    with pytest.raises(BatchError, match="fa2 attention reads no head_major KV pages"):
        part.forward(
            batch,
            KvCache.allocate(
                part.config, total_pages=2, device=CPU, dtype=torch.float32, page_tokens=256
            ),
        )
    with pytest.raises(BatchError, match="multiple of 256 tokens, not 16"):
        part.forward(batch, part.new_cache(8, page_tokens=16))
