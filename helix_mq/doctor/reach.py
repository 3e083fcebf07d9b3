"""Whether what this process must talk to answers: TCP first, then the handshake with its keys."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass

from helix_mq.doctor.findings import Finding, ok, problem, warning
from helix_mq.doctor.ports import split_endpoint
from helix_mq.errors import ConfigError
from helix_mq.transport import ClientSecurity, LinkPhase, LinkState, ZmqTransport
from helix_mq.transport.api import Delivery
from helix_mq.transport.endpoints import is_loopback

CHECK = "reachability"
CONNECT_S = 3.0
HANDSHAKE_S = 5.0
SLOW_S = 0.25
UNKNOWN_NAME = "the name is not known"
TIMED_OUT = "no answer"
_ROUTING_ID = b"doctor"


@dataclass(frozen=True, slots=True)
class ReachFacts:
    """`fault` is empty when the connection was made, in `took_s`. `refused`: what the other side
    said to our keys, or to our having none (`plain`); empty when it let us in or, without `asked`,
    was not asked."""

    what: str
    endpoint: str
    took_s: float = 0.0
    fault: str = ""
    refused: str = ""
    optional: bool = False
    asked: bool = False
    plain: bool = False


def check_reach(facts: ReachFacts) -> Finding:
    where = f"{facts.what} at {facts.endpoint}"
    if facts.fault:
        make = warning if facts.optional else problem
        return make(CHECK, f"{where}: {facts.fault}", _meaning(facts), _remedy(facts))
    if facts.refused and facts.plain:
        return problem(
            CHECK,
            f"{where}: {facts.refused}",
            "it is there and does not let this process in, which has no keys",
            "if the router has keys, make some here (`helix-mq keys new NAME`), have them allowed "
            "there, and set `[security] key_file` and `router_public_key`",
        )
    if facts.refused:
        return problem(
            CHECK,
            f"{where}: {facts.refused}",
            "it is there and does not let this process in",
            "allow this key under this node's name on the router (`helix-mq keys allow NAME "
            "PUBLIC-KEY`), and compare `router_public_key` with `helix-mq keys show router`",
        )
    text = f"{where}: connected in {facts.took_s * 1e3:.0f} ms"
    if not facts.asked:
        text += "; whether it lets this process in was not tried"
    if facts.took_s > SLOW_S:
        return warning(
            CHECK,
            text,
            "each token of a request crosses this way",
            "see docs/links.md for what links are measured to be; place the router near its nodes",
        )
    return ok(CHECK, text)


def _meaning(facts: ReachFacts) -> str:
    if facts.optional:
        return f"{facts.what} is not used from here, or not up"
    return "this process starts, but waits for it and serves nothing"


def _remedy(facts: ReachFacts) -> str:
    if UNKNOWN_NAME in facts.fault:
        return "check the host name, or write the address"
    if TIMED_OUT in facts.fault:
        return "check the address, routes and firewalls: packets to that port are dropped"
    parts = split_endpoint(facts.endpoint)
    if parts is not None and is_loopback(parts[0]):
        return "start it here first; if it is on another machine, loopback is the wrong address"
    return "check that it runs, and that it listens on that address and not on loopback"


async def collect_reach(
    what: str,
    endpoint: str,
    *,
    security: ClientSecurity | None = None,
    plain: bool = False,
    optional: bool = False,
) -> ReachFacts | None:
    """Connects once and hangs up. With keys, or `plain` without, the handshake is done too: nothing
    is registered. None where there is no host to connect to."""
    parts = split_endpoint(endpoint)
    if parts is None:
        return None
    fault, took_s = await _tcp_fault(*parts)
    refused = ""
    asked = not fault and (plain or security is not None)
    if asked:
        refused = await _refusal(endpoint, security)
    return ReachFacts(
        what, endpoint, took_s, fault, refused, optional, asked=asked, plain=security is None
    )


async def _tcp_fault(host: str, port: int) -> tuple[str, float]:
    """What went wrong, or empty, and how many seconds it took."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    fault = ""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except TimeoutError:
        fault = f"{TIMED_OUT} for {CONNECT_S:.0f} s"
    except socket.gaierror:
        fault = UNKNOWN_NAME
    except OSError as e:
        # asyncio puts several addresses' errors into one without a number.
        number = e.errno if e.errno and e.errno > 0 else errno.ECONNREFUSED
        fault = os.strerror(number).lower()
    return fault, loop.time() - began_s


async def _refusal(endpoint: str, security: ClientSecurity | None) -> str:
    """Empty when the handshake succeeds, a plain one without keys."""
    told: asyncio.Queue[LinkState] = asyncio.Queue()

    def ignore(delivery: Delivery) -> None:
        """Nothing was asked, so nothing is awaited."""

    transport = ZmqTransport()
    try:
        connection = await transport.connect(
            endpoint,
            ignore,
            routing_id=_ROUTING_ID,
            security=security,
            # Whether plain sockets are right off the loopback is among the findings on keys.
            insecure=security is None,
            on_state=told.put_nowait,
        )
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                while True:
                    state = await told.get()
                    if state.connected:
                        return ""
                    if state.phase is LinkPhase.REFUSED:
                        return state.reason
        except TimeoutError:
            return f"no handshake within {HANDSHAKE_S:.0f} s: it may not be a helix_mq process"
        finally:
            await connection.close()
    except ConfigError as e:
        return str(e)
    finally:
        await transport.close()
