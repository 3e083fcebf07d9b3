"""Keys that the service manager hands over."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_mq.credentials import credential_name, locate
from helix_mq.errors import ConfigError
from helix_mq.keys import KeyFileError, KeyPair, load_key, save_key
from helix_mq.services.units import Kind, unit_text
from tests.deploy.confined import settings_of

WRITTEN = Path("$CREDENTIALS_DIRECTORY/key")


@pytest.fixture
def handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyPair:
    """As systemd leaves it: the service's user reads by an access list, which shows as the
    group's right."""
    pair = KeyPair.new()
    made = save_key(tmp_path / "etc", "router", pair)
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "key").write_bytes(made.read_bytes())
    (folder / "key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return pair


def test_a_credential_is_read_where_the_manager_put_it(handed_over: KeyPair) -> None:
    assert load_key(WRITTEN).public == handed_over.public
    assert load_key(Path("${CREDENTIALS_DIRECTORY}/key")).public == handed_over.public


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o404, 0o442])
def test_a_credential_that_others_can_touch_is_refused(
    handed_over: KeyPair, tmp_path: Path, mode: int
) -> None:
    (tmp_path / "credentials" / "key").chmod(mode)
    with pytest.raises(KeyFileError, match="other users of this machine"):
        load_key(WRITTEN)


def test_other_files_may_not_be_read_by_the_group(handed_over: KeyPair, tmp_path: Path) -> None:
    key = tmp_path / "etc" / "router.key"
    key.chmod(0o440)
    with pytest.raises(KeyFileError, match="other users"):
        load_key(key)


def test_without_credentials_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="given no credentials: start it as the service"):
        load_key(WRITTEN)


def test_a_missing_credential_is_named(handed_over: KeyPair) -> None:
    with pytest.raises(KeyFileError, match="credentials/other: cannot be read"):
        load_key(Path("$CREDENTIALS_DIRECTORY/other"))


def test_a_key_that_the_unit_did_not_find_is_named(handed_over: KeyPair, tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("router", "node")
    for kind in kinds:
        (given,) = settings_of(unit_text(kind))["SetCredential"]
        key = tmp_path / "credentials" / "key"
        key.chmod(0o600)
        key.write_text(given.removeprefix("key:"))
        with pytest.raises(KeyFileError, match=f"^/etc/helix_mq/{kind}.*: there is no such file"):
            load_key(WRITTEN)


@pytest.mark.parametrize("wrong", ["a/b", "..", "../key", ""])
def test_only_a_name_follows(wrong: str) -> None:
    with pytest.raises(ConfigError, match="with one name"):
        credential_name(Path("$CREDENTIALS_DIRECTORY") / wrong)


def test_other_paths_stay_what_they_are() -> None:
    for path in (
        "/etc/helix_mq/router.key",
        "keys/router.key",
        "$HOME/x",
        "$CREDENTIALS_DIRECTORYX/y",
    ):
        assert credential_name(Path(path)) is None
        assert locate(Path(path), {}) == (Path(path), 0o077)
