"""Whether a node's weights may join: all of a cluster hold them in the same bits, unless its
settings say otherwise. Pure.

Outputs would depend on the route else, and a request that is moved to other nodes would go on with
other tokens than it began with.
"""

from __future__ import annotations

from typing import Literal

from helix_mq.messages.control import Register
from helix_mq.models.quantisation import Quantisation

Allowed = Literal["none", "int8", "int4", "mixed"]
"""The router's setting `quantise`: a Quantisation, or any of them beside each other."""


def weights_refusal(register: Register, allowed: Allowed) -> str | None:
    """Why the node must not join, and what to do about it; None where it may."""
    name, has = register.node, register.quantise
    known = [q.value for q in Quantisation]
    if has not in known:
        return (
            f"{name} holds weights as {has!r}, which this router does not know ({', '.join(known)})"
            ": run the same release on both"
        )
    if allowed in ("mixed", has):
        return None
    return (
        f'{name} has quantise = "{has}", the router "{allowed}": set both alike, or quantise = '
        '"mixed" at the router, which lets answers depend on the nodes they come from'
    )
