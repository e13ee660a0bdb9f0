"""Shares the work of kernels among threads.

Calls of kernels with packed arguments come in.  They run without the interpreter, and results are in the
caller's arrays.  `cores` counts the processors that the process may use.  `team` is the native code with
which threads take parts of the work, and sleep when there is none.  `threads` manages callers and helpers.
`program` records the calls of a run and repeats them.  It may import `codegen` and errors.
"""
