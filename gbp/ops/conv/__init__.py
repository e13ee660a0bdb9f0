"""Convolution: its meaning, the algorithms that compute it, and what they cost.

An ONNX node comes in; a `ConvStep` or `DepthwiseStep` with packed weights comes out.  It may import what
every op may.
"""

from .conv import FACTS, PARSERS

__all__ = ["FACTS", "PARSERS"]
