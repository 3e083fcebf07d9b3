"""Quantities as people write them: `1 Gbit/s`, `40 ms`, `24 GB`. Always with a unit, never guessed.

Bandwidth is in bits per second, as links are sold; `bytes_per_s` divides by eight. Decimal
prefixes are decimal, binary ones (`GiB`) binary.
"""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/µ]+)\s*", re.ASCII)
_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BITS = {f"{p}bit/s": f for p, f in _PREFIX.items()} | {
    f"{p}bps": f for p, f in _PREFIX.items() if p
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_BYTES = {
    **{f"{p}B": f for p, f in _PREFIX.items()},
    **{f"{p}iB": 1024.0 ** (i + 1) for i, p in enumerate("KMGT")},
}


def _read(text: object, units: dict[str, float], what: str, example: str) -> float:
    match = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in units:
        known = ", ".join(sorted(units, key=lambda u: units[u]))
        raise ValueError(
            f"{text!r:.60} is no {what}: write a number and a unit ({known}), {example}"
        )
    value = float(match[1]) * units[match[2]]
    if not math.isfinite(value):
        raise ValueError(f"{text!r:.60} is too large")
    return value


def bits_per_s(text: object) -> float:
    """`"1 Gbit/s"` -> 1e9. ValueError in words for anything without a unit of bits per second."""
    return _read(text, _BITS, "bandwidth", 'e.g. "1 Gbit/s"')


def seconds(text: object) -> float:
    """`"40 ms"` -> 0.04. ValueError in words."""
    return _read(text, _SECONDS, "time", 'e.g. "40 ms"')


def num_bytes(text: object) -> int:
    """`"24 GB"` -> 24e9, `"24 GiB"` -> 24 * 2^30. ValueError in words."""
    return round(_read(text, _BYTES, "size", 'e.g. "24 GB"'))


def show_bits_per_s(value: float) -> str:
    """The shortest exact spelling that `bits_per_s` reads back."""
    for prefix in ("T", "G", "M", "k"):
        if value >= _PREFIX[prefix]:
            return f"{value / _PREFIX[prefix]:.10g} {prefix}bit/s"
    return f"{value:.10g} bit/s"


def show_seconds(value: float) -> str:
    """As `seconds` reads it."""
    if value >= 1 or value == 0:
        return f"{value:.10g} s"
    return f"{value * 1e3:.10g} ms" if value >= 1e-3 else f"{value * 1e6:.10g} us"


def show_bytes(value: int) -> str:
    """As `num_bytes` reads it."""
    for prefix in ("T", "G", "M", "k"):
        factor = int(_PREFIX[prefix])
        whole, rest = divmod(value, factor)
        if whole and rest % (factor // 1000) == 0:
            digits = f"{whole}.{rest // (factor // 1000):03d}".rstrip("0").rstrip(".")
            return f"{digits} {prefix}B"
    return f"{value} B"
