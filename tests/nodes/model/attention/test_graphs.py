"""Recorded decode steps give what the plain pass gives, at all sizes and after the cache moved."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.layers import LayerRange
from nodes.kv_cache import KvCache
from nodes.model.attention.choose import AttentionChoice
from nodes.model.attention.paged import PagedAttention, PagedKernel
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.decode_buckets import (
    MAX_RECORDINGS,
    MAX_ROWS,
    MAX_TABLE_ENTRIES,
    padded_pages,
    padded_rows,
    shape_of,
    table_entries,
)
from nodes.model.recorders import Body, CallAgain, Recording
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")


@given(st.integers(1, MAX_ROWS), st.integers(1, 1 << 17), st.integers(1, 80))
def test_sizes_hold_what_they_are_for(rows: int, pages: int, layers: int) -> None:
    assert rows <= padded_rows(rows) <= min(MAX_ROWS, rows + max(1, rows // 3 + 1, 7))
    assert pages <= padded_pages(pages) <= max(16, 2 * pages)
    held = LayerRange(0, layers)
    shape = shape_of(held, rows, pages)
    if shape is None:
        assert layers * padded_rows(rows) * padded_pages(pages) > MAX_TABLE_ENTRIES
    else:
        assert shape.table_entries <= table_entries(held, pages)
    assert shape_of(held, MAX_ROWS + 1, pages) is None
    assert len({padded_rows(n) for n in range(1, MAX_ROWS + 1)}) <= 20


class Decoder:
    """Sequences that are decoded step by step, twice: with recordings and without."""

    def __init__(self, folder: Any, layers: LayerRange, kernel: PagedKernel, recorder: Any) -> None:
        self.layers = layers
        self.parts: list[tuple[ModelSlice, KvCache]] = []
        for recorded in (True, False):
            part = ModelSlice.load(folder, layers, device=CPU, dtype=torch.float32)
            backend = PagedAttention("paged", kernel, CPU)
            part.attention = AttentionChoice(backend, "given by the test")
            # Small pages where the kernel takes them, so that sequences have many.
            cache = part.new_cache(200 * len(layers), part.page_tokens(at_least=4))
            cache.keys.fill_(float("nan"))
            cache.values.fill_(float("nan"))
            if recorded:
                assert part.record_decodes(recorder)
                # Rows of nobody read it, and would pass on what it held.
                cache.keys[cache.spare_page], cache.values[cache.spare_page] = 0, 0
            self.parts.append((part, cache))
        self.lengths: dict[str, int] = {}
        self._draw = torch.Generator().manual_seed(1)

    @property
    def graphs(self) -> Any:
        return self.parts[0][0].graphs

    @property
    def cache(self) -> KvCache:
        return self.parts[0][1]

    def step(self, counts: dict[str, int], layers: LayerRange | None = None) -> None:
        """The next tokens of some sequences; both ways must agree."""
        layers = layers or self.layers
        config = self.parts[0][0].config
        rows = [
            RowSpec(seq, self.lengths.get(seq, 0), n, layers, layers.end == config.num_layers)
            for seq, n in counts.items()
        ]
        tokens = sum(counts.values())
        if layers.first == 0:
            ids = torch.randint(config.vocab_size, (tokens,), generator=self._draw)
            batch = SliceBatch(rows, token_ids=ids)
        else:
            hidden = torch.randn((tokens, config.hidden_size), generator=self._draw)
            batch = SliceBatch(rows, hidden=hidden)
        found = []
        for part, cache in self.parts:
            for row in rows:
                if row.seq not in cache.pool:
                    cache.pool.open(row.seq, layers)
                cache.pool.ensure(row.seq, row.position + row.count)
            found.append(part.forward(batch, cache))
        for got, wanted in zip(
            (found[0].hidden, found[0].logits), (found[1].hidden, found[1].logits), strict=True
        ):
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            if got.numel():
                assert (got - wanted).abs().max() < 1e-4
        for seq, n in counts.items():
            self.lengths[seq] = self.lengths.get(seq, 0) + n

    def free(self, seq: str) -> None:
        for _, cache in self.parts:
            cache.pool.free(seq)
        del self.lengths[seq]


@pytest.mark.parametrize("kernel", ["flash_attn_2", "flash_attn_3", "torch_varlen"])
@pytest.mark.parametrize(("family", "layers"), [("mistral", (0, 4)), ("qwen3", (1, 3))])
def test_replays_equal_the_plain_pass(
    checkpoint: Callable[[str], Any],
    kernels: dict[str, PagedKernel],
    kernel: str,
    family: str,
    layers: tuple[int, int],
) -> None:
    run = Decoder(checkpoint(family).folder, LayerRange(*layers), kernels[kernel], CallAgain())
    # Prompts run plainly.
    run.step({"a": 3, "b": 12})
    run.step({"c": 200})
    run.step({"c": 40})
    assert run.graphs.statistics().recorded == 0
    for _ in range(3):
        run.step({"c": 1, "a": 1, "b": 1})
    assert run.graphs.statistics().recorded == 1
    assert run.graphs.statistics().replays == 2
    run.step({"b": 1})
    run.step({"d": 1, "b": 1, "a": 1, "c": 1})
    # Four rows as three are: the same recording, with one row of nobody fewer.
    assert run.graphs.statistics().recorded == 2
    assert run.graphs.statistics().replays == 3
    # Pages go round: a new sequence begins in what an old one left.
    run.free("b")
    run.step({"e": 2})
    run.step({"e": 1, "a": 1, "c": 1})
    assert run.graphs.statistics().replays == 4
    # Prompts and decodes together run plainly, and leave recordings as they are.
    run.step({"e": 1, "f": 5, "a": 1})
    run.step({"f": 1, "a": 1, "c": 1})
    assert run.graphs.statistics().replays == 5
    # Some of the layers only.
    if layers == (1, 3):
        run.step({"g": 4}, LayerRange(2, 3))
        run.step({"g": 1}, LayerRange(2, 3))
        run.step({"g": 1}, LayerRange(2, 3))
        assert run.graphs.statistics().recorded == 3
        assert run.graphs.statistics().replays == 6


@pytest.mark.parametrize("change", ["grow", "shrink"])
def test_a_cache_that_moved_is_recorded_anew(
    checkpoint: Callable[[str], Any], kernels: dict[str, PagedKernel], change: str
) -> None:
    run = Decoder(
        checkpoint("llama3").folder, LayerRange(0, 4), kernels["flash_attn_3"], CallAgain()
    )
    run.step({"a": 5, "b": 100})
    run.step({"a": 1, "b": 1})
    run.free("a")
    run.step({"b": 1})
    assert run.graphs.statistics().recorded == 2
    for _, cache in run.parts:
        if change == "grow":
            cache.grow(cache.pool.total_pages + 8)
        else:
            cache.shrink(150)
    run.step({"b": 1})
    assert run.graphs.statistics().recorded == 1
    run.step({"b": 1})
    assert run.graphs.statistics().replays == 1


class Wrong:
    """A recorder whose recordings are off, or which cannot record."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.calls = self.drops = 0

    def has_room(self) -> bool:
        return self.fault != "no room"

    def dropped(self) -> None:
        self.drops += 1

    def record(self, body: Body) -> Recording:
        self.calls += 1
        if self.fault == "raises":
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            except RuntimeError:
                # As the end of such a capture does.
                raise RuntimeError("previous error during capture\nmore")  # noqa: B904
        outer = self

        class Off:
            def replay(self) -> torch.Tensor:
                result = body()
                if outer.fault == "one row":
                    # As one among many does that reads another's page.
                    return torch.cat((result[:1].roll(1, dims=1), result[1:]))
                return result * (1.2 if outer.fault == "off" else float("nan"))

        return Off()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("off", "a recorded step of 1 rows is off by 0.2"),
        ("nan", "a recorded step of 1 rows is off by nan"),
        (
            "raises",
            "recording fails here: operation not permitted when stream is capturing; previous "
            "error during capture",
        ),
        ("no room", "too little of the device's memory is free"),
    ],
)
def test_what_differs_from_the_plain_pass_is_dropped_and_said_once(
    checkpoint: Callable[[str], Any],
    kernels: dict[str, PagedKernel],
    caplog: pytest.LogCaptureFixture,
    fault: str,
    text: str,
) -> None:
    wrong = Wrong(fault)
    run = Decoder(checkpoint("llama3").folder, LayerRange(0, 4), kernels["flash_attn_3"], wrong)
    run.step({"a": 5})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            run.step({"a": 1})
    statistics = run.graphs.statistics()
    assert statistics.off == text
    assert (statistics.recorded, statistics.replays) == (0, 0)
    assert wrong.calls == (0 if fault == "no room" else 1)
    assert len(caplog.records) == 1


class Fails(CallAgain):
    """Records, and fails when that is replayed; the first replay is the comparison's."""

    def __init__(self) -> None:
        self.fails = False
        self.drops = 0

    def dropped(self) -> None:
        self.drops += 1

    def record(self, body: Body) -> Recording:
        outer = self

        class Recorded:
            def replay(self) -> torch.Tensor:
                if outer.fails:
                    raise RuntimeError("CUDA error: operation failed\nmore")
                return body()

        return Recorded()


def test_a_replay_that_fails_is_run_plainly_and_none_is_tried_again(
    checkpoint: Callable[[str], Any], kernels: dict[str, PagedKernel]
) -> None:
    recorder = Fails()
    run = Decoder(checkpoint("llama3").folder, LayerRange(0, 4), kernels["flash_attn_3"], recorder)
    run.step({"a": 5})
    for _ in range(2):
        run.step({"a": 1})
    assert run.graphs.statistics().replays == 1
    recorder.fails = True
    for _ in range(2):
        run.step({"a": 1})
    statistics = run.graphs.statistics()
    assert statistics.off == "a recorded step fails here: CUDA error: operation failed"
    assert (statistics.recorded, statistics.replays) == (0, 2)
    assert recorder.drops == 1


def test_who_records_hears_that_none_is_kept(
    checkpoint: Callable[[str], Any], kernels: dict[str, PagedKernel]
) -> None:
    """What recordings share is not to be used for later ones then."""
    recorder = Fails()
    run = Decoder(checkpoint("llama3").folder, LayerRange(0, 4), kernels["flash_attn_3"], recorder)
    run.step({"a": 5})
    run.step({"a": 1})
    assert recorder.drops == 0
    for _, cache in run.parts:
        cache.grow(cache.pool.total_pages + 8)
    run.step({"a": 1})
    assert recorder.drops == 1
    assert run.graphs.statistics().recorded == 1


def test_one_wrong_row_among_many_is_found_out(
    checkpoint: Callable[[str], Any], kernels: dict[str, PagedKernel]
) -> None:
    run = Decoder(
        checkpoint("llama3").folder, LayerRange(0, 4), kernels["flash_attn_3"], Wrong("one row")
    )
    names = [f"s{i}" for i in range(32)]
    run.step(dict.fromkeys(names, 2))
    run.step(dict.fromkeys(names, 1))
    assert run.graphs.statistics().off.startswith("a recorded step of 32 rows is off by 1.")


def test_a_sequence_that_overflowed_is_no_reason_to_go_without(
    checkpoint: Callable[[str], Any], kernels: dict[str, PagedKernel]
) -> None:
    layers = LayerRange(1, 3)
    run = Decoder(checkpoint("llama3").folder, layers, kernels["flash_attn_3"], CallAgain())
    run.step({"a": 5, "b": 5})
    part, cache = run.parts[0]
    cache.pool.ensure("a", 6)
    hidden = torch.full((1, part.config.hidden_size), float("nan"))
    out = part.forward(SliceBatch([RowSpec("a", 5, 1, layers)], hidden=hidden), cache)
    assert out.hidden.isnan().any()
    assert run.graphs.statistics().off == ""
    assert run.graphs.statistics().recorded == 0
    run.free("a")
    run.step({"b": 1})
    run.step({"b": 1})
    assert run.graphs.statistics().replays == 1


def test_the_oldest_size_goes_when_there_are_too_many(
    checkpoint: Callable[[str], Any],
    kernels: dict[str, PagedKernel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_RECORDINGS >= 20
    monkeypatch.setattr("nodes.model.graphs.MAX_RECORDINGS", 2)
    run = Decoder(
        checkpoint("llama3").folder, LayerRange(0, 4), kernels["flash_attn_3"], CallAgain()
    )
    names = ["a", "b", "c", "d"]
    run.step(dict.fromkeys(names, 2))
    for count in (1, 2, 4, 2, 1):
        run.step(dict.fromkeys(names[:count], 1))
        assert run.graphs.statistics().recorded <= 2
    # 4 pushed 1 out, 2 was still there, 1 came again.
    assert run.graphs.statistics().replays == 1
