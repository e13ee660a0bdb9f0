"""The language that kernels are written in.

`emit` holds the LLVM IR and alone depends on the processor.  `simd`, `bits` and `tile` are functions for
kernels, made of it.  `jit` compiles and caches kernels, and `jit_cuda` does so for cards.  `simulation` runs
the kernels of cards as plain Python.  Python functions come in; machine code comes out.  It may import
nothing else of gbp.
"""
