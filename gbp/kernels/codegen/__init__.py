"""What kernels are written in.

`emit` holds the LLVM IR and alone looks at the host; `simd`, `bits` and `tile` are the vocabulary made of
it; `jit` compiles and caches, `jit_cuda` for cards, and `simulation` runs cards' kernels as plain Python.
May import nothing else of gbp.
"""
