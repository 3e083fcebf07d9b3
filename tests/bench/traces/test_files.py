"""Readers of trace files: what they take, and that a bad row is named by line and column."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.traces import sharegpt
from bench.traces.azure import read_azure
from bench.traces.reference import has_arrivals, read_arrivals, read_counts, read_lengths
from bench.traces.rows import MAX_LINE, TraceError
from bench.traces.sharegpt import estimate_tokens, read_sharegpt
from bench.traces.types import MAX_TOKENS, Arrival, Lengths
from helix_mq.errors import ConfigError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
FIRST = "2023-11-16 18:17:03.9799600,4808,10\n"


def write(folder: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lengths_and_arrivals_are_checked() -> None:
    for bad in (0, -1, MAX_TOKENS + 1, True, 1.5):
        with pytest.raises(ConfigError) as caught:
            Lengths(1, bad)  # type: ignore[arg-type]
        assert caught.value.param == "output_tokens"
    for bad_time in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="at_s"):
            Arrival(bad_time, Lengths(1, 1))


def test_azure_of_2023(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + FIRST + "2023-11-16 18:17:04.0319600,3180,8\n")
    assert list(read_azure(path)) == [
        Arrival(0.0, Lengths(4808, 10)),
        Arrival(0.052, Lengths(3180, 8)),
    ]


def test_azure_of_2024_with_offsets_and_times_without_a_fraction(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.500000+00:00,2162,5\r\n2024-05-10 00:01:00+00:00,7,9\r\n"
    path = write(tmp_path, b"\xef\xbb\xbf" + HEADER.encode() + rows.encode())
    assert [a.at_s for a in read_azure(path)] == [0.0, 59.5]


def test_azure_leaves_out_empty_requests_and_straightens_small_disorder(tmp_path: Path) -> None:
    rows = [
        "2024-05-10 00:00:05+00:00,5,5",
        "2024-05-10 00:00:04+00:00,6,6",
        "2024-05-10 00:00:06+00:00,7,0",
        "",
        "2024-05-10 00:00:08+00:00,8,8",
    ]
    path = write(tmp_path, HEADER + "\n".join(rows))
    found = [(a.at_s, a.lengths.prompt_tokens) for a in read_azure(path)]
    assert found == [(0.0, 5), (0.0, 6), (3.0, 8)]


def test_gzip_and_columns_in_any_order(tmp_path: Path) -> None:
    text = "GeneratedTokens,Region,TIMESTAMP,ContextTokens\n10,eu,2023-11-16 18:17:03,20\n"
    path = write(tmp_path, gzip.compress(text.encode()), "trace.csv.gz")
    assert list(read_azure(path)) == [Arrival(0.0, Lengths(20, 10))]


@pytest.mark.parametrize(
    ("rows", "line", "column", "said"),
    [
        ("yesterday,1,1\n", 2, 1, "TIMESTAMP 'yesterday' is not an ISO time"),
        (FIRST + "2023-11-16 18:17:04,-5,1\n", 3, 2, "ContextTokens '-5' is not a whole number"),
        (FIRST + "\n2023-11-16 18:17:04,5,1_0\n", 4, 3, "GeneratedTokens '1_0'"),
        ("2023-11-16 18:17:04,5,٣\n", 2, 3, "GeneratedTokens"),
        ("2023-11-16 18:17:04,99999999999999999999,3\n", 2, 2, "ContextTokens"),
        ("2023-11-16 18:17:04,5\n", 2, 3, "2 cells where 3 are named"),
        ("2023-11-16 18:17:04,5,5,5\n", 2, 4, "4 cells where 3 are named"),
        (FIRST + "2022-11-16 18:17:04,5,5\n", 3, 1, "far before the row above"),
        ("x" * (MAX_LINE + 1), 2, 0, "longer than 4096 characters"),
    ],
)
def test_bad_azure_rows(tmp_path: Path, rows: str, line: int, column: int, said: str) -> None:
    path = write(tmp_path, HEADER + rows)
    with pytest.raises(TraceError) as caught:
        list(read_azure(path))
    assert (caught.value.line, caught.value.column) == (line, column)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_files_columns_and_broken_gzip(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        list(read_azure(tmp_path / "none.csv"))
    with pytest.raises(TraceError, match="no column TIMESTAMP; the first line reads 'a,b'"):
        list(read_azure(write(tmp_path, "a,b\n1,2\n")))
    whole = gzip.compress((HEADER + FIRST * 1000).encode())
    for damaged in (whole[: len(whole) // 2], b"\x1f\x8b" + b"\xff" * 30, b"plain"):
        with pytest.raises(TraceError, match="cannot be read"):
            list(read_azure(write(tmp_path, damaged, "trace.csv.gz")))


def test_reference_files(tmp_path: Path) -> None:
    lengths = write(tmp_path, "input_tokens,output_tokens\n374,44\n396,109\n", "a.csv")
    online = write(
        tmp_path, "arrival_s_after_start,input_tokens,output_tokens\n1.25,405,103\n", "b.csv"
    )
    counts = write(tmp_path, "requests_in_3s_bin\n8\n0\n", "c.csv")
    assert list(read_lengths(lengths)) == [Lengths(374, 44), Lengths(396, 109)]
    assert list(read_arrivals(online)) == [Arrival(1.25, Lengths(405, 103))]
    assert list(read_counts(counts)) == [8, 0]
    assert [has_arrivals(path) for path in (lengths, online)] == [False, True]
    with pytest.raises(TraceError, match="arrivals=bins"):
        has_arrivals(counts)


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        ("1.0,0,5", 2, "input_tokens is 0"),
        ("1.0,5,0", 3, "output_tokens is 0"),
        ("nan,5,5", 1, "arrival_s_after_start 'nan'"),
        ("0.1,5,5", 1, "before the row above"),
    ],
)
def test_bad_reference_rows(tmp_path: Path, row: str, column: int, said: str) -> None:
    text = f"arrival_s_after_start,input_tokens,output_tokens\n0.5,1,1\n{row}\n"
    with pytest.raises(TraceError, match=said) as caught:
        list(read_arrivals(write(tmp_path, text)))
    assert (caught.value.line, caught.value.column) == (3, column)


CONVERSATIONS = [
    {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "x" * 40},
            {"from": "gpt", "value": "é" * 8},
            {"from": "human", "value": "y" * 4},
            {"from": "gpt", "value": "z" * 20},
        ],
    },
    {"id": "b", "conversations": [{"from": "gpt", "value": "begins with an answer"}]},
    {"id": "c", "conversations": []},
    {
        "id": "d",
        "conversations": [
            {"from": "human", "value": ""},
            {"from": "gpt", "value": "nothing asked"},
        ],
    },
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_sharegpt(
    tmp_path: Path, indent: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharegpt, "_CHUNK", chunk)
    path = write(tmp_path, json.dumps(CONVERSATIONS, indent=indent), "sharegpt.json")
    assert list(read_sharegpt(path)) == [Lengths(10, 2)]
    assert list(read_sharegpt(path, len)) == [Lengths(40, 8)]
    # The second answer's prompt is all that was said before it.
    assert list(read_sharegpt(path, len, all_turns=True)) == [Lengths(40, 8), Lengths(52, 20)]


def test_estimate_rounds_up() -> None:
    assert [estimate_tokens("x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ('{"a": 1}', 1, 1, "a JSON array begins"),
        ("", 1, 1, "a JSON array begins"),
        ('[\n {"conversations": 3}]', 2, 2, "without a list"),
        ('[{"conversations": []},\n\n  7]', 3, 3, "without a list"),
        ('[{"conversations": [{"from": "human"}]}]', 1, 2, "`from` and `value`"),
        ('[{"conversations": []} {"conversations": []}]', 1, 24, "where ',' or ']'"),
        ('[{"conversations": []},\n {"conversations": [}]', 2, 21, "Expecting value"),
        ('[{"conversations": []}', 1, 23, "where ',' or ']'"),
        ('[{"conversations": [', 1, 21, "Expecting value"),
        ('[{"conversations": []}] x', 1, 25, "after the end"),
        ("[" + "[" * 100_000, 1, 2, "nested too deeply"),
        ("[" + "1" * 5000 + "]", 1, 2, "too many digits"),
    ],
)
@pytest.mark.parametrize("chunk", [5, 1 << 18])
def test_bad_sharegpt(
    tmp_path: Path,
    text: str,
    line: int,
    column: int,
    said: str,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharegpt, "_CHUNK", chunk)
    with pytest.raises(TraceError, match=said) as caught:
        list(read_sharegpt(write(tmp_path, text, "s.json")))
    assert (caught.value.line, caught.value.column) == (line, column)


def test_sharegpt_item_without_end_is_not_read_to_the_file_s_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharegpt, "_CHUNK", 64)
    monkeypatch.setattr(sharegpt, "MAX_ITEM", 1000)
    path = write(tmp_path, '[{"conversations": "' + "x" * 5000, "s.json")
    with pytest.raises(TraceError, match="more than 1000 characters"):
        list(read_sharegpt(path))


@settings(max_examples=150, deadline=None)
@given(
    data=st.one_of(st.binary(max_size=200), st.text("0123456789,.-:+ TGen\n\"'\0é").map(str.encode))
)
def test_any_bytes_give_requests_or_an_error_with_a_place(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name, header in (("f.csv", HEADER.encode()), ("f.csv", b""), ("f.json", b'[{"')):
        path = write(folder, header + data, name)
        for read in (read_azure, read_sharegpt, read_lengths, read_arrivals, read_counts):
            try:
                for _ in itertools.islice(read(path), 1000):  # type: ignore[operator]
                    pass
            except TraceError as e:
                assert str(path) in str(e)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.tuples(st.sampled_from(["human", "gpt"]), st.text(max_size=30)))),
    chunk=st.integers(1, 40),
    ascii_only=st.booleans(),
)
def test_sharegpt_in_chunks_is_what_json_reads(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[list[tuple[str, str]]],
    chunk: int,
    ascii_only: bool,
) -> None:
    items = [{"conversations": [{"from": w, "value": v} for w, v in turns]} for turns in texts]
    path = tmp_path_factory.getbasetemp() / "chunks.json"
    path.write_text(
        json.dumps(items, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass"
    )
    expected = [
        Lengths(len(t[0][1]), len(t[1][1]))
        for t in texts
        if len(t) > 1 and (t[0][0], t[1][0]) == ("human", "gpt") and t[0][1] and t[1][1]
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharegpt, "_CHUNK", chunk)
        assert list(read_sharegpt(path, len)) == expected
