"""Probabilities as text."""

from __future__ import annotations


def percent(chance: float) -> str:
    """A probability in per cent with one decimal; "<0.1 %" and ">99.9 %" at the ends."""
    if chance < 0.001:
        return "<0.1 %"
    return f"{100 * chance:.1f} %" if chance <= 0.999 else ">99.9 %"
