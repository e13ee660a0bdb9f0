"""A `Graph` becomes a `Plan`: everything that is decided before the first image.

The plan fixes which step runs on which buffers, the memory orders, what is fused, and the order in which
gradients are written, added and gated.  A graph comes in; a plan for any number of samples comes out.  It may
import passes, ops, graph, devices, limits and errors.
"""
