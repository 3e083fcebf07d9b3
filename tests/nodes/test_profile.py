"""Measured step times: what is measured, where it ends, what is kept, what a plan makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from helix_mq.cli import build_app
from helix_mq.errors import CapacityError, ConfigError, ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from nodes import profile_cache
from nodes.kv_cache import KvCache
from nodes.model.slice import ModelSlice
from nodes.profile import (
    DECODE_SIZES,
    LIMIT,
    MEMORY,
    PREFILL_SIZES,
    ROOM,
    TIME,
    Point,
    Profile,
    measure,
)
from nodes.profile_cache import ProfileKey
from nodes.profile_run import ProfileOptions, default_layers, parse_layers, run
from nodes.settings import NodeSettings
from nodes.stepping import Span, Step, Stepper
from solver.tables import parse_tables, read_tables, show_tables
from tests.native_cache import cache_with_kernels

Slice = tuple[ModelSlice, KvCache]
MakeSlice = Callable[..., Slice]


@pytest.fixture
def make_slice(tiny_folder: Path) -> MakeSlice:
    def make(layers: LayerRange = LayerRange(1, 5), pages: int = 4 * 64 * 32) -> Slice:
        model = ModelSlice.load(
            tiny_folder, layers, device=torch.device("cpu"), dtype=torch.float32
        )
        return model, model.new_cache(pages)

    return make


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that take 1 ms and 10 µs more for each token; the numbers of tokens that were run."""
    ran: list[int] = []

    def run_s(step: Step) -> float:
        tokens = sum(row.count for row in step._batch.rows)
        ran.append(tokens)
        return 0.001 + 1e-5 * tokens

    monkeypatch.setattr(Step, "run_s", run_s)
    return ran


@pytest.mark.parametrize("layers", [LayerRange(0, 2), LayerRange(1, 5), LayerRange(4, 6)])
def test_a_real_slice_is_measured_and_its_pages_are_free_again(
    make_slice: MakeSlice, layers: LayerRange
) -> None:
    model, cache = make_slice(layers, len(layers) * 32 * 8)
    seen: list[tuple[str, int]] = []
    profile = measure(model, cache, 870, 1.0, lambda phase, batch: seen.append((phase, batch)))
    assert profile.context_tokens == 511, "the model's limit, less the token that is decoded"
    for name, points, sizes in (
        ("prefill", profile.prefill, PREFILL_SIZES),
        ("decode", profile.decode, DECODE_SIZES),
    ):
        measured = tuple(p.batch for p in points)
        assert measured == sizes[: len(measured)]
        assert [batch for phase, batch in seen if phase == name] == list(measured)
        assert all(0 < p.best_s <= p.median_s and p.repeats >= 3 for p in points)
    assert cache.pool.free_pages == cache.pool.total_pages
    cache.pool.check()
    tables = profile.tables()
    times = parse_tables(show_tables(parse_tables(_csv(profile), "csv")), "again")
    assert (times.prefill, times.decode) == (tables.prefill, tables.decode)


def _csv(profile: Profile) -> str:
    lines = ["phase,batch,seconds_per_layer"]
    lines += [f"prefill,{p.batch},{p.median_s!r}" for p in profile.prefill]
    lines += [f"decode,{p.batch},{p.median_s!r}" for p in profile.decode]
    return "\n".join(lines)


def test_a_point_is_a_steps_whole_time_over_the_layers(
    make_slice: MakeSlice, timed: list[int]
) -> None:
    profile = measure(*make_slice(), 100, 1e6)
    for point in (*profile.prefill, *profile.decode):
        assert point.median_s == pytest.approx((0.001 + 1e-5 * point.batch) / 4)
    assert set(timed) == {p.batch for p in (*profile.prefill, *profile.decode)}


def test_sizes_grow_up_to_what_fits(make_slice: MakeSlice, timed: list[int]) -> None:
    # 100 tokens and the one decoded take 7 pages of each of 4 layers.
    profile = measure(*make_slice(pages=4 * 7 * 33), 100, 1e6)
    assert [p.batch for p in profile.decode] == [1, 2, 4, 8, 16, 32]
    assert profile.decode_end == profile.prefill_end == ROOM
    # Prompts end at the model's limit of 512 tokens: 2,048 tokens are four of 32 pages.
    assert [p.batch for p in profile.prefill] == [1, 16, 32, 64, 128, 256, 512, 1024, 2048]


def test_the_largest_sizes_are_the_limit(make_slice: MakeSlice, timed: list[int]) -> None:
    profile = measure(*make_slice(pages=4 * 1024), 10, 1e6)
    assert profile.prefill[-1].batch == PREFILL_SIZES[-1] == 16_384
    assert profile.decode[-1].batch == DECODE_SIZES[-1] == 1_024
    assert profile.prefill_end == profile.decode_end == LIMIT


def test_without_time_there_are_two_points_of_each(make_slice: MakeSlice) -> None:
    profile = measure(*make_slice(), 100, 1e-6)
    assert [p.batch for p in profile.prefill] == [1, 16]
    assert [p.batch for p in profile.decode] == [1, 2]
    assert profile.prefill_end == profile.decode_end == TIME


def test_little_room_shortens_the_context_and_less_is_refused(make_slice: MakeSlice) -> None:
    profile = measure(*make_slice(pages=4 * 5), 870, 0.1)
    assert profile.context_tokens == 31, "two pages for each of two requests"
    assert [p.batch for p in profile.decode] == [1, 2]
    with pytest.raises(ConfigError, match="room for 16 tokens of layers 1-4"):
        measure(*make_slice(pages=4), 870, 0.1)


def test_a_device_out_of_memory_ends_a_phase(
    make_slice: MakeSlice, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_above(most: int) -> None:
        def run_s(step: Step) -> float:
            if sum(row.count for row in step._batch.rows) > most:
                raise torch.OutOfMemoryError("no room for activations")
            return 0.001

        monkeypatch.setattr(Step, "run_s", run_s)

    model, cache = make_slice()
    full_above(100)
    profile = measure(model, cache, 10, 1e6)
    assert profile.prefill[-1].batch == profile.decode[-1].batch == 64
    assert profile.prefill_end == profile.decode_end == MEMORY
    assert cache.pool.free_pages == cache.pool.total_pages
    full_above(8)
    with pytest.raises(CapacityError, match="prefill: no device memory for a batch of 16"):
        measure(model, cache, 10, 1e6)
    assert cache.pool.free_pages == cache.pool.total_pages


def test_what_decodes_read_is_no_page_of_zeros(make_slice: MakeSlice) -> None:
    model, cache = make_slice()
    stepper = Stepper(model, cache)
    for requests in (1, 3, 2):
        with stepper.step([Span(100, 1)] * requests) as step:
            step.run_s()
            for seq in cache.pool.sequences():
                pages = torch.from_numpy(cache.pool.table(seq)[:, :6].copy()).long()
                for held in (cache.keys[pages], cache.values[pages]):
                    assert (held != 0).float().mean() > 0.99


def test_what_pages_are_filled_with_is_nobody_elses_randomness(make_slice: MakeSlice) -> None:
    """On a GPU others' draws may be part of a graph that is being captured."""
    model, cache = make_slice()
    before = torch.random.get_rng_state()
    with Stepper(model, cache).step([Span(100, 1)]) as step:
        step.run_s()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_default_slice_is_of_the_middle(tiny_folder: Path) -> None:
    config = ModelConfig.from_folder(tiny_folder)
    assert default_layers(config, 4) == LayerRange(1, 5)
    assert default_layers(replace(config, num_layers=2), 4) == LayerRange(0, 2)
    assert default_layers(replace(config, num_layers=3), 4) == LayerRange(1, 2)
    large = replace(config, num_layers=32, hidden_size=4096, intermediate_size=11_008)
    assert default_layers(large, 2) == LayerRange(14, 18)
    # Small layers would stay in a processor's caches from step to step: all but the ends.
    assert default_layers(replace(config, num_layers=32), 4) == LayerRange(1, 31)


@pytest.mark.parametrize("text", ["", "3", "2:2", "3:1", "0:7", "-1:2", "0:9999999", "a:b", "٠:١"])
def test_layers_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no range of this model's 6 layers"):
        parse_layers(text, 6)


KEY = ProfileKey("d" * 32, "float32", "cpu", 1, "gather", "2.6", 1, 4, 870, 0)
POINTS = (Point(1, 0.5, 0.25, 3), Point(2, 0.75, 0.5, 3))


def test_a_kept_profile_is_found_by_everything_it_depends_on(tmp_path: Path) -> None:
    profile = Profile(870, POINTS, POINTS, LIMIT, ROOM, 0.5)
    assert profile_cache.find(tmp_path, KEY, 60) is None
    profile_cache.keep(tmp_path, KEY, profile, 60)
    assert profile_cache.find(tmp_path, KEY, 1e4) == profile
    for other in (
        replace(KEY, model_digest="e" * 32),
        replace(KEY, dtype="bfloat16"),
        replace(KEY, device="another"),
        replace(KEY, attention="flash_attn_2"),
        replace(KEY, torch_version="2.7"),
        replace(KEY, num_layers=5),
        replace(KEY, context_tokens=100),
    ):
        assert profile_cache.find(tmp_path, other, 60) is None


def test_a_profile_cut_short_serves_no_longer_run(tmp_path: Path) -> None:
    profile = Profile(870, POINTS, POINTS, LIMIT, TIME)
    profile_cache.keep(tmp_path, KEY, profile, 60)
    assert profile_cache.find(tmp_path, KEY, 60) == profile
    assert profile_cache.find(tmp_path, KEY, 61) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"{}", b"{" * 100_000, b'{"max_seconds": -1}', b"x" * 1_000_000],
)
def test_a_damaged_file_is_passed_over(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    profile_cache.keep(tmp_path, KEY, Profile(870, POINTS, POINTS, LIMIT, LIMIT), 60)
    (path,) = (tmp_path / profile_cache.FOLDER).iterdir()
    path.write_bytes(content)
    assert profile_cache.find(tmp_path, KEY, 60) is None
    assert "passed over" in caplog.text


def test_where_nothing_can_be_kept_there_is_a_warning_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    profile_cache.keep(tmp_path / "file", KEY, Profile(870, POINTS, POINTS, LIMIT, LIMIT), 60)
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("fields", "options", "error", "says"),
    [
        ({"model": Path("/none")}, {}, ModelFormatError, "no such model"),
        ({}, {"layers": "0:7"}, ConfigError, "--layers '0:7'"),
        ({}, {"out": Path("/none/x.csv")}, ConfigError, "there is no folder /none"),
        ({}, {"max_seconds": float("nan")}, ConfigError, "--max-seconds nan must be positive"),
        ({}, {"out": Path("/")}, ConfigError, "cannot be written"),
        ({"attention": "flash_attn"}, {}, ConfigError, "does not run on cpu"),
        ({"memory": 1}, {}, ConfigError, "nothing is left for KV cache"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    tiny_folder: Path,
    fields: dict[str, object],
    options: dict[str, object],
    error: type[Exception],
    says: str,
) -> None:
    settings = NodeSettings.model_validate(
        {"name": "profile", "model": tiny_folder, "device": "cpu", "threads": 1, **fields}
    )
    asked = replace(ProfileOptions(None, None, 1.0, None, fresh=True), **options)
    with pytest.raises(error, match=says):
        run(settings, asked, as_json=True)


@pytest.mark.parametrize("busy_percent", [5.0, 95.0])
def test_other_load_is_told(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_percent: float
) -> None:
    monkeypatch.setenv("HELIX_MQ_CACHE", cache_with_kernels(tmp_path))
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: busy_percent)
    settings = NodeSettings(name="profile", model=tiny_folder, device="cpu", threads=1)
    text = run(settings, ProfileOptions(None, None, 0.01, None, fresh=False), as_json=False)
    assert ("other programs used 95% of the processors" in text) == (busy_percent > 20)
    assert "layers 1-4\n" in text
    again = run(settings, ProfileOptions(None, None, 0.01, None, fresh=False), as_json=False)
    assert again == text.replace(
        "layers 1-4\n", "layers 1-4, kept from an earlier run (--fresh measures anew)\n"
    )


def helix(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "helix_mq", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
        env=os.environ
        | {"HELIX_MQ_CACHE": cache_with_kernels(folder / "cache"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cluster_is_planned_with_what_was_measured(tiny_folder: Path, tmp_path: Path) -> None:
    command = ("profile", str(tiny_folder), "--device", "cpu", "--threads", "1", "--json")
    command += ("--max-seconds", "1", "--context", "100", "--out", "x.csv")
    first = json.loads(helix(tmp_path, *command))
    assert first["from_cache"] is False
    assert (first["layers"], first["has_embedding"], first["has_head"]) == ([1, 5], False, False)
    times = read_tables(tmp_path / "x.csv")
    for phase, points in (("prefill", times.prefill), ("decode", times.decode)):
        assert points == tuple((p["batch"], p["median_s"]) for p in first[phase])
    (tmp_path / "x.csv").unlink()
    assert json.loads(helix(tmp_path, *command)) == first | {"from_cache": True}
    assert read_tables(tmp_path / "x.csv") == times

    def planned(tables: str) -> float:
        nodes = "".join(
            f'[[nodes]]\nname = "{name}"\ntype = "cpu"\nregion = "here"\ntables = "{tables}"\n'
            for name in ("a", "b")
        )
        cluster = tmp_path / "cluster.toml"
        cluster.write_text(f'name = "two"\nrouter = "here"\n{nodes}')
        command = ["plan", str(cluster), "--model", str(tiny_folder), "--json"]
        done = CliRunner().invoke(build_app(), command)
        assert done.exit_code == 0, done.output
        plan = json.loads(done.stdout)
        held = [first + n for first, end in plan["placement"].values() for n in range(end - first)]
        assert set(held) == set(range(6))
        return float(plan["objective_tokens_per_s"])

    slower = "".join(
        f"{row},{float(seconds) * 10!r}\n"
        for row, _, seconds in (
            line.rpartition(",") for line in (tmp_path / "x.csv").read_text().split()[1:]
        )
    )
    (tmp_path / "slow.csv").write_text(f"phase,batch,seconds_per_layer\n{slower}")
    fast = planned("x.csv")
    assert fast > 0
    assert planned("slow.csv") < fast, "the plan goes by what was measured"
