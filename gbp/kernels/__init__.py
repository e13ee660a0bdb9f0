"""Numba kernels over SIMD vectors, one file for each algorithm, with its CUDA twin beside it in `*_cuda.py`.

Float32 arrays, packed weights, masks and sizes come in; results are written into arrays of the caller.  A
kernel never allocates, and chooses nothing that changes a bit.  It may import `codegen`, and errors of gbp.

These parameters have one meaning in all kernels; their axes are those of kernels of planes:

    x, y, r      input, output, and what is added to it; (N, H, W, C), channels dense; r may be empty
    gy, gx       gradients of y and x, of N·K rows: K targets of each of the N samples
    w, b         weights, packed by a function of the kernel's file, and bias, flat; b may be empty
    lo, hi       the bounds of y; −∞ and ∞ for none
    mask         a bit for each unit of a rectifier, (N, H, W, ⌈C/8⌉) bytes (`codegen/gate.py`); may be empty
    gate         what a rule does at the rectifier of gx
    accumulate   1 to add to gx, 0 to write it
    switches     for each output, which input it took
    taps         the window (`taps.py`)
    scratch      memory for what is computed on the way; what is there before and after means nothing
    threads      in how many parts the work is cut; callers pass the number of threads (`codegen.jit.Kernel`)
    share        which of these parts this call computes
"""

from .parallel import program  # noqa: F401  # it runs the calls of kernels
