"""The placement that nodes had when the router stopped, as bytes in its journal and back. Pure.

After a restart it saves them loading anew: a fresh plan or split might give everyone other layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, uncovered

PLACEMENT: Final = "placement"


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slices: dict[str, tuple[int, int]]


def placement_bytes(slices: Mapping[NodeId, LayerRange]) -> bytes:
    return msgspec.json.encode(_Kept({n: (r.first, r.end) for n, r in slices.items()}))


def kept_placement(content: bytes | None, num_layers: int) -> dict[NodeId, LayerRange] | None:
    """The slices, if they are a whole placement of such a model; None for anything else."""
    if content is None:
        return None
    try:
        kept = msgspec.json.decode(content, type=_Kept)
        slices = {NodeId(n): LayerRange(*ends) for n, ends in kept.slices.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return None
    fits = all(r.end <= num_layers for r in slices.values())
    return slices if fits and not uncovered(num_layers, slices.values()) else None
