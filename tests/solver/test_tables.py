"""Measured step times: what is written reads back, what is wrong is named by line and column."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from solver.objective import StepTimes
from solver.tables import (
    MAX_POINTS,
    TableError,
    parse_tables,
    read_tables,
    show_tables,
    write_tables,
)

POSITIVE = st.floats(min_value=1e-12, max_value=1e9)
POINTS = st.dictionaries(POSITIVE, POSITIVE, min_size=2, max_size=20).map(
    lambda points: tuple(sorted(points.items()))
)
GOOD = "phase,batch,seconds_per_layer\nprefill,1,1\nprefill,2,2\ndecode,1,1\ndecode,4,2\n"


@given(POINTS, POINTS)
def test_what_is_written_reads_back(
    prefill: tuple[tuple[float, float], ...], decode: tuple[tuple[float, float], ...]
) -> None:
    times = StepTimes(prefill=prefill, decode=decode)
    assert parse_tables(show_tables(times), "text") == times


def test_a_file_reads_back(tmp_path: Path) -> None:
    times = parse_tables(GOOD, "text")
    assert times.decode == ((1.0, 1.0), (4.0, 2.0))
    write_tables(tmp_path / "t.csv", times)
    assert read_tables(tmp_path / "t.csv") == times


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: expected the header"),
        ("a,b,c\n", "line 1: expected the header"),
        ("phase,batch,seconds_per_layer\n", "0 points of prefill"),
        (GOOD.replace("decode,4,2\n", ""), "1 points of decode"),
        (GOOD + "prefill,1\n", "line 6: 2 columns"),
        (GOOD + "prefil,1,1\n", "line 6, phase: 'prefil'"),
        (GOOD + "prefill,x,1\n", "line 6, batch: 'x'"),
        (GOOD + "prefill,3,nan\n", "line 6, seconds_per_layer: 'nan'"),
        (GOOD + "prefill,3,-1\n", "line 6, seconds_per_layer"),
        (GOOD + "prefill,1_0,1\n", "line 6, batch"),
        (GOOD + "prefill,3,inf\n", "line 6, seconds_per_layer: 'inf' is not between"),
        (GOOD + "prefill,3,1e-320\n", "line 6, seconds_per_layer: '1e-320' is not between"),
        (GOOD + "decode,1e10,1\n", "line 6, batch: '1e10' is not between"),
        (GOOD + "decode,0,1\n", "line 6, batch: '0' is not a positive"),
        (GOOD + "prefill,1,1\n", "line 6, batch: 1 is given twice"),
        (GOOD + '"\n', "line 6"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_column(text: str, says: str) -> None:
    with pytest.raises(TableError, match=says):
        parse_tables(text, "text")


@given(st.text(max_size=200), st.integers(0, len(GOOD)))
def test_any_text_is_read_or_refused(junk: str, at: int) -> None:
    for text in (junk, GOOD[:at] + junk + GOOD[at:]):
        try:
            times = parse_tables(text, "text")
        except ConfigError:
            continue
        assert parse_tables(show_tables(times), "text") == times


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read"):
        read_tables(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(TableError, match="UTF-8"):
        read_tables(tmp_path / "binary.csv")
    (tmp_path / "large.csv").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(TableError, match="larger than 1048576 bytes"):
        read_tables(tmp_path / "large.csv")
    for not_a_file in (tmp_path, Path("/dev/null"), Path("a\0b")):
        with pytest.raises(TableError, match="cannot be read"):
            read_tables(not_a_file)


def test_too_many_points_are_refused() -> None:
    rows = "".join(f"prefill,{n},1\n" for n in range(1, MAX_POINTS + 2))
    with pytest.raises(TableError, match=f"line {MAX_POINTS + 2}: more than {MAX_POINTS} points"):
        parse_tables("phase,batch,seconds_per_layer\n" + rows, "text")


def test_a_byte_order_mark_before_the_header_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_tables(tmp_path / "t.csv") == parse_tables(GOOD, "text")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        for data in (content, GOOD.encode() + content):
            path.write_bytes(data)
            try:
                times = read_tables(path)
            except ConfigError:
                continue
            write_tables(path, times)
            assert read_tables(path) == times


def test_times_that_would_not_read_back_are_not_written(tmp_path: Path) -> None:
    fine = ((1.0, 1.0), (2.0, 2.0))
    for points in (((0.0, 0.0), (2.0, 1.0)), ((1.0, 0.0), (2.0, 1.0)), ((1.0, 1.0), (1e12, 2.0))):
        with pytest.raises(TableError, match="line"):
            write_tables(tmp_path / "t.csv", StepTimes(prefill=fine, decode=points))
    assert not (tmp_path / "t.csv").exists()
    for path in (tmp_path / "no" / "t.csv", Path("a\0b")):
        with pytest.raises(TableError, match="cannot be written"):
            write_tables(path, StepTimes(prefill=fine, decode=fine))
