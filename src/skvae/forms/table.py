"""Tables: data frames with columns of several kinds (pandas or polars)."""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Self

import narwhals.stable.v2 as nw
import numpy as np
from sklearn.utils.validation import validate_data

from ..checks import some
from .base import KINDS, Column, Form, check_keys, is_missing

LIBRARIES = ("pandas", "polars")


@dataclass(frozen=True)
class TableColumn:
    """A column of a data frame.

    Attributes
    ----------
    name : object
    kind : {"number", "boolean", "category", "date"}
    dtype : str
        The data frame's own.
    values : tuple or None
        The values of a category, in the order of their codes.
    ordered : bool
        Whether these are ordered categories.
    """

    name: Any
    kind: str
    dtype: str
    values: tuple[Any, ...] | None = None
    ordered: bool = False

    @property
    def integral(self) -> bool:
        return self.limits is not None

    @cached_property
    def limits(self) -> tuple[float, float] | None:
        """The ends of a dtype of whole numbers, None for any other.

        They are floats, so that of 64 bits the nearest ones within.
        """
        found = re.search(
            r"(?<![a-z])(u?)int(8|16|32|64|128)(?!\d)", self.dtype.lower()
        )
        if self.kind != "number" or found is None:
            return None
        bits = int(found[2])
        low, high = (0, 2**bits) if found[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        return float(low), float(high - 1 if bits <= 32 else np.nextafter(high, 0.0))

    @cached_property
    def codes(self) -> dict[Any, int]:
        """The code of each value of a category."""
        return {value: code for code, value in enumerate(self.values or ())}

    def described(self) -> Column:
        n_values = 2 if self.kind == "boolean" else None
        if self.values is not None:
            n_values = len(self.values)
        return Column(self.name, self.kind, n_values, self.integral, self.ordered)

    def encode(self, series: nw.Series[Any]) -> np.ndarray:
        """Numbers or codes of a series as float64 (n,), NaN where it is missing."""
        if self.kind == "category":
            return self._codes_of(series)
        if self.kind == "date":
            if not isinstance(series.dtype, nw.Datetime | nw.Date):
                raise ValueError(
                    f"column {self.name!r} held dates at fit, and now has the dtype "
                    f"{series.dtype}."
                )
            return series.dt.timestamp("us").cast(nw.Float64).to_numpy()
        try:
            if series.dtype.is_numeric():
                series = series.cast(nw.Float64)
            numbers = series.to_numpy()
            if numbers.dtype == object:  # None, pandas.NA
                missing = series.is_null().to_numpy()
                numbers = np.where(missing, np.nan, numbers)
            numbers = numbers.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"column {self.name!r} must hold numbers, but has values such as "
                f"{series.to_list()[0]!r}; use the family 'categorical'."
            ) from None
        if np.isinf(numbers).any():
            row = int(np.flatnonzero(np.isinf(numbers))[0])
            raise ValueError(
                f"column {self.name!r} has the value {numbers[row]} in row {row}; "
                "expected finite numbers."
            )
        return numbers

    def _codes_of(self, series: nw.Series[Any]) -> np.ndarray:
        code, values = self.codes, series.to_list()
        try:
            return np.array(
                [np.nan if is_missing(v) else code[v] for v in values], np.float64
            )
        except (KeyError, TypeError):
            unknown = next(v for v in values if not is_missing(v) and v not in code)
            raise ValueError(
                f"column {self.name!r} has the unknown value {unknown!r}; fit saw "
                f"{some(code)}."
            ) from None

    def decode(self, numbers: np.ndarray) -> Any:
        """Values of the column's own kind, from numbers (n,)."""
        if self.values is not None:
            codes = np.rint(np.clip(numbers, 0, len(self.values) - 1)).astype(int)
            return [self.values[code] for code in codes]
        if self.kind == "boolean":
            return numbers > 0.5
        if self.kind == "date":
            return np.rint(numbers).astype(np.int64).astype("datetime64[us]")
        if self.limits is not None:
            return np.clip(np.rint(numbers), *self.limits)
        return numbers


@dataclass(frozen=True)
class Table(Form):
    """A data frame with columns of several kinds: numbers, and codes of categories.

    Attributes
    ----------
    table : tuple of TableColumn
    library : {"pandas", "polars"}
    """

    table: tuple[TableColumn, ...]
    library: str
    dtype = np.dtype(np.float64)

    @cached_property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        return tuple(column.described() for column in self.table)

    @classmethod
    def accepts(cls, X: Any) -> bool:
        """Whether X is a data frame with a column that holds no numbers."""
        if not _is_frame(X):
            return False
        # Columns of equal names are refused later, by name.
        columns = [X.iloc[:, i] for i in range(X.shape[1])] if _is_pandas(X) else X
        return any(_kind(_series(column)) != "number" for column in columns)

    @classmethod
    def of(cls, X: Any, kinds: Mapping[Any, str] | None = None) -> Self:
        """Look at the columns of a data frame.

        Parameters
        ----------
        X : data frame
        kinds : mapping or None
            The kind of a column by its name; the dtype decides for those that are not
            named: strings and categories are categories.

        Raises
        ------
        TypeError
            If X is no data frame.
        ValueError
            If two columns have one name, or ``kinds`` names a column that is not there.
        """
        if not _is_frame(X):
            raise TypeError(
                "likelihood='mixed' reads the kinds of the columns from a data frame; "
                f"got {type(X).__name__}. Pass a DataFrame, or give an array's columns "
                "by Mixed((('gaussian', 3), ('poisson', 1)))."
            )
        names = list(X.columns)
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"X has several columns of the name {twice[0]!r}; rename them, so that "
                "each column has a name of its own."
            )
        unknown = [name for name in kinds or {} if name not in names]
        if unknown:
            raise ValueError(
                f"families names the column {unknown[0]!r}, but X has {some(names)}."
            )
        asked = dict(kinds or {})
        columns = [_look_at(X[name], name, asked.get(name)) for name in names]
        return cls(tuple(columns), "pandas" if _is_pandas(X) else "polars")

    def check(self, estimator: Any, X: Any, *, reset: bool = False) -> Any:
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        names = list(getattr(X, "columns", ()))
        if names != self.names:
            got = names if names else type(X).__name__
            raise ValueError(
                "X must be a data frame with the columns that fit saw, "
                f"{some(self.names)}; got {got}."
            )
        if not len(X):
            raise ValueError(
                f"Found a data frame with 0 rows (shape={X.shape}) while a minimum of "
                f"1 is required by {type(estimator).__name__}."
            )
        return X

    def batch(self, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        array = np.empty((len(rows), self.n_columns))
        for i, column in enumerate(self.table):
            array[:, i] = column.encode(_series(rows[column.name]))
        observed = ~np.isnan(array)
        return array, None if observed.all() else observed

    def decode(self, array: np.ndarray, like: Any = None) -> Any:
        data = {c.name: c.decode(array[:, i]) for i, c in enumerate(self.table)}
        if self.library == "polars":
            import polars

            return polars.DataFrame(
                [_polars_series(column, data[column.name]) for column in self.table]
            )
        import pandas

        frame = pandas.DataFrame(
            {c.name: _pandas_series(c, data[c.name]) for c in self.table}
        )
        if like is not None and _is_pandas(like) and len(like) == len(frame):
            frame.index = like.index
        return frame

    def fill(self, X: Any, decoded: Any) -> Any:
        filled = []
        for name in self.names:
            series = _series(X[name])
            missing = series.is_null()
            if series.dtype.is_float():
                missing |= series.is_nan()
            filled.append(series.zip_with(~missing, _series(decoded[name])))
        return nw.from_native(X, eager_only=True).with_columns(*filled).to_native()

    def row(self, x: Any) -> Any:
        if _is_frame(x):
            return x
        row = super().row(x)
        if _is_frame(row):
            return row.astype({c.name: c.dtype for c in self.table})
        raise ValueError(
            f"a row of a table must be a data frame with the columns "
            f"{some(self.names)}, got {type(x).__name__}."
        )

    def state(self) -> dict[str, Any]:
        columns = [
            {
                "name": column.name,
                "kind": column.kind,
                "dtype": column.dtype,
                "values": column.values,
                "ordered": column.ordered,
            }
            for column in self.table
        ]
        return {"columns": columns, "library": self.library}

    @classmethod
    def from_state(cls, state: dict[str, Any], n_columns: int | None = None) -> Self:
        check_keys(cls.__name__, state, {"columns", "library"})
        if state["library"] not in LIBRARIES:
            raise ValueError(
                f"the library {state['library']!r} must be one of {list(LIBRARIES)}."
            )
        if type(state["columns"]) is not list or not state["columns"]:
            raise ValueError("the columns of a table must be a list of columns.")
        columns = []
        for content in state["columns"]:
            check_keys("a column", content, set(TableColumn.__dataclass_fields__))
            column = TableColumn(**content)
            if column.kind not in KINDS or (column.kind == "category") != (
                column.values is not None
            ):
                raise ValueError(
                    f"a column of kind {column.kind!r} cannot have the values "
                    f"{column.values!r}."
                )
            if type(column.dtype) is not str or type(column.ordered) is not bool:
                raise ValueError(
                    "a column's dtype must be a string, and ordered a bool."
                )
            _check_values(column)
            _check_dtype(column.dtype)
            columns.append(column)
        names = [column.name for column in columns]
        if len(set(map(repr, names))) < len(names):
            raise ValueError(f"two columns have the same name: {some(names)}.")
        if not all(isinstance(name, Hashable) for name in names):
            raise ValueError(f"a column has no name of a data frame: {some(names)}.")
        return cls(tuple(columns), state["library"])


def _check_values(column: TableColumn) -> None:
    values = column.values
    if values is None:
        return
    try:
        n_values = len(column.codes) if type(values) is tuple else -1
    except TypeError:
        n_values = -1
    if n_values < 0:
        raise ValueError(
            f"the values of column {column.name!r} must be a tuple of numbers, strings "
            f"or other values without parts, got {values!r}."
        )
    if n_values < len(values):
        raise ValueError(f"a value of column {column.name!r} is there twice.")


def _check_dtype(dtype: str) -> None:
    """Refuse a dtype of NumPy whose values take more memory than a number does."""
    try:
        size = np.dtype(dtype).itemsize
    except Exception:  # what NumPy says to the name of another library's dtype
        return
    if size > 16:
        raise ValueError(f"a column of a data frame cannot have the dtype {dtype!r}.")


def _is_pandas(X: Any) -> bool:
    known = nw.dependencies
    return known.is_pandas_dataframe(X) or known.is_pandas_series(X)


def _is_frame(X: Any) -> bool:
    known = nw.dependencies
    return known.is_pandas_dataframe(X) or known.is_polars_dataframe(X)


def _series(series: Any) -> nw.Series[Any]:
    return nw.from_native(series, series_only=True)


def _kind(series: nw.Series[Any]) -> str:
    """The kind of a column, by its dtype."""
    dtype = series.dtype
    if dtype.is_numeric():
        return "number"
    if isinstance(dtype, nw.Boolean):
        return "boolean"
    if isinstance(dtype, nw.Datetime | nw.Date):
        return "date"
    if isinstance(dtype, nw.Object):
        values = [value for value in series.to_list() if not is_missing(value)]
        if values and all(
            isinstance(v, Real) and not isinstance(v, bool | np.bool_) for v in values
        ):
            return "number"
    if isinstance(dtype, nw.Unknown) and series.to_numpy().dtype.kind in "iuf":
        return "number"  # a sparse column of pandas
    return "category"


def _look_at(native: Any, name: Any, asked: str | None) -> TableColumn:
    series, dtype = _series(native), str(native.dtype)
    kind = _kind(series)
    if asked == "category" or (asked == "number" and kind == "category"):
        kind = asked
    if kind != "category":
        column = TableColumn(name, kind, dtype)
        if asked is not None:
            column.encode(series)  # refuses what is no number
        return column
    # Categories in the data frame's own order, those without a row included.
    ordered = False
    if isinstance(series.dtype, nw.Enum | nw.Categorical):
        values = series.cat.get_categories().to_list()
        ordered = nw.is_ordered_categorical(series) and _is_pandas(native)
    else:
        present = [value for value in series.to_list() if not is_missing(value)]
        try:
            values = sorted(set(present), key=lambda value: (str(type(value)), value))
        except TypeError:
            raise ValueError(
                f"column {name!r} has values such as {present[0]!r}, which are neither "
                "numbers nor categories; drop the column, or make numbers or strings "
                "of it."
            ) from None
    return TableColumn(name, kind, dtype, tuple(values), ordered)


def _pandas_series(column: TableColumn, values: Any) -> Any:
    import pandas

    dtype: Any = column.dtype
    if column.dtype == "category":
        return pandas.Categorical(
            values, categories=list(column.values or ()), ordered=column.ordered
        )
    if column.kind == "date" and "," in column.dtype:  # with a time zone
        return pandas.Series(values).dt.tz_localize("UTC").astype(dtype)
    if column.kind == "number" and column.dtype == "object":
        return pandas.Series(values)
    return pandas.Series(values).astype(dtype)


def _polars_series(column: TableColumn, values: Any) -> Any:
    import polars

    dtype = _polars_dtype(column)
    series = polars.Series(column.name, values)
    if isinstance(dtype, polars.Datetime) and dtype.time_zone is not None:
        series = series.dt.replace_time_zone("UTC")
    return series.cast(dtype)


def _polars_dtype(column: TableColumn) -> Any:
    """The dtype of polars that a column had."""
    import polars

    name, _, arguments = column.dtype.partition("(")
    kind: Any = getattr(polars, name, None)
    if not (isinstance(kind, type) and issubclass(kind, polars.DataType)):
        raise ValueError(f"{column.dtype!r} is no dtype of polars.")
    if name == "Enum":
        return polars.Enum(list(column.values or ()))
    if name not in ("Datetime", "Duration", "Decimal"):
        return kind()
    options: dict[str, Any] = dict(re.findall(r"(\w+)='?([\w/+-]+)'?", arguments))
    if options.get("time_zone") == "None":
        options["time_zone"] = None
    if name == "Decimal":
        options = {k: int(v) for k, v in options.items()}
    return kind(**options)
