"""Shares of the ranks cover each weight once, or as often as a head is held."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm
from nodes.identity import identify
from nodes.model.parallel.split import (
    check_groups,
    check_split,
    node_kv_config,
    node_weight_bytes,
    rank_config,
    rank_weight_bytes,
    share_of,
    vocab_rows,
)
from nodes.settings import NodeSettings


def config_of(kv_heads: int, group: int, inner: int, vocab: int) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "model_type": "llama", "hidden_size": 16 * kv_heads * group, "head_dim": 16,
            "intermediate_size": inner, "num_hidden_layers": 4, "vocab_size": vocab,
            "num_attention_heads": kv_heads * group, "num_key_value_heads": kv_heads,
            "max_position_embeddings": 64,
        }
    )  # fmt: skip


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 64), st.integers(8, 500), st.integers(1, 8)
)
def test_shares_cover_the_model(
    kv_heads: int, group: int, inner: int, vocab: int, size: int
) -> None:
    config = config_of(kv_heads, group, inner, vocab)
    try:
        check_split(config, size)
    except ConfigError:
        return
    shares = [share_of(config, rank, size) for rank in range(size)]
    local = rank_config(config, size)

    def covered(parts: list[tuple[int, int]]) -> Counter[int]:
        return Counter(i for begin, end in parts for i in range(begin, end))

    assert covered([s.query for s in shares]) == Counter(range(config.q_size))
    assert covered([s.inner for s in shares]) == Counter(range(inner))
    assert covered([s.vocab for s in shares]) == Counter(range(vocab))
    assert all(s.vocab[1] - s.vocab[0] <= vocab_rows(config, size) for s in shares)
    held = covered([s.key for s in shares])
    assert set(held) == set(range(config.kv_size))
    assert len(set(held.values())) == 1
    for share in shares:
        assert share.query[1] - share.query[0] == local.q_size
        assert share.key[1] - share.key[0] == local.kv_size
        # Every query head finds its own key head, by the same grouping as in the whole model.
        for head in range(local.num_heads):
            whole = share.query[0] // 16 + head
            found = share.key[0] // 16 + head // (local.num_heads // local.num_kv_heads)
            assert found == whole // group
    assert node_kv_config(config, size).num_kv_heads == max(kv_heads, size)


def test_what_cannot_be_split_is_refused_with_what_can() -> None:
    config = config_of(3, 3, 36, 50)
    with pytest.raises(ConfigError, match=r"has 9 heads, 3 of keys.*use one of 1, 3, 9$"):
        check_split(config, 2)
    with pytest.raises(ConfigError, match=r"tensor_parallel = 65 is not in 1\.\.64"):
        check_split(config, 65)


def test_rank_0_holds_the_most() -> None:
    config = config_of(4, 2, 64, 51)
    for layers in (LayerRange(0, 4), LayerRange(1, 4), LayerRange(1, 3), LayerRange(0, 2)):
        for form in (WeightForm(2), WeightForm(2, Quantisation.INT8)):
            each = [rank_weight_bytes(config, layers, rank, 4, form) for rank in range(4)]
            assert max(each) == each[0]
            assert node_weight_bytes(config, layers, 4, form) == 4 * each[0]
    for form in (WeightForm(2), WeightForm(2, Quantisation.INT8)):
        inner = LayerRange(1, 3)
        assert rank_weight_bytes(config, inner, 0, 1, form) == form.slice_bytes(config, inner)


def test_no_group_of_int4_is_on_two_ranks() -> None:
    config = config_of(4, 2, 128, 51)
    check_groups(Quantisation.INT4, config, 4)
    check_groups(Quantisation.INT8, config, 8)
    with pytest.raises(ConfigError, match=r"rows of 16 weights on each rank .* groups of 32"):
        check_groups(Quantisation.INT4, config, 8)


def test_a_node_says_at_its_start_what_cannot_be_split(tiny_folder: Path) -> None:
    def settings(**more: object) -> NodeSettings:
        return NodeSettings(name="a", model=tiny_folder, device="cpu", **more)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"tensor_parallel = 3 does not divide .*use one of 1, 2"):
        identify(settings(tensor_parallel=3), tiny_folder)
    identify(settings(tensor_parallel=2, quantise="int8"), tiny_folder)
    assert identify(settings(tensor_parallel=2), tiny_folder).device_text.endswith(" x 2")
