"""Comparison with other runtimes and the layer table."""
