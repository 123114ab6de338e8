"""Columns of several kinds in one array."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .base import Likelihood
from .registry import LIKELIHOODS


class _Group(NamedTuple):
    """A likelihood and its columns in ascending order; prefix of its parameters."""

    likelihood: Likelihood
    columns: list[int]
    prefix: str


class Mixed(Likelihood):
    r"""Columns of several kinds in one array: each group of columns has its likelihood.

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
        indices in each, which are taken in ascending order. Each column belongs to one
        group.

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

    An array of two real numbers, a count, and a variable of three categories:

    >>> import torch
    >>> from skvae import Categorical
    >>> mixed = Mixed((("gaussian", 2), ("poisson", 1), (Categorical(), 3)))
    >>> mixed.standardized(6)
    array([ True,  True, False, False, False, False])
    >>> x = torch.tensor([[0.0, 0.0, 4.0, 0.0, 1.0, 0.0]])
    >>> parameters = mixed.parameters(6)
    >>> mixed.log_prob(x, torch.zeros(1, 6, 1), **parameters).shape
    torch.Size([1])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "families": [dict, tuple, list, None]
    }

    def __init__(self, families=None):
        self.families = families

    @property
    def of_data_frame(self) -> bool:
        """Whether the families are those of a data frame's columns."""
        return self.families is None or isinstance(self.families, dict)

    # ------------------------------------------------------------------ the groups

    @property
    def _likelihoods(self) -> list[Likelihood]:
        return [
            LIKELIHOODS[family]() if isinstance(family, str) else family
            for family, _ in self.families
        ]

    @property
    def _groups(self) -> list[_Group]:
        groups, start = [], 0
        for i, (likelihood, (_, columns)) in enumerate(
            zip(self._likelihoods, self.families, strict=True)
        ):
            if isinstance(columns, Integral):
                columns = range(start, start + int(columns))
                start = columns.stop
            ordered = sorted(int(column) for column in columns)
            groups.append(_Group(likelihood, ordered, f"group{i}_"))
        return groups

    def _validate_params(self):
        """Refuse families that are none, before anything is looked up in them."""
        super()._validate_params()
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
                family._validate_params()
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

    def check_n_features(self, n_features):
        groups = self._groups
        given = sorted(column for group in groups for column in group.columns)
        if given != list(range(n_features)):
            missing = sorted(set(range(n_features)) - set(given))
            unknown = sorted(set(given) - set(range(n_features)))
            twice = sorted({c for c in given if given.count(c) > 1})
            raise ValueError(
                f"X has {n_features} features, and each must belong to one group of "
                f"families; without a group: {missing}, in several: {twice}, not "
                f"columns of X: {unknown}."
            )
        for group in groups:
            group.likelihood.check_n_features(len(group.columns))

    def _split(self, values: Tensor, dim: int) -> list[Tensor]:
        """The columns of each group, from a tensor of D along dim."""
        groups = self._groups
        parts: list[list[Tensor]] = [[] for _ in groups]
        owners, lengths = _runs(groups)
        for owner, part in zip(owners, values.split(lengths, dim), strict=True):
            parts[owner].append(part)
        return [p[0] if len(p) == 1 else torch.cat(p, dim) for p in parts]

    def _join(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`_split` along the last dimension."""
        owners, lengths = _runs(self._groups)
        used = [0] * len(values)
        parts = []
        for owner, length in zip(owners, lengths, strict=True):
            parts.append(values[owner].narrow(-1, used[owner], length))
            used[owner] += length
        return torch.cat(parts, -1)

    def _split_raw(self, raw: Tensor) -> list[Tensor]:
        """Each group's raw outputs: of all that a feature has, as many as it asks."""
        return [
            part[..., : likelihood.n_outputs]
            for likelihood, part in zip(
                self._likelihoods, self._split(raw, -2), strict=True
            )
        ]

    # ------------------------------------------------------------------ the contract

    @property
    def n_outputs(self):
        return max(likelihood.n_outputs for likelihood in self._likelihoods)

    @property
    def real_valued(self):
        return any(likelihood.real_valued for likelihood in self._likelihoods)

    @property
    def tolerates_rounding(self):
        return all(likelihood.tolerates_rounding for likelihood in self._likelihoods)

    @property
    def support(self):
        return " x ".join(likelihood.support for likelihood in self._likelihoods)

    def standardized(self, n_features):
        flags = np.zeros(n_features, dtype=bool)
        for likelihood, columns, _ in self._groups:
            flags[columns] = likelihood.standardized(len(columns))
        return flags

    def in_support(self, X):
        inside = np.zeros(X.shape, dtype=bool)
        for likelihood, columns, _ in self._groups:
            inside[:, columns] = likelihood.in_support(X[:, columns])
        return inside

    def check_support(self, X, name="X", columns=None):
        self.check_n_features(X.shape[1])
        for likelihood, indices, _ in self._groups:
            labels = [i if columns is None else columns[i] for i in indices]
            likelihood.check_support(X[:, indices], name, labels)

    def nearest_in_support(self, X):
        nearest = X.copy()
        for likelihood, columns, _ in self._groups:
            nearest[:, columns] = likelihood.nearest_in_support(X[:, columns])
        return nearest

    def parameters(self, n_features):
        return {
            prefix + name: value
            for likelihood, columns, prefix in self._groups
            for name, value in likelihood.parameters(len(columns)).items()
        }

    def constants(self, unit):
        return {
            prefix + name: value
            for likelihood, columns, prefix in self._groups
            for name, value in likelihood.constants(unit[columns]).items()
        }

    def output_bias(self, mean):
        bias = mean.new_zeros(len(mean), self.n_outputs)
        for likelihood, columns, _ in self._groups:
            bias[columns, : likelihood.n_outputs] = likelihood.output_bias(
                mean[columns]
            )
        return bias

    def network_input(self, x):
        parts = zip(self._likelihoods, self._split(x, -1), strict=True)
        return self._join([family.network_input(part) for family, part in parts])

    def _by_group(self, raw: Tensor, parameters: dict[str, Tensor]):
        """(likelihood, raw, parameters) of each group."""
        for group, part in zip(self._groups, self._split_raw(raw), strict=True):
            yield (
                group.likelihood,
                part,
                {
                    name.removeprefix(group.prefix): value
                    for name, value in parameters.items()
                    if name.startswith(group.prefix)
                },
            )

    def log_prob(self, x, raw, **parameters):
        terms = [
            likelihood.log_prob(part, outputs, **own)
            for part, (likelihood, outputs, own) in zip(
                self._split(x, -1), self._by_group(raw, parameters), strict=True
            )
        ]
        return torch.stack(terms).sum(0)

    def mean(self, raw, **parameters):
        return self._join(
            [
                likelihood.mean(outputs, **own)
                for likelihood, outputs, own in self._by_group(raw, parameters)
            ]
        )

    def draw(self, raw, generator, **parameters):
        return self._join(
            [
                likelihood.draw(outputs, generator, **own)
                for likelihood, outputs, own in self._by_group(raw, parameters)
            ]
        )


def _runs(groups: Sequence[_Group]) -> tuple[list[int], list[int]]:
    """Neighbouring columns of the same group: its number, and how many they are.

    Slices in place of indices: an index would have to be sent to the device each step.
    """
    owner = {column: i for i, group in enumerate(groups) for column in group.columns}
    owners: list[int] = []
    lengths: list[int] = []
    for column in sorted(owner):
        if owners and owners[-1] == owner[column]:
            lengths[-1] += 1
        else:
            owners.append(owner[column])
            lengths.append(1)
    return owners, lengths
