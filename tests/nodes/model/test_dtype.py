"""The choice of the compute dtype, against given and against real measurements."""

from __future__ import annotations

import pytest
import torch

from helix_mq.errors import ConfigError
from helix_mq.models.config import ModelConfig
from nodes.model.dtype import Measure, choose_dtype, measure_matmul

CPU = torch.device("cpu")


def _config(dtype: str) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "vocab_size": 8,
            "max_position_embeddings": 64,
            "torch_dtype": dtype,
        }
    )


def _speed(ratios: dict[int, float]) -> Measure:
    """16 bits run at `ratios[rows]` times the speed of float32."""

    def measure(config: ModelConfig, dtype: torch.dtype, rows: int) -> float:
        return 1.0 if dtype == torch.float32 else 1.0 / ratios[rows]

    return measure


def test_what_is_asked_for_is_taken() -> None:
    choice = choose_dtype("float16", _config("bfloat16"), CPU)
    assert choice.dtype is torch.float16
    assert choice.reason == "as asked for"


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="dtype='int8' is unknown; use auto, float32, bfloat16"):
        choose_dtype("int8", _config("float32"), CPU)


def test_float32_weights_are_never_narrowed_on_a_cpu() -> None:
    fast = _speed({1: 9.0, 8: 9.0, 128: 9.0})
    assert choose_dtype("auto", _config("float32"), CPU, fast).dtype is torch.float32


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_the_faster_one_wins(stored: str) -> None:
    faster = choose_dtype("auto", _config(stored), CPU, _speed({1: 2.0, 8: 1.5, 128: 0.8}))
    assert faster.dtype is getattr(torch, stored)
    assert f"{stored} runs at 2.00x with 1 rows, 1.50x with 8 rows, 0.80x" in faster.reason
    slower = choose_dtype("auto", _config(stored), CPU, _speed({1: 1.1, 8: 0.5, 128: 0.2}))
    assert slower.dtype is torch.float32
    assert "widened" in slower.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_takes_real_and_little_time(dtype: torch.dtype) -> None:
    few = measure_matmul(_config("bfloat16"), dtype, 1)
    many = measure_matmul(_config("bfloat16"), dtype, 512)
    # Which is longer is up to what else the machine does.
    assert 0 < few < 1
    assert 0 < many < 1
