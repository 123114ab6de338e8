"""Images as arrays of four axes."""

from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import validate_data

from .base import Column, check_keys
from .rows import DTYPES, Rows, dtype_named, float_dtype


@dataclass(frozen=True)
class Images(Rows):
    """Images (N, channels, height, width), modelled as rows, channels first.

    Rows of as many numbers are taken as well, and rows are what is handed out.

    Attributes
    ----------
    columns : tuple of Column
    dtype : numpy.dtype
    image_shape : tuple of int
        (channels, height, width).
    """

    image_shape: tuple[int, ...] | None = None

    @classmethod
    def accepts(cls, X: Any) -> bool:
        return len(_shape(X)) == 4

    @classmethod
    def of(cls, X: Any) -> Self:
        shape = _shape(X)
        if shape[1] not in (1, 3):
            raise ValueError(
                f"X of shape {shape} has {shape[1]} channels; expected (n_samples, "
                "channels, height, width) with 1 or 3 channels. Channels that come "
                "last are moved by np.moveaxis(X, -1, 1)."
            )
        columns = tuple(Column(i) for i in range(prod(shape[1:])))
        return cls(columns, float_dtype(X), tuple(int(side) for side in shape[1:]))

    def check(self, estimator: Any, X: Any, *, reset: bool = False) -> Any:
        shape = _shape(X)
        if len(shape) == 4:
            if shape[1:] != self.image_shape:
                raise ValueError(
                    f"X holds images of shape {shape[1:]}, but the estimator was "
                    f"fitted on images of shape {self.image_shape}."
                )
            X = np.asarray(X) if not isinstance(X, np.ndarray) else X
            X = X.reshape(len(X), -1)
        if isinstance(X, np.memmap) and not reset:
            return validate_data(estimator, X, reset=False, skip_check_array=True)
        return validate_data(estimator, X, dtype=DTYPES, reset=reset)

    def state(self) -> dict[str, Any]:
        return {"image_shape": self.image_shape, "dtype": self.dtype.name}

    @classmethod
    def from_state(cls, state: dict[str, Any], n_columns: int | None = None) -> Self:
        check_keys(cls.__name__, state, {"image_shape", "dtype"})
        shape = state["image_shape"]
        sides = shape if type(shape) is tuple and len(shape) == 3 else [0]
        if any(type(side) is not int or side < 1 for side in sides):
            raise ValueError(f"image_shape must hold three sides, got {shape!r}.")
        if n_columns not in (None, prod(shape)):
            raise ValueError(
                f"images of the shape {shape} have {prod(shape)} columns; expected "
                f"{n_columns}."
            )
        columns = tuple(Column(i) for i in range(prod(shape)))
        return cls(columns, dtype_named(state["dtype"]), shape)


def _shape(X: Any) -> tuple[int, ...]:
    return tuple(getattr(X, "shape", ()))
