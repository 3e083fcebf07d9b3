"""The demonstration model, whole and in three slices, answers what transformers answers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.resolve import find_demo_gguf, resolve_model
from nodes.kv_cache import KvCache
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.slice import ModelSlice

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
TOKENS = 32
PROMPTS = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "The three laws of thermodynamics are",
    "def fibonacci(n):\n    ",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return resolve_model(find_demo_gguf())
    except ModelFormatError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Expected:
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="module")
def expected(folder: Path) -> Expected:
    """Greedy continuations by transformers, on the same weights in float32, up to the end token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    answers = []
    for ids in prompts:
        out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        answers.append(out[0, len(ids) :].tolist())
    return Expected(prompts, answers)


class Nodes:
    """Slices in a row, with room for a few sequences."""

    def __init__(self, folder: Path, cuts: list[int]) -> None:
        self.parts = [
            ModelSlice.load(folder, LayerRange(a, b), device=CPU, dtype=torch.float32)
            for a, b in itertools.pairwise(cuts)
        ]
        self.caches = [p.new_cache(total_pages=len(p.layers) * 24) for p in self.parts]

    def run(self, rows: list[tuple[int, list[int], int]]) -> torch.Tensor:
        """`(sequence, new ids, position)`: float32 [rows, vocab] logits of each row's last id."""
        hidden = None
        ids = torch.tensor([i for _, new, _ in rows for i in new])
        for part, cache in zip(self.parts, self.caches, strict=True):
            last = part is self.parts[-1]
            specs = [RowSpec(s, at, len(new), part.layers, last) for s, new, at in rows]
            self._ensure(cache, specs)
            tokens = ids if part.layers.first == 0 else None
            out = part.forward(SliceBatch(specs, tokens, hidden), cache)
            hidden = out.hidden
        return out.logits

    @staticmethod
    def _ensure(cache: KvCache, specs: list[RowSpec]) -> None:
        for row in specs:
            if row.seq not in cache.pool:
                cache.pool.open(row.seq, row.layers)
            cache.pool.ensure(row.seq, row.position + row.count)


@pytest.fixture(scope="module", params=[[0, 30], [0, 11, 19, 30]], ids=["whole", "three"])
def nodes(folder: Path, request: pytest.FixtureRequest) -> Nodes:
    return Nodes(folder, request.param)


def test_greedy_answers_equal_transformers(nodes: Nodes, expected: Expected) -> None:
    """Chunked prefills first, then all sequences decode together."""
    answers: list[list[int]] = []
    for seq, prompt in enumerate(expected.prompts):
        cut = len(prompt) // 2
        nodes.run([(seq, prompt[:cut], 0)])
        logits = nodes.run([(seq, prompt[cut:], cut)])
        answers.append([int(logits.argmax())])
    for step in range(TOKENS - 1):
        rows = [
            (seq, answer[-1:], len(prompt) + step)
            for seq, (prompt, answer) in enumerate(zip(expected.prompts, answers, strict=True))
        ]
        chosen: Any = nodes.run(rows).argmax(-1).tolist()
        for answer, token in zip(answers, chosen, strict=True):
            answer.append(token)
    assert [a[: len(e)] for a, e in zip(answers, expected.answers, strict=True)] == expected.answers
    assert max(len(e) for e in expected.answers) == TOKENS
