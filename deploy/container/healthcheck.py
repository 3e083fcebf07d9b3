"""Is the helix-mq process of this container well? Ends with 0 or 1, and says why.

A router: its HTTP endpoint answers /health (`HELIX_MQ_URL`, by default http://127.0.0.1:8000). That
it serves is another question, /ready's: a router without nodes must not be restarted for it.
A node: it is connected to somebody; it has no HTTP. Anything else, a client, is as well as it runs.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request

import psutil

ASK_S = 3


def kind_of(command: list[str]) -> str:
    """`router`, `node`, another command of helix-mq, or empty for another program."""
    for at, part in enumerate(command[:-1]):
        if part.endswith(("helix-mq", "helix_mq")):
            return command[at + 1]
    return ""


def router_fault(url: str) -> str:
    # The certificate is of the outer name; this asks within the container.
    anyone = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ASK_S, context=anyone) as answer:
            return "" if answer.status == 200 else f"{url}/health: status {answer.status}"
    except OSError as e:
        return f"{url}/health: {e}"


def node_fault(process: psutil.Process) -> str:
    connected = any(
        c.status == psutil.CONN_ESTABLISHED for c in process.net_connections(kind="tcp")
    )
    return "" if connected else "connected to nobody: is the router there, and is this key allowed?"


def main() -> str:
    for process in psutil.process_iter():
        try:
            kind = kind_of(process.cmdline())
            if kind == "router":
                return router_fault(os.environ.get("HELIX_MQ_URL", "http://127.0.0.1:8000"))
            if kind == "node":
                return node_fault(process)
        except psutil.Error:
            continue
    return ""


if __name__ == "__main__":
    fault = main()
    if fault:
        sys.exit(fault)
