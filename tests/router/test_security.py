"""The router's allow-list: what the log says when its file is read again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from helix_mq.keys import allow_key, revoke_key, save_key
from helix_mq.transport import KeyPair
from router.security import RouterSecurity
from router.settings import SecuritySection


def test_a_list_that_is_read_again_is_told_in_whole_sentences(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "allow.toml"
    allow_key(path, "beta", KeyPair.new().public)
    key = save_key(tmp_path, "router", KeyPair.new())
    security = RouterSecurity(SecuritySection(key_file=key, allow_file=path))

    def told() -> str:
        caplog.clear()
        security.reload()
        (line,) = caplog.messages
        return line.partition(" was read again: ")[2]

    with caplog.at_level(logging.INFO, "router.security"):
        assert told() == "nothing new"
        revoke_key(path, "beta")
        assert told() == "no longer let in: beta"
        allow_key(path, "beta", KeyPair.new().public)
        assert told() == "let in: beta"
        allow_key(path, "gamma", KeyPair.new().public)
        revoke_key(path, "beta")
        assert told() == "let in: gamma; no longer let in: beta"
