"""Portable SIMD kernels: what the ops call.  A kernel never allocates and never decides; `Plan` does both."""
