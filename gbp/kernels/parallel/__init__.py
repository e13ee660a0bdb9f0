"""How the work of kernels is shared out to threads.

`cores` counts the processors that the process may use, `team` is the native code by which threads take
parts of the work and sleep in between, `threads` knows callers and helpers, `program` holds the calls of a
run that are made over and over.  In come calls of kernels, packed; they run without the interpreter.  May
import `codegen` and errors.
"""
