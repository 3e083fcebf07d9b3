"""The counterfeit device notices what a GPU would not forgive; else a test on it proves nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nodes.model.recorders import CudaGraphs
from nodes.staging import Download, Upload, host_empty, joined
from tests.counterfeit_gpu.device import DEVICE, CaptureRefused, Gpu, Misuse

pytestmark = pytest.mark.usefixtures("counterfeit_gpu")

CPU = torch.device("cpu")


def test_tensors_say_where_they_are_and_compute_what_others_do() -> None:
    here = torch.arange(12.0).view(3, 4)
    there = here.to(DEVICE)
    assert there.device == DEVICE
    assert there.is_cuda
    assert not here.is_cuda
    assert (there[1:, 2] * 2 + 1).tolist() == (here[1:, 2] * 2 + 1).tolist()
    assert torch.zeros(3, device="cuda").device == DEVICE
    assert torch.empty_like(there).device == DEVICE
    assert there.shape == here.shape
    values, places = there.max(dim=1)
    assert values.device == places.device == DEVICE
    there[0] = 7
    assert here[0].tolist() == [0, 1, 2, 3], "another memory"
    assert there.cpu()[0].tolist() == [7, 7, 7, 7]
    assert there.cpu().device == CPU


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.index_select(there, 0, torch.tensor([0])),
        lambda there, here: there.index_copy_(0, torch.tensor([0]), there[:1]),
        lambda there, here: torch.add(there, there, out=here),
        lambda there, here: there.to("cpu", non_blocking=True),
        lambda there, here: torch.empty_like(here).copy_(there, non_blocking=True),
        lambda there, here: torch.zeros(1, device="cuda:1"),
    ],
)
def test_host_and_device_do_not_mix(
    mixed: Callable[[torch.Tensor, torch.Tensor], object],
) -> None:
    there, here = torch.ones(2, 3, device=DEVICE), torch.ones(2, 3)
    assert (there + torch.tensor(2.0)).tolist() == [[3.0] * 3] * 2, "one number may come along"
    with pytest.raises(Misuse):
        mixed(there, here)
    with pytest.raises(TypeError):
        there.numpy()


def test_memory_that_is_still_read_must_not_be_written() -> None:
    upload = Upload(4, torch.float32, DEVICE)
    host = upload.host(4)
    host[:] = 1
    upload.send(4)
    upload.host(4)[:] = 2
    upload.send(4)
    assert upload.device_flat.tolist() == [2, 2, 2, 2]
    upload.send(4)
    host[:] = 3
    with pytest.raises(Misuse, match="before the device had read"):
        torch.cuda.synchronize()


def test_what_has_not_come_yet_is_not_there(counterfeit_gpu: Gpu) -> None:
    there = torch.ones(3, device=DEVICE)
    host = host_empty((3,), torch.float32, DEVICE)
    host.copy_(there, non_blocking=True)
    assert host.isnan().all()
    torch.cuda.synchronize()
    assert host.tolist() == [1, 1, 1]
    download = Download(there * 2)
    there.fill_(9)
    waits = counterfeit_gpu.waits
    assert download.wait().tolist() == [2, 2, 2]
    assert download.wait().tolist() == [2, 2, 2]
    assert counterfeit_gpu.waits == waits + 1
    assert joined([torch.ones(1, 2), torch.zeros(2, 2)], DEVICE).shape == (3, 2)


def test_a_graph_does_nothing_until_it_is_replayed() -> None:
    source, kept = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)

    def body() -> torch.Tensor:
        kept.copy_(source)
        twice = source[1:] * 2
        return twice + kept[0]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=torch.cuda.graph_pool_handle()):
        result = body()
    assert kept.tolist() == [0, 0, 0]
    assert result.isnan().all()
    source[:] = torch.tensor([4.0, 5.0, 6.0]).to(DEVICE)
    graph.replay()
    assert kept.tolist() == [4, 5, 6]
    assert result.tolist() == [14, 16]
    recording = CudaGraphs(DEVICE).record(body)
    source.fill_(1)
    assert recording.replay().tolist() == [3, 3]


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).to(DEVICE),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[x > 0].nonzero(),
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_what_cannot_be_captured_is_refused(
    forbidden: Callable[[torch.Tensor], object],
) -> None:
    x = torch.ones(3, device=DEVICE)

    graph = torch.cuda.graph(torch.cuda.CUDAGraph(), pool=torch.cuda.graph_pool_handle())
    with pytest.raises(CaptureRefused), graph:
        forbidden(x)
    assert x.tolist() == [1, 1, 1], "and the capture is over"
