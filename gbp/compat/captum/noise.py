"""`NoiseTunnel`: a statistic of the attributions of noisy copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import InputError
from ...arguments import whole_number
from ..core import deviation, refuse
from .common import Inputs, opened, repeated

NOISE_TYPES = ("smoothgrad", "smoothgrad_sq", "vargrad")


class NoiseTunnel:
    """A statistic of the attributions of noisy copies.

    Parameters
    ----------
    attribution_method
        One of this module's attributions.
    """

    def __init__(self, attribution_method: Any) -> None:
        self.attribution_method = attribution_method

    def attribute(
        self,
        inputs: Inputs,
        nt_type: str = "smoothgrad",
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float] = 1.0,
        draw_baseline_from_distrib: bool = False,
        *,
        seed: int = 0,
        **options: Any,
    ) -> Any:
        """Explain samples.

        Parameters
        ----------
        inputs
            As the attribution's.
        nt_type
            "smoothgrad", the mean; "smoothgrad_sq", the mean of the squares; or "vargrad", the variance.
        nt_samples
            How many noisy copies of each sample.
        nt_samples_batch_size
            How many copies are computed at once; results do not depend on it.
        stdevs
            The standard deviation of the noise.
        draw_baseline_from_distrib
            Must be False.
        seed
            The seed of the noise; Captum has torch's.
        **options
            Arguments of the attribution.

        Returns
        -------
        As the attribution.

        Raises
        ------
        InputError
            For arguments that cannot be used.
        """
        if nt_type not in NOISE_TYPES:
            raise InputError(f"nt_type is {nt_type!r}.", supported=", ".join(NOISE_TYPES))
        refuse(
            draw_baseline_from_distrib=(draw_baseline_from_distrib, False),
            return_convergence_delta=(options.pop("return_convergence_delta", False), False),
        )
        count, at_once = whole_number("nt_samples", nt_samples), nt_samples_batch_size or nt_samples
        scale = deviation("stdevs", stdevs[0] if isinstance(stdevs, tuple) else stdevs)
        x, wrap = opened(inputs, None)
        target, n = options.pop("target", None), len(x)
        total: Any = 0.0
        squares: Any = 0.0
        rng = np.random.default_rng(whole_number("seed", seed, 0))
        for start in range(0, count, at_once):
            copies = min(at_once, count - start)
            noise = np.stack([rng.normal(0, scale, x.shape) for _ in range(copies)], axis=1)
            noisy = (x[:, None] + noise).astype(np.float32).reshape(n * copies, *x.shape[1:])
            if target is not None:
                options["target"] = repeated(target, n, copies)
            found = np.asarray(self.attribution_method.attribute(noisy, **options), np.float64)
            found = found.reshape(n, copies, *found.shape[1:])
            total, squares = total + found.sum(axis=1), squares + (found * found).sum(axis=1)
        mean, square = total / count, squares / count
        made = {"smoothgrad": mean, "smoothgrad_sq": square, "vargrad": square - mean * mean}[nt_type]
        return wrap(np.asarray(made, np.float32))
