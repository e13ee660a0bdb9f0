"""What `golden/inner.npz` holds of a tensor, and the seeds of its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES, PROJECTIONS = 64, 7


def seed_of(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The seed of a tensor: normal noise, the same for every tensor of this shape."""
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def digest(m: NDArray[Any]) -> NDArray[np.float64]:
    """float64 (72,): m at `SAMPLES` places, ‖m‖₂, and `PROJECTIONS` projections on random signs."""
    flat, rng = m.astype(np.float64).ravel(), np.random.default_rng(5)
    places = rng.choice(flat.size, SAMPLES)
    signs = [(rng.integers(0, 2, flat.size) * 2 - 1) @ flat for _ in range(PROJECTIONS)]
    return np.concatenate([flat[places], [np.linalg.norm(flat)], signs])
