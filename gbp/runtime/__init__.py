"""Plans are run.

A `Session` holds a plan and its memory.  A `Tape` holds one forward run, and runs backward passes over it.
Arrays of samples come in; scores and maps come out.  It may import plan, devices, the steps of ops, kernels,
limits and errors.  It knows no rule: the engine gives it the gate.
"""
