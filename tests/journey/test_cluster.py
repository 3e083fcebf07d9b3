"""Real routers and nodes in one process: tokens equal one machine's, whatever the route."""

from __future__ import annotations

import asyncio
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helix_mq.inlink import InLink
from helix_mq.token_return import TokenReturn
from nodes.courses import Course
from nodes.model.native import build
from nodes.model.native import layers as native_layers
from nodes.model.native.products import products_for
from nodes.plain_steps import PlainSteps
from nodes.steps import Batch
from tests.cluster import cluster, greedy

PLACEMENTS = {
    "one node": {"a": "0:6"},
    "two uneven": {"a": "0:5", "b": "5:6"},
    "four, single layers and overlaps": {"a": "0:1", "b": "1:4", "c": "3:5", "d": "4:6"},
    "two ways": {"a": "0:3", "b": "0:4", "c": "2:6", "d": "4:6"},
}


@cache
def one_machine(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference(folder: Path, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """Greedy tokens of transformers on the same weights."""
    ids = torch.tensor([prompt])
    out = one_machine(folder).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("zmq", [False, True], ids=["memory", "zmq"])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())
async def test_greedy_tokens_equal_transformers(
    tiny_folder: Path, placement: dict[str, str], zmq: bool
) -> None:
    prompts = [tuple(range(3, 3 + n)) for n in (1, 17, 150)]
    async with cluster(tiny_folder, placement, zmq=zmq) as c:
        results = await asyncio.gather(*(c.run(greedy(p, 64)) for p in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == reference(tiny_folder, prompt, 64)
        assert result.finish.finish_reason == "length"
        assert result.finish.output_tokens == 64


@pytest.mark.skipif(
    products_for(torch.float32) is None or not hasattr(os, "eventfd"),
    reason=f"no compiled threads: {build.built().reason}",
)
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())
async def test_slices_that_compute_by_themselves_give_the_same_tokens(
    tiny_folder: Path, placement: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large ones do; these are small. Requests join and leave meanwhile."""
    monkeypatch.setattr(native_layers, "WORTH_THREADS_BYTES", 0)
    ended: list[object] = []
    end = PlainSteps.end

    def noted(self: PlainSteps) -> Any:
        result = end(self)
        ended.append(result)
        return result

    monkeypatch.setattr(PlainSteps, "end", noted)
    prompts = [tuple(range(3 + n, 3 + 2 * n + 1)) for n in range(1, 40, 5)]
    async with cluster(tiny_folder, placement, zmq=True) as c:
        lengths = [16 + 5 * n for n in range(len(prompts))]
        asked = (c.run(greedy(p, n)) for p, n in zip(prompts, lengths, strict=True))
        results = await asyncio.gather(*asked)
        await c.quiet()
    for prompt, length, result in zip(prompts, lengths, results, strict=True):
        assert result.token_ids == reference(tiny_folder, prompt, length)
    assert len(ended) > max(lengths) / 2
    assert None not in ended


@pytest.mark.skipif(
    products_for(torch.float32) is None or not hasattr(os, "eventfd"),
    reason=f"no compiled threads: {build.built().reason}",
)
@pytest.mark.parametrize("back", ["direct", "router"])
async def test_a_lone_request_goes_on_from_step_to_step(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, back: TokenReturn
) -> None:
    """At every hop, but for its first steps and those that take a page; beside others as far as all
    come in one frame. The tokens are those of one machine."""
    monkeypatch.setattr(native_layers, "WORTH_THREADS_BYTES", 0)
    again, began = PlainSteps.again, 0

    def counted(self: PlainSteps, batch: Batch, payload: memoryview) -> int | None:
        nonlocal began
        bell = again(self, batch, payload)
        began += bell is not None
        return bell

    monkeypatch.setattr(PlainSteps, "again", counted)
    prompts = [tuple(range(3, 3 + n)) for n in (100, 20, 33)]
    placement = {"a": "0:2", "b": "2:4", "c": "4:6"}
    async with cluster(tiny_folder, placement, zmq=True, token_return=back) as c:
        alone = await c.run(greedy(prompts[0], 64))
        lone = began
        together = await asyncio.gather(*(c.run(greedy(p, 64)) for p in prompts))
        await c.quiet()
    assert [r.token_ids for r in (alone, *together)] == [
        reference(tiny_folder, p, 64) for p in (prompts[0], *prompts)
    ]
    assert 3 * (63 - 8 - 5) <= lone <= 3 * 63


@pytest.mark.parametrize("back", ["direct", "router"])
async def test_most_frames_of_running_requests_are_foreseen(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, back: TokenReturn
) -> None:
    """Those of one alone at every hop but in its first steps and where a number needs more bytes;
    of several as far as they keep together. The tokens are those of one machine."""
    came, taken = Course.came, 0

    def counted(self: Course, link: InLink, payload: memoryview, nbytes: int) -> bool:
        nonlocal taken
        takes = came(self, link, payload, nbytes)
        taken += takes
        return takes

    monkeypatch.setattr(Course, "came", counted)
    prompts = [tuple(range(3, 3 + n)) for n in (100, 20, 33)]
    placement = {"a": "0:2", "b": "2:4", "c": "4:6"}
    async with cluster(tiny_folder, placement, zmq=True, token_return=back) as c:
        alone = await c.run(greedy(prompts[0], 64))
        lone, taken = taken, 0
        together = await asyncio.gather(*(c.run(greedy(p, 64)) for p in prompts))
    assert [r.token_ids for r in (alone, *together)] == [
        reference(tiny_folder, p, 64) for p in (prompts[0], *prompts)
    ]
    assert 3 * (63 - 8) <= lone <= 3 * 63
    assert taken


async def test_without_a_placement_layers_are_split_by_memory(tiny_folder: Path) -> None:
    prompt = tuple(range(20))
    async with cluster(tiny_folder, {"a": "", "b": "", "c": ""}, wait=False) as c:
        await c.ready()
        layers = [node.layers for node in c.app.status().nodes]
        assert layers == ["0-1", "2-3", "4-5"]
        result = await c.run(greedy(prompt, 16))
        await c.quiet()
    assert result.token_ids == reference(tiny_folder, prompt, 16)
