"""The GPU suite's parts, run end to end on a tiny model without a GPU; its figures by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from bench.cli import register
from bench.engine_gpu.__main__ import main
from bench.engine_gpu.cli import lines, run_gpu
from bench.engine_gpu.models import LLAMA_8B, TINY, config_of, random_slice
from bench.engine_gpu.pipeline import tokens_per_s
from bench.engine_gpu.roofline import Ceilings, decode_bytes, floor_s, flops
from bench.engine_gpu.setup import tiny_setup
from bench.engine_gpu.suite import PARTS, device_of, run_suite, setup_of
from helix_mq.errors import ConfigError, LocalError
from helix_mq.layers import LayerRange

CPU = torch.device("cpu")


def test_all_parts_but_the_processes_run_on_a_tiny_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    here = [name for name in PARTS if name not in ("pipeline", "ranks")]
    parts = ",".join(here)
    run_gpu(device="cpu", tiny=True, parts=parts, out=out, as_json=False)
    body = json.loads(out.read_text())
    assert body["tiny"] is True
    found = body["parts"]
    assert [name for name in PARTS if name in found] == here
    assert not [p["reason"] for p in found.values() if "reason" in p]
    assert found["parity"]["passed"]
    assert set(found["parity"]["ways"]) == {
        "float32, gathered pages",
        "bfloat16, plain_paged",
        "bfloat16, recorded decodes",
    }
    assert found["parity"]["ways"]["bfloat16, recorded decodes"]["replays"] > 0
    assert found["attention"]["backends"]["plain, for trial"]["passed"]
    assert found["decode"]["recordings"]["replays"] > 0
    assert [row["batch"] for row in found["decode"]["batches"]] == [1, 3]
    assert all(row["recorded"]["step_ms"] > 0 for row in found["decode"]["batches"])
    assert found["transformers"]["ratio"] > 0
    # The file is sorted by name, what is printed goes by the order of the parts.
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(lines(body))


def test_a_part_that_fails_leaves_its_reason_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> dict[str, object]:
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr("bench.engine_gpu.suite.PARTS", dict(PARTS) | {"transformers": fails})
    setup = tiny_setup(CPU, Ceilings(1e9, 1e9))
    said: list[str] = []
    found = run_suite(setup, ["transformers", "prefill"], said.append)["parts"]
    assert not found["transformers"]["passed"]
    assert found["transformers"]["reason"].startswith("ImportError: No module named 'transformers'")
    assert found["prefill"]["prompts"][0]["tokens"] == 24


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="--device cpu is for trials only: add --tiny"):
        main(device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"sees no CUDA device here.*--device cpu --tiny"):
            device_of("cuda")
    with pytest.raises(ConfigError, match="--parts 'decodes' is unknown; use attention, parity"):
        run_suite(setup_of(CPU, tiny=True), ["decodes"], print)


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
    assert list(json.loads(out.read_text())["parts"]) == ["prefill"]
    wrong = run.invoke(app, ["bench", "engine", "--suite", "tpu"])
    assert isinstance(wrong.exception, ConfigError)
    if not torch.cuda.is_available():
        none = run.invoke(app, ["bench", "engine", "--suite", "gpu"])
        assert "sees no CUDA device here" in str(none.exception)
