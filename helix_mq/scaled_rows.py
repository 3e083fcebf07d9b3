"""Layout of the wire dtype `int8`: activations in 8 bits with a scale per group of a token's row.

A token of width w takes ceil(w / 64) float32 scales, then w int8 codes; an activation is its code
times its group's scale. Tokens follow each other, so that a frame is cut between any two of them.
One scale for a whole row would lose the rest of it: a few channels of a residual stream are
hundreds of times as large as the others.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from helix_mq.errors import FrameError

GROUP: Final = 64
"""Activations that share a scale: 6 % on top of their bytes."""
_SCALE_BYTES: Final = 4


def groups(width: int) -> int:
    """Scales of a token."""
    return -(-width // GROUP)


def scaled_bytes(width: int) -> int:
    """Of one token."""
    return groups(width) * _SCALE_BYTES + width


def read_scales(payload: memoryview, width: int) -> npt.NDArray[np.float32]:
    """A copy of the scales, float32 [tokens, groups]. `payload` must be whole tokens."""
    table = np.frombuffer(payload, dtype=np.uint8).reshape(-1, scaled_bytes(width))
    return table[:, : groups(width) * _SCALE_BYTES].copy().view("<f4")


def read_codes(payload: memoryview, width: int) -> npt.NDArray[np.int8]:
    """A view of the codes, int8 [tokens, width]."""
    table = np.frombuffer(payload, dtype=np.int8).reshape(-1, scaled_bytes(width))
    return table[:, groups(width) * _SCALE_BYTES :]


def check_scales(payload: memoryview, width: int) -> None:
    """FrameError unless every scale is a number that is not negative."""
    scales = read_scales(payload, width)
    if not bool((np.isfinite(scales) & (scales >= 0)).all()):
        raise FrameError("a scale of int8 activations is negative or no number", reason="scale")
