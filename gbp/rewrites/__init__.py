"""Rewrites give layers other local slopes: the values stay, and the gradient is another attribution.

A graph comes in after the passes that name activations and fold layers; a graph with the same tensors comes
out.  A rule holds its rewrite (`rules.py`).  It may import errors, graph, limits, ops and passes.
"""
