"""The table of cases: every ONNX op that the engine knows, in tiny models."""

from __future__ import annotations

from . import axes, classic
from .case import Case, Net, chain, node, pool, relu

__all__ = ["CASES", "Case", "Net", "chain", "node", "pool", "relu"]

CASES: dict[str, Case] = {**classic.CASES, **axes.AXES}
