"""What programs of this release can do that older ones could not; nodes say it as they register.

A router asks for a feature only where every node of a route has it, so that releases can be mixed
while a cluster is brought from one to the next.
"""

from __future__ import annotations

VERIFY = "verify"
"""Rows with drafts are verified in one pass; see `helix_mq.messages.data.VERIFY`."""

DIRECT = "direct"
"""A last hop hands tokens to the first hop itself; see `helix_mq.messages.data.DIRECT`."""

PREFIX = "prefix"
"""Prompts may begin at the end of a block that is kept; see `helix_mq.messages.data.Row.blocks`."""

WIRE8 = "wire8"
"""Activations in 8 bits are understood; see `helix_mq.scaled_rows`."""

FEATURES: tuple[str, ...] = (VERIFY, DIRECT, PREFIX, WIRE8)
"""Of this program."""
