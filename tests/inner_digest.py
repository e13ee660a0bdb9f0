"""What `golden/inner.npz` holds of a tensor, and the seeds of its gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES, PROJECTIONS = 64, 7


def seed_of(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The seed of a tensor: normal noise, the same for every tensor of this shape."""
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def digest(m: NDArray[Any]) -> NDArray[np.float64]:
    """float64 (72,): m at `SAMPLES` places, ‖m‖₂, and `PROJECTIONS` projections on random signs."""
    flat = m.astype(np.float64).ravel()
    places, signs = _drawn(flat.size)
    return np.concatenate([flat[places], [np.linalg.norm(flat)], [each @ flat for each in signs]])


@lru_cache(maxsize=3)  # of a tensor's value, of its gradient, and of the map
def _drawn(size: int) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """The places and the random signs of `digest`."""
    rng = np.random.default_rng(5)
    return rng.choice(size, SAMPLES), [rng.integers(0, 2, size) * 2.0 - 1 for _ in range(PROJECTIONS)]
