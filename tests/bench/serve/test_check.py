"""How the check of the load client reads both clients' files. The check itself is run by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.serve.check_figures import Sent, common_window, summary, window_figures
from helix_mq.errors import LocalError


def test_both_clients_are_compared_over_the_time_they_share(tmp_path: Path) -> None:
    ours = {
        "failed": 0,
        "helix_mq": {"started_unix_s": 1000.0},
        "start_times": [0.0, 2.0, 4.0, 6.0],
        "ttfts": [0.5, 0.5, 1.0, 0.5],
        "latencies": [1.5, 1.5, 2.0, 1.5],
        "input_lens": [9, 9, 9, 9],
        "output_lens": [11, 11, 11, 11],
    }
    (tmp_path / "ours").write_text(json.dumps(ours))
    lines = [
        {
            "metadata": {"benchmark_phase": phase, "request_start_ns": int(start_s * 1e9)},
            "metrics": {
                "time_to_first_token": {"value": 700.0},
                "request_latency": {"value": 1700.0},
                "usage_prompt_tokens": {"value": 9},
                "usage_completion_tokens": {"value": 11},
            },
        }
        for phase, start_s in (("warmup", 990), ("profiling", 1001), ("profiling", 1005))
    ]
    (tmp_path / "profile_export.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = Sent.of_ours(tmp_path / "ours"), Sent.of_aiperf(tmp_path)
    assert [r.sent_s for r in second] == [1001.0, 1005.0]
    window = common_window(first, second)
    assert window == (1001.0, 1005.0)
    found = window_figures(first, window)
    # Sent inside: at 2 and 4; ended inside: at 1.5 and 3.5.
    assert found["mean_ttft_ms"] == 750
    assert found["mean_tpot_ms"] == 100
    assert found["request_throughput"] == 0.5
    assert found["output_throughput"] == 5.5
    rounds = [{"ours": found, "aiperf": window_figures(second, window)}] * 3
    ratios = summary(rounds)["ours_over_aiperf"]
    assert isinstance(ratios, dict)
    assert ratios["mean_ttft_ms"] == pytest.approx(750 / 700, abs=1e-4)
    assert ratios["output_throughput"] == 2.0
    with pytest.raises(LocalError, match="never"):
        common_window(first, [r for r in second if r.sent_s > 1004][:1])
    ours["helix_mq"] = {"started_unix_s": 1000.0, "reasons": {"late: x": 1}}
    (tmp_path / "ours").write_text(json.dumps(ours | {"failed": 1}))
    with pytest.raises(LocalError):
        Sent.of_ours(tmp_path / "ours")
