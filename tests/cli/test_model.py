"""`helix-mq model inspect` on real folders, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.testing import CliRunner

from helix_mq.cli.model import parse_slice, register
from helix_mq.errors import ConfigError, HelixError, ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.tensor_names import slice_tensors

CONFIG: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 4096,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config = ModelConfig.from_dict(CONFIG)
    shapes = slice_tensors(config, config.all_layers)
    save_file(
        {n: np.zeros(s, np.float16) for n, s in shapes.items()}, tmp_path / "model.safetensors"
    )
    return tmp_path


def _run(*args: str) -> str:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["model", "inspect", *args])
    if isinstance(result.exception, HelixError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_json_agrees_with_the_config_and_the_disk(folder: Path) -> None:
    report = json.loads(_run(str(folder), "--slice", "1:4", "--json"))
    config = ModelConfig.from_folder(folder)
    assert report["slice_bytes"] == config.slice_weight_bytes(LayerRange(1, 4), 2)
    assert report["disk_bytes"] == report["slice_bytes"]
    assert report["kv_bytes_per_token"] == 2 * 2 * 16 * 2 * 4
    assert report["slice_kv_bytes_per_token"] == report["kv_bytes_per_token"] * 3 // 4
    assert (report["slice_first"], report["slice_end"]) == (1, 4)
    wide = json.loads(_run(str(folder), "--dtype", "float32", "--json"))
    assert wide["model_bytes"] == 4 * report["parameters"]
    assert wide["stored_dtype"] == "bfloat16"


def test_text_is_for_people(folder: Path) -> None:
    text = _run(str(folder))
    assert "family       mistral" in text
    assert "4 heads on 2 KV heads of 16, sliding window 512" in text
    assert "slice        layers 0-3: " in text
    assert "128 B per token and layer, 512 B per token" in text


def test_weights_that_are_missing_are_said_to_be(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    report = json.loads(_run(str(folder), "--json"))
    assert report["disk_bytes"] is None
    assert "holds neither model.safetensors" in report["disk_problem"]
    assert "on disk      incomplete: " in _run(str(folder))


@pytest.mark.parametrize("text", ["", "3", "3:", "4:2", "2:2", "-1:2", "a:b", "0:99999", "0:٣"])
def test_odd_slices_are_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a range of layers; use A:B"):
        parse_slice(text)


def test_bad_paths_and_ranges_are_errors_of_the_caller(folder: Path) -> None:
    with pytest.raises(ModelFormatError, match="no such model"):
        _run(str(folder / "nowhere"))
    with pytest.raises(ModelFormatError, match="slice 2:9 reaches beyond the model's 4 layers"):
        _run(str(folder), "--slice", "2:9")
