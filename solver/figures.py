"""Figures in sentences: never rounded to nothing. No units, no sentences."""

from __future__ import annotations


def shown(value: float, decimals: int = 1) -> str:
    """`1289.6`, or `1290` without decimals; what that would round away has two digits: `0.031`."""
    if 0 < abs(value) < 10.0 ** (1 - decimals):
        return f"{value:.2g}"
    return f"{value:.{decimals}f}"


def grouped(value: float, decimals: int = 0) -> str:
    """With commas: `1,290`; small ones as `shown`."""
    return shown(value, decimals) if abs(value) < 10 else f"{value:,.{decimals}f}"


def percent(share: float) -> str:
    """`16.6%`; from a hundredfold on only its size: `5.8e+09%`."""
    return f"{share:.1%}" if share < 100 else f"{100 * share:.2g}%"
