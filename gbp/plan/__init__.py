"""A `Graph` becomes a `Plan`: everything that is decided before the first image.

Which step runs on which buffers, in which memory order, what is fused, and in what order gradients are
written, added and gated.  In comes a graph, out comes a plan for any number of samples.  May import passes,
ops, graph, devices, limits and errors.
"""
