"""Every architecture through clusters of 1, 2 and 4 nodes: 64 greedy tokens as transformers'."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.cluster import cluster, greedy
from tests.conftest import write_byte_tokenizer

_BASE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 256,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES = {
    "llama2": lambda: transformers.LlamaConfig(**_BASE | {"num_key_value_heads": 4}),
    "llama3": lambda: transformers.LlamaConfig(**_BASE, rope_parameters=_LLAMA3_ROPE),
    "smollm2": lambda: transformers.LlamaConfig(**_BASE, tie_word_embeddings=True),
    "tinyllama": lambda: transformers.LlamaConfig(**_BASE | {"num_key_value_heads": 1}),
    "mistral": lambda: transformers.MistralConfig(**_BASE, sliding_window=11),
    "qwen2": lambda: transformers.Qwen2Config(**_BASE),
    "qwen3": lambda: transformers.Qwen3Config(**_BASE, head_dim=24),
}
CLUSTERS = {
    "1": {"a": "0:6"},
    "2, uneven": {"a": "0:5", "b": "5:6"},
    "4, single layers, overlaps": {"a": "0:1", "b": "0:4", "c": "3:5", "d": "2:6"},
}
PROMPTS = (tuple(range(40, 45)), tuple(range(3, 140)), (7,))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[request.param]())
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def expected(family: Path) -> list[tuple[int, ...]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32)
    outputs = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs.append(tuple(out[0, len(prompt) :].tolist()))
    return outputs


@pytest.mark.parametrize("placement", CLUSTERS.values(), ids=CLUSTERS.keys())
async def test_greedy_output_equals_transformers(
    family: Path, expected: list[tuple[int, ...]], placement: dict[str, str]
) -> None:
    async with cluster(family, placement) as c:
        results = await asyncio.gather(*(c.run(greedy(p, 64)) for p in PROMPTS))
    assert [r.token_ids for r in results] == expected
