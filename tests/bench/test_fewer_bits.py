"""The measurements of narrower weights and activations, on a tiny model."""

from __future__ import annotations

from pathlib import Path

from bench import quantised, wire_formats


def test_every_form_of_weights_is_measured(tiny_folder: Path) -> None:
    rows = {row["form"]: row for row in quantised.measure(tiny_folder, 1)}
    assert set(rows) == {form.name for form in quantised.FORMS}
    assert rows["float32"]["kl"] == 0.0
    assert rows["int8"]["kl"] < rows["int4"]["kl"]  # type: ignore[operator]
    assert rows["int4"]["weight_bytes"] < rows["int8"]["weight_bytes"]  # type: ignore[operator]
    assert all(float(str(row["decode_8_tokens_per_s"])) > 0 for row in rows.values())


def test_every_form_of_rows_is_measured(tiny_folder: Path) -> None:
    rows = wire_formats.measure(tiny_folder, 1)
    assert [row["bytes_per_token"] for row in rows] == [256, 128, 128, 68]
    kl = [float(str(row["kl"])) for row in rows]
    assert kl[0] == 0.0
    assert 0 <= kl[2] < kl[1] < kl[3]
