"""File to graph."""
