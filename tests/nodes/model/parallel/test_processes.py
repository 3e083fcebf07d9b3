"""Ranks in processes, over torch.distributed: tokens, loss, and an end without leftovers."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch

from helix_mq.layers import LayerRange
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.parallel.group import RankGroup, RankLost
from nodes.model.parallel.lead import PartRequest, load_lead, rank_devices

CPU = torch.device("cpu")
WAIT_S = 240


@pytest.mark.alone
def test_two_processes_give_the_tokens_of_transformers_until_one_dies(
    checkpoint: Callable[[str], Any],
) -> None:
    model = checkpoint("llama3")
    whole = LayerRange(0, model.num_layers)
    request = PartRequest(model.folder, whole, CPU, torch.float32, "auto", 2)
    before = set(psutil.Process().children())
    seen: list[int] = []
    part = load_lead(request, lambda done, total: seen.append(total - done))
    [process] = set(psutil.Process().children()) - before
    try:
        assert seen[-1] == 0
        cache = part.new_cache(100, 4)
        ids, at = [3, 1, 4, 1, 5], 0
        cache.pool.open("a", whole)

        def step() -> torch.Tensor:
            cache.pool.ensure("a", len(ids))
            row = RowSpec("a", at, len(ids) - at, whole, True)
            return part.forward(SliceBatch([row], torch.tensor(ids[at:])), cache).logits[0]

        for turn in range(6):
            logits = step()
            reference = model.reference_logits(ids)[-1]
            assert (logits - reference).abs().max() < 1e-4
            at = len(ids)
            ids.append(int(logits.argmax()))
            if turn == 2:
                cache.grow(150)
            if turn == 4:
                cache.shrink(40)
        heard: queue.Queue[str] = queue.Queue()
        assert isinstance(part.others, RankGroup)
        part.others.listen(heard.put)
        process.kill()
        assert heard.get(timeout=WAIT_S).startswith("rank 1 of 2 has ended (exit status -9)")
        with pytest.raises(RankLost, match="rank 1 of 2 has ended"):
            step()
        with pytest.raises(RankLost):
            cache.grow(200)
        # Whoever asks later hears it, too; and nobody is told twice.
        part.others.listen(heard.put)
        assert "exit status -9" in heard.get(timeout=WAIT_S)
        assert heard.empty()
    finally:
        part.close()
    assert set(psutil.Process().children()) == before
    assert not part.others.meeting.parent.exists()


@pytest.mark.parametrize("ends", [True, False])
def test_a_broken_step_is_told_as_the_end_of_the_rank_that_broke_it(ends: bool) -> None:
    """Where none has ended, as what broke."""
    group = RankGroup(2)
    heard: queue.Queue[str] = queue.Queue()
    group.listen(heard.put)
    try:
        if ends:
            group._ranks[0].process.kill()
        # As a step does, which may see a broken connection before anybody sees the end.
        group.broken("a step failed on rank 0: connection reset")
        wanted = "rank 1 of 2 has ended (exit status -9)" if ends else "a step failed on rank 0"
        assert heard.get(timeout=WAIT_S).startswith(wanted)
    finally:
        group.close()
    assert heard.empty()


def test_there_must_be_a_device_for_each_rank() -> None:
    assert rank_devices(CPU, 3, 0) == [CPU] * 3
    first = torch.device("cuda:1")
    assert rank_devices(first, 2, 4) == [first, torch.device("cuda:2")]
    with pytest.raises(Exception, match="from cuda:1 on needs 5 CUDA devices; this machine has 4"):
        rank_devices(first, 4, 4)
