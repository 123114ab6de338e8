"""What every form of data has in common."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

# Distinct values of a column that a summary lists; of more it gives quantiles.
MAX_DISTINCT = 256
# Numbers that a pass over the data takes at a time: what a CPU's caches hold.
BLOCK = 2**17

KINDS = ("number", "boolean", "category", "date")


@dataclass(frozen=True)
class Column:
    """A column of X, as far as a model has to know it.

    Attributes
    ----------
    name : object
        The data frame's name of it, or its position.
    kind : {"number", "boolean", "category", "date"}
    n_values : int or None
        Number of categories, whose codes are 0, 1, ..., n_values - 1.
    integral : bool
        Whether the user's dtype holds whole numbers only.
    ordered : bool
        Whether the categories have an order.
    """

    name: Any
    kind: str = "number"
    n_values: int | None = None
    integral: bool = False
    ordered: bool = False


class Summary:
    """Statistics of the columns of the training rows, weighted, in float64.

    Missing entries count nowhere but in ``missing``.

    Parameters
    ----------
    X : ndarray of shape (N, n_columns)
    weights : ndarray of shape (N,) or None
    observed : ndarray of bool, shape (N, n_columns), or None
        Which entries are not missing; None where all are observed.

    Attributes
    ----------
    mean, variance, low, high : ndarray of shape (n_columns,)
        Of a column without an observed entry: 0, 0, 0, 0.
    missing : ndarray of shape (n_columns,)
        Share of missing entries.
    """

    def __init__(
        self,
        X: np.ndarray,
        weights: np.ndarray | None = None,
        observed: np.ndarray | None = None,
    ):
        X = X if X.dtype.kind == "f" else X.astype(np.float64)
        self._X, self._weights, self._observed = X, weights, observed
        n = X.shape[1]
        self.low, self.high = np.full(n, np.inf), np.full(n, -np.inf)
        total = np.zeros(n)
        for rows in self._blocks():
            low = high = X[rows]
            if observed is not None:
                seen = observed[rows]
                low, high = np.where(seen, low, np.inf), np.where(seen, high, -np.inf)
                total += self._sum(np.ones(seen.shape), rows)
            np.minimum(self.low, low.min(axis=0, initial=np.inf), out=self.low)
            np.maximum(self.high, high.max(axis=0, initial=-np.inf), out=self.high)
        empty = self.low > self.high
        self.low[empty] = self.high[empty] = 0.0
        everything = float(len(X) if weights is None else weights.sum())
        self._total = np.full(n, everything) if observed is None else total
        self.missing = 1 - self._total / everything
        self._total = np.where(self._total > 0, self._total, 1.0)
        # Columns of huge or tiny numbers about their middle and in units of their
        # range: no square overflows or vanishes.
        middle = 0.5 * self.low + 0.5 * self.high
        reach = np.maximum(self.high - middle, middle - self.low)
        safe = (reach > 1e-100) & (reach < 1e100)
        safe |= (reach == 0) & (np.abs(middle) < 1e100)
        unit = np.where(safe | (reach == 0), 1.0, reach)
        offset = np.where(safe, 0.0, middle)
        with np.errstate(over="ignore", invalid="ignore"):
            if safe.all():
                mean = self._mean(lambda block: block)
            else:
                mean = self._mean(lambda block: (block - offset) / unit)
            # Two passes: no difference of large squares for columns far from 0.
            self.mean = offset + unit * mean
            scale = None if safe.all() else unit
            square = self._mean(lambda block: _squared(block, self.mean, scale))
            #: Square root of the variance, which may be too large or small to hold.
            self.deviation = unit * np.sqrt(square)
            self.variance = self.deviation**2

    @classmethod
    def unknown(cls, n_columns: int) -> "Summary":
        """A summary that says nothing, for a model whose weights are known."""
        return cls(np.zeros((1, n_columns)))

    def take(self, columns: Sequence[int]) -> "Summary":
        """The same of some columns."""
        if list(columns) == list(range(len(self.mean))):
            return self
        some = object.__new__(Summary)
        some._X, some._weights = self._X[:, columns], self._weights
        observed = self._observed
        some._observed = None if observed is None else observed[:, columns]
        for name in ("mean", "variance", "deviation", "low", "high", "missing"):
            setattr(some, name, getattr(self, name)[list(columns)])
        some._total = self._total[list(columns)]
        return some

    @property
    def is_constant(self) -> np.ndarray:
        """Which columns have one value, up to rounding in float64."""
        rounding = 10 * np.finfo(np.float64).eps * np.abs(self.mean)
        return (self.deviation <= rounding) | (self.low == self.high)

    def distinct(self, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Values of a column and their shares of the weight.

        Up to 256 distinct values as they are; of more, 256 quantiles of equal shares.
        """
        values = np.asarray(self._X[:, column], dtype=np.float64)
        weights = np.ones(len(values)) if self._weights is None else self._weights
        if self._observed is not None:
            seen = self._observed[:, column]
            values, weights = values[seen], weights[seen]
        found, where = np.unique(values, return_inverse=True)
        shares: np.ndarray = np.bincount(where, weights, minlength=len(found))
        if len(found) > MAX_DISTINCT:
            middle = (np.arange(MAX_DISTINCT) + 0.5) / MAX_DISTINCT
            cumulative = np.cumsum(shares) / shares.sum()
            found = found[np.searchsorted(cumulative, middle)]
            shares = np.ones(MAX_DISTINCT)
        return found, shares / max(shares.sum(), np.finfo(np.float64).tiny)

    def frequencies(self, column: int, n_values: int) -> np.ndarray:
        """Share of each of the codes 0, ..., n_values - 1 of a category."""
        codes = np.asarray(self._X[:, column], dtype=np.float64)
        weights = np.ones(len(codes)) if self._weights is None else self._weights
        valid = (codes >= 0) & (codes < n_values)
        if self._observed is not None:
            valid &= self._observed[:, column]
        counts = np.bincount(codes[valid].astype(int), weights[valid], n_values)
        return counts / max(counts.sum(), np.finfo(np.float64).tiny)

    def _blocks(self) -> Iterator[slice]:
        step = max(1, BLOCK // self._X.shape[1])
        for start in range(0, len(self._X), step):
            yield slice(start, start + step)

    def _sum(self, block: np.ndarray, rows: slice) -> np.ndarray:
        if self._observed is not None:
            block = np.where(self._observed[rows], block, 0.0)
        if self._weights is None:
            return block.sum(axis=0, dtype=np.float64)
        return self._weights[rows] @ block

    def _mean(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(self._X.shape[1])
        for rows in self._blocks():
            total += self._sum(function(self._X[rows]), rows)
        return total / self._total


def _squared(
    block: np.ndarray, middle: np.ndarray, scale: np.ndarray | None
) -> np.ndarray:
    """Squares of the distances from the middle in units of a scale, in float64."""
    distance = block - middle
    if scale is not None:
        distance /= scale
    return np.square(distance, out=distance)


class Form:
    """Base of the forms: frozen dataclasses that say what X looked like at ``fit``.

    Attributes
    ----------
    columns : tuple of Column
        The columns that ``batch`` gives; their number is ``n_columns``.
    image_shape : tuple of int or None
        (channels, height, width) where X holds images.
    dtype : numpy.dtype
        Of the numbers that ``decode`` hands out.
    n_features : int
        Columns of X as the user counts them.
    """

    columns: tuple[Column, ...]
    dtype: np.dtype
    image_shape: tuple[int, ...] | None = None

    @classmethod
    def accepts(cls, X: Any) -> bool:
        """Whether this is the form of X."""
        raise NotImplementedError

    @classmethod
    def of(cls, X: Any) -> Self:
        """The form of X."""
        raise NotImplementedError

    @property
    def n_columns(self) -> int:
        return len(self.columns)

    @property
    def n_features(self) -> int:
        return self.n_columns

    @cached_property
    def names(self) -> list[Any]:
        """Names of the columns, for messages."""
        return [column.name for column in self.columns]

    def check(self, estimator: Any, X: Any, *, reset: bool = False) -> Any:
        """X after scikit-learn's own checks: what ``batch`` takes, row by row.

        ``estimator`` gets ``n_features_in_`` and ``feature_names_in_`` where ``reset``
        is on, and is compared with X where not.
        """
        raise NotImplementedError

    def batch(self, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Columns (n, n_columns) of checked rows, and which entries are observed.

        None says that all entries are observed.
        """
        raise NotImplementedError

    def decode(self, array: np.ndarray, like: Any = None) -> Any:
        """What the user gave, from columns (n, n_columns).

        ``like``, a data frame of as many rows, gives its index.
        """
        raise NotImplementedError

    def fill(self, X: Any, decoded: Any) -> Any:
        """X with its missing entries taken from ``decoded``, the others as they are."""
        raise NotImplementedError

    def hashed(self, x: np.ndarray) -> np.ndarray:
        """The numbers of each row that its noise is a function of, from the columns."""
        return x

    def row(self, x: Any) -> Any:
        """A single row, given alone, as an X of one row."""
        if _is_series(x):
            return x.to_frame().T.infer_objects()
        return np.asarray(x)[np.newaxis]

    def stack(self, decoded: Any, shape: tuple[int, ...]) -> Any:
        """Decoded rows in several axes, where the container has them."""
        return decoded

    def state(self) -> dict[str, Any]:
        """Plain values and arrays that ``from_state`` makes the form of."""
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: dict[str, Any], n_columns: int | None = None) -> Self:
        """The form of a :meth:`state`, checked; a ValueError says what is wrong.

        ``n_columns`` is the number of columns that it must have, where that is known:
        a state of a few bytes must not be able to ask for billions.
        """
        raise NotImplementedError


def _is_series(x: Any) -> bool:
    return type(x).__module__.split(".")[0] == "pandas" and np.ndim(x) == 1


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, NaT or pandas.NA."""
    # NaN differs from itself; pandas.NA says neither yes nor no.
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float | np.floating) and value != value)
    )


def check_keys(kind: str, state: Any, keys: set[str]) -> None:
    """Refuse a state that does not hold exactly these keys."""
    if type(state) is not dict or state.keys() != keys:
        found = sorted(map(str, state)) if type(state) is dict else type(state).__name__
        raise ValueError(f"{kind} must hold {sorted(keys)}, got {found}.")
