"""Nodes on a CUDA device that is a counterfeit: a whole cluster but for its kernels."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from helix_mq.sampling import SamplingParams
from nodes.model.attention import choose
from router.service import Generation
from tests.cluster import Cluster, cluster, greedy
from tests.counterfeit_gpu.device import DEVICE, Gpu
from tests.journey.test_cluster import reference

CANDIDATES = choose.cuda_candidates
KERNELS = ["FlashAttention 3", "FlashAttention 2", "PyTorch's FlashAttention kernels"]
GATHERED = "PyTorch's attention over gathered pages"
TWO_WAYS = {"a": "0:3", "b": "0:4", "c": "2:6", "d": "4:6"}
PROMPTS = [tuple(range(3, 3 + n)) for n in (1, 17, 150)]
TOKENS = 24


def only(monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    """Nodes find this attention alone; in float32 as well, so that tokens can be equal."""

    def candidates(device: torch.device, dtype: torch.dtype) -> list[choose.Candidate]:
        dtype = dtype if title == GATHERED else torch.bfloat16
        return [c for c in CANDIDATES(device, dtype) if c.title == title]

    monkeypatch.setattr(choose, "cuda_candidates", candidates)


@pytest.mark.parametrize("title", [*KERNELS, GATHERED])
async def test_greedy_tokens_equal_transformers(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    counterfeit_gpu: Gpu,
    caplog: pytest.LogCaptureFixture,
    title: str,
) -> None:
    only(monkeypatch, title)
    async with cluster(tiny_folder, TWO_WAYS, device=str(DEVICE)) as c:
        results = await asyncio.gather(*(c.run(greedy(p, TOKENS)) for p in PROMPTS))
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.token_ids == reference(tiny_folder, prompt, TOKENS)
    assert (counterfeit_gpu.replays > TOKENS) == (title != GATHERED)
    assert "not recorded any more" not in caplog.text


async def sampled(c: Cluster) -> tuple[list[tuple[int, ...]], list[float]]:
    """What four kinds of requests, together, are given, and the log probabilities of the last."""
    kinds = (
        SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.8, seed=3, top_p=0.9),
        SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=1.0, seed=4, top_k=20),
        SamplingParams(
            max_tokens=TOKENS, ignore_eos=True, temperature=0.7, seed=5, frequency_penalty=0.5
        ),
        SamplingParams(
            max_tokens=TOKENS, ignore_eos=True, temperature=0.0, logprobs=True, top_logprobs=3
        ),
    )
    wanted = [Generation(PROMPTS[1], kind) for kind in kinds]
    results = await asyncio.gather(*(c.run(generation) for generation in wanted))
    told = [delta.logprob for delta in results[-1].deltas if delta.logprob is not None]
    assert len(told) == TOKENS
    odds = [odd for one in told for odd in (one.logprob, *(top for _, top in one.top))]
    return [result.token_ids for result in results], odds


async def test_sampled_tokens_are_those_of_a_processor(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, counterfeit_gpu: Gpu
) -> None:
    placement = {"a": "0:4", "b": "4:6"}
    only(monkeypatch, KERNELS[0])
    async with cluster(tiny_folder, placement, device=str(DEVICE)) as c:
        tokens, logprobs = await sampled(c)
    assert counterfeit_gpu.replays > TOKENS
    async with cluster(tiny_folder, placement) as c:
        wanted, wanted_logprobs = await sampled(c)
    assert tokens == wanted
    assert logprobs == pytest.approx(wanted_logprobs, abs=1e-4)


async def test_a_decode_stands_still_for_its_tokens_alone(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, counterfeit_gpu: Gpu
) -> None:
    """A step that asks the device for this and that in between leaves it idle meanwhile."""
    only(monkeypatch, KERNELS[0])
    async with cluster(tiny_folder, {"a": "0:6"}, device=str(DEVICE)) as c:
        # Sizes that come for the first time are recorded and compared.
        await c.run(greedy(PROMPTS[1], 2 * TOKENS))
        before = counterfeit_gpu.waits
        await c.run(greedy(PROMPTS[1], 2 * TOKENS))
        waits = counterfeit_gpu.waits - before
    assert 2 * TOKENS <= waits <= 2 * (2 * TOKENS)
