"""Units: real-valued data are standardised inside the model, and handed back as given.

A network learns best on features of mean 0 and spread 1. For a real-valued likelihood
each feature therefore enters as ``(x - location) / scale``, and the log of the scale
enters the density, so that every score stays one of the user's own units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Units:
    """Location and scale of each feature, both float64 of shape (D,)."""

    location: np.ndarray
    scale: np.ndarray

    @classmethod
    def identity(cls, n_features: int) -> "Units":
        return cls(np.zeros(n_features), np.ones(n_features))

    @classmethod
    def fit(
        cls,
        X: np.ndarray,
        weights: np.ndarray | None = None,
        columns: Sequence[Any] | None = None,
    ) -> "Units":
        """Mean and standard deviation of each column, in float64.

        ``columns`` names them for the error where the numbers are too large.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            location = column_means(X, weights)
            # Two passes: no difference of large squares for columns far from 0.
            variance = column_means(X, weights, center=location)
        # A column that is constant up to rounding keeps its own unit.
        rounding = 10 * np.finfo(X.dtype).eps * np.abs(location)
        deviation = np.sqrt(variance)
        finite = np.isfinite(location) & np.isfinite(deviation)
        if not finite.all():
            column = np.flatnonzero(~finite)[0]
            label = column if columns is None else repr(columns[column])
            largest = np.abs(X[:, column]).max()
            raise ValueError(
                f"column {label} has values up to {largest:.3g}, too large for its "
                "variance to be computed; divide the column by a power of ten."
            )
        return cls(location, np.where(deviation <= rounding, 1.0, deviation))

    def only(self, chosen: np.ndarray) -> "Units":
        """These units for the chosen features, the user's own for the others."""
        return Units(
            np.where(chosen, self.location, 0.0), np.where(chosen, self.scale, 1.0)
        )

    @property
    def is_identity(self) -> bool:
        return bool(np.all(self.location == 0) and np.all(self.scale == 1))

    @property
    def log_scale(self) -> float:
        """Sum over features of log(scale): what the density loses to the units."""
        return float(np.log(self.scale).sum())

    def standardize(self, X: np.ndarray) -> np.ndarray:
        """From the user's units to the model's, float32."""
        if self.is_identity:
            return X.astype(np.float32, copy=False)
        # In float64: a value such as 1e8 + 1 has no float32 to be subtracted from.
        return ((X - self.location) / self.scale).astype(np.float32)

    def restore(self, X: np.ndarray) -> np.ndarray:
        """From the model's units to the user's."""
        return X if self.is_identity else X * self.scale + self.location


def column_means(
    X: np.ndarray, weights: np.ndarray | None, center: np.ndarray | None = None
) -> np.ndarray:
    """Weighted mean of each column, or of its squared distance from a center.

    In float64, block by block: no float64 copy of the whole of X.
    """
    total = np.zeros(X.shape[1])
    for start in range(0, len(X), 4096):
        block = X[start : start + 4096].astype(np.float64)
        if center is not None:
            block = (block - center) ** 2
        if weights is None:
            total += block.sum(axis=0)
        else:
            total += weights[start : start + 4096] @ block
    return total / (len(X) if weights is None else weights.sum())
