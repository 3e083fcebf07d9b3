"""ModelConfig reads what transformers writes, and refuses in words what it cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import Family, LinearRope, Llama3Rope, ModelConfig, WeightsDtype

LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "torch_dtype": "bfloat16",
}


def test_llama_3_1_8b_in_the_old_spelling() -> None:
    config = ModelConfig.from_dict(LLAMA3_8B)
    assert config.family is Family.LLAMA
    assert config.head_dim == 128
    assert config.rope_theta == 500_000
    assert config.rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)
    assert config.eos_ids == (128001, 128008, 128009)
    assert config.weights_dtype is WeightsDtype.BFLOAT16
    # The model card's own figure: 8.03 billion parameters.
    assert config.num_parameters == 8_030_261_248
    assert config.kv_bytes_per_token_per_layer(2) == 4096
    assert config.activation_bytes_per_token(2) == 8192


def test_both_rope_spellings_mean_the_same() -> None:
    new = {k: v for k, v in LLAMA3_8B.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = LLAMA3_8B["rope_scaling"] | {"rope_theta": 500000.0}
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(LLAMA3_8B)
    old = LLAMA3_8B | {"rope_scaling": {"type": "linear", "factor": 2}}
    assert ModelConfig.from_dict(old).rope_scaling == LinearRope(2.0)


BASE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WRITTEN: list[tuple[transformers.PreTrainedConfig, dict[str, Any]]] = [
    (
        transformers.LlamaConfig(**BASE, attention_bias=True, mlp_bias=True),
        {"family": Family.LLAMA, "attention_bias": True, "attention_out_bias": True,
         "mlp_bias": True, "sliding_layers": frozenset()},
    ),
    (
        transformers.MistralConfig(**BASE, sliding_window=8),
        {"family": Family.MISTRAL, "sliding_window": 8, "sliding_layers": frozenset(range(6))},
    ),
    (
        transformers.MistralConfig(**BASE, sliding_window=None, head_dim=32),
        {"sliding_window": None, "head_dim": 32, "sliding_layers": frozenset()},
    ),
    (
        transformers.Qwen2Config(**BASE, sliding_window=8),
        {"family": Family.QWEN2, "attention_bias": True, "attention_out_bias": False,
         "sliding_window": None},
    ),
    (
        transformers.Qwen2Config(
            **BASE, use_sliding_window=True, sliding_window=8, max_window_layers=4
        ),
        {"sliding_window": 8, "sliding_layers": frozenset({4, 5})},
    ),
    (
        transformers.Qwen3Config(**BASE, tie_word_embeddings=True),
        {"family": Family.QWEN3, "qk_norm": True, "head_dim": 128, "attention_bias": False,
         "tie_embeddings": True},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), WRITTEN)
def test_what_transformers_writes_is_read_and_counted(
    tmp_path: Path, config: transformers.PreTrainedConfig, expected: dict[str, Any]
) -> None:
    config.save_pretrained(tmp_path)
    read = ModelConfig.from_folder(tmp_path)
    assert {name: getattr(read, name) for name in expected} == expected
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    assert read.num_parameters == sum(p.numel() for p in model.parameters())


def test_max_window_layers_decides_where_layer_types_are_absent() -> None:
    config = BASE | {
        "model_type": "qwen2", "max_position_embeddings": 99, "use_sliding_window": True,
        "sliding_window": 8, "max_window_layers": 2,
    }  # fmt: skip
    read = ModelConfig.from_dict(config)
    assert read.sliding_layers == frozenset({2, 3, 4, 5})
    assert [read.window_of(i) for i in range(3)] == [None, None, 8]


def test_generation_config_has_the_last_word_on_eos(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA3_8B | {"eos_token_id": 5}))
    assert ModelConfig.from_folder(tmp_path).eos_ids == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5, 7]}))
    assert ModelConfig.from_folder(tmp_path).eos_ids == (7, 5)


def test_slice_bytes_add_up() -> None:
    config = ModelConfig.from_dict(LLAMA3_8B)
    whole = config.slice_weight_bytes(LayerRange(0, 32), 2)
    cuts = [LayerRange(0, 5), LayerRange(5, 20), LayerRange(20, 32)]
    assert sum(config.slice_weight_bytes(r, 2) for r in cuts) == whole
    tied = ModelConfig.from_dict(LLAMA3_8B | {"tie_word_embeddings": True})
    assert tied.slice_weight_bytes(LayerRange(0, 32), 2) == whole - tied.embed_bytes(2)
    # Apart, each end keeps its own copy.
    assert sum(tied.slice_weight_bytes(r, 2) for r in cuts) == whole
    with pytest.raises(ValueError, match="layers 30-32 reach beyond the model's 32"):
        config.slice_weight_bytes(LayerRange(30, 33), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral", "architectures": None}, "model_type='mixtral': is not sup"),
        ({"architectures": ["GPT2LMHeadModel"]}, "use one of LlamaForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "does not fit model_type=llama"),
        ({"hidden_size": None}, "hidden_size is missing; add an integer"),
        ({"hidden_size": "4096"}, "hidden_size='4096': must be an integer"),
        ({"hidden_size": 4096.5}, "hidden_size=4096.5: must be an integer"),
        ({"hidden_size": True}, "hidden_size=True: must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be an integer from 1"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers=1000"),
        ({"num_attention_heads": 24}, "must be a multiple of num_attention_heads=24"),
        ({"num_key_value_heads": 7}, "must divide num_attention_heads=32"),
        ({"num_key_value_heads": 64}, "num_key_value_heads=64: must be an integer from 1 to 32"),
        ({"head_dim": 7}, "rotary embedding needs an even number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan: must be a number"),
        ({"rms_norm_eps": 10**400}, "must be a number"),
        ({"hidden_act": "gelu"}, "only silu is"),
        ({"quantization_config": {"bits": 4}}, "quantised folders are not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: type='yarn': is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": "linear"}, "must be a JSON object"),
        ({"rope_scaling": LLAMA3_8B["rope_scaling"] | {"high_freq_factor": 1.0}}, "must be above"),
        ({"torch_dtype": "int8"}, "torch_dtype='int8'"),
        ({"eos_token_id": 128256}, "must be a token id below 128256"),
        ({"eos_token_id": [1] * 65}, "eos_token_id="),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
    ],
)  # fmt: skip
def test_errors_name_field_value_and_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        ModelConfig.from_dict(LLAMA3_8B | change)
    assert message in str(caught.value)
    assert caught.value.param
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("types", "message"),
    [(["full_attention"], "has 1 entries for 6 layers"), (["linear_attention"] * 6, "linear")],
)
def test_odd_layer_types_are_refused(types: list[str], message: str) -> None:
    config = BASE | {
        "model_type": "qwen2", "max_position_embeddings": 99, "use_sliding_window": True,
        "sliding_window": 8, "layer_types": types,
    }  # fmt: skip
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_dict(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "must hold a JSON object, not list"),
        (b"[" * 100_000, "not valid JSON"),
        (b" " * (1 << 20) + b"{}", "larger than"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "JSON"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_folder(tmp_path)


def test_missing_folder_and_file_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="is not a folder"):
        ModelConfig.from_folder(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError, match=r"holds no config\.json"):
        ModelConfig.from_folder(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
NAMES = [
    *LLAMA3_8B, "head_dim", "sliding_window", "layer_types", "use_sliding_window", "dtype",
    "rope_parameters", "attention_bias", "max_window_layers", "tie_word_embeddings", "hidden_act",
]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw loads Unicode tables
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3), st.sampled_from(list(Family)))
def test_any_json_is_read_or_refused(change: dict[str, Any], family: Family) -> None:
    base = LLAMA3_8B | {"model_type": family.value, "architectures": None}
    try:
        config = ModelConfig.from_dict(base | change)
    except ModelFormatError:
        return
    assert config.num_parameters > 0
    assert config.num_heads % config.num_kv_heads == 0
    assert config.head_dim % 2 == 0
