"""Plans at work.

A `Session` holds a plan and its memory, a `Tape` one forward run and the backward runs over it.  In come
arrays of samples, out come scores and maps.  May import plan, devices, ops' steps, kernels, rules, limits
and errors.
"""
