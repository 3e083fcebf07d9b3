"""The state of the counterfeit device: copies under way, and the capture that goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

DEVICE = torch.device("cuda", 0)


class Misuse(AssertionError):
    """What a CUDA device would not forgive, or forgive in silence."""


class CaptureRefused(RuntimeError):
    """What cannot be done while a graph is captured; as CUDA has it, an error of that kind."""


class Held(torch.Tensor):
    """On the device. Its numbers are this process's, under the name of another device."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from tests.counterfeit_gpu.operations import operate

        return operate(func, args, kwargs or {})


def plain(value: Any) -> Any:
    """The same numbers without their place."""
    with torch._C.DisableTorchFunction():
        return value.as_subclass(torch.Tensor) if isinstance(value, Held) else value


def held(value: Any) -> Any:
    """On the device from now on; anything but a tensor stays as it is."""
    if not isinstance(value, torch.Tensor) or isinstance(value, Held):
        return value
    with torch._C.DisableTorchFunction():
        return value.as_subclass(Held)


def tensors(*values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def place(tensor: torch.Tensor) -> int:
    """Of its memory: what shares it has the same."""
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage().data_ptr())


def poison(tensor: torch.Tensor) -> None:
    """What nobody may have read."""
    with torch._C.DisableTorchFunction():
        numbers = plain(tensor)
        if numbers.is_floating_point():
            numbers.fill_(float("nan"))
        elif numbers.dtype is not torch.bool:
            numbers.fill_(torch.iinfo(numbers.dtype).max)


@dataclass(slots=True)
class Entry:
    """One operation of a graph. outs: what it gave, whose places are the graph's."""

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    outs: Any


@dataclass(slots=True)
class Tape:
    """What was captured. Nothing of it has been done when the capture ends."""

    entries: list[Entry] = field(default_factory=list)
    _made: set[int] = field(default_factory=set)
    _before: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def writes(self, target: torch.Tensor) -> None:
        """Before it does: `target` gets its numbers back at the end."""
        if place(target) not in self._made:
            with torch._C.DisableTorchFunction():
                numbers = plain(target)
                self._before.append((numbers, numbers.clone()))

    def add(self, func: Callable[..., Any], args: Any, kwargs: Any, outs: Any) -> None:
        given = {place(tensor) for tensor in tensors(args, kwargs)}
        self._made |= {place(tensor) for tensor in tensors(outs)} - given
        self.entries.append(Entry(func, args, kwargs, outs))

    def end(self) -> None:
        for entry in self.entries:
            for out in tensors(entry.outs):
                if place(out) in self._made:
                    poison(out)
        with torch._C.DisableTorchFunction():
            for numbers, were in reversed(self._before):
                numbers.copy_(were)
        self._before.clear()

    def replay(self) -> None:
        with torch._C.DisableTorchFunction():
            for entry in self.entries:
                args, kwargs = pytree.tree_map(plain, (entry.args, entry.kwargs))
                again = entry.func(*args, **kwargs)
                for out, new in zip(tensors(entry.outs), tensors(again), strict=True):
                    if place(out) != place(new):
                        plain(out).copy_(new)


class Gpu:
    """One per test; `gpu` is the present one. Several threads may use it."""

    def __init__(self) -> None:
        self.pinned: set[int] = set()
        self.operations = self.replays = 0
        self.waits = 0
        """How often the host stood still until the device had done something."""
        self._lock = threading.RLock()
        self._tapes: dict[int, Tape] = {}
        self._under_way: list[Callable[[], None]] = []
        self._done = 0

    @property
    def tape(self) -> Tape | None:
        """What the calling thread captures."""
        return self._tapes.get(threading.get_ident())

    @contextmanager
    def capture(self) -> Iterator[Tape]:
        """What this thread has the device do is kept instead."""
        mine, tape = threading.get_ident(), Tape()
        assert mine not in self._tapes
        self._tapes[mine] = tape
        try:
            yield tape
        finally:
            del self._tapes[mine]
            tape.end()

    def under_way(self, end: Callable[[], None]) -> None:
        """A copy that the host does not wait for; `end` when it is over."""
        with self._lock:
            self._under_way.append(end)

    @property
    def sent(self) -> int:
        """Number of copies that were ever under way."""
        with self._lock:
            return self._done + len(self._under_way)

    def wait(self, until: int | None = None) -> None:
        """The host waits for all copies, or for the first so many."""
        if self.tape is not None:
            raise CaptureRefused("operation not permitted when stream is capturing")
        with self._lock, torch._C.DisableTorchFunction():
            if until is not None and until <= self._done:
                # What it asks for has long been done.
                return
            self.waits += 1
            until = self.sent if until is None else until
            while self._done < until:
                self._done += 1
                self._under_way.pop(0)()


gpu = Gpu()
