"""deploy/container, as far as it goes without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import typer

from helix_mq.cli import build_app

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/container"


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest), with continued lines joined."""
    text = (FOLDER / "Containerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    parts = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in parts]


def test_what_is_copied_is_there_and_let_through() -> None:
    let_through = (ROOT / ".containerignore").read_text().splitlines()
    copies = [rest for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    sources = [name for rest in copies for name in rest.split()[:-1]]
    assert {"constraints.txt", "pyproject.toml", "nodes", "deploy/container/healthcheck.py"} <= set(
        sources
    )
    for name in sources:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_through, name
    assert (FOLDER / "Containerfile.dockerignore").read_text().splitlines() == let_through


def test_it_has_every_package_torch_by_its_pin_and_no_root() -> None:
    text = (FOLDER / "Containerfile").read_text()
    for package in ("helix_mq", "router", "nodes", "solver", "bench"):
        assert f"COPY {package} {package}\n" in text
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    words = [word for word, _ in instructions()]
    assert dict(instructions())["USER"].isdecimal()
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert dict(instructions())["ENTRYPOINT"] == '["helix-mq"]'


def test_commands_in_its_readme_are_commands() -> None:
    text = (FOLDER / "README.md").read_text()
    said = set(re.findall(r"[ \n]helix-mq ([a-z]+) ", text))
    known = typer.main.get_group(build_app()).commands.keys()
    assert {"doctor", "node", "router", "prompt"} <= said <= known


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Not in the tests' output."""


def test_a_router_is_well_if_its_http_answers() -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        import healthcheck
    finally:
        sys.path.remove(str(FOLDER))
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert healthcheck.router_fault(url) == ""
        assert "404" in healthcheck.router_fault(f"{url}/else")
        # This process is connected to somebody while it asks; a fresh one is not.
        server.shutdown()
    assert "refused" in healthcheck.router_fault(url)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alone:
        assert "nobody" in healthcheck.node_fault(psutil.Process(alone.pid))
        alone.kill()
    assert healthcheck.kind_of(["/x/python", "/x/bin/helix-mq", "router", "-c", "r"]) == "router"
    assert healthcheck.kind_of(["python", "-m", "helix_mq", "node"]) == "node"
    assert healthcheck.kind_of(["tini", "--", "helix-mq", "node"]) == "node"
    assert healthcheck.kind_of(["bash", "-c", "node"]) == ""
