"""HTTP for OpenAI's clients, in the router's process: starlette on uvicorn.

Knows only `router.service`; decides nothing about routes. Every error, whatever the body, is
answered in OpenAI's form; a closed connection cancels its request.
"""

from router.gateway.app import GatewaySettings, build_app
from router.gateway.server import GatewayServer

__all__ = ["GatewayServer", "GatewaySettings", "build_app"]
