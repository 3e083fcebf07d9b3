"""`helix-mq doctor` on real files, ports and handshakes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from helix_mq import keys
from helix_mq.cli import build_app
from helix_mq.doctor.clock import collect_synchronised
from helix_mq.doctor.disk import collect_disk
from helix_mq.doctor.parts import choose_part, installed_parts
from helix_mq.doctor.ports import collect_port
from helix_mq.doctor.reach import check_reach, collect_reach
from helix_mq.errors import CallerError
from helix_mq.transport import AllowList, ClientSecurity, KeyPair, ServerSecurity, ZmqTransport
from helix_mq.transport.api import Delivery
from nodes.doctor_device import Gpu, _flash_attn


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    said = CliRunner().invoke(build_app(), ["doctor", *arguments], env=environment)
    return said.exit_code, said.output


def levels(text: str) -> dict[tuple[str, str], str]:
    """(check, level) to the texts of such findings."""
    found: dict[tuple[str, str], str] = {}
    for f in json.loads(text)["findings"]:
        key = (f["check"], f["level"])
        found[key] = f"{found.get(key, '')}\n{f['text']}"
    return found


def test_a_machine_without_settings_is_looked_at() -> None:
    status, text = run("--json")
    assert status == 0
    assert {"versions", "gpu", "limits", "clock"} <= {
        f["check"] for f in json.loads(text)["findings"]
    }


@pytest.mark.parametrize(
    ("capabilities", "package", "found"),
    [
        ([(9, 0)], "flash_attn_interface", "3 (flash_attn_interface)"),
        ([(9, 0), (8, 9)], "flash_attn_interface", ""),
        ([], "flash_attn_interface", ""),
        ([(9, 0)], "", ""),
        ([(8, 9)], "flash_attn", "2.8.3"),
    ],
)
def test_flash_attention_is_found_as_nodes_find_it(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[tuple[int, int]],
    package: str,
    found: str,
) -> None:
    for name in ("flash_attn", "flash_attn_interface"):
        # None: cannot be imported.
        monkeypatch.setitem(sys.modules, name, ModuleType(name) if name == package else None)
    if package == "flash_attn":
        monkeypatch.setattr(sys.modules[package], "__version__", "2.8.3", raising=False)
    gpus = [Gpu("some", 1, 2, capability) for capability in capabilities]
    version, fault = _flash_attn(gpus)
    assert version == found
    assert bool(fault) is not bool(found)


def test_a_router_with_everything_wrong(tmp_path: Path, tiny_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        keys.save_key(tmp_path, "router", KeyPair.new())
        (tmp_path / "router.key").chmod(0o644)
        (tmp_path / "allow.toml").write_text("")
        (tmp_path / "allow.toml").chmod(0o666)
        (tmp_path / "router.toml").write_text(
            f'model = "{tiny_folder}"\ncontrol = "tcp://127.0.0.1:{port}"\n'
            'clients = "tcp://127.0.0.1:0"\ndata = "tcp://0.0.0.0:0"\n'
            '[http]\nhost = "0.0.0.0"\nport = 0\ntls_cert = "no.pem"\n'
            f'[security]\nkey_file = "{tmp_path}/router.key"\n'
            f'allow_file = "{tmp_path}/allow.toml"\n'
        )
        status, text = run("--json", "-c", str(tmp_path / "router.toml"))
    found = levels(text)
    assert status == 1
    assert "in use by" in found["ports", "problem"]
    assert str(os.getpid()) in found["ports", "problem"], "by whom"
    assert "told to connect to" in found["ports", "problem"]
    assert "chmod 600" in found["keys", "problem"]
    assert "can change" in found["keys", "problem"]
    assert "tls_key is missing" in found["keys", "problem"]
    assert "lists nobody" in found["keys", "warning"]
    assert "asks nobody for a key" in found["keys", "warning"]
    assert "no journal" in found["disk", "warning"]
    assert "6 layers" in found["model", "ok"]


def test_a_node_whose_router_is_not_there(tmp_path: Path, tiny_folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        router = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        path = tmp_path / "node.toml"
        path.write_text(
            f'model = "{tiny_folder}"\nrouter = "{router}"\nlisten = "tcp://127.0.0.1:0"\n'
            'memory = "100TiB"\ndevice = "cuda:77"\n'
        )
        status, text = run("-c", str(path), "--url", url, "--peer", router, "--json")
    found = levels(text)
    assert status == 1
    assert "connection refused" in found["reachability", "problem"]
    assert "peer at" in found["reachability", "problem"]
    assert "HTTP" in found["reachability", "warning"]
    assert "CUDA" in found["memory", "problem"]
    assert found["attention", "problem"]
    path.write_text(f'model = "{tiny_folder}"\nrouter = "{router}"\nmemory = "lots"\n')
    status, text = run("-c", str(path))
    assert status == 1
    assert "memory = 'lots'" in text
    path.write_text(
        f'model = "{tiny_folder}"\nrouter = "{router}"\n[security]\n'
        f'key_file = "$CREDENTIALS_DIRECTORY/key"\nrouter_public_key = "{KeyPair.new().public}"\n'
    )
    _, text = run("-c", str(path), "--json")
    assert "handed over" in levels(text)["keys", "warning"]
    key = keys.save_key(tmp_path, "a", KeyPair.new())
    _, text = run("-c", str(path), "--key", str(key), "--json")
    assert str(key) in levels(text)["keys", "ok"]
    path.write_text(f'router = "{router}"\n')
    _, text = run("-c", str(path), "--json")
    assert "model: missing" in levels(text)["settings", "problem"]
    assert "or give --model" in text
    _, text = run("-c", str(path), "--json", "--model", str(tiny_folder))
    assert "6 layers" in levels(text)["model", "ok"]
    path.write_text(f'model = "{tmp_path}"\nrouter = "{router}"\n')
    _, text = run("-c", str(path), "--json")
    assert "config.json" in levels(text)["model", "problem"]


def test_whose_settings_a_file_holds(tmp_path: Path) -> None:
    parts = installed_parts()
    path = tmp_path / "x.toml"
    assert choose_part(parts, {"control": "", "http": {}}, None, path).name == "router"
    assert choose_part(parts, {"router": "", "model": ""}, None, path).name == "node"
    assert choose_part(parts, {"model": ""}, "node", path).name == "node"
    with pytest.raises(CallerError, match="--as router or --as node"):
        choose_part(parts, {"model": ""}, None, path)
    with pytest.raises(CallerError, match="known: node, router"):
        choose_part(parts, {}, "gateway", path)


def test_ports_that_this_machine_cannot_bind() -> None:
    assert collect_port("listen", "127.0.0.1", 0).fault == 0
    assert collect_port("listen", "*", 0).fault == 0
    # A documentation address (RFC 5737): no machine has it.
    assert collect_port("listen", "192.0.2.1", 0).fault
    assert collect_port("listen", "no.such.host.invalid", 1).fault


def test_a_folder_that_is_not_there_yet_is_judged_by_where_it_will_be(tmp_path: Path) -> None:
    there = collect_disk("journal", tmp_path / "a" / "b", 1, "path")
    assert there.writable
    assert there.free_bytes > 0
    (tmp_path / "file").write_text("")
    assert not collect_disk("journal", tmp_path / "file" / "b", 1, "path").writable


async def test_the_handshake_tells_whether_a_key_is_let_in(
    tmp_path: Path, tiny_folder: Path
) -> None:
    def ignore(delivery: Delivery) -> None:
        raise AssertionError("the doctor says nothing")

    server, node, stranger = KeyPair.new(), KeyPair.new(), KeyPair.new()
    transport = ZmqTransport()
    allow = AllowList({"alpha": node.public})
    listener = await transport.listen(
        "tcp://127.0.0.1:0", ignore, security=ServerSecurity(server, allow)
    )

    async def ask(pair: KeyPair | None, public: str = "") -> str:
        security = ClientSecurity(pair, public) if pair is not None else None
        facts = await collect_reach("router", listener.endpoint, security=security, plain=True)
        assert facts is not None
        assert not facts.fault
        assert facts.asked
        return facts.refused

    try:
        assert await ask(node, server.public) == ""
        assert "not on the peer's allow-list" in await ask(stranger, server.public)
        assert "handshake" in await ask(node, stranger.public)
        assert "keys" in await ask(None)
        unasked = await collect_reach("router", listener.endpoint)
        assert unasked is not None
        assert "was not tried" in check_reach(unasked).text
        path = tmp_path / "node.toml"
        path.write_text(f'model = "{tiny_folder}"\nrouter = "{listener.endpoint}"\n')
        status, text = await asyncio.to_thread(run, "-c", str(path), "--json")
        assert status == 1
        assert "keys" in levels(text)["reachability", "problem"]
    finally:
        await listener.close()
        await transport.close()
    gone = await collect_reach("router", listener.endpoint)
    assert gone is not None
    assert gone.fault == "connection refused"
    unknown = await collect_reach("router", "tcp://no.such.host.invalid:1")
    assert unknown is not None
    assert "name is not known" in unknown.fault or "no answer" in unknown.fault
    assert await collect_reach("router", "ipc:///x") is None


async def test_the_state_of_ntp_is_asked_without_waiting_for_ever() -> None:
    said: Any = await asyncio.wait_for(collect_synchronised(), 240)
    assert said in (True, False, None)
