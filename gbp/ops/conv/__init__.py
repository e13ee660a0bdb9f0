"""Convolution: its meaning, the algorithms that compute it, and what they cost.

In comes an ONNX node, out comes a `ConvStep` or `DepthwiseStep` with packed weights.  May import what every
op may.
"""

from .conv import PARSERS

__all__ = ["PARSERS"]
