"""Activations to the bytes of a frame and back, in the form that the link they go over is to have.

The router says which link has which form (`[links] activations`); a peer of which nothing was said
gets rows in the compute dtype. So does any peer whose rows a narrower form could not hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from helix_mq.messages.control import Peer
from helix_mq.messages.data import SCALED
from helix_mq.outlink import PeerAddress
from helix_mq.scaled_rows import GROUP, groups, read_codes, read_scales

WIRE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WIRE_NAMES = {dtype: name for name, dtype in WIRE_DTYPES.items()}


class WireFormats:
    """Forms by peer. Set on the loop thread, read on the device thread: replaced whole."""

    def __init__(self) -> None:
        self._forms: dict[str, str] = {}

    def follow(self, peers: Iterable[Peer]) -> None:
        known = (*WIRE_DTYPES, SCALED)
        # A form of a later release is none: full rows are understood by everyone.
        self._forms = {p.node: p.activations for p in peers if p.activations in known}

    def of(self, peer: str) -> str:
        """The wire dtype for rows to this peer; empty for the compute dtype."""
        return self._forms.get(peer, "")


def addresses(peers: Iterable[Peer]) -> dict[str, PeerAddress]:
    return {p.node: PeerAddress(p.node, p.incarnation, p.endpoint, p.public_key) for p in peers}


def to_wire(hidden: torch.Tensor, form: str = "") -> tuple[str, memoryview]:
    """The wire dtype and bytes of float [tokens, width] on the host; a view where nothing changes.

    `form` is kept to as far as it narrows the rows and can hold them: what is not finite, or not in
    float16's range, goes as it is, and whoever samples will see it.
    """
    own = hidden.dtype
    if form == SCALED:
        scaled = _scaled(hidden)
        if scaled is not None:
            return SCALED, scaled.numpy().reshape(-1).data
    elif form and WIRE_DTYPES[form].itemsize < own.itemsize:
        narrow = hidden.to(WIRE_DTYPES[form])
        if form != "float16" or bool(torch.isfinite(narrow).all()):
            hidden = narrow
    return WIRE_NAMES[hidden.dtype], hidden.view(torch.uint8).numpy().reshape(-1).data


def from_wire(data: memoryview, dtype: str, width: int) -> torch.Tensor:
    """[tokens, width]: float32 of int8 rows, else a view in their own dtype that must not be
    written to. The frame's check has seen that bytes and width fit."""
    if dtype == SCALED:
        codes = torch.from_numpy(read_codes(data, width).astype(np.float32))
        scales = torch.from_numpy(read_scales(data, width))
        return codes.mul_(scales.repeat_interleave(GROUP, dim=1)[:, :width])
    with warnings.catch_warnings():
        # Received buffers may be read-only; a batch is a copy of them, so nothing writes to them.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.frombuffer(data, dtype=WIRE_DTYPES[dtype]).view(-1, width)


def rows_from_wire(parts: Sequence[memoryview], dtype: str, width: int) -> torch.Tensor:
    """Rows of one dtype below each other, as `from_wire` gives them, in memory of their own."""
    whole = bytearray().join(parts)
    if dtype == SCALED:
        return from_wire(memoryview(whole), dtype, width)
    return torch.frombuffer(whole, dtype=WIRE_DTYPES[dtype]).view(-1, width)


def _scaled(hidden: torch.Tensor) -> torch.Tensor | None:
    """uint8 [tokens, scaled_bytes]; None where a row is not all numbers, or too large for them."""
    tokens, width = hidden.shape
    count = groups(width)
    padded = F.pad(hidden.float(), (0, count * GROUP - width)).view(tokens, count, GROUP)
    scales = padded.abs().amax(dim=2) / 127
    if not bool(torch.isfinite(scales).all()):
        return None
    steps = torch.round(padded / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None])
    codes = steps.clamp_(-127, 127).to(torch.int8).view(tokens, -1)[:, :width]
    return torch.cat((scales.view(torch.uint8), codes.contiguous().view(torch.uint8)), dim=1)
