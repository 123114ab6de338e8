"""Supports: which values a likelihood can produce, as values."""

from dataclasses import dataclass
from math import inf

import numpy as np


@dataclass(frozen=True)
class Support:
    """A set of numbers: an interval, or the multiples of a step within it.

    Attributes
    ----------
    low, high : float
        The ends, which belong to it unless ``margin`` is positive.
    step : float or None
        Distance of neighbouring values, counted from ``low``; None for an interval.
    margin : float
        Distance that the nearest value keeps from ``low`` and ``high``; positive where
        these do not belong to the set.
    text : str
        The set in symbols.
    """

    low: float = -inf
    high: float = inf
    step: float | None = None
    margin: float = 0.0
    text: str = "any finite number"

    def __str__(self) -> str:
        return self.text

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that :meth:`nearest` gives."""
        return self.low + self.margin, self.high - self.margin

    def contains(self, X: np.ndarray) -> np.ndarray:
        """Which entries lie within, up to rounding; a boolean array like X."""
        X = np.asarray(X)
        if self.margin:
            return (self.low < X) & (self.high > X)
        with np.errstate(invalid="ignore", over="ignore"):
            # MinMaxScaler, for one, gives 1.0000000000000002.
            rounding = 4 * np.finfo(X.dtype).eps if X.dtype.kind == "f" else 0
            inside = np.isfinite(X) & (self.low - rounding <= X)
            inside &= self.high + rounding >= X
            if self.step is not None:
                steps = X / self.step
                # A step of 1/255 is no float: half a thousandth of a level is more
                # than float32 is off by.
                close = 0.0 if self.step == 1 else 5e-4
                inside &= np.abs(steps - np.rint(steps)) <= close
        return inside

    def nearest(self, X: np.ndarray) -> np.ndarray:
        """X with each entry outside replaced by the nearest one within.

        In the dtype of X. An entry within stays as it is, so that its row has the same
        hash whether or not another entry lies outside.
        """
        nearest = X if self.step is None else np.rint(X / self.step) * self.step
        nearest = np.clip(nearest, *self.bounds)
        return np.where(self.contains(X), X, nearest).astype(X.dtype, copy=False)


REAL = Support()
UNIT_INTERVAL = Support(0.0, 1.0, text="[0, 1]")
COUNTS = Support(0.0, inf, 1.0, text="{0, 1, 2, ...}")
