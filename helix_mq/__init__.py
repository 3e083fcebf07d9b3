"""helix_mq: one large language model served across GPUs of different kinds, in different places."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_mq.client import Client
    from helix_mq.sdk.options import ClientOptions

__version__ = "0.1.0"
__all__ = ["Client", "ClientOptions", "__version__"]


def __getattr__(name: str) -> object:
    """The client's names, imported when first used: other processes never need them."""
    if name == "Client":
        from helix_mq.client import Client

        return Client
    if name == "ClientOptions":
        from helix_mq.sdk.options import ClientOptions

        return ClientOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
