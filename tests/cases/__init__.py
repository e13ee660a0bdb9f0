"""The table of cases: every ONNX op that the engine knows, in tiny models."""

from __future__ import annotations

from . import axes, classic, functions, picks, quantized, volumes
from .case import Case, Net, chain, node, pool, relu

__all__ = ["CASES", "Case", "Net", "chain", "node", "pool", "relu"]

_FAMILIES = (axes, classic, functions, picks, quantized, volumes)

CASES: dict[str, Case] = {name: case for family in _FAMILIES for name, case in family.CASES.items()}
