"""Messages between processes: ZeroMQ sockets, and their twin within one process.

The only package that imports zmq. It carries opaque parts; what is in them is helix_mq.frames'
business. Start at `api` for what a transport guarantees.
"""

from helix_mq.transport.api import (
    Buffer,
    Connection,
    Delivery,
    DisconnectHandler,
    Handler,
    LinkPhase,
    LinkState,
    Listener,
    Parts,
    StateHandler,
    Transport,
)
from helix_mq.transport.endpoints import BadEndpoint, EndpointUnavailable, InsecureEndpoint
from helix_mq.transport.limits import Limits, MessageTooLarge
from helix_mq.transport.memory import MemoryTransport
from helix_mq.transport.security import (
    AllowList,
    BadKey,
    ClientSecurity,
    KeyPair,
    ServerSecurity,
)
from helix_mq.transport.statistics import ChannelStatistics
from helix_mq.transport.zmq_transport import ZmqTransport

__all__ = [
    "AllowList",
    "BadEndpoint",
    "BadKey",
    "Buffer",
    "ChannelStatistics",
    "ClientSecurity",
    "Connection",
    "Delivery",
    "DisconnectHandler",
    "EndpointUnavailable",
    "Handler",
    "InsecureEndpoint",
    "KeyPair",
    "Limits",
    "LinkPhase",
    "LinkState",
    "Listener",
    "MemoryTransport",
    "MessageTooLarge",
    "Parts",
    "ServerSecurity",
    "StateHandler",
    "Transport",
    "ZmqTransport",
]
