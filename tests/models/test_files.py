"""The tensor index of a model folder: right about real files, unimpressed by hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.files import INDEX_FILE, SINGLE_FILE, ModelFiles
from helix_mq.models.safetensors_header import read_header
from helix_mq.models.tensor_names import slice_tensors

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "torch_dtype": "float16",
}


def _tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float16)
        for name, shape in slice_tensors(config, config.all_layers).items()
    }


@pytest.fixture(params=[1, 3], ids=["single", "sharded"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    config = ModelConfig.from_dict(CONFIG)
    tensors = _tensors(config)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if request.param == 1:
        save_file(tensors, tmp_path / SINGLE_FILE)
        return tmp_path
    weight_map: dict[str, str] = {}
    for shard in range(request.param):
        part = dict(list(tensors.items())[shard :: request.param])
        name = f"model-{shard + 1:05}-of-{request.param:05}.safetensors"
        save_file(part, tmp_path / name)
        weight_map |= dict.fromkeys(part, name)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.mark.parametrize("layers", [(0, 3), (0, 1), (1, 2), (2, 3)])
def test_entries_point_at_the_tensors_bytes(folder: Path, layers: tuple[int, int]) -> None:
    config = ModelConfig.from_folder(folder)
    wanted = LayerRange(*layers)
    entries = ModelFiles.open(folder).slice_entries(config, wanted)
    assert {e.name for e in entries} == set(slice_tensors(config, wanted))
    for entry in entries:
        raw = entry.file.read_bytes()[entry.begin : entry.end]
        stored = load_file(entry.file)[entry.name]
        assert raw == stored.tobytes()
        assert entry.shape == stored.shape
    assert ModelFiles.open(folder).slice_bytes(config, wanted) == config.slice_weight_bytes(
        wanted, 2
    )


def test_ends_bring_embedding_and_head() -> None:
    config = ModelConfig.from_dict(CONFIG)
    tied = ModelConfig.from_dict(CONFIG | {"tie_word_embeddings": True})

    def ends(c: ModelConfig, *r: int) -> list[str]:
        return [n for n in slice_tensors(c, LayerRange(*r)) if ".layers." not in n]

    assert ends(config, 0, 1) == ["model.embed_tokens.weight"]
    assert ends(config, 1, 2) == []
    assert ends(config, 2, 3) == ["model.norm.weight", "lm_head.weight"]
    assert ends(tied, 2, 3) == ["model.norm.weight", "model.embed_tokens.weight"]
    with pytest.raises(ValueError, match="beyond"):
        slice_tensors(config, LayerRange(2, 4))


def test_only_the_shards_of_the_slice_must_be_there(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(CONFIG)
    by_layer: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in _tensors(config).items():
        shard = name.split(".")[2] if ".layers." in name else "ends"
        by_layer.setdefault(f"{shard}.safetensors", {})[name] = tensor
    for shard, part in by_layer.items():
        save_file(part, tmp_path / shard)
    weight_map = {n: s for s, part in by_layer.items() for n in part}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    for shard in ("ends", "0", "2"):
        (tmp_path / f"{shard}.safetensors").unlink()
    files = ModelFiles.open(tmp_path)
    assert files.slice_bytes(config, LayerRange(1, 2)) == config.layer_weight_bytes(2)
    with pytest.raises(ModelFormatError, match=r"2\.safetensors is missing"):
        files.slice_bytes(config, LayerRange(1, 3))


def test_config_of_another_model_is_noticed(folder: Path) -> None:
    other = ModelConfig.from_dict(CONFIG | {"intermediate_size": 32})
    with pytest.raises(ModelFormatError, match=r"shape \[24, 16\], but config.json makes it \[32"):
        ModelFiles.open(folder).slice_entries(other, LayerRange(0, 1))


def test_quantised_and_missing_tensors_are_named(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(CONFIG)
    tensors = _tensors(config)
    head = tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(ModelFormatError, match="set tie_word_embeddings to true"):
        ModelFiles.open(tmp_path).slice_entries(config, LayerRange(2, 3))
    save_file(tensors | {"lm_head.weight": head.astype(np.int8)}, tmp_path / SINGLE_FILE)
    with pytest.raises(ModelFormatError, match=r"lm_head.weight is I8; quantised"):
        ModelFiles.open(tmp_path).slice_entries(config, LayerRange(2, 3))


@pytest.mark.parametrize(
    "shard",
    ["../up.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", ".safetensors",
     "..safetensors", "x.bin", "x\0.safetensors", "", None, 7, ["x.safetensors"],
     "n" * 300 + ".safetensors"],
)  # fmt: skip
def test_shard_names_that_leave_the_folder_are_refused(tmp_path: Path, shard: object) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    with pytest.raises(ModelFormatError, match="is not the plain name"):
        ModelFiles.open(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, index: object) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ModelFormatError, match="weight_map is missing or empty"):
        ModelFiles.open(tmp_path)


def test_a_folder_without_safetensors_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="save_pretrained"):
        ModelFiles.open(tmp_path)


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def _one(**change: object) -> dict[str, object]:
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short for a header"),
        (b"\0" * 7, "too short for a header"),
        (_file(b"{}", length=1 << 62), "claims a header of"),
        (_file(b"{}", length=3), "claims a header of 3 bytes in a file of 10"),
        (_file(b"{]"), "is not valid JSON"),
        (_file(b"[]"), "must hold a JSON object"),
        (_file({"t": 5}), "something other than an object"),
        (_file({"": {}}), "name of 0 characters"),
        (_file(_one(dtype="F4"), bytes(8)), "dtype 'F4'"),
        (_file(_one(dtype=None), bytes(8)), "dtype 'None'"),
        (_file(_one(shape=[-2]), bytes(8)), "invalid shape"),
        (_file(_one(shape=[True, 2]), bytes(8)), "invalid shape"),
        (_file(_one(shape=[1] * 9), bytes(8)), "invalid shape"),
        (_file(_one(shape=[3]), bytes(8)), "do not fit its shape"),
        (_file(_one(shape=[2**40, 2**40]), bytes(8)), "do not fit its shape"),
        (_file(_one(data_offsets=[8, 0]), bytes(8)), "invalid data_offsets"),
        (_file(_one(data_offsets=[0]), bytes(8)), "invalid data_offsets"),
        (_file(_one(data_offsets=[4, 12]), bytes(12)), "a gap or an overlap"),
        (_file(_one(), bytes(4)), "but its header describes"),
        (_file(_one(), bytes(12)), "but its header describes"),
        (_file(_one() | {"u": _one()["t"]}, bytes(8)), "a gap or an overlap before 'u'"),
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_within_its_bounds(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros((3, 2), np.float32), "b": np.ones(5, np.int64)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    )
    try:
        entries = read_header(path)
    except ModelFormatError:
        return
    size = path.stat().st_size
    for entry in entries.values():
        assert 8 <= entry.begin <= entry.end <= size
