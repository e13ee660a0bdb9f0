"""Numba kernels over SIMD vectors, one file an algorithm, their CUDA twins beside them in `*_cuda.py`.

In come arrays of float32, packed weights, masks and sizes; results are written into arrays that the caller
provides.  A kernel never allocates, and chooses nothing that changes a bit.  May import `codegen` and errors
of gbp.
"""

from .parallel import program  # noqa: F401  # calls of kernels go to it
