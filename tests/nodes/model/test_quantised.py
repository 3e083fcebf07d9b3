"""Weights in 8 and 4 bits: near the exact products, slices like the whole, memory as counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.quantised import (
    Int4Linear,
    Int8Linear,
    check_quantised,
    int4_kernel_rows,
    int8_kernel_rows,
    make_quantised,
)
from nodes.model.slice import ModelSlice
from nodes.model.weights import held_bytes, load_slice

CPU = torch.device("cpu")
FORMS = (Quantisation.INT8, Quantisation.INT4)
ROWS = (1, 3, 9, 50, 130)
"""Below and above where weights are widened instead, of both forms."""


def weights(rows: int = 192, width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + width)
    table = torch.randn(rows, width, generator=generator)
    # Outputs of very different sizes, as trained ones are.
    table *= torch.logspace(-3, 1, rows)[:, None]
    return table, torch.randn(rows, generator=generator)


def inputs(rows: int, width: int = 128) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose widths groups of 32 divide, with a tied head."""
    folder = tmp_path_factory.mktemp("quantisable")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=199,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        attention_bias=True,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_within_half_a_step_of_every_weight(rows: int, dtype: torch.dtype) -> None:
    table, bias = weights()
    x = inputs(rows).to(dtype)
    got = Int8Linear.of(table, bias.to(dtype), int8_kernel_rows(CPU))(x)
    assert got.dtype == dtype
    half_steps = 0.505 * table.abs().amax(dim=1) / 127
    rounded = x.double().abs().sum(dim=1)[:, None]
    exact = F.linear(x.double(), table.double(), bias.double())
    # Of the product's own rounding: bfloat16 rows and sums, and the dtype of the result.
    rounding = 0.012 * (F.linear(x.double().abs(), table.double().abs()) + bias.double().abs())
    assert bool(((got.double() - exact).abs() <= rounded * half_steps + rounding).all())


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_int8_of_any_width(rows: int) -> None:
    """In some widths torch's kernel reads what is not the weight's."""
    for width in (8, 24, 40, 48, 88):
        table = torch.randn(64, width, generator=torch.Generator().manual_seed(width))
        x = inputs(rows, width)
        got = Int8Linear.of(table, None, int8_kernel_rows(CPU))(x)
        exact = F.linear(x.double(), table.double())
        assert (got.double() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_within_half_a_step_of_every_weight(rows: int, group: int) -> None:
    table, bias = weights()
    x = inputs(rows)
    got = Int4Linear.of(table, bias, group, kernel_rows=int4_kernel_rows(CPU))(x)
    parts = table.view(len(table), -1, group)
    low, high = parts.amin(dim=2), parts.amax(dim=2)
    # Half a step, and what bfloat16 leaves of the group's zero and step.
    bound = (high - low) / 30 + 0.02 * torch.maximum(low.abs(), high.abs())
    weight_error = bound.repeat_interleave(group, dim=1)
    exact = F.linear(x.double(), table.double(), bias.double())
    rounding = 0.012 * (F.linear(x.double().abs(), table.double().abs()) + bias.double().abs())
    limit = F.linear(x.double().abs(), weight_error.double()) + rounding
    assert bool(((got.double() - exact).abs() <= limit).all())


@pytest.mark.parametrize("form", FORMS)
def test_a_row_has_the_same_bits_whatever_other_rows_there_are(form: Quantisation) -> None:
    linear = make_quantised(*weights(), form)
    x = inputs(7)
    alone = torch.cat([linear(row[None]) for row in x])
    assert torch.equal(linear(x), alone)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    assert torch.equal(linear(x[order]), alone[order])


@pytest.mark.parametrize("form", FORMS)
def test_widened_weights_are_those_of_the_kernel(form: Quantisation) -> None:
    table, _ = weights()
    unit = torch.eye(128)
    kernel: Int8Linear | Int4Linear
    widened: Int8Linear | Int4Linear
    if form is Quantisation.INT8:
        kernel, widened = Int8Linear.of(table, None, 128), Int8Linear.of(table, None, 0)
    else:
        kernel = Int4Linear.of(table, None)
        widened = Int4Linear.of(table, None, kernel_rows=0)
    assert torch.allclose(kernel(unit), widened(unit), rtol=0.008, atol=1e-6)


def test_weights_of_nothing_stay_nothing() -> None:
    for form in FORMS:
        assert not make_quantised(torch.zeros(64, 64), None, form)(inputs(3, 64)).any()


@pytest.mark.parametrize("width", [48, 72])
def test_a_width_that_groups_do_not_divide_is_refused_in_words(width: int) -> None:
    with pytest.raises(ConfigError, match=rf"rows of {width} .* groups of 32; use .*int8"):
        make_quantised(torch.zeros(64, width), None, Quantisation.INT4)


def test_this_machine_computes_both_forms() -> None:
    for form in FORMS:
        check_quantised(form, CPU)
    assert int8_kernel_rows(CPU) > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [(0, 2), (1, 3), (2, 4), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_known_before_loading(
    folder: Path, form: Quantisation, cut: tuple[int, int], dtype: torch.dtype
) -> None:
    config = ModelConfig.from_folder(folder)
    layers = LayerRange(*cut)
    loaded = load_slice(folder, config, layers, device=CPU, dtype=dtype, quantise=form)
    planned = held_bytes(config, layers, device=CPU, dtype=dtype, quantise=form)
    assert planned == loaded.nbytes
    whole = load_slice(folder, config, layers, device=CPU, dtype=dtype)
    assert planned < 0.75 * whole.nbytes


def logits(folder: Path, cuts: list[tuple[int, int]], form: Quantisation, rows: int) -> Any:
    """float32 [rows, vocab] after prompts of different lengths, through slices in a row."""
    prompts = [[(7 * i + 3 * j) % 199 for j in range(5 + i)] for i in range(rows)]
    hidden: torch.Tensor | None = None
    ids = torch.tensor([t for p in prompts for t in p])
    for first, end in cuts:
        layers = LayerRange(first, end)
        model = ModelSlice.load(folder, layers, device=CPU, dtype=torch.float32, quantise=form)
        cache = model.new_cache(len(layers) * rows)
        specs = []
        for i, prompt in enumerate(prompts):
            cache.pool.open(i, layers)
            cache.pool.ensure(i, len(prompt))
            specs.append(RowSpec(i, 0, len(prompt), layers, wants_logits=end == 4))
        out = model.forward(
            SliceBatch(specs, ids if hidden is None else None, hidden if first else None), cache
        )
        hidden = out.hidden
    return out.logits


@pytest.mark.parametrize("form", FORMS)
def test_slices_are_the_whole_model(folder: Path, form: Quantisation) -> None:
    whole = logits(folder, [(0, 4)], form, 3)
    assert torch.equal(logits(folder, [(0, 1), (1, 3), (3, 4)], form, 3), whole)
    plain = logits(folder, [(0, 4)], Quantisation.NONE, 3)
    distance = (whole - plain).norm() / plain.norm()
    # Far from nothing, which would be weights that are not quantised, and from noise.
    assert 1e-4 < distance < (0.05 if form is Quantisation.INT8 else 0.5)


@pytest.mark.parametrize("form", FORMS)
def test_prompts_do_not_see_each_other(folder: Path, form: Quantisation) -> None:
    together = logits(folder, [(0, 4)], form, 4)
    alone = logits(folder, [(0, 4)], form, 1)
    assert torch.allclose(together[0], alone[0], rtol=0.05, atol=0.05 * float(alone.abs().max()))
