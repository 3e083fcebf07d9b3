"""Which slices a node holds, and which epochs of the placement each serves. Pure bookkeeping.

Every epoch is served by one slice; a slice may serve several, when a placement left it as it was.
A slice that serves none is no longer held: whoever asked gets it back, to free it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from helix_mq.layers import LayerRange

S = TypeVar("S")

MAX_EPOCHS: Final = 16
"""Of one slice; the oldest goes. As many as a Retain can name."""


@dataclass(slots=True, eq=False)
class Held(Generic[S]):
    layers: LayerRange
    epochs: set[int]
    slice: S

    @property
    def newest(self) -> int:
        return max(self.epochs)


@dataclass(frozen=True, slots=True)
class Changed(Generic[S]):
    """What an order did: slices that serve other epochs now, and slices that nobody needs."""

    stay: tuple[Held[S], ...] = ()
    freed: tuple[Held[S], ...] = ()


class Holdings(Generic[S]):
    def __init__(self) -> None:
        self._held: list[Held[S]] = []

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held[S]]:
        """Longest held first."""
        return iter(tuple(self._held))

    @property
    def newest(self) -> Held[S] | None:
        """The slice that serves the newest epoch."""
        return max(self._held, key=lambda h: h.newest, default=None)

    @property
    def epochs(self) -> list[int]:
        return sorted(e for h in self._held for e in h.epochs)

    def serving(self, epoch: int) -> Held[S] | None:
        # Asked for each frame: a loop, as a generator costs more than the one or two it looks at.
        for held in self._held:
            if epoch in held.epochs:
                return held
        return None

    def of(self, layers: LayerRange) -> Held[S] | None:
        return next((h for h in self._held if h.layers == layers), None)

    def add(self, layers: LayerRange, epoch: int, slice_: S) -> Changed[S]:
        """A slice was loaded for `epoch`; another that served it does not any more."""
        changed = self._take(epoch, None)
        self._held.append(Held(layers, {epoch}, slice_))
        return changed

    def serve(self, held: Held[S], epoch: int) -> Changed[S]:
        """A slice that is held serves `epoch`, too."""
        changed = self._take(epoch, held)
        held.epochs.add(epoch)
        while len(held.epochs) > MAX_EPOCHS:
            held.epochs.remove(min(held.epochs))
        return Changed((held, *changed.stay), changed.freed)

    def retain(self, epochs: Collection[int]) -> Changed[S]:
        """Only `epochs` are served from now on."""
        stay = []
        for held in self._held:
            if not held.epochs <= set(epochs):
                held.epochs &= set(epochs)
                stay.append(held)
        return self._without_idle(stay)

    def clear(self) -> tuple[Held[S], ...]:
        """Holds nothing any more; gives what it held."""
        held, self._held = tuple(self._held), []
        return held

    def _take(self, epoch: int, by: Held[S] | None) -> Changed[S]:
        had = self.serving(epoch)
        if had is None or had is by:
            return Changed()
        had.epochs.discard(epoch)
        return self._without_idle([had])

    def _without_idle(self, touched: list[Held[S]]) -> Changed[S]:
        self._held = [h for h in self._held if h.epochs]
        return Changed(
            tuple(h for h in touched if h.epochs), tuple(h for h in touched if not h.epochs)
        )
