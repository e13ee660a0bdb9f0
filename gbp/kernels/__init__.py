"""Numba kernels over SIMD vectors, one file for each algorithm, with its CUDA twin beside it in `*_cuda.py`.

Float32 arrays, packed weights, masks and sizes come in; results are written into arrays of the caller.  A
kernel never allocates, and chooses nothing that changes a bit.  It may import `codegen`, and errors of gbp.
"""

from .parallel import program  # noqa: F401  # it runs the calls of kernels
