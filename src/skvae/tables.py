"""Tables: columns of several kinds, as numbers for a model and back again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
)

FAMILIES = ("numeric", "count", "binary", "categorical")


@dataclass(frozen=True)
class Column:
    """A column of a data frame.

    Attributes
    ----------
    name : object
    family : str or Likelihood
        One of ``FAMILIES``, or a likelihood of one real number a row.
    dtype : str
        The data frame's own.
    values : tuple or None
        The values of a binary or categorical column, in the order of their codes.
    ordered : bool
        Whether these are ordered categories.
    """

    name: Any
    family: str | Likelihood
    dtype: str
    values: tuple[Any, ...] | None = None
    ordered: bool = False

    @property
    def width(self) -> int:
        """Numbers that stand for it."""
        if self.family == "categorical":
            assert self.values is not None
            return len(self.values)
        return 1

    @property
    def integral(self) -> bool:
        return "int" in self.dtype.lower()

    def encode(self, column: np.ndarray) -> np.ndarray:
        """The column as numbers, (N, width)."""
        if self.values is None:
            return self._numbers(column)[:, None]
        code = {value: i for i, value in enumerate(self.values)}
        try:
            codes = np.array([code[value] for value in column.tolist()])
        except KeyError as error:
            raise ValueError(
                f"column {self.name!r} has the unknown value {error.args[0]!r}; fit "
                f"saw {list(self.values)[:20]}."
            ) from None
        if self.family == "binary":
            return codes[:, None].astype(np.float64)
        return np.eye(len(code))[codes]

    def _numbers(self, column: np.ndarray) -> np.ndarray:
        try:
            numbers = column.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"column {self.name!r} has the family {self.family!r}, but values such "
                f"as {column[0]!r} are no numbers; use 'categorical'."
            ) from None
        if not np.isfinite(numbers).all():
            row = np.flatnonzero(~np.isfinite(numbers))[0]
            raise ValueError(
                f"column {self.name!r} has the value {column[row]!r} in row {row}; "
                "expected finite numbers. Impute missing values first."
            )
        return numbers

    def decode(self, numbers: np.ndarray) -> Any:
        """Values of the column's own kind, from (N, width)."""
        if self.family == "categorical":
            codes = numbers.argmax(axis=1)
        elif self.family == "binary":
            codes = (numbers[:, 0] > 0.5).astype(int)
        else:
            column = numbers[:, 0]
            if self.integral:
                limits = np.iinfo(self.dtype.lower())
                column = np.clip(np.rint(column), limits.min, limits.max)
            return column
        assert self.values is not None
        return [self.values[code] for code in codes]


@dataclass(frozen=True)
class Table:
    """What a data frame looks like, so that it can be encoded, and rebuilt."""

    columns: tuple[Column, ...]
    library: str

    @classmethod
    def fit(cls, X: Any, families: Mapping[Any, Any] | None) -> "Table":
        """Look at the columns of a data frame (pandas or polars).

        A family that is not given follows from the dtype: bool is binary, strings and
        categories are categorical, numbers are numeric. Counts are never guessed.
        """
        library = type(X).__module__.split(".")[0]
        if library not in ("pandas", "polars"):
            raise TypeError(
                "likelihood='mixed' reads the kinds of the columns from a data frame; "
                f"got {type(X).__name__}. Pass a DataFrame, or give an array's columns "
                "by Mixed((('gaussian', 3), ('poisson', 1)))."
            )
        names = list(X.columns)
        unknown = [name for name in families or {} if name not in names]
        if unknown:
            raise ValueError(
                f"families names the column {unknown[0]!r}, but X has {names}."
            )
        given = dict(families or {})
        columns = [_look_at(X[name], name, given.get(name)) for name in names]
        return cls(tuple(columns), library)

    def encode(self, X: Any) -> np.ndarray:
        """A data frame of the same columns as numbers, float64 (N, D)."""
        names = [column.name for column in self.columns]
        if list(getattr(X, "columns", ())) != names:
            raise ValueError(
                f"X must be a data frame with the columns that fit saw, {names}; got "
                f"{list(getattr(X, 'columns', [type(X).__name__]))}."
            )
        return np.hstack([c.encode(np.asarray(X[c.name])) for c in self.columns])

    def decode(self, array: np.ndarray) -> Any:
        """A data frame with the dtypes and categories that fit saw, from (N, D)."""
        starts = np.cumsum([column.width for column in self.columns])[:-1]
        parts = np.split(array, starts, axis=1)
        series = _polars_series if self.library == "polars" else _pandas_series
        data = {
            column.name: series(column, column.decode(part))
            for column, part in zip(self.columns, parts, strict=True)
        }
        if self.library == "polars":
            import polars

            return polars.DataFrame(data)
        import pandas

        return pandas.DataFrame(data)

    @property
    def encoded_names(self) -> list[Any]:
        """A name for each number that stands for a row."""
        names: list[Any] = []
        for column in self.columns:
            if column.family == "categorical":
                names += [f"{column.name}={value}" for value in column.values or ()]
            else:
                names.append(column.name)
        return names

    @property
    def likelihood(self) -> Mixed:
        """The likelihood of the encoded columns."""
        groups: dict[Any, list[int]] = {}
        blocks: list[int] = []
        start = 0
        for column in self.columns:
            indices = list(range(start, start + column.width))
            groups.setdefault(column.family, []).extend(indices)
            if column.family == "categorical":
                blocks.append(column.width)
            start += column.width
        standard = {
            "numeric": Gaussian(scale="feature"),
            "count": NegativeBinomial(),
            "binary": Bernoulli(),
            "categorical": Categorical(tuple(blocks)) if blocks else None,
        }
        return Mixed(
            tuple(
                (standard.get(family, family), tuple(indices))
                for family, indices in groups.items()
            )
        )


def _pandas_series(column: Column, values: Any) -> Any:
    import pandas

    if column.dtype == "category":
        return pandas.Categorical(
            values, categories=column.values, ordered=column.ordered
        )
    dtype: Any = column.dtype
    return pandas.Series(values).astype(dtype)


def _polars_series(column: Column, values: Any) -> Any:
    import polars

    kind = column.dtype.partition("(")[0]
    dtype: Any = getattr(polars, kind, None)
    if not (isinstance(dtype, type) and issubclass(dtype, polars.DataType)):
        raise ValueError(f"{column.dtype!r} is no dtype of polars.")
    if kind == "Enum":
        dtype = polars.Enum(column.values or ())
    return polars.Series(column.name, values).cast(dtype)


def _look_at(series: Any, name: Any, family: Any) -> Column:
    column, dtype = np.asarray(series), str(series.dtype)
    kind = _kind(column, dtype)
    if family is None:
        family = {"bool": "binary", "number": "numeric"}.get(kind, "categorical")
    elif isinstance(family, str) and family not in FAMILIES:
        raise ValueError(
            f"families gives column {name!r} the family {family!r}; expected one of "
            f"{list(FAMILIES)} or a Likelihood object."
        )
    if family not in ("binary", "categorical"):
        return Column(name, family, dtype)
    # Categories in the data frame's own order, those without a row included.
    ordered = False
    if kind == "category" and hasattr(series.cat, "categories"):
        ordered, values = bool(series.cat.ordered), series.cat.categories.tolist()
    elif kind == "category":
        values = series.cat.get_categories().to_list()
    else:
        seen = set(column.tolist())
        if any(value is None or value != value for value in seen):
            raise ValueError(
                f"column {name!r} has missing values; impute them first, or make them "
                "a category of their own."
            )
        values = sorted(seen, key=lambda value: (str(type(value)), value))
    if family == "binary" and len(values) > 2:
        raise ValueError(
            f"column {name!r} is to be binary, but has the values {values[:20]}."
        )
    return Column(name, family, dtype, tuple(values), ordered)


def _kind(column: np.ndarray, dtype: str) -> str:
    text = dtype.lower()
    if text.startswith("bool"):
        return "bool"
    if "categor" in text or "enum" in text:
        return "category"
    return "number" if column.dtype.kind in "iufb" else "text"
