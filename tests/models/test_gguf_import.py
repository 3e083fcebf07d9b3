"""GGUF files into Hugging Face folders: each value in its place, converted once, whole or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from helix_mq.errors import HelixError, ModelFormatError
from helix_mq.models.config import LinearRope, Llama3Rope, ModelConfig, WeightsDtype
from helix_mq.models.files import ModelFiles
from helix_mq.models.gguf_convert import convert
from helix_mq.models.gguf_import import import_gguf
from helix_mq.models.gguf_rope import llama3_factors
from helix_mq.models.tokenizer import Tokenizer

Write = Callable[..., dict[str, np.ndarray[Any, Any]]]


def read_weights(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        values.update(load_file(file))
    return values


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_every_value_comes_back_under_its_name(
    tmp_path: Path, write_gguf: Write, architecture: str
) -> None:
    state = write_gguf(tmp_path / "tiny.gguf", architecture)
    folder = import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    found = read_weights(folder)
    assert sorted(found) == sorted(state)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_transformers_computes_the_same_from_the_folder(
    tmp_path: Path, write_gguf: Write, model_kinds: dict[str, Any], architecture: str
) -> None:
    state = write_gguf(tmp_path / "tiny.gguf", architecture)
    folder = import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    models: Any = transformers.AutoModelForCausalLM
    original = models.from_config(model_kinds[architecture])
    original.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    imported = models.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[3, 1, 4, 1, 5, 2, 6, 5, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(imported(ids).logits, original(ids).logits)
    config = ModelConfig.from_folder(folder)
    assert ModelFiles.open(folder).slice_entries(config, config.all_layers)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_quantised_weights_are_dequantised(tmp_path: Path, write_gguf: Write, kind: str) -> None:
    quantised = gguf.GGMLQuantizationType[kind]
    state = write_gguf(tmp_path / "tiny.gguf", "qwen2", quantise=quantised)
    found = read_weights(import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache"))
    for name, value in state.items():
        if value.ndim == 2:
            # What the format itself keeps of a value.
            value = gguf.dequantize(gguf.quantize(value, quantised), quantised)
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_an_attention_bias_of_llama_comes_with_a_zero_output_bias(
    tmp_path: Path, write_gguf: Write
) -> None:
    biases = {}
    for layer in range(2):
        biases[f"blk.{layer}.attn_q.bias"] = np.arange(32, dtype=np.float32)
        biases[f"blk.{layer}.attn_k.bias"] = np.arange(16, dtype=np.float32)
        biases[f"blk.{layer}.attn_v.bias"] = np.arange(16, dtype=np.float32)
    write_gguf(tmp_path / "tiny.gguf", tensors=biases)
    folder = import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    found = read_weights(folder)
    assert ModelConfig.from_folder(folder).attention_bias
    # Rotated in pairs in the file, in halves here.
    first_head = [0, 2, 4, 6, 1, 3, 5, 7]
    assert found["model.layers.0.self_attn.q_proj.bias"][:8].tolist() == first_head
    assert found["model.layers.1.self_attn.v_proj.bias"].tolist() == list(range(16))
    assert not found["model.layers.1.self_attn.o_proj.bias"].any()


def test_float16_on_request_and_beside_float32(tmp_path: Path, write_gguf: Write) -> None:
    state = write_gguf(tmp_path / "tiny.gguf")
    file, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    half = import_gguf(file, cache, dtype=WeightsDtype.FLOAT16)
    assert half != import_gguf(file, cache)
    assert ModelConfig.from_folder(half).weights_dtype is WeightsDtype.FLOAT16
    for name, value in read_weights(half).items():
        np.testing.assert_array_equal(value, state[name].astype(np.float16))


def test_large_models_are_written_in_shards(tmp_path: Path, write_gguf: Write) -> None:
    state = write_gguf(tmp_path / "tiny.gguf")
    folder = tmp_path / "sharded"
    folder.mkdir()
    seen: list[float] = []
    convert(
        tmp_path / "tiny.gguf",
        folder,
        WeightsDtype.FLOAT32,
        lambda fraction, text: seen.append(fraction),
        shard_bytes=20_000,
    )
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 24_000 for shard in shards)
    found = read_weights(folder)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)
    config = ModelConfig.from_folder(folder)
    assert ModelFiles.open(folder).slice_entries(config, config.all_layers)
    assert seen == sorted(seen)
    assert 0.0 <= seen[0] <= seen[-1] <= 1.0


# What the metadata say of the model.


def config_of(tmp_path: Path, write_gguf: Write, **options: Any) -> ModelConfig:
    write_gguf(tmp_path / "tiny.gguf", **options)
    return ModelConfig.from_folder(import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache"))


def test_linear_scaling(tmp_path: Path, write_gguf: Write) -> None:
    changes = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert config_of(tmp_path, write_gguf, changes=changes).rope_scaling == LinearRope(4.0)


def test_llama_3_s_scaling_is_found_from_its_factors(tmp_path: Path, write_gguf: Write) -> None:
    factors = llama3_factors(8, 5e5, 32.0).astype(np.float32)
    config = config_of(tmp_path, write_gguf, tensors={"rope_freqs.weight": factors})
    assert config.rope_scaling == Llama3Rope(32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_factors_are_those_of_transformers(factor: float) -> None:
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(head_dim=128, rope_parameters=parameters)
    rotary: Any = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    plain = 5e5 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(
        llama3_factors(128, 5e5, factor), plain / rotary.inv_freq.numpy(), rtol=1e-5
    )


def test_a_sliding_window_makes_it_mistral(tmp_path: Path, write_gguf: Write) -> None:
    config = config_of(tmp_path, write_gguf, changes={"llama.attention.sliding_window": 16})
    assert (config.family.value, config.sliding_window) == ("mistral", 16)
    assert config.sliding_layers == frozenset({0, 1})


def test_every_token_that_ends_an_answer_is_listed(tmp_path: Path, write_gguf: Write) -> None:
    config = config_of(
        tmp_path,
        write_gguf,
        tokens=["<unk>", "<s>", "</s>", "<|eot_id|>", "<|endoftext|>", "x", "y", "<|im_end|>"],
        types=[2, 3, 3, 3, 3, 1, 1, 1],
        changes={"tokenizer.ggml.eot_token_id": 5},
    )
    # The last one is spelled like an ending, but is not marked as a control token.
    assert config.eos_ids == (2, 5, 3, 4)


def test_the_chat_template_comes_along(tmp_path: Path, write_gguf: Write) -> None:
    template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    write_gguf(tmp_path / "tiny.gguf", changes={"tokenizer.chat_template": template})
    tokenizer = Tokenizer.from_folder(import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache"))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "abc"}])
    assert (ids[0], ids[-1]) == (1, 2)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("general.architecture='gemma'", {"changes": {"general.architecture": "gemma"}}),
    ("expert_count", {"changes": {"llama.expert_count": 8}}),
    ("head_count", {"changes": {"llama.attention.head_count": 0}}),
    ("attention_heads=3", {"changes": {"llama.attention.head_count": 3}}),
    ("head_count", {"changes": {"llama.attention.head_count": "four"}}),
    ("value_length", {"changes": {"llama.attention.value_length": 4}}),
    ("dimension_count", {"changes": {"llama.rope.dimension_count": 4}}),
    ("yarn", {"changes": {"llama.rope.scaling.type": "yarn"}}),
    ("block_count", {"changes": {"llama.block_count": None}}),
    ("blk.2.", {"changes": {"llama.block_count": 3}}),
    ("blk.1.", {"changes": {"llama.block_count": 1}}),
    ("num_hidden_layers", {"changes": {"llama.block_count": 1_000_000}}),
    ("hidden_size", {"changes": {"llama.embedding_length": 0}}),
    ("ffn", {"changes": {"llama.feed_forward_length": 63}}),
    ("blk.0.attn_q.weight", {"tensors": {"blk.0.attn_q.weight": None}}),
    ("ffn_gate_inp", {"tensors": {"blk.0.ffn_gate_inp.weight": np.zeros((2, 2), np.float32)}}),
    ("ffn_up.bias", {"tensors": {"blk.0.ffn_up.bias": np.zeros(64, np.float32)}}),
    ("rope_freqs", {"tensors": {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}}),
    ("rope_freqs", {"tensors": {"rope_freqs.weight": np.array([1, 2], np.float32)}}),
    ("no numbers", {"tensors": {"output_norm.weight": np.full(32, np.nan, np.float32)}}),
    ("bos_token_id", {"changes": {"tokenizer.ggml.bos_token_id": 8}}),
    ("bos_token_id", {"changes": {"tokenizer.ggml.bos_token_id": -1}}),
    ("eos_token_id", {"changes": {"tokenizer.ggml.eot_token_id": 900}}),
    ("tokenizer.ggml.tokens", {"changes": {"tokenizer.ggml.tokens": None}}),
    ("tokenizer.ggml.tokens", {"changes": {"tokenizer.ggml.tokens": [1, 2, 3, 4, 5, 6, 7, 8]}}),
    ("token_type", {"changes": {"tokenizer.ggml.token_type": [1, 1]}}),
    ("scores", {"changes": {"tokenizer.ggml.scores": ["x"] * 8}}),
    ("score", {"changes": {"tokenizer.ggml.scores": None}}),
    ("merge", {"merges": ["a b", "nospace"]}),
    ("cannot be built", {"merges": ["q r"]}),
    ("tokenizer.ggml.model", {"tokenizer": "bert"}),
    ("tokenizer.ggml.pre", {"tokenizer": "gpt2", "pre": "falcon"}),
    ("2 parts", {"changes": {"split.count": 2}}),
]


@pytest.mark.parametrize(("word", "options"), REFUSED)
def test_what_cannot_be_served_exactly_is_refused_by_name(
    tmp_path: Path, write_gguf: Write, word: str, options: dict[str, Any]
) -> None:
    write_gguf(tmp_path / "tiny.gguf", **options)
    with pytest.raises(ModelFormatError) as refusal:
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    assert word in refusal.value.message
    assert len(refusal.value.message) < 500
    assert not list((tmp_path / "cache").glob("gguf/*/config.json"))


def test_values_too_large_for_float16_are_refused(tmp_path: Path, write_gguf: Write) -> None:
    write_gguf(tmp_path / "t.gguf", tensors={"output_norm.weight": np.full(32, 1e5, np.float32)})
    with pytest.raises(ModelFormatError, match="float16"):
        import_gguf(tmp_path / "t.gguf", tmp_path / "cache", dtype=WeightsDtype.FLOAT16)
    with pytest.raises(ModelFormatError, match="bfloat16"):
        import_gguf(tmp_path / "t.gguf", tmp_path / "cache", dtype=WeightsDtype.BFLOAT16)


def test_damaged_files_are_refused_or_read_but_never_hang(
    tmp_path: Path, write_gguf: Write
) -> None:
    """Bytes of the header changed at random, numbers made huge, the end cut off."""
    write_gguf(tmp_path / "good.gguf")
    good = (tmp_path / "good.gguf").read_bytes()
    chance = random.Random(1)
    header = good.index(b"output_norm.weight") + 200
    refused = 0
    for round_ in range(150):
        bad = bytearray(good)
        if round_ % 3 == 0:
            del bad[chance.randrange(len(bad)) :]
        elif round_ % 3 == 1:
            at = chance.randrange(header)
            bad[at : at + 8] = b"\xff\xff\xff\xff\xff\xff\xff\x0f"[: chance.randint(1, 8)]
        else:
            for _ in range(chance.randint(1, 8)):
                bad[chance.randrange(header)] = chance.randrange(256)
        file = tmp_path / f"bad{round_}.gguf"
        file.write_bytes(bad)
        try:
            import_gguf(file, tmp_path / "cache")
        except HelixError as e:
            assert isinstance(e, ModelFormatError)
            refused += 1
    assert refused > 100
    assert not list((tmp_path / "cache" / "gguf").glob(".*"))


def test_no_gguf_at_all(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("short", b"GGUF"), ("other", b"PK\3\4" * 100)):
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(data)
        with pytest.raises(ModelFormatError, match="GGUF"):
            import_gguf(file, tmp_path / "cache")
