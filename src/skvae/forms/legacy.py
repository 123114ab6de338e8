"""Forms of the models that version 0.1 has saved.

In version 0.1 a category was a block of one-hot columns; now it is one column of codes.
These forms take what such a model took, and give the rows the noise that they had.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from ..checks import warn
from .base import Column, Form, check_keys
from .images import Images
from .rows import Rows
from .table import Table

# Forms of the one-hot columns.
INNER: dict[str, type[Rows]] = {"rows": Rows, "images": Images}


@dataclass(frozen=True)
class OneHotRows(Form):
    """Rows or images in which blocks of columns stand for one category each.

    A block that does not hold a single 1 among zeros counts as its largest entry, with
    a warning.

    Attributes
    ----------
    inner : Rows
        The form of X.
    blocks : tuple of tuple of int
        The columns of X that belong to each category, in the order of its codes.
    """

    inner: Rows
    blocks: tuple[tuple[int, ...], ...]

    @cached_property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The columns of X behind each column, in the order of the first of them."""
        in_blocks = {i for block in self.blocks for i in block}
        others = [(i,) for i in range(self.inner.n_columns) if i not in in_blocks]
        return tuple(sorted([*others, *self.blocks]))

    @cached_property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        names, blocks = self.inner.names, set(self.blocks)
        return tuple(
            Column(tuple(names[i] for i in p), "category", len(p))
            if p in blocks
            else Column(names[p[0]])
            for p in self.positions
        )

    @property
    def n_features(self) -> int:
        return self.inner.n_features

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.inner.dtype

    @property
    def image_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return self.inner.image_shape

    def check(self, estimator: Any, X: Any, *, reset: bool = False) -> Any:
        return self.inner.check(estimator, X, reset=reset)

    def batch(self, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        X, observed = self.inner.batch(rows)
        array = np.empty((len(X), self.n_columns), dtype=X.dtype)
        exact = True
        for column, positions, is_block in self._columns():
            part = X[:, positions]
            array[:, column] = part.argmax(axis=1) if is_block else part[:, 0]
            if is_block:
                ones, zeros = (part == 1).sum(axis=1), (part == 0).sum(axis=1)
                exact &= bool(np.all((ones == 1) & (zeros == len(positions) - 1)))
        if observed is not None:
            observed = np.stack(
                [observed[:, p].all(axis=1) for p in self.positions], axis=1
            )
        elif not exact:
            warn(
                "X has rows whose one-hot blocks do not hold a single 1 among zeros; "
                "the largest entry of each block counts."
            )
        return array, observed

    def decode(self, array: np.ndarray, like: Any = None) -> Any:
        X = np.zeros((len(array), self.inner.n_columns), dtype=array.dtype)
        for column, positions, is_block in self._columns():
            X[:, positions] = (
                one_hot(array[:, column], len(positions))
                if is_block
                else array[:, [column]]
            )
        return self.inner.decode(X, like)

    def hashed(self, x: np.ndarray) -> np.ndarray:
        expanded = np.empty((len(x), self.inner.n_columns), dtype=np.float32)
        for column, positions, is_block in self._columns():
            expanded[:, positions] = (
                one_hot(x[:, column], len(positions)) if is_block else x[:, [column]]
            )
        return expanded

    def fill(self, X: Any, decoded: Any) -> Any:
        return self.inner.fill(X, decoded)

    def row(self, x: Any) -> Any:
        return self.inner.row(x)

    def stack(self, decoded: Any, shape: tuple[int, ...]) -> Any:
        return self.inner.stack(decoded, shape)

    def _columns(self) -> Iterator[tuple[int, list[int], bool]]:
        """Each column, the columns of X behind it, and whether these are a block."""
        blocks = set(self.blocks)
        for column, positions in enumerate(self.positions):
            yield column, list(positions), positions in blocks

    def state(self) -> dict[str, Any]:
        kinds = {form: name for name, form in INNER.items()}
        return {
            "inner": {"kind": kinds[type(self.inner)], **self.inner.state()},
            "blocks": self.blocks,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], n_columns: int | None = None) -> Self:
        check_keys(cls.__name__, state, {"inner", "blocks"})
        inner, blocks = dict(state["inner"]), state["blocks"]
        kind = inner.pop("kind", None)
        if kind not in INNER:
            raise ValueError(f"the form {kind!r} must be one of {list(INNER)}.")
        if type(blocks) is not tuple or not all(type(b) is tuple for b in blocks):
            raise ValueError(f"blocks must be a tuple of tuples, got {blocks!r}.")
        in_blocks = [i for block in blocks for i in block]
        width = None
        if n_columns is not None:
            width = n_columns - len(blocks) + len(in_blocks)
        form = cls(INNER[kind].from_state(inner, width), blocks)
        known = set(range(form.inner.n_columns))
        if (
            not all(blocks)
            or not all(type(i) is int and i in known for i in in_blocks)
            or len(set(in_blocks)) < len(in_blocks)
        ):
            raise ValueError(
                f"blocks must hold columns of X, each of them once; got {blocks!r}."
            )
        return form


@dataclass(frozen=True)
class OneHotTable(Table):
    """A table whose rows have the noise of their one-hot columns.

    Attributes
    ----------
    one_hot : tuple of int
        The columns that were one-hot.
    """

    one_hot: tuple[int, ...] = ()

    def hashed(self, x: np.ndarray) -> np.ndarray:
        parts = []
        for i, column in enumerate(self.columns):
            part = x[:, i : i + 1]
            if i in self.one_hot:
                assert column.n_values is not None
                part = one_hot(x[:, i], column.n_values)
            parts.append(part)
        return np.hstack(parts).astype(np.float32, copy=False)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "one_hot": self.one_hot}

    @classmethod
    def from_state(cls, state: dict[str, Any], n_columns: int | None = None) -> Self:
        table, one_hot = dict(state), state.get("one_hot")
        table.pop("one_hot", None)
        form = Table.from_state(table, n_columns)
        categories = {i for i, c in enumerate(form.columns) if c.kind == "category"}
        if type(one_hot) is not tuple or not categories.issuperset(one_hot):
            raise ValueError(
                f"one_hot must be a tuple of categories of the table, got {one_hot!r}."
            )
        return cls(form.table, form.library, one_hot)


def one_hot(codes: np.ndarray, n_values: int) -> np.ndarray:
    """Rows (n, n_values) with a 1 at each code of (n,), in the dtype of the codes."""
    return np.equal.outer(codes, np.arange(n_values)).astype(codes.dtype)
