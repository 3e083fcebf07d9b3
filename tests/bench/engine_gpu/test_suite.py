"""The GPU suite's parts, run on a tiny model without a GPU; its figures by hand; what becomes of
the others when one fails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
import typer
from typer.testing import CliRunner

from bench.cli import register
from bench.engine_gpu.__main__ import main
from bench.engine_gpu.cli import _cases, datasheet, lines
from bench.engine_gpu.models import LLAMA_8B, TINY, config_of, random_slice
from bench.engine_gpu.part import Found, Job, run_part
from bench.engine_gpu.parts import PARTS, Place
from bench.engine_gpu.pipeline import tokens_per_s
from bench.engine_gpu.ranks import alone_fault
from bench.engine_gpu.roofline import Ceilings, decode_bytes, floor_s, flops
from bench.engine_gpu.setup import Setup, tiny_setup
from bench.engine_gpu.suite import Suite, check_device, run_job
from helix_mq.errors import ConfigError, LocalError
from helix_mq.layers import LayerRange

CPU = torch.device("cpu")


def _tiny() -> Setup:
    return tiny_setup(CPU, Ceilings(1e9, 1e9))


def test_parity_and_attention_pass_on_a_tiny_model() -> None:
    parity = run_part("parity", _tiny(), print)
    assert parity["passed"], parity
    assert set(parity["ways"]) == {
        "float32, gathered pages",
        "bfloat16, plain_paged",
        "bfloat16, recorded decodes",
    }
    assert parity["ways"]["bfloat16, recorded decodes"]["replays"] > 0
    attention = run_part("attention", _tiny(), print)
    assert attention["backends"]["plain, for trial"]["passed"]


def test_steps_and_transformers_are_measured_on_a_tiny_model() -> None:
    decode = run_part("decode", _tiny(), print)
    assert decode["recordings"]["replays"] > 0
    assert [row["batch"] for row in decode["batches"]] == [1, 3]
    assert all(row["recorded"]["step_ms"] > 0 for row in decode["batches"])
    assert run_part("prefill", _tiny(), print)["prompts"][0]["tokens"] == 24
    assert run_part("transformers", _tiny(), print)["ratio"] > 0


def test_one_rank_alone_sums_spreads_and_collects() -> None:
    assert alone_fault(CPU) == ""


def test_a_part_that_fails_leaves_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Place("bench.engine_gpu.no_such_module", "fails", 1.0)
    monkeypatch.setattr("bench.engine_gpu.part.PARTS", dict(PARTS) | {"transformers": lacking})
    found = run_part("transformers", _tiny(), print)
    assert not found["passed"]
    assert found["reason"].startswith("ModuleNotFoundError: No module named 'bench.engine_gpu.no")
    assert found["seconds"] >= 0


def test_a_part_whose_process_dies_costs_the_others_nothing() -> None:
    jobs: list[Job] = []

    def runs(job: Job, limit_s: float) -> tuple[Found | None, str]:
        jobs.append(job)
        assert 0 < limit_s <= PARTS[job.part].limit_s
        if job.part == "decode":
            return None, "its process was ended by SIGSEGV"
        return Found(Ceilings(2e9, 3e9), {"type": "cpu"}, {"passed": True, "seconds": 1.0}), ""

    suite = Suite("cpu", tiny=True, run=runs)
    said: list[str] = []
    steps = list(suite.through(["decode", "parity", "prefill"], said.append))
    assert [step["left"] for step in steps] == [["parity", "prefill"], ["prefill"], []]
    assert not steps[0]["device"]
    last = steps[-1]
    assert last["parts"]["decode"]["reason"] == "its process was ended by SIGSEGV"
    assert last["parts"]["prefill"]["passed"]
    assert last["device"] == {"type": "cpu"}
    # The device's rates are measured by the first that gets so far.
    assert [job.ceilings for job in jobs] == [None, None, Ceilings(2e9, 3e9)]
    assert said == ["decode: its process was ended by SIGSEGV"]


@pytest.mark.parametrize("how", ["whole", "torn", "nothing"])
def test_what_was_measured_before_a_process_died_is_kept(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    whole = msgspec.json.encode(Found(Ceilings(2e9, 3e9), {"type": "cpu"}, {"passed": True}))

    def dies(command: Sequence[str], limit_s: float) -> str:
        if how != "nothing":
            Path(command[-1]).write_bytes(whole if how == "whole" else whole[:-5])
        return "its process was ended by SIGABRT"

    monkeypatch.setattr("bench.engine_gpu.suite.run_apart", dies)
    found, reason = run_job(Job("decode", "cpu", True, None), 5.0)
    if how != "whole":
        assert (found, reason) == (None, "its process was ended by SIGABRT")
        return
    assert reason == ""
    assert found is not None
    assert found.part == {
        "passed": True,
        "reason": "measured to the end, then its process was ended by SIGABRT",
    }


def test_logits_that_are_no_numbers_are_said_and_not_stumbled_over() -> None:
    off = msgspec.json.decode(msgspec.json.encode(float("nan")))
    ways = {"graphs": {"tokens_equal": 3, "tokens": 9, "logits_off": off}}
    assert _cases("parity", {"ways": ways}) == ["graphs: 3 of 9 tokens, off by what is no number"]
    ranks = {"tokens_equal": 3, "tokens": 9, "logits_off": 0.5}
    assert _cases("ranks", ranks) == ["3 of 9 tokens, off by 5.0e-01"]


def test_when_time_is_up_no_part_begins() -> None:
    def runs(job: Job, limit_s: float) -> tuple[Found | None, str]:
        raise AssertionError(f"{job.part} was begun")

    suite = Suite("cpu", tiny=True, run=runs, limit_s=5.0)
    (only,) = suite.through(["decode"], print)
    assert only["parts"]["decode"]["reason"] == "not begun: 5 s have passed"
    assert any(line.startswith("decode") for line in lines(only))


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="--device cpu is for trials only: add --tiny"):
        main(device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"sees no CUDA device here.*--device cpu --tiny"):
            check_device("cuda", tiny=False)
    assert check_device("cpu", tiny=True) == "cpu"
    with pytest.raises(ConfigError, match="--parts 'decodes' is unknown; use attention, parity"):
        next(Suite("cpu", tiny=True).through(["decodes"], print))


def test_the_least_time_of_a_step() -> None:
    """By hand: a Llama of 8 billion weights in 16 bits, at 4.8 TB/s and 800 TFLOP/s."""
    config = config_of(LLAMA_8B)
    read = decode_bytes(config, 1, 0, 2)
    assert read == pytest.approx(2 * (8.03e9 - 128256 * 4096), rel=1e-3)
    assert decode_bytes(config, 32, 1024, 2) - decode_bytes(config, 32, 0, 2) == 32 * 1024 * 131072
    h200 = Ceilings(4.8e12, 800e12)
    least_s, bound = floor_s(read, flops(config, 1, 1), h200)
    assert bound == "memory"
    assert least_s == pytest.approx(3.13e-3, rel=1e-2)
    assert flops(config, 1, 1) == pytest.approx(2 * 7.5e9, rel=1e-2)
    assert floor_s(read, flops(config, 1000, 1000), h200)[1] == "compute"


def test_a_device_stands_beside_its_datasheet() -> None:
    said = datasheet("NVIDIA H200")
    assert said == {"bytes_per_s": 4.8e12, "flop_per_s": 989.4e12}
    assert datasheet("NVIDIA GeForce 256") == {}
    device = {
        "type": "cuda",
        "name": "NVIDIA H200",
        "torch": "2.11.0",
        "copy_bytes_per_s": 4.3e12,
        "product_flop_per_s": 788e12,
    }
    assert lines({"device": device, "datasheet": said, "parts": {}}) == [
        "NVIDIA H200, torch 2.11.0: copies at 4,300 GB/s, products at 788.0 TFLOP/s",
        "    its datasheet: 4,800 GB/s, 989.4 TFLOP/s",
    ]


def test_slices_have_the_weights_of_the_whole_model() -> None:
    config = config_of(TINY)
    whole = random_slice(config, config.all_layers, CPU, torch.float32)
    part = random_slice(config, LayerRange(2, 4), CPU, torch.float32)
    x = torch.randn(3, config.hidden_size)
    for a, b in zip(whole._weights.layers[2:], part._weights.layers, strict=True):
        assert torch.equal(a.gate_up(x), b.gate_up(x))
    assert whole.weight_bytes == config.slice_weight_bytes(config.all_layers, 4)


def test_tokens_count_while_all_requests_are_at_work() -> None:
    assert tokens_per_s([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]) == pytest.approx(4 / 2)
    with pytest.raises(LocalError, match="not at work at the same time"):
        tokens_per_s([[0.0, 1.0], [2.0, 3.0]])


def test_the_command_line_runs_parts_of_it(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    out = tmp_path / "gpu.json"
    run = CliRunner()
    tiny = ["bench", "engine", "--suite", "gpu", "--device", "cpu", "--tiny"]
    done = run.invoke(app, [*tiny, "--parts", "prefill", "--out", str(out)])
    assert done.exit_code == 0, done.output
    body = json.loads(out.read_text())
    assert list(body["parts"]) == ["prefill"]
    assert body["parts"]["prefill"]["prompts"]
    assert body["device"]["copy_bytes_per_s"] > 0
    assert done.stdout.splitlines() == lines(body)
    wrong = run.invoke(app, ["bench", "engine", "--suite", "tpu"])
    assert isinstance(wrong.exception, ConfigError)
    if not torch.cuda.is_available():
        none = run.invoke(app, ["bench", "engine", "--suite", "gpu"])
        assert "sees no CUDA device here" in str(none.exception)
