"""The log's three forms, and that nobody's text can add a line to it."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq import logs
from helix_mq.errors import ConfigError
from helix_mq.settings import LogSection, ProcessSettings, load

FORMS = [
    logs.TextFormatter(),
    logs.TextFormatter(journal=True),
    logs.JsonFormatter({"node": "alpha"}),
]
FOREIGN = st.text(st.characters(), max_size=200) | st.text(
    "\n\r\x85\u2028<3>\x1b \u202e", max_size=60
)

TURNING = {"LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def record(text: str, *, fault: BaseException | None = None, **about: object) -> logging.LogRecord:
    info = (type(fault), fault, fault.__traceback__) if fault is not None else None
    made = logging.LogRecord("router.app", logging.INFO, "", 1, "joined: %s", (text,), info)
    vars(made).update(about)
    return made


def raised(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as e:
        return e


@given(FOREIGN, FOREIGN)
def test_no_text_makes_a_second_line(text: str, node: str) -> None:
    for form in FORMS:
        line = form.format(record(text, node=node, request=0x1F))
        assert len(line.splitlines()) == 1
        assert not {unicodedata.category(c) for c in line} & {"Cc", "Cs", "Zl", "Zp"}
        assert not {unicodedata.bidirectional(c) for c in line} & TURNING
        assert len(line.encode()) < 40_000


@given(FOREIGN)
def test_the_text_of_an_exception_looks_like_no_event(text: str) -> None:
    fault = raised(text)
    plain, journal, as_json = (f.format(record("x", fault=fault)).splitlines() for f in FORMS)
    assert all(line.startswith("  | ") for line in plain[1:])
    assert all(line.startswith("<6>  | ") for line in journal[1:])
    (line,) = as_json
    assert json.loads(line)["traceback"].startswith("Traceback")


@given(FOREIGN)
def test_json_gives_back_what_one_line_wrote(text: str) -> None:
    event = json.loads(FORMS[2].format(record(text)))
    assert event["message"] == logs.one_line("joined: " + text)


def test_a_forged_event_is_written_out() -> None:
    told = "cpu\n12:00:00.000 ERROR router: forged\x1b[2J\u2028\x9b31m \u00e9 \u4e2d"
    line, *trace = FORMS[0].format(record(told, fault=raised("our own"))).split("\n")
    assert line.endswith(
        r"INFO    router.app: joined: cpu\x0a12:00:00.000 ERROR router: forged\x1b[2J\u2028\x9b31m"
        " \u00e9 \u4e2d"
    )
    assert trace[-1] == "  | ValueError: our own"


def test_what_an_event_is_about() -> None:
    about: dict[str, Any] = {"node": "beta", "request": 0xABC}
    assert FORMS[1].format(record("x", **about)) == "<6>router.app: beta: request abc: joined: x"
    event = json.loads(FORMS[2].format(record("x", **about)))
    assert (event["node"], event["request"], event["level"]) == ("beta", "abc", "info")
    assert event["logger"] == "router.app"
    assert event["ts"].endswith("+00:00")
    quiet = json.loads(FORMS[2].format(record("x", node="", request=0)))
    assert quiet["node"] == "alpha"
    assert "request" not in quiet
    many = json.loads(FORMS[2].format(record("x", request=range(1, 12))))
    assert many["request"] == "1,2,3,4,5,6,7,8,+3"


def test_long_texts_stay_below_what_journald_cuts() -> None:
    fault = raised("\U0001f600" * 900)
    for form in FORMS:
        for line in form.format(record("\U0001f600" * 100_000, fault=fault)).splitlines():
            assert len(line.encode()) < 48 * 1024


@pytest.mark.parametrize(
    ("level", "number"), [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 2)]
)
def test_priorities_are_syslogs(level: str, number: int) -> None:
    made = record("x")
    made.levelno = getattr(logging, level)
    assert FORMS[1].format(made).startswith(f"<{number}>")


def test_the_journal_is_recognised_by_its_pipe_alone(tmp_path: Path) -> None:
    with (tmp_path / "pipe").open("w") as out:
        found = os.fstat(out.fileno())
        mine = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert logs.journald_reads(mine, out)
        for other in ("", "1:2", f"{found.st_dev}", "a:b", f"{found.st_dev}:{found.st_ino}x"):
            assert not logs.journald_reads({"JOURNAL_STREAM": other}, out)
        assert not logs.journald_reads({}, out)
        assert not logs.journald_reads(mine, io.StringIO())


def test_a_process_logs_as_its_settings_say(tmp_path: Path) -> None:
    """In a process of its own: logging is set for the whole of one."""
    config = tmp_path / "x.toml"
    config.write_text(
        '[log]\nlevel = "warning"\nformat = "json"\nlevels = {"nodes.worker" = "debug"}\n'
    )
    code = (
        "import logging, pathlib, sys\n"
        "from helix_mq.settings import ProcessSettings, load\n"
        "load(ProcessSettings, pathlib.Path(sys.argv[1])).start_logging(node='alpha')\n"
        "logging.getLogger('nodes.slices').info('not this')\n"
        "logging.getLogger('nodes.worker').debug('this', extra={'request': 31})\n"
        "logging.getLogger('nodes.slices').error('and this')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(config)], capture_output=True, text=True, check=True
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(e["message"], e["node"], e.get("request")) for e in events] == [
        ("this", "alpha", "1f"),
        ("and this", "alpha", None),
    ]


@pytest.mark.parametrize(
    ("fault", "status", "lines"),
    [
        (
            "ConfigError('the router rejects this node: \\n<0>forged')",
            2,
            [r"<3>helix_mq.process: the router rejects this node: \x0a<0>forged"],
        ),
        (
            "ZeroDivisionError('\\n<0>forged')",
            1,
            [
                "<2>helix_mq.process: ended by a fault of its own",
                "<2>  | Traceback (most recent call last):",
                "<2>  | ZeroDivisionError: ",
                "<2>  | <0>forged",
            ],
        ),
    ],
)
def test_what_ends_a_process_is_an_event_too(fault: str, status: int, lines: list[str]) -> None:
    code = (
        "from helix_mq import logs, process\n"
        "from helix_mq.errors import ConfigError\n"
        "async def main(stop):\n"
        f"    raise {fault}\n"
        "logs.configure(form='journal')\n"
        "process.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    said = [line for line in done.stderr.splitlines() if not line.startswith("<2>  |   ")]
    assert said == lines


def test_a_wrong_level_is_refused_by_name(tmp_path: Path) -> None:
    assert ProcessSettings().log == LogSection()
    config = tmp_path / "x.toml"
    config.write_text('[log]\nlevel = "loud"\n')
    with pytest.raises(ConfigError, match=r"log\.level = 'loud'.*'debug', 'info'"):
        load(ProcessSettings, config)
