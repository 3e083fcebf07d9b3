"""The planner's and the simulator's benchmarks by name, with options of their own."""

from __future__ import annotations

import pytest

from helix_mq.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["planner", "targets", "--help"], "--time-limit"),
        (["planner", "scale", "--help"], "--sizes"),
        (["planner", "serving", "--help"], "--data"),
        (["planner", "roofline", "--help"], "--data"),
        (["simulator", "speed", "--help"], "--scale"),
        (["simulator", "trucks", "--help"], "--duration"),
        (["simulator", "reference", "--help"], "--all"),
    ],
)
def test_each_explains_its_own_options(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["helix-mq", "bench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("words", [["simulator"], ["simulator", "x"], ["planner", "x"]])
def test_what_there_is_not_is_answered_with_what_there_is(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["helix-mq", "bench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "reference" in said or "heuristics" in said
