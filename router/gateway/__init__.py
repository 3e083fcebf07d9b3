"""The OpenAI-compatible HTTP endpoint, in the router's process.

Turns HTTP into Generations and event streams into JSON; decides nothing about requests. Stands on
`router.service` alone.
"""

from router.gateway.app import build_gateway
from router.gateway.server import GatewayServer

__all__ = ["GatewayServer", "build_gateway"]
