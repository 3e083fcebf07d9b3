"""A finding: how bad, what was found, what it means, what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check`: what was looked at, a word to count by. `meaning` and `remedy` are empty if ok."""

    check: str
    level: Level
    text: str
    meaning: str = ""
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def warning(check: str, text: str, meaning: str, remedy: str) -> Finding:
    """It works, but not as well or as safely as it could, or could not be looked at."""
    return Finding(check, Level.WARNING, text, meaning, remedy)


def problem(check: str, text: str, meaning: str, remedy: str) -> Finding:
    """It will not work."""
    return Finding(check, Level.PROBLEM, text, meaning, remedy)


def exit_status(findings: Iterable[Finding]) -> int:
    return 1 if any(f.level is Level.PROBLEM for f in findings) else 0


def as_data(findings: Sequence[Finding]) -> dict[str, Any]:
    """For `--json`."""
    return {
        "ok": exit_status(findings) == 0,
        "problems": _count(findings, Level.PROBLEM),
        "warnings": _count(findings, Level.WARNING),
        "findings": [asdict(f) for f in findings],
    }


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """For people: in the order of the checks, and a line to end with."""
    width = max((len(f.check) for f in findings), default=0)
    lines = []
    for f in findings:
        mark = "OK" if f.level is Level.OK else f.level.value
        lines.append(f"{mark:<7}  {f.check:<{width}}  {f.text}")
        indent = " " * (7 + 2 + width + 2)
        if f.meaning:
            lines.append(f"{indent}means: {f.meaning}")
        if f.remedy:
            lines.append(f"{indent}do:    {f.remedy}")
    problems, warnings = _count(findings, Level.PROBLEM), _count(findings, Level.WARNING)
    if problems or warnings:
        lines.append(f"{_of(problems, 'problem')}, {_of(warnings, 'warning')}")
    else:
        lines.append("nothing is wrong")
    return lines


def _count(findings: Iterable[Finding], level: Level) -> int:
    return sum(f.level is level for f in findings)


def _of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
