"""`Head`: how a model turns its scores into probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Head:
    """The last op of a model, which turns scores into probabilities.

    Parameters
    ----------
    op
        "Softmax", "LogSoftmax" or "Sigmoid"; "" where the scores are probabilities already.
    shape
        The shape of one sample's scores as the head reads them, without the batch.
    axes
        The axes of `shape` over which a softmax sums, counted from 0.
    """

    op: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the head.

        Parameters
        ----------
        scores
            float32 (N, classes).

        Returns
        -------
        float32 (N, classes).
        """
        if not self.op:
            return scores
        x = scores.astype(np.float64)
        if self.op == "Sigmoid":
            return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)
        x = x.reshape(len(x), *self.shape)
        axes = tuple(1 + axis for axis in self.axes)
        weight = np.exp(x - x.max(axis=axes, keepdims=True))
        return np.asarray(weight / weight.sum(axis=axes, keepdims=True), np.float32).reshape(scores.shape)
