"""Tiny random checkpoints of every family, written and run by transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helix_mq.layers import LayerRange
from nodes.kv_cache import KvCache, KvLayout
from nodes.model.attention.base import AttentionBackend
from nodes.model.attention.choose import AttentionChoice
from nodes.model.batch import RowSpec, SliceBatch, SliceOutput
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")
MAX_TOKENS = 96

_BASE: dict[str, Any] = {
    "vocab_size": 151,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}


def _configs() -> dict[str, transformers.PreTrainedConfig]:
    t = transformers
    return {
        "llama2": t.LlamaConfig(**_BASE | {"num_key_value_heads": 4}),
        "llama3": t.LlamaConfig(**_BASE, rope_parameters=_LLAMA3_ROPE),
        "llama_linear_biased": t.LlamaConfig(
            **_BASE, rope_parameters=_LINEAR_ROPE, attention_bias=True, mlp_bias=True
        ),
        "smollm2": t.LlamaConfig(
            **_BASE | {"num_attention_heads": 6, "hidden_size": 72, "num_hidden_layers": 6},
            tie_word_embeddings=True,
        ),
        "tinyllama": t.LlamaConfig(**_BASE | {"num_attention_heads": 8, "num_key_value_heads": 1}),
        "mistral": t.MistralConfig(**_BASE, sliding_window=7),
        "mistral_broad": t.MistralConfig(
            **_BASE | {"hidden_size": 512, "intermediate_size": 544},
            sliding_window=None,
            head_dim=128,
        ),
        "mistral_wide_heads": t.MistralConfig(**_BASE, sliding_window=None, head_dim=32),
        "qwen2": t.Qwen2Config(**_BASE),
        "qwen2_sliding": t.Qwen2Config(
            **_BASE, use_sliding_window=True, sliding_window=19, max_window_layers=2
        ),
        "qwen3": t.Qwen3Config(**_BASE, head_dim=24, tie_word_embeddings=True),
        "qwen3_wide_heads": t.Qwen3Config(**_BASE, head_dim=32),
    }


FAMILIES = tuple(_configs())


@dataclass(frozen=True)
class Checkpoint:
    """A folder on disk, and the transformers model that it came from."""

    name: str
    folder: Path
    reference: transformers.PreTrainedModel

    @property
    def num_layers(self) -> int:
        return int(self.reference.config.num_hidden_layers)

    @torch.inference_mode()
    def reference_logits(self, ids: list[int]) -> torch.Tensor:
        """float32 [tokens, vocab] of the whole sequence in one go."""
        out = self.reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        assert isinstance(out, torch.Tensor)
        return out


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Builds (once per run) the checkpoint of a family; `-sharded` splits it into many files."""
    made: dict[str, Checkpoint] = {}

    def build(name: str) -> Checkpoint:
        if name not in made:
            config = _configs()[name.removesuffix("-sharded")]
            torch.manual_seed(FAMILIES.index(name.removesuffix("-sharded")))
            model = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, attn_implementation="eager"
            )
            with torch.no_grad():
                # transformers starts biases at 0 and norms at 1, which would hide their absence.
                for key, parameter in model.named_parameters():
                    if parameter.dim() == 1:
                        parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in key))
            folder = tmp_path_factory.mktemp(name)
            shard = "60KB" if name.endswith("-sharded") else "1GB"
            model.eval().save_pretrained(folder, max_shard_size=shard)
            made[name] = Checkpoint(name, folder, model)
        return made[name]

    return build


class Chain:
    """A model cut into slices, each with its own KV cache, as nodes would hold it."""

    def __init__(
        self, folder: Path, ranges: list[LayerRange], page_tokens: int, layout: KvLayout | None
    ) -> None:
        self.slices = [ModelSlice.load(folder, r, device=CPU, dtype=torch.float32) for r in ranges]
        self.caches = [
            KvCache.allocate(
                s.config,
                total_pages=64 * len(s.layers) * -(-MAX_TOKENS // page_tokens),
                device=CPU,
                dtype=torch.float32,
                page_tokens=page_tokens,
                layout=layout,
            )
            for s in self.slices
        ]
        for cache in self.caches:
            # What a page held before must never matter.
            cache.keys.fill_(float("nan"))
            cache.values.fill_(float("nan"))

    @property
    def config(self) -> Any:
        return self.slices[0].config

    def run(
        self,
        at: int,
        rows: list[RowSpec],
        token_ids: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> SliceOutput:
        """One forward pass of slice `at`, with pages ensured as a node would."""
        pool = self.caches[at].pool
        for row in rows:
            if row.seq not in pool:
                pool.open(row.seq, row.layers)
            pool.ensure(row.seq, row.position + row.count)
        return self.slices[at].forward(SliceBatch(rows, token_ids, hidden), self.caches[at])

    def close(self) -> None:
        """Frees everything and checks that no page was lost."""
        for cache in self.caches:
            cache.pool.check()
            for seq in list(cache.pool.sequences()):
                cache.pool.free(seq)
            assert cache.pool.free_pages == cache.pool.total_pages


@pytest.fixture
def chain() -> Any:
    """Makes Chains and checks their page accounting at the end."""
    made: list[Chain] = []

    def make(
        checkpoint: Checkpoint,
        cuts: list[tuple[int, int]] | None = None,
        page_tokens: int = 4,
        layout: KvLayout | None = None,
        backend: AttentionBackend | None = None,
    ) -> Chain:
        ranges = [LayerRange(a, b) for a, b in cuts or [(0, checkpoint.num_layers)]]
        made.append(Chain(checkpoint.folder, ranges, page_tokens, layout))
        if backend is not None:
            for part in made[-1].slices:
                part.attention = AttentionChoice(backend, "given by the test")
        return made[-1]

    yield make
    for c in made:
        c.close()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads compute; as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
