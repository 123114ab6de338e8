"""Rows of numbers: arrays, and data frames of numbers only."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from .base import Column, Form, check_keys

DTYPES = [np.float64, np.float32]


@dataclass(frozen=True)
class Rows(Form):
    """Rows of numbers.

    Attributes
    ----------
    columns : tuple of Column
    dtype : numpy.dtype
        float32 or float64.
    """

    columns: tuple[Column, ...]
    dtype: np.dtype

    @classmethod
    def accepts(cls, X: Any) -> bool:
        return True

    @classmethod
    def of(cls, X: Any) -> Self:
        """The form of an array; what is wrong with X, ``check`` says."""
        # Not by np.shape: an object that only offers __array__ may refuse that.
        shape = X.shape if hasattr(X, "shape") else np.asarray(X).shape
        if len(shape) == 3:
            raise ValueError(
                f"X of shape {shape} has 3 axes; expected (n_samples, n_features), or "
                "images as (n_samples, channels, height, width) with 1 or 3 channels: "
                f"X.reshape({shape[0]}, 1, {shape[1]}, {shape[2]}) for grey ones."
            )
        n = shape[1] if len(shape) == 2 else 0
        return cls(_numbered(n), float_dtype(X)).named(X)

    def named(self, X: Any) -> Self:
        """The same with a data frame's names of the columns."""
        names = getattr(X, "columns", None)
        if names is None or not all(isinstance(name, str) for name in names):
            return self
        return type(self)(tuple(Column(name) for name in names), self.dtype)

    def check(self, estimator: Any, X: Any, *, reset: bool = False) -> Any:
        shape = getattr(X, "shape", ())
        if len(shape) == 4:
            raise ValueError(
                f"X holds images of shape {tuple(shape[1:])}, but the estimator was "
                "fitted on rows; give it rows, X.reshape(len(X), -1)."
            )
        if isinstance(X, np.memmap) and not reset:
            # Never read as a whole; ``batch`` checks the values of each block.
            return validate_data(estimator, X, reset=False, skip_check_array=True)
        return validate_data(estimator, X, dtype=DTYPES, reset=reset)

    def batch(self, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        if isinstance(rows, np.memmap):
            rows = check_array(rows, dtype=DTYPES, input_name="X")
        return rows, None

    def decode(self, array: np.ndarray, like: Any = None) -> Any:
        return array.astype(self.dtype, copy=False)

    def fill(self, X: Any, decoded: Any) -> Any:
        return np.where(np.isnan(X), decoded, X)

    def stack(self, decoded: Any, shape: tuple[int, ...]) -> Any:
        return decoded.reshape(*shape, -1)

    def state(self) -> dict[str, Any]:
        return {
            "names": [column.name for column in self.columns],
            "dtype": self.dtype.name,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], n_columns: int | None = None) -> Self:
        check_keys(cls.__name__, state, {"names", "dtype"})
        names = state["names"]
        if type(names) is not list or not names:
            raise ValueError(f"names must be a list of columns, got {names!r}.")
        return cls(tuple(Column(name) for name in names), dtype_named(state["dtype"]))


def _numbered(n: int) -> tuple[Column, ...]:
    return tuple(Column(i) for i in range(n))


def float_dtype(X: Any) -> np.dtype:
    """The dtype that scikit-learn's checks leave X in."""
    dtype = getattr(X, "dtype", None)
    if dtype is None and hasattr(X, "dtypes"):
        kinds = {str(kind) for kind in X.dtypes}
        return np.dtype(np.float32 if kinds <= {"float32", "Float32"} else np.float64)
    return np.dtype(np.float32 if str(dtype).endswith("float32") else np.float64)


def dtype_named(name: Any) -> np.dtype:
    """float32 or float64, by name."""
    if name not in ("float32", "float64"):
        raise ValueError(f"the dtype {name!r} must be 'float32' or 'float64'.")
    return np.dtype(name)
