"""helix_mq: one large language model served across GPUs of different kinds, in different places."""

from __future__ import annotations

__version__ = "0.1.0"
