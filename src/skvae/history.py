"""History: one record for each epoch of a training."""

from dataclasses import asdict, dataclass, fields
from math import isnan
from typing import Any

import numpy as np

from .forms.base import check_keys

# Fields of whole numbers, and those that may be None.
WHOLE = ("epoch", "active_units")
OPTIONAL = ("validation_loss", "validation_reconstruction", "validation_kl")


@dataclass(kw_only=True)
class Record:
    """The result of one epoch; losses in nats per row, means over the rows.

    Without a validation set its losses are None.
    """

    epoch: int
    loss: float
    reconstruction: float
    kl: float
    validation_loss: float | None = None
    validation_reconstruction: float | None = None
    validation_kl: float | None = None
    active_units: int
    learning_rate: float
    seconds: float

    @property
    def monitored(self) -> float:
        """The loss by which the best epoch is selected."""
        return self.loss if self.validation_loss is None else self.validation_loss


def columns_of(history: tuple[Record, ...]) -> dict[str, np.ndarray]:
    """One float64 array per field; NaN stands for None."""
    rows = [asdict(record) for record in history]
    return {
        one.name: np.array([row[one.name] for row in rows], dtype=np.float64)
        for one in fields(Record)
    }


def records_of(columns: Any) -> tuple[Record, ...]:
    """Records from one float64 array per field; NaN stands for None."""
    names = {one.name for one in fields(Record)}
    check_keys("a history", columns, names)
    for name, column in columns.items():
        if (
            not isinstance(column, np.ndarray)
            or column.ndim != 1
            or column.dtype != np.float64
        ):
            raise ValueError(f"{name} must be a float64 array of one dimension.")
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("the columns of the history must have the same length.")
    known: dict[str, list[Any]] = {k: v.tolist() for k, v in columns.items()}
    for name in WHOLE:
        if not all(v.is_integer() and v >= 0 for v in known[name]):
            raise ValueError(f"{name} must be whole numbers of at least 0.")
        known[name] = [int(v) for v in known[name]]
    for name in OPTIONAL:
        known[name] = [None if isnan(v) else v for v in known[name]]
    rows = zip(*known.values(), strict=True)
    return tuple(Record(**dict(zip(known, row, strict=True))) for row in rows)
