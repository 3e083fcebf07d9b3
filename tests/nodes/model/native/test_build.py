"""Whose library a node loads: one that nobody else could have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nodes.model.native import build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cache" / "native"
    made.mkdir(parents=True)
    made.chmod(0o700)
    return made


def test_a_folder_of_ones_own_will_do(folder: Path) -> None:
    build.check_own(folder)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_nobody_else_may_write_to_it(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(build.CannotBuild, match="can be written by others"):
        build.check_own(folder)


def test_nor_put_another_one_in_its_place(folder: Path, tmp_path: Path) -> None:
    way = tmp_path / "way"
    way.symlink_to(folder)
    folder.parent.chmod(0o777)
    for named in (folder, way):
        with pytest.raises(build.CannotBuild, match=r"cache .*by everybody"):
            build.check_own(named)
    # As /tmp is: entries are their owners'.
    folder.parent.chmod(0o1777)
    build.check_own(folder)


def test_it_belongs_to_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(build.CannotBuild, match="can be written by others"):
        build.check_own(folder)


@pytest.mark.skipif(build.built().library is None, reason="no compiler")
def test_a_library_that_others_could_have_written_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build.built().library
    assert library is not None
    # Compiling takes seconds, and what comes of it is there.
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done\n'
        f'[ -z "$out" ] || cp {library._name} "$out"\n'
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "default_cache", lambda: tmp_path)
    fresh = build.built.__wrapped__
    assert fresh().library is not None
    [kept] = (tmp_path / "native").glob("*.so")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    # A new file, as the one that is loaded must stay as it is.
    kept.unlink()
    kept.write_bytes(b"planted")
    kept.chmod(0o777)
    assert fresh().library is not None
    assert kept.read_bytes() == Path(library._name).read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
