"""Where arrays are stored and kernels run."""
