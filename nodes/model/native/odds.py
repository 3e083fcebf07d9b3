"""Log probabilities of rows' tokens by compiled code: see odds.h. What callers are told of are the
logits as the model gave them, before any penalty, bias or filter."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nodes.model.native.calls import COUNT, POINTER, REAL, THREADS

if TYPE_CHECKING:
    import torch

NOT_WANTED = -1

Told = tuple[float | None, tuple[tuple[int, float], ...]]
"""A token's log probability, and (token, log probability) of the best ones, best first, equal ones
by id; None and nothing where nothing is wanted."""

NOTHING: Told = (None, ())


class Odds:
    """Memory of one step for what its rows are told: of row n the best `wanted[n]`, at most as many
    as the vocabulary has, and its token; nothing where that is NOT_WANTED. `at` is what compiled
    code takes."""

    def __init__(self, wanted: Sequence[int], vocabulary: int) -> None:
        rows, most = len(wanted), max(0, *wanted)
        self._told = [min(best, vocabulary) for best in wanted]
        self._most = most
        self._wanted = (COUNT * rows)(*wanted)
        self._chosen = (REAL * rows)()
        self._ids = (COUNT * (rows * most))()
        self._best = (REAL * (rows * most))()
        self._listed = (COUNT * 5)(
            ctypes.addressof(self._wanted),
            ctypes.addressof(self._chosen),
            ctypes.addressof(self._ids),
            ctypes.addressof(self._best),
            most,
        )
        self.at = ctypes.addressof(self._listed)

    def told(self) -> list[Told]:
        """Of each row, once its token is there."""
        found: list[Told] = []
        for row, count in enumerate(self._told):
            if count < 0:
                found.append(NOTHING)
                continue
            start = row * self._most
            ids, best = self._ids[start : start + count], self._best[start : start + count]
            found.append((self._chosen[row], tuple(zip(ids, best, strict=True))))
        return found


class OddsOf:
    def __init__(self, library: ctypes.CDLL) -> None:
        """AttributeError where the library has no such function, for want of AVX-512."""
        self._odds = library.odds_float32
        self._odds.argtypes = [POINTER, *[COUNT] * 2, *[POINTER] * 2, THREADS]
        self._odds.restype = None

    def told(
        self, logits: torch.Tensor, tokens: torch.Tensor, wanted: Sequence[int], threads: int
    ) -> list[Told]:
        """logits: float32 [rows, vocab] on the CPU; tokens: int64 [rows], of the vocabulary."""
        rows, vocabulary = logits.shape
        logits, tokens = logits.contiguous(), tokens.contiguous()
        odds = Odds(wanted, vocabulary)
        self._odds(logits.data_ptr(), rows, vocabulary, tokens.data_ptr(), odds.at, threads)
        return odds.told()
