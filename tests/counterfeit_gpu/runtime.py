"""torch.cuda, as far as the project asks it, for the counterfeit device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.counterfeit_gpu import device as state
from tests.counterfeit_gpu.device import Gpu, Misuse, Tape
from tests.counterfeit_gpu.operations import OnCounterfeit

MEMORY_BYTES = 16 << 30


class Stream:
    device_index = 0

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


class Event:
    def __init__(self) -> None:
        self._until = 0

    def record(self, stream: Stream | None = None) -> None:
        self._until = state.gpu.sent

    def synchronize(self) -> None:
        state.gpu.wait(self._until)


class CUDAGraph:
    def __init__(self) -> None:
        self._tape: Tape | None = None

    def replay(self) -> None:
        if self._tape is None:
            raise Misuse("a graph is replayed that was never captured")
        state.gpu.replays += 1
        self._tape.replay()

    @contextmanager
    def captured(self) -> Iterator[None]:
        with state.gpu.capture() as tape:
            yield
        self._tape = tape


_present = Stream()


@contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    assert isinstance(stream, Stream)
    yield


def _graph(graph: CUDAGraph, pool: Any = None, stream: Any = None, **_: str) -> Any:
    assert pool is not None
    return graph.captured()


class Generator(torch.Generator):
    """Of the host, wherever it is said to be."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")


_PROPERTIES = SimpleNamespace(
    name="counterfeit", total_memory=MEMORY_BYTES, uuid="0-0", multi_processor_count=1
)

_CUDA: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "is_bf16_supported": lambda including_emulation=True: True,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_name": lambda device=None: "counterfeit",
    "get_device_properties": lambda device=None: _PROPERTIES,
    "mem_get_info": lambda device=None: (MEMORY_BYTES // 2, MEMORY_BYTES),
    "max_memory_allocated": lambda device=None: 0,
    "synchronize": lambda device=None: state.gpu.wait(),
    "empty_cache": lambda: None,
    "current_stream": lambda device=None: _present,
    "set_stream": lambda stream: None,
    "graph_pool_handle": lambda: (0, 1),
    "Stream": Stream,
    "Event": Event,
    "stream": _stream,
    "CUDAGraph": CUDAGraph,
    "graph": _graph,
}


_run_thread = threading.Thread.run


def _run_with_it(thread: threading.Thread) -> None:
    with OnCounterfeit():
        _run_thread(thread)


@contextmanager
def counterfeit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """While it lasts this thread, and those that begin meanwhile, have a device `cuda:0`."""
    monkeypatch.setattr(state, "gpu", Gpu())
    for name, value in _CUDA.items():
        assert hasattr(torch.cuda, name), name
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(threading.Thread, "run", _run_with_it)
    with OnCounterfeit():
        yield state.gpu
        state.gpu.wait()
