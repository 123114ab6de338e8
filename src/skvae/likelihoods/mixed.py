"""Columns of several kinds, each group of them with a likelihood of its own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..forms.base import Column, Summary
from ..support import UNIT_INTERVAL, Support
from ..units import Units
from .base import Likelihood, LikelihoodModule, SupportOfColumns
from .categories import Categorical
from .counts import NegativeBinomial
from .real import Gaussian
from .registry import LIKELIHOODS
from .unit_interval import Bernoulli

# Names of families of a data frame's columns.
COLUMN_FAMILIES: dict[str, type[Likelihood]] = {
    "numeric": Gaussian,
    "count": NegativeBinomial,
    "binary": Bernoulli,
    "categorical": Categorical,
}
# The family of a column of a data frame, by its kind.
FAMILY_OF_KIND = {
    "number": "numeric",
    "date": "numeric",
    "boolean": "binary",
    "category": "categorical",
}


class Mixed(Likelihood):
    r"""Columns of several kinds: each group of columns has a likelihood of its own.

    .. math:: \log p(x|z) = \sum_g \log p_g(x_{\mathrm{columns}(g)} | z)

    Parameters
    ----------
    families : dict, tuple of (likelihood, columns) or None, default=None
        For a data frame, the family of a column by its name: "numeric", "count",
        "binary", "categorical" or a Likelihood; the dtype decides for columns that are
        not named (bool is binary, strings and categories are categorical, numbers are
        numeric). What the estimator hands out is then a data frame again, with the
        dtypes and categories of the first.

        For an array, pairs: the likelihood is a short name or an object, the columns
        are either a number in each pair, so many next to each other, or a sequence of
        indices in each. Each column belongs to one group.

    Examples
    --------
    A data frame:

    >>> import pandas as pd
    >>> from skvae import Mixed, VAEEstimator
    >>> people = pd.DataFrame({
    ...     "height": [1.7, 1.8, 1.6], "children": [0, 2, 1],
    ...     "smokes": [False, True, False], "town": ["Rome", "Oslo", "Rome"]})
    >>> likelihood = Mixed({"children": "count"})
    >>> vae = VAEEstimator(1, likelihood=likelihood, epochs=1, random_state=0)
    >>> vae.fit(people).sample(2).dtypes.equals(people.dtypes)
    True

    An array of two real numbers, a count, and the codes of three categories:

    >>> import numpy as np
    >>> from skvae import Categorical
    >>> mixed = Mixed((("gaussian", 2), ("poisson", 1), (Categorical(3), 1)))
    >>> X = np.array([[0.1, 2.0, 4, 0], [0.3, 1.0, 0, 2], [0.2, 1.5, 1, 1]])
    >>> vae = VAEEstimator(1, likelihood=mixed, epochs=1, random_state=0)
    >>> vae.fit(X).transform(X).shape
    (3, 1)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "families": [dict, tuple, list, None]
    }

    takes_categories = True

    def __init__(self, families: Any = None) -> None:
        self.families = families

    @property
    def of_data_frame(self) -> bool:
        """Whether the families are those of a data frame's columns."""
        return self.families is None or isinstance(self.families, dict)

    @property
    def kinds(self) -> dict[Any, str] | None:
        if not self.of_data_frame:
            return None
        categories = {
            name: family in ("categorical", "binary")
            if isinstance(family, str)
            else family.takes_categories
            for name, family in (self.families or {}).items()
        }
        return {
            name: "category" if is_category else "number"
            for name, is_category in categories.items()
        }

    def validate(self) -> None:
        """Refuse families that are none, before anything is looked up in them."""
        super().validate()
        if self.of_data_frame:
            return
        if not self.families:
            raise ValueError(
                "families=() must hold at least one (likelihood, columns), such as "
                "('gaussian', 2)."
            )
        by_count = set()
        for pair in self.families:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(
                    f"families must hold pairs (likelihood, columns), such as "
                    f"('gaussian', 2); got {pair!r}."
                )
            family, columns = pair
            if isinstance(family, Likelihood):
                family.validate()
            elif not isinstance(family, str) or family not in LIKELIHOODS:
                raise ValueError(
                    f"families has the likelihood {family!r}; expected one of "
                    f"{sorted(LIKELIHOODS)} or a Likelihood object."
                )
            by_count.add(isinstance(columns, Integral))
            indices = list(columns) if np.iterable(columns) else [columns]
            if not indices or not all(
                isinstance(i, Integral) and not isinstance(i, bool | np.bool_)
                for i in indices
            ):
                raise ValueError(
                    f"families gives {family!r} the columns {columns!r}; expected a "
                    "number of columns or a sequence of their indices."
                )
            if isinstance(columns, Integral) and columns < 1:
                raise ValueError(
                    f"families gives {family!r} {columns} columns; give at least 1."
                )
        if len(by_count) == 2:
            raise ValueError(
                "families gives some columns by number and some by index: "
                f"{self.families!r}; use one way for all."
            )

    def resolve(self, columns: Sequence[Column], summary: Summary) -> Likelihood:
        """Pairs (likelihood, positions of the columns), each family resolved."""
        if self.of_data_frame:
            groups = self._by_kind(columns)
        else:
            _check_numbers(self.families, len(columns))
            groups = self.groups
            _check_partition(groups, len(columns))
        resolved = []
        for family, positions in groups:
            some_columns = [columns[i] for i in positions]
            for column in some_columns:
                if column.kind == "category" and not family.takes_categories:
                    _check_binary(column, family)
            one = family.resolve(some_columns, summary.take(positions))
            resolved.append((one, tuple(positions)))
        return Mixed(tuple(resolved))

    def _by_kind(self, columns: Sequence[Column]) -> list[tuple[Likelihood, list[int]]]:
        """Families of a data frame's columns, those of one family together."""
        given = self.families or {}
        families: dict[str, Likelihood] = {}
        groups: dict[str, list[int]] = {}
        for i, column in enumerate(columns):
            family = given.get(column.name, FAMILY_OF_KIND[column.kind])
            if isinstance(family, str) and family not in COLUMN_FAMILIES:
                raise ValueError(
                    f"families gives column {column.name!r} the family {family!r}; "
                    f"expected one of {list(COLUMN_FAMILIES)} or a Likelihood object."
                )
            if not isinstance(family, str):
                family.validate()
            elif family == "numeric":
                family = Gaussian(scale="feature")
            else:
                family = COLUMN_FAMILIES[family]()
            families[repr(family)] = family
            groups.setdefault(repr(family), []).append(i)
        return [(families[key], positions) for key, positions in groups.items()]

    @property
    def groups(self) -> list[tuple[Likelihood, list[int]]]:
        """Families and the positions of their columns, in ascending order."""
        groups, start = [], 0
        for family, columns in self.families or ():
            one = LIKELIHOODS[family]() if isinstance(family, str) else family
            if isinstance(columns, Integral):
                columns = range(start, start + int(columns))
                start = columns.stop
            groups.append((one, sorted(int(column) for column in columns)))
        return groups

    # ------------------------------------------------------------------ the contract

    @property
    def real_valued(self) -> bool:
        return any(likelihood.real_valued for likelihood, _ in self.groups)

    @property
    def tolerates_rounding(self) -> bool:
        return all(likelihood.tolerates_rounding for likelihood, _ in self.groups)

    @property
    def support(self) -> Support:
        text = " x ".join(str(likelihood.support) for likelihood, _ in self.groups)
        return Support(text=text)

    def standardizes(self, summary: Summary) -> np.ndarray:
        flags = np.zeros(len(summary.mean), dtype=bool)
        for likelihood, columns in self.groups:
            flags[columns] = likelihood.standardizes(summary.take(columns))
        return flags

    def families_by_column(self, n_columns: int) -> Any:
        return [
            (one, support, [columns[i] for i in some_of_them])
            for family, columns in self.groups
            for one, support, some_of_them in family.families_by_column(len(columns))
        ]

    def supports(self, n_columns: int) -> list[SupportOfColumns]:
        return [(s, columns) for _, s, columns in self.families_by_column(n_columns)]

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return MixedModule(self.groups, columns, summary, units)


class MixedModule(LikelihoodModule):
    """The module that :class:`Mixed` builds.

    Inputs and raw outputs of a column stand side by side, column after column.
    """

    def __init__(
        self, groups: Any, columns: Sequence[Column], summary: Summary, units: Units
    ) -> None:
        modules = [
            family.build(
                [columns[i] for i in positions],
                summary.take(positions),
                Units(units.location[positions], units.scale[positions]),
            )
            for family, positions in groups
        ]
        positions = [positions for _, positions in groups]
        of_columns = _Interleaving(positions, [1] * len(columns))
        widths = _in_order(positions, [module.input_widths for module in modules])
        inputs = _Interleaving(positions, widths)
        widths = _in_order(positions, [module.raw_widths for module in modules])
        raws = _Interleaving(positions, widths)
        super().__init__(len(columns), inputs.width, raws.width)
        self.of_columns, self.of_inputs, self.of_raw = of_columns, inputs, raws
        self.groups = nn.ModuleList(modules)
        self.start = raws.join([module.start for module in modules])
        self.inputs = (
            inputs.join([module.inputs[0] for module in modules]),
            inputs.join([module.inputs[1] for module in modules]),
        )

    @property
    def input_widths(self) -> list[int]:
        return self.of_inputs.widths

    @property
    def raw_widths(self) -> list[int]:
        return self.of_raw.widths

    def _parts(
        self, *tensors: tuple[Tensor | None, "_Interleaving"]
    ) -> Iterator[tuple[Any, ...]]:
        """Each group's module, and its share of tensors."""
        split = [
            [None] * len(self.groups) if tensor is None else how.split(tensor)
            for tensor, how in tensors
        ]
        yield from zip(self.groups, *split, strict=True)

    def see(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        parts = self._parts((x, self.of_columns), (seen, self.of_columns))
        return self.of_inputs.join([g.see(part, mask) for g, part, mask in parts])

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        parts = self._parts((x, self.of_columns), (raw, self.of_raw))
        return self.of_columns.join([g.log_prob_by_column(p, r) for g, p, r in parts])

    def log_prob(
        self, x: Tensor, raw: Tensor, observed: Tensor | None = None
    ) -> Tensor:
        columns = self.of_columns
        parts = self._parts((x, columns), (raw, self.of_raw), (observed, columns))
        return torch.stack([g.log_prob(p, r, mask) for g, p, r, mask in parts]).sum(0)

    def mean(self, raw: Tensor) -> Tensor:
        return self.of_columns.join(
            [g.mean(r) for g, r in self._parts((raw, self.of_raw))]
        )

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        parts = self._parts((raw, self.of_raw))
        return self.of_columns.join([g.draw(r, generator) for g, r in parts])


class _Interleaving:
    """How the columns of several groups stand side by side along the last axis.

    Parameters
    ----------
    groups : sequence of sequence of int
        Positions of the columns of each group.
    widths : sequence of int
        Numbers that each column takes.
    """

    def __init__(self, groups: Sequence[Sequence[int]], widths: Sequence[int]) -> None:
        owner = {column: i for i, group in enumerate(groups) for column in group}
        self.n_groups = len(groups)
        self.widths = list(widths)
        self.width = sum(widths)
        # Neighbouring columns of one group are one slice: no index is sent to the
        # device at each step.
        self.owners: list[int] = []
        self.lengths: list[int] = []
        for column in sorted(owner):
            if self.owners and self.owners[-1] == owner[column]:
                self.lengths[-1] += widths[column]
            else:
                self.owners.append(owner[column])
                self.lengths.append(widths[column])

    def split(self, values: Tensor) -> list[Tensor]:
        """The share of each group."""
        parts: list[list[Tensor]] = [[] for _ in range(self.n_groups)]
        for owner, part in zip(
            self.owners, values.split(self.lengths, -1), strict=True
        ):
            parts[owner].append(part)
        return [p[0] if len(p) == 1 else torch.cat(p, -1) for p in parts]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`split`."""
        used = [0] * len(values)
        parts = []
        for owner, length in zip(self.owners, self.lengths, strict=True):
            parts.append(values[owner].narrow(-1, used[owner], length))
            used[owner] += length
        return torch.cat(parts, -1)


def _in_order(
    groups: Sequence[Sequence[int]], of_groups: Sequence[Sequence[int]]
) -> list[int]:
    """Numbers of the columns of each group, in the order of all columns."""
    numbers = [0] * sum(map(len, groups))
    for positions, of_group in zip(groups, of_groups, strict=True):
        for position, number in zip(positions, of_group, strict=True):
            numbers[position] = number
    return numbers


def _check_numbers(families: Sequence[tuple[Any, Any]], n_columns: int) -> None:
    """Refuse more columns than there are, before they are counted out one by one."""
    total = sum(int(c) for _, c in families if isinstance(c, Integral))
    if total > n_columns:
        raise ValueError(
            f"X has {n_columns} features, and each must belong to one group of "
            f"families, but these have {total} columns."
        )


def _check_partition(
    groups: Sequence[tuple[Likelihood, list[int]]], n_columns: int
) -> None:
    given = sorted(column for _, columns in groups for column in columns)
    if given == list(range(n_columns)):
        return
    missing = sorted(set(range(n_columns)) - set(given))
    unknown = sorted(set(given) - set(range(n_columns)))
    twice = sorted(c for c, times in Counter(given).items() if times > 1)
    raise ValueError(
        f"X has {n_columns} features, and each must belong to one group of families; "
        f"without a group: {missing}, in several: {twice}, not columns of X: {unknown}."
    )


def _check_binary(column: Column, family: Likelihood) -> None:
    if column.n_values is not None and column.n_values > 2:
        raise ValueError(
            f"column {column.name!r} has {column.n_values} values, but its family "
            f"{family!r} takes two; use 'categorical'."
        )


class Auto(Likelihood):
    """The family that ``likelihood="auto"`` stands for.

    Columns of several kinds are :class:`Mixed`; numbers that all lie in [0, 1] are
    Bernoulli, others Gaussian. Counts are never guessed.
    """

    takes_categories = True

    def resolve(self, columns: Sequence[Column], summary: Summary) -> Likelihood:
        if any(column.kind != "number" for column in columns):
            return Mixed().resolve(columns, summary)
        low, high = summary.low.min(), summary.high.max()
        inside = bool(UNIT_INTERVAL.contains(np.array([low, high])).all())
        # Below 0 by rounding, of columns that reach up to 1; not of tiny numbers.
        inside &= low >= 0 or high > 0.5
        return (Bernoulli() if inside else Gaussian()).resolve(columns, summary)
