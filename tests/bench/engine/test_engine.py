"""bench engine: its figures, its prompts, and two programs measured on a tiny model."""

from __future__ import annotations

import json
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.chaos.tiny_model import write_tiny_model
from bench.engine.figures import decode_ratio, figures, ratio, roofline, same_answers, step_bytes
from bench.engine.loop_lag import hashing, in_a_thread, lags_of, measured, quantiles_ms
from bench.engine.options import job_of, systems_of
from bench.engine.peer import Peer, PeerFailed
from bench.engine.peers import with_helix
from bench.engine.prompts import prompts_of
from bench.engine.report import body_of, table_of
from bench.engine.run import Measured
from bench.engine.types import Case, System, Times
from helix_mq.cli import build_app
from helix_mq.clock import SystemClock
from helix_mq.models.config import ModelConfig
from nodes.device import DeviceThread

CASE = Case(batch=4, context=100, new_tokens=11)


def times(first_s: float, total_s: float, token: int = 0, peak_bytes: int = 1) -> Times:
    return Times(first_s, total_s, peak_bytes, tuple((i + token,) for i in range(4)))


def test_figures_are_medians_and_prefill_is_apart() -> None:
    rounds = [times(1.0, 3.0), times(1.0, 2.0, peak_bytes=7), times(4.0, 9.0)]
    found = figures(CASE, rounds)
    assert found.tokens_per_s == 44 / 3.0
    assert found.step_s == pytest.approx(0.2)
    assert found.decode_tokens_per_s == pytest.approx(4 / 0.2)
    assert found.prefill_tokens_per_s == 400 / 1.0
    assert found.peak_bytes == 7


def test_where_prompts_took_all_the_time_nothing_is_said_of_decodes() -> None:
    rounds, others = [times(3.0, 2.9)], [times(1.0, 3.0)]
    found = figures(CASE, rounds)
    assert (found.step_s, found.decode_tokens_per_s) == (None, None)
    assert found.tokens_per_s == 44 / 2.9
    assert decode_ratio(rounds, others) is None
    assert decode_ratio(others, rounds) is None
    assert decode_ratio(others, [times(1.0, 5.0)]) == 2.0
    system = System("helix_mq", "with_helix", "float32", Path("python"))
    measured = Measured({"helix_mq": {CASE: rounds}}, {}, {})
    table = table_of(measured, [system], [CASE])
    assert " ? " in table
    assert "--new-tokens" in table


def test_ratios_compare_rounds_of_one_number() -> None:
    ours, theirs = [times(0, 1.0), times(0, 10.0)], [times(0, 3.0), times(0, 20.0)]
    assert ratio(ours, theirs) == 2.5
    with pytest.raises(ValueError, match="argument 2"):
        ratio(ours, theirs[:1])
    assert same_answers(times(0, 1), times(0, 1)) == 1.0
    mixed = Times(0, 1, 1, ((0,), (1,), (5,), (6,)))
    assert same_answers(times(0, 1), mixed) == 0.5


def test_a_step_reads_weights_once_and_the_keys_and_values_of_each(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(write_tiny_model(tmp_path / "model"))
    one, four = (step_bytes(config, Case(n, 100, 11), 2) for n in (1, 4))
    kept = config.num_layers * config.kv_bytes_per_token_per_layer(2)
    assert four - one == 3 * 105 * kept
    weights = config.slice_weight_bytes(config.all_layers, 2)
    embedding = 0 if config.tie_embeddings else config.embed_bytes(2)
    assert one == weights - embedding + 105 * kept
    assert roofline(config, CASE, 2, 0.5, four / 0.5) == 1.0


def test_systems_whose_decodes_were_measured_have_their_share_of_the_roof(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(write_tiny_model(tmp_path / "model"))
    systems = [
        System(f"{name} {dtype}", "with_helix", dtype, Path("python"))
        for name, dtype in (
            ("helix_mq", "float32"),
            ("helix_mq", "gguf"),
            ("transformers", "float32"),
        )
    ]
    rounds = ([times(1.0, 3.0)], [times(1.0, 3.0)], [times(3.0, 2.9)])
    of_case = {s.name: {CASE: r} for s, r in zip(systems, rounds, strict=True)}
    measured = Measured(of_case, {}, {})
    [found] = body_of(measured, systems, [CASE], config, 1e9)["cases"]  # type: ignore[misc,attr-defined]
    shares = {name: row.get("roofline") for name, row in found["systems"].items()}
    wanted = step_bytes(config, CASE, 4) / 0.2 / 1e9
    assert shares["helix_mq float32"] == pytest.approx(wanted)
    assert shares["helix_mq gguf"] is None, "nobody knows its bytes"
    assert shares["transformers float32"] is None, "nobody knows its time"
    [unknown] = body_of(measured, systems, [CASE], config, None)["cases"]  # type: ignore[misc,attr-defined]
    assert not any("roofline" in row for row in unknown["systems"].values())


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    job = job_of(write_tiny_model(tmp_path / "model"), [CASE], "cpu", 1)
    pythons = {"transformers": None, "llama-cpp": Path(sys.executable), "vllm": None}
    systems, missing = systems_of(["float32"], ["llama-cpp", "vllm"], pythons, job)
    assert [s.name for s in systems] == ["helix_mq float32"]
    assert "--python-vllm" in missing["vllm"]
    assert "GGUF" in missing["llama-cpp"]
    absent = System("llama-cpp", "with_llama_cpp", "gguf", Path(sys.executable))
    with pytest.raises(PeerFailed, match="No module named 'llama_cpp'"):
        Peer(absent, job, tmp_path / "log")


async def test_a_loop_that_is_held_up_shows() -> None:
    stop = threading.Event()

    def hold() -> None:
        # One call keeps the interpreter's lock to its end.
        sum(range(10_000_000))
        stop.set()

    found = await lags_of(partial(in_a_thread, hold))
    assert stop.is_set()
    assert max(found.held_s) > 0.002
    assert all(held <= late for held, late in zip(found.held_s, found.late_s, strict=True))
    quantiles = quantiles_ms([0.001, 0.002, 0.003, 0.004])
    assert quantiles == {"p50": 3.0, "p99": 4.0, "p999": 4.0, "max": 4.0}


def test_a_loop_beside_a_thread_that_hashes_is_measured_all_the_while() -> None:
    found = measured(partial(in_a_thread, partial(hashing, 0.1)))
    assert found["seconds"] >= 0.1
    assert found["wakes"] > 1
    lag_ms, held_ms = found["lag_ms"], found["held_ms"]
    assert held_ms.keys() == lag_ms.keys() == {"p50", "p99", "p999", "max"}


def test_two_programs_give_the_same_answers(tmp_path: Path) -> None:
    folder, out = write_tiny_model(tmp_path / "model"), tmp_path / "result.json"
    command = ["bench", "engine", "--model", str(folder), "--batches", "2", "--contexts", "20"]
    command += ["--new-tokens", "6", "--rounds", "1", "--threads", "1", "--dtype", "float32"]
    result = CliRunner().invoke(build_app(), [*command, "--bandwidth", "20", "--out", str(out)])
    assert result.exit_code == 0, result.output
    body = json.loads(out.read_text("utf-8"))
    assert body["missing"] == {}
    [case] = body["cases"]
    [compared] = case["ours_over_theirs"].values()
    assert compared["same_answers"] == 1.0
    assert compared["ratio"] > 0
    assert case["systems"].keys() == {"helix_mq float32", "transformers float32"}
    for row in case["systems"].values():
        # On some machines the prompts of so small a model take all the time of six tokens.
        measured = row["decode_tokens_per_s"] is not None
        assert ("roofline" in row) == measured
        assert not measured or row["roofline"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batches", "0"], "--batches '0' is no list"),
        (["--dtype", "int3"], "--dtype 'int3' is unknown"),
        (["--beside", "x"], "--beside 'x' is unknown"),
        (["--bandwidth", "0"], "must be positive"),
    ],
)
def test_bad_options_are_refused_in_words(options: list[str], words: str) -> None:
    result = CliRunner().invoke(build_app(), ["bench", "engine", *options])
    assert result.exit_code != 0
    assert words in str(result.output) + str(result.exception)


async def test_an_engine_beside_the_loop_gives_the_same_answers(tmp_path: Path) -> None:
    """By the step loop of a node: prompts on the device thread, decodes begun on this loop."""
    job = job_of(write_tiny_model(tmp_path / "model"), [CASE], "cpu", 2)
    settings = {"folder": str(job.folder), "device": "cpu", "threads": 2, "dtype": "float32"}
    program = with_helix.load({**settings, "batch": job.batch, "context": job.context})
    prompts = prompts_of(job.folder, CASE)
    answers = program.generate(prompts, CASE.new_tokens)
    texts = with_helix.Texts(program, prompts, CASE.new_tokens)
    with DeviceThread(SystemClock()) as device:
        await program.generate_beside(device, texts)
    assert texts.end() == answers
    assert {len(answer) for answer in answers} == {CASE.new_tokens}
    program.engine.check()
    program.engine.close()
