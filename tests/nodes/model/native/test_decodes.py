"""Steps of decodes in one compiled call give the bits of the general pass, or leave it to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from nodes.kv_pages import LayerPagePool
from nodes.model.batch import BatchError, RowSpec, SliceBatch, SliceOutput
from nodes.model.native import build
from nodes.model.native import layers as layers_module
from nodes.model.native.decodes import FIRST_TURNS, NativeDecodes
from nodes.model.native.products import products_for
from nodes.model.rope import inverse_frequencies, rotation
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")
PARTS = {"whole": LayerRange(0, 4), "first": LayerRange(0, 2), "last": LayerRange(2, 4)}
VOCABULARY = 151

pytestmark = pytest.mark.skipif(
    products_for(torch.float32) is None or products_for(torch.bfloat16) is None,
    reason=f"no compiled products: {build.built().reason}",
)

families = pytest.mark.parametrize(
    "family", ["llama_linear_biased", "mistral", "qwen2_sliding", "qwen3_wide_heads"]
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


class Twins:
    """Two slices of the same weights: one with compiled steps, one without, and prompts run."""

    def __init__(self, folder: Any, held: LayerRange, run: LayerRange, dtype: torch.dtype) -> None:
        self.fast, self.plain = (
            ModelSlice.load(folder, held, device=CPU, dtype=dtype) for _ in range(2)
        )
        assert isinstance(self.fast._decodes, NativeDecodes)
        self.plain._decodes = None
        self.layers = run
        self.caches = [part.new_cache(400) for part in (self.fast, self.plain)]
        self._generator = torch.Generator().manual_seed(1)

    def rows(self, sizes: dict[str, tuple[int, int]]) -> list[RowSpec]:
        """Of each sequence, how many tokens from which position."""
        wanted = self.layers.end == self.fast.config.num_layers
        for seq, (position, count) in sizes.items():
            for cache in self.caches:
                if seq not in cache.pool:
                    cache.pool.open(seq, self.layers)
                cache.pool.ensure(seq, position + count)
        return [RowSpec(s, at, count, self.layers, wanted) for s, (at, count) in sizes.items()]

    def batch(self, rows: list[RowSpec]) -> SliceBatch:
        count = sum(row.count for row in rows)
        if self.layers.first == 0:
            ids = torch.randint(0, VOCABULARY, (count,), generator=self._generator)
            return SliceBatch(rows, ids)
        size = (count, self.fast.config.hidden_size)
        return SliceBatch(rows, hidden=torch.randn(size, generator=self._generator))

    def run(self, batch: SliceBatch) -> SliceOutput:
        fast = self.fast.forward(batch, self.caches[0], brief=True)
        plain = self.plain.forward(batch, self.caches[1])
        assert torch.equal(fast.logits, plain.logits)
        assert torch.equal(fast.hidden, plain.hidden)
        one, other = self.caches
        assert torch.equal(bits(one.keys), bits(other.keys))
        assert torch.equal(bits(one.values), bits(other.values))
        return fast


def bits(numbers: torch.Tensor) -> torch.Tensor:
    """To compare what is no number, too."""
    return numbers.view(torch.uint8)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each batch that a slice with compiled steps got was taken by them."""
    taken: list[bool] = []
    run = NativeDecodes.run

    def noted(self: NativeDecodes, *given: Any, **how: Any) -> SliceOutput | None:
        output = run(self, *given, **how)
        taken.append(output is not None)
        return output

    monkeypatch.setattr(NativeDecodes, "run", noted)
    return taken


@dtypes
@families
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_a_step_has_the_bits_of_the_general_pass(
    checkpoint: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    part: str,
    threads: int,
    dtype: torch.dtype,
) -> None:
    """Over the ends of pages, whose former owners left what is no number."""
    monkeypatch.setattr(layers_module, "WORTH_THREADS_BYTES", 0)
    taken = counted(monkeypatch)
    twins = Twins(checkpoint(family).folder, PARTS["whole"], PARTS[part], dtype)
    for cache in twins.caches:
        cache.keys[50:] = float("nan")
        cache.values[50:] = float("nan")
    places = {"a": 20, "b": 15, "c": 1, "d": 30}
    twins.run(twins.batch(twins.rows({s: (0, n) for s, n in places.items()})))
    assert taken == [False], "prompts are none of them"
    for step in range(20):
        order = sorted(places, key=lambda s: (step * 7 + ord(s)) % 5)
        now = {s: (places[s] + step, 1) for s in order}
        out = twins.run(twins.batch(twins.rows(now)))
        assert not out.logits.isnan().any()
        assert not out.hidden.isnan().any()
    assert taken == [False] + [True] * 20


def test_results_last_unless_they_need_not(checkpoint: Callable[[str], Any]) -> None:
    twins = Twins(checkpoint("mistral").folder, PARTS["whole"], PARTS["whole"], torch.float32)
    twins.run(twins.batch(twins.rows({"a": (0, 20)})))
    part, cache = twins.fast, twins.caches[0]

    def step(at: int, *, brief: bool) -> torch.Tensor:
        return part.forward(twins.batch(twins.rows({"a": (at, 1)})), cache, brief=brief).logits

    lasting, brief = step(20, brief=False), step(21, brief=True)
    copies = lasting.clone(), brief.clone()
    again = step(22, brief=True)
    assert torch.equal(lasting, copies[0])
    assert again.data_ptr() == brief.data_ptr()
    assert not torch.equal(again, copies[1])


def test_rotations_do_not_depend_on_how_many_are_made_at_once(
    checkpoint: Callable[[str], Any],
) -> None:
    inverse = inverse_frequencies(ModelConfig.from_folder(checkpoint("mistral").folder))
    many = rotation(inverse, torch.arange(FIRST_TURNS), torch.float32)
    for at in (0, 1, 17, 500, FIRST_TURNS - 1):
        one = rotation(inverse, torch.tensor([at]), torch.float32)
        assert torch.equal(one.cos[0], many.cos[at])
        assert torch.equal(one.sin[0], many.sin[at])


def test_what_is_no_step_of_decodes_or_not_in_order_is_left_to_the_general_pass(
    checkpoint: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = Twins(checkpoint("mistral").folder, PARTS["whole"], PARTS["whole"], torch.float32)
    twins.run(twins.batch(twins.rows({"a": (0, 20), "b": (0, 20)})))
    taken = counted(monkeypatch)
    twins.run(twins.batch(twins.rows({"a": (20, 1), "b": (20, 3)})))
    a, b = twins.rows({"a": (21, 1), "b": (23, 1)})
    early = RowSpec("b", 23, 1, PARTS["whole"])
    twins.run(SliceBatch([a, early], torch.tensor([5, 6])))
    assert taken == [False, False]
    cache, part = twins.caches[0], twins.fast
    keys = cache.keys.clone()
    for rows, ids, words in (
        ([a, a], [5, 6], "only one row"),
        ([a, b], [5, VOCABULARY], f"token id {VOCABULARY} is not in"),
        ([a, b], [-1, 5], "token id -1 is not in"),
        ([a, b], [5], "the rows need int64"),
        ([RowSpec("c", 3, 1, PARTS["whole"], True)], [5], "not open here"),
        ([RowSpec("a", 500, 1, PARTS["whole"], True)], [5], "it has pages for|reaches token"),
        ([], [], "at least one row"),
    ):
        with pytest.raises(BatchError, match=words):
            part.forward(SliceBatch(rows, torch.tensor(ids, dtype=torch.int64)), cache)
    with pytest.raises(BatchError, match="hidden is"):
        part.forward(SliceBatch([a], torch.tensor([1]), torch.zeros(1, 3)), cache)
    assert torch.equal(cache.keys, keys), "nothing was written"


@settings(max_examples=50, deadline=None)
@given(
    layers=st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda x: x[0] < x[1]),
    wanted=st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda x: x[0] < x[1]),
    tokens=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    position=st.integers(0, 250),
)
def test_a_place_is_where_the_table_is(
    layers: tuple[int, int], wanted: tuple[int, int], tokens: list[int], position: int
) -> None:
    pool = LayerPagePool(2000)
    own, asked = LayerRange(*layers), LayerRange(*wanted)
    pool.open("s", own)
    for count in sorted(tokens):
        pool.ensure("s", count)
    place = pool.place("s", asked, position)
    if position >= pool.room_tokens("s") or not own.covers(asked):
        assert place is None
        return
    assert place is not None
    table = pool.table("s")[asked.first - own.first :]
    assert place == (table.__array_interface__["data"][0], table.strides[0] // 4)
    assert pool.place("t", asked, position) is None
