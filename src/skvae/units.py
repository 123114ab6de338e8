"""Units: real-valued columns are standardised inside the model, and handed back.

A network learns best on columns of mean 0 and standard deviation 1. For a real-valued
likelihood each column therefore enters as ``(x - location) / scale``, and the log of
the scale enters the density, so that every score stays one of the user's own units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .forms.base import Summary

# Largest absolute value inside the model: neither its square nor the sum of the squares
# of a row, at the smallest scale that a likelihood learns, overflows in float32.
LARGEST = 1e12
# Largest standard deviation of a column: draws of a Student's t, of up to 1e30
# deviations, are numbers in the user's units too.
LARGEST_SCALE = 1e270


@dataclass(frozen=True)
class Units:
    """Location and scale of each column, both float64 of shape (n_columns,)."""

    location: np.ndarray
    scale: np.ndarray

    @classmethod
    def identity(cls, n_columns: int) -> "Units":
        return cls(np.zeros(n_columns), np.ones(n_columns))

    @classmethod
    def of(cls, summary: Summary, names: Sequence[Any] | None = None) -> "Units":
        """Mean and standard deviation of each column, 1 for a constant column.

        ``names`` of the columns serve the error where numbers are too large.
        """
        fine = np.isfinite(summary.mean) & (summary.deviation <= LARGEST_SCALE)
        if not fine.all():
            column = int(np.flatnonzero(~fine)[0])
            label = column if names is None else repr(names[column])
            largest = max(abs(summary.low[column]), abs(summary.high[column]))
            raise ValueError(
                f"column {label} has values up to {largest:.3g}, too large to be "
                "modelled; divide the column by a power of ten."
            )
        return cls(summary.mean, np.where(summary.is_constant, 1.0, summary.deviation))

    def only(self, chosen: np.ndarray) -> "Units":
        """These units for the chosen columns, the user's own for the others."""
        return Units(
            np.where(chosen, self.location, 0.0), np.where(chosen, self.scale, 1.0)
        )

    @property
    def is_identity(self) -> bool:
        return bool(np.all(self.location == 0) and np.all(self.scale == 1))

    @property
    def log_scale(self) -> float:
        """Sum over columns of log(scale): what the density loses to the units."""
        return float(np.log(self.scale).sum())

    def standardize(
        self, X: np.ndarray, names: Sequence[Any] | None = None
    ) -> np.ndarray:
        """From the user's units to the model's, float32.

        Raises
        ------
        ValueError
            If a value is too large for float32 arithmetic, naming its column.
        """
        if self.is_identity:
            rows = X
        else:
            # In float64: a value such as 1e8 + 1 has no float32 to be subtracted from.
            with np.errstate(over="ignore"):  # infinity is refused below
                rows = (X - self.location) / self.scale
        largest = max(rows.max(initial=0), -rows.min(initial=0))
        if not largest <= LARGEST and not np.isnan(largest):
            row, column = np.argwhere(np.abs(rows) > LARGEST)[0]
            label = column if names is None else repr(names[column])
            raise ValueError(
                f"X has the value {X[row, column]:.3g} in row {row}, column {label}, "
                f"which is {abs(rows[row, column]):.1g} inside the model (the limit is "
                f"{LARGEST:.0e}): too large for float32. Drop the row, or rescale the "
                "column and fit again."
            )
        return rows.astype(np.float32, copy=False)

    def restore(self, X: np.ndarray) -> np.ndarray:
        """From the model's units to the user's."""
        return X if self.is_identity else X * self.scale + self.location

    def state(self) -> dict[str, np.ndarray]:
        return {"location": self.location, "scale": self.scale}

    @classmethod
    def from_state(cls, state: Any) -> "Units":
        """The units of a :meth:`state`; a ValueError says what is wrong with it."""
        if type(state) is not dict or state.keys() != {"location", "scale"}:
            raise ValueError("units must hold location and scale.")
        for name, array in state.items():
            if not (
                isinstance(array, np.ndarray)
                and array.ndim == 1
                and array.dtype == np.float64
                and np.isfinite(array).all()
            ):
                raise ValueError(f"{name} must be a finite float64 array of one axis.")
        location, scale = state["location"], state["scale"]
        if len(location) != len(scale) or not len(scale) or not (scale > 0).all():
            raise ValueError(
                f"location {location.shape} and scale {scale.shape} must have one "
                "entry for each column, and scales must be positive."
            )
        return cls(location, scale)
