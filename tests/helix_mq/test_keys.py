"""Key files, allow-list files, and the commands that make and edit them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_mq import keys
from helix_mq.cli import keys as commands
from helix_mq.errors import CallerError
from helix_mq.keys import BadKey, KeyFileError, KeyPair
from helix_mq.transport.security import check_key


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_saved_pair_comes_back(tmp_path: Path) -> None:
    pair = KeyPair.new()
    previous = os.umask(0)
    try:
        path = keys.save_key(tmp_path / "new" / "folder", "alpha", pair)
    finally:
        os.umask(previous)
    assert path == tmp_path / "new" / "folder" / "alpha.key"
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    pub = path.with_suffix(".pub")
    assert mode(pub) == 0o644
    assert keys.load_key(path) == pair
    assert keys.load_public_key(path) == keys.load_public_key(pub) == pair.public
    assert pair.secret not in pub.read_text()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    first = keys.save_key(tmp_path, "alpha", KeyPair.new())
    before = first.read_text()
    with pytest.raises(KeyFileError, match="exists already"):
        keys.save_key(tmp_path, "alpha", KeyPair.new())
    first.unlink()
    with pytest.raises(KeyFileError, match=r"alpha\.pub exists already"):
        keys.save_key(tmp_path, "alpha", KeyPair.new())
    assert not first.exists()
    assert before


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_secret_others_can_read_is_refused(tmp_path: Path, bits: int) -> None:
    path = keys.save_key(tmp_path, "alpha", KeyPair.new())
    path.chmod(bits)
    for load in (keys.load_key, keys.load_public_key):
        with pytest.raises(KeyFileError, match="chmod 600") as caught:
            load(path)
        assert f"{bits:04o}" in str(caught.value)
    path.chmod(0o400)
    keys.load_key(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no `secret`"),
        ("secret = 7", "has no `secret`"),
        ("secret = ", "not valid TOML"),
        ('secret = "too short"', "the secret key is not a CURVE key: 9 characters"),
        ('secret = "' + "~" * 40 + '"', "the secret key is not a CURVE key"),
        ('secret = "' + "#" * 40 + '"', "the secret key is not a CURVE key"),
        ("x" * 5000, "larger than 4096 bytes"),
        ("\udcff", "not a text file"),
    ],
)
def test_broken_key_files_are_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.key"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    with pytest.raises((KeyFileError, BadKey), match=words) as caught:
        keys.load_key(path)
    assert "broken.key" in str(caught.value)
    assert "too short" not in str(caught.value)


def test_halves_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = keys.save_key(tmp_path, "alpha", KeyPair.new())
    secret = KeyPair.new().secret
    lines = path.read_text().splitlines()
    lines[-1] = f'secret = "{secret}"'
    path.write_text("\n".join(lines))
    with pytest.raises(BadKey, match="does not belong") as caught:
        keys.load_key(path)
    assert secret not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="helix-mq keys new"):
        keys.load_key(tmp_path / "none.key")
    tmp_path.joinpath("folder.key").mkdir()
    with pytest.raises(KeyFileError, match=r"folder\.key"):
        keys.load_key(tmp_path / "folder.key")
    os.mkfifo(tmp_path / "pipe.key")
    with pytest.raises(KeyFileError, match=r"pipe\.key: not a regular file"):
        keys.load_key(tmp_path / "pipe.key")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(KeyFileError, match="cannot be written"):
        keys.save_key(file / "below", "alpha", KeyPair.new())


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 65, "..", "é", "a\n"])
def test_names_stay_within_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="letters, digits"):
        keys.save_key(tmp_path, name, KeyPair.new())
    with pytest.raises(KeyFileError, match="letters, digits"):
        keys.allow_key(tmp_path / "allow.toml", name, KeyPair.new().public)
    assert list(tmp_path.iterdir()) == []


@given(st.binary(min_size=32, max_size=32))
def test_every_32_bytes_are_a_key_in_z85(raw: bytes) -> None:
    from zmq.utils import z85

    text = z85.encode(raw).decode()
    assert check_key(f" {text}\n", "it") == text


@given(st.text(max_size=60))
def test_other_texts_are_refused_or_keys(text: str) -> None:
    try:
        assert len(check_key(text, "it")) == 40
    except BadKey as e:
        assert "it is not a CURVE key" in str(e)


def test_fingerprints_are_short_and_distinct() -> None:
    a, b = KeyPair.new(), KeyPair.new()
    assert a.fingerprint == keys.fingerprint(a.public) != b.fingerprint
    assert len(a.fingerprint) == 19


# -- allow-lists -------------------------------------------------------------


def test_an_allow_list_is_edited_in_place_and_keeps_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "allow.toml"
    a, b, c = (KeyPair.new().public for _ in range(3))
    keys.allow_key(path, "node.a", a)
    path.write_text(path.read_text() + f"# the second rack\nnode-b = '{b}'  # loaned")
    path.chmod(0o640)
    keys.allow_key(path, "client_c", c)
    assert keys.read_allow_list(path) == {"node.a": a, "node-b": b, "client_c": c}
    assert mode(path) == 0o640
    keys.allow_key(path, "node-b", a2 := KeyPair.new().public)
    assert keys.read_allow_list(path)["node-b"] == a2
    assert keys.revoke_key(path, "node.a")
    assert not keys.revoke_key(path, "node.a")
    assert keys.read_allow_list(path) == {"node-b": a2, "client_c": c}
    assert "# the second rack" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["allow.toml"]
    allow = keys.load_allow_list(path)
    assert allow.name_of(c) == "client_c"
    allow.replace(keys.read_allow_list(path))
    assert len(allow) == 2


def test_one_key_has_one_name(tmp_path: Path) -> None:
    path = tmp_path / "allow.toml"
    public = KeyPair.new().public
    keys.allow_key(path, "a", public)
    before = path.read_text()
    with pytest.raises(BadKey, match="b and a have the same key"):
        keys.allow_key(path, "b", public)
    assert path.read_text() == before
    path.write_text(before + f'b = "{public}"\n')
    with pytest.raises(BadKey, match=r"allow\.toml.*a and b have the same key"):
        keys.load_allow_list(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 1", "a: expected a public key in quotes"),
        ('a = "short"', "the key of a is not a CURVE key"),
        ('node.a = "x"', "put names with dots in quotes"),
        ('"a/b" = "x"', "letters, digits"),
        ("a", "not valid TOML"),
        ('a = "x"\na = "y"', "not valid TOML"),
    ],
)
def test_broken_allow_lists_are_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "allow.toml"
    path.write_text(text)
    for use in (
        keys.load_allow_list,
        lambda p: keys.revoke_key(p, "a"),
        lambda p: keys.allow_key(p, "new", KeyPair.new().public),
    ):
        with pytest.raises((KeyFileError, BadKey), match=words):
            use(path)
    assert path.read_text() == text


def test_a_linked_allow_list_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "allow.toml", tmp_path / "allow.toml"
    keys.allow_key(real, "a", KeyPair.new().public)
    link.symlink_to(real)
    keys.allow_key(link, "b", KeyPair.new().public)
    assert link.is_symlink()
    assert sorted(keys.read_allow_list(real)) == ["a", "b"]


# -- commands ----------------------------------------------------------------


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    commands.register(made)
    return made


def test_the_commands_take_a_node_in_and_out(
    tmp_path: Path, app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        result = CliRunner().invoke(app, ["keys", *args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    output = run("new", "alpha")
    pair = keys.load_key(tmp_path / "keys" / "alpha.key")
    assert pair.public in output
    assert pair.secret not in output
    for name in ("alpha", "keys/alpha.pub", "keys/alpha.key"):
        output = run("show", name)
        assert pair.public in output
        assert pair.fingerprint in output
        assert pair.secret not in output
    run("allow", "alpha")
    other = KeyPair.new().public
    run("allow", "beta", other, "--list", "keys/allow.toml")
    assert keys.read_allow_list(tmp_path / "keys" / "allow.toml") == {
        "alpha": pair.public,
        "beta": other,
    }
    lines = run("list").splitlines()
    assert lines[0].split() == ["alpha", pair.fingerprint, pair.public]
    run("revoke", "alpha")
    assert len(run("list").splitlines()) == 1
    run("allow", "carol", KeyPair.new().public, "--client")
    assert run("list").splitlines()[0].split()[0] == "@carol"
    run("revoke", "carol")
    assert len(run("list").splitlines()) == 1


def test_the_commands_fail_in_words(
    tmp_path: Path, app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys.allow_key(tmp_path / "keys" / "allow.toml", "a", KeyPair.new().public)
    for args, words in (
        (["show", "nobody"], "nobody.key: cannot be read"),
        (["revoke", "nobody"], "nobody is not on keys/allow.toml"),
        (["allow", "b", "nonsense"], "the key of b is not a CURVE key"),
        (["list", "--list", "none.toml"], "none.toml: cannot be read"),
        (["new", "a/b"], "letters, digits"),
        (["allow", "router", KeyPair.new().public, "--client"], "is the router's own"),
    ):
        result = CliRunner().invoke(app, ["keys", *args])
        assert isinstance(result.exception, CallerError), args
        assert words in str(result.exception)
