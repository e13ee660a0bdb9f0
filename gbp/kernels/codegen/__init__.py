"""The language that kernels are written in.

Python functions come in; machine code comes out.  `emit` holds the LLVM IR and alone depends on the
processor.  `simd`, `bits`, `tile`, `gate` and `amx` are functions that kernels call, made of it.  `jit`
compiles kernels, `packing` packs their arguments, and `cache` keeps the machine code in files.  The files
that end in `_cuda` are the same for cards, and `simulation` runs the kernels of cards as plain Python.
`numba_compiler`, `numba_shortcuts` and `numba_private` have all that gbp uses of Numba's private parts.  The
folder may import nothing else of gbp.
"""
