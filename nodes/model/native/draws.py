"""Tokens by chance, drawn by compiled code: see draw.h. A row takes 30 us of 49,152 tokens' logits,
where PyTorch takes 0.2 to 0.5 ms."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence

import numpy as np
import torch

from helix_mq.sampling import SamplingParams
from nodes.model.native.calls import COUNT, POINTER, THREADS, pointer

_CHOICE = struct.Struct("=ffdqQ")
"""Choice, as draw.h has it."""
CHOICE_BYTES = _CHOICE.size
_EDITS = struct.Struct("=6q3d2q")
"""Edits, as draw.h has it."""
EDITS_BYTES = _EDITS.size
NO_EDITS = bytes(EDITS_BYTES)

Listed = tuple[int, ...]
"""Where lists of equal length are in memory, and their length; () for none."""

COLDEST = 1e-30
"""Below it a logit's difference would leave float32; there the best token has it all anyway."""


def choice_of(params: SamplingParams) -> bytes:
    """What decides on a sequence's tokens, as compiled code reads it."""
    if not params.temperature:
        return _CHOICE.pack(0.0, -math.inf, 1.0, 0, 0)
    least = math.log(params.min_p) if params.min_p else -math.inf
    temperature = max(params.temperature, COLDEST)
    return _CHOICE.pack(temperature, least, params.top_p, params.top_k, params.seed)


def edits_of(params: SamplingParams, biases: Listed, seen: Listed, endings: Listed) -> bytes:
    """What a row's logits are changed by, as compiled code reads it. `biases`: ids and values;
    `seen`: ids and their counts in the output; `endings`: ids."""
    return _EDITS.pack(
        *(biases or (0, 0, 0)),
        *(seen or (0, 0, 0)),
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
        *(endings or (0, 0)),
    )


class Draws:
    def __init__(self, library: ctypes.CDLL) -> None:
        """AttributeError where the library has no such function, for want of AVX-512."""
        self._draw = library.draw_float32
        self._draw.argtypes = [POINTER, *[COUNT] * 2, *[POINTER] * 3, THREADS]
        self._draw.restype = None
        self._uniform = library.uniform_number
        self._uniform.argtypes = [ctypes.c_uint64, COUNT]
        self._uniform.restype = ctypes.c_double

    def uniform(self, seed: int, position: int) -> float:
        """As sampler_draw.uniform() has numpy do in 14 us."""
        number: float = self._uniform(seed, position)
        return number

    def draw(
        self,
        logits: torch.Tensor,
        params: Sequence[SamplingParams],
        numbers: Sequence[float],
    ) -> torch.Tensor:
        """One token per row, int64 [rows]; logits: float32 [rows, vocab] on the CPU; each row's
        number in [0, 1) decides."""
        logits = logits.contiguous()
        rows, vocab = logits.shape
        choices = np.frombuffer(b"".join(map(choice_of, params)), np.uint8)
        decisive = np.array(numbers, np.float64)
        tokens = torch.empty(rows, dtype=torch.int64)
        self._draw(
            logits.data_ptr(),
            rows,
            vocab,
            pointer(choices),
            pointer(decisive),
            tokens.data_ptr(),
            torch.get_num_threads(),
        )
        return tokens
