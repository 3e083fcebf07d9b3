"""Host memory is written only when the device has read it, and sent only when asked."""

from __future__ import annotations

import torch

from nodes.staging import Download, Upload, joined

CPU = torch.device("cpu")


class Queue:
    """What a device would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def record(self) -> None:
        self.said.append("sent")

    def synchronize(self) -> None:
        self.said.append("waited")


def test_what_is_written_arrives_when_it_is_sent_and_waits_for_what_was() -> None:
    queue = Queue()
    upload = Upload(6, torch.int64, CPU, apart=True, read=queue)
    upload.host(4)[:] = torch.tensor([1, 2, 3, 4])
    assert upload.device_flat.tolist() == [0] * 6
    upload.send(3)
    assert upload.device_flat.tolist() == [1, 2, 3, 0, 0, 0]
    upload.host(2)[:] = 9
    assert queue.said == ["waited", "sent", "waited"]
    assert upload.device_flat.tolist() == [1, 2, 3, 0, 0, 0]
    assert upload.nbytes == 48


def test_one_memory_needs_no_sending() -> None:
    upload = Upload(4, torch.float32, CPU)
    place = upload.device_flat.data_ptr()
    upload.host(3)[:] = 5
    upload.send(3)
    assert upload.device_flat.tolist() == [5, 5, 5, 0]
    assert upload.device_flat.data_ptr() == place


def test_parts_are_joined_and_results_come_back_contiguous() -> None:
    whole = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert torch.equal(joined([whole[:2], whole[2:]], CPU), whole)
    part = whole.t()[1:]
    there = Download(part).wait()
    assert there.is_contiguous()
    assert torch.equal(there, part)
