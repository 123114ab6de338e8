"""What every likelihood has in common: a specification, and the module it builds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..forms.base import Column, Summary
from ..spec import Spec
from ..support import REAL, Support
from ..units import Units

# A support, and the columns that have it.
SupportOfColumns = tuple[Support, Sequence[int]]


class Likelihood(Spec):
    """Base of the likelihoods. Subclasses implement :meth:`build`.

    Attributes
    ----------
    support : Support
        Values that the family can produce.
    real_valued : bool
        Whether x is any real number: such columns are standardised inside the model.
    tolerates_rounding : bool
        Whether training may see x, and give its outputs, in the three digits of
        bfloat16 without loss.
    takes_categories : bool
        Whether columns may be categories of more than two values.
    advice : str
        What to do about data outside the support, for error messages.
    """

    support: Any = REAL
    real_valued: Any = False
    tolerates_rounding: Any = False
    takes_categories = False
    advice = (
        "Scale the data (MinMaxScaler) or choose another likelihood, such as "
        "'gaussian'."
    )

    @property
    def kinds(self) -> dict[Any, str] | None:
        """Kinds of columns by name, where X must be a data frame; else None."""
        return None

    def resolve(self, columns: Sequence[Column], summary: Summary) -> "Likelihood":
        """The family for these columns, with nothing left to be found out.

        What it returns resolves to itself, whatever the summary says.

        Raises
        ------
        ValueError
            If the family cannot have such columns.
        """
        return self

    def supports(self, n_columns: int) -> list[SupportOfColumns]:
        """The supports, and the columns that have each."""
        return [(self.support, range(n_columns))]

    def standardizes(self, summary: Summary) -> np.ndarray:
        """Which columns are standardised inside the model, a boolean array."""
        return np.full(len(summary.mean), self.real_valued)

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> "LikelihoodModule":
        """Make the module of a resolved family.

        Parameters
        ----------
        columns : sequence of Column
        summary : Summary
            Statistics of the training rows, in the user's units.
        units : Units
            What 1 inside the model is worth in the user's units.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ the support

    def contains(self, X: np.ndarray) -> np.ndarray:
        """Which entries of X lie within the support, a boolean array like X."""
        ((support, _), *others) = self.supports(X.shape[1])
        if not others:
            return support.contains(X)
        inside = np.empty(X.shape, dtype=bool)
        for support, columns in self.supports(X.shape[1]):
            inside[:, columns] = support.contains(X[:, columns])
        return inside

    def nearest(self, X: np.ndarray) -> np.ndarray:
        """X with each entry replaced by the nearest one within the support."""
        ((support, _), *others) = self.supports(X.shape[1])
        if not others:
            return support.nearest(X)
        nearest = np.empty_like(X)
        for support, columns in self.supports(X.shape[1]):
            nearest[:, columns] = support.nearest(X[:, columns])
        return nearest

    def covers(self, summary: Summary) -> bool:
        """Whether all values lie within, as their lowest and highest already tell.

        False says nothing: each value is then to be looked at.
        """
        return all(
            support.step is None
            and bool(support.contains(summary.low[list(columns)]).all())
            and bool(support.contains(summary.high[list(columns)]).all())
            for support, columns in self.supports(len(summary.low))
        )

    def check_support(
        self, X: np.ndarray, name: str = "X", names: Sequence[Any] | None = None
    ) -> None:
        """Refuse X (N, n_columns) at its first entry outside, naming it.

        Missing entries (NaN) are not looked at.
        """
        inside = self.contains(X) | np.isnan(X)
        if inside.all():
            return
        row, column = np.argwhere(~inside)[0]
        support, advice = self.support, self.advice
        for family, one, columns in self.families_by_column(X.shape[1]):
            if column in columns:
                support, advice = one, family.advice
        label = column if names is None else repr(names[column])
        raise ValueError(
            f"{name} has the value {X[row, column]!s} in row {row}, column {label}, "
            f"outside the support {support} of {self!r}. {advice}"
        )

    def families_by_column(
        self, n_columns: int
    ) -> list[tuple["Likelihood", Support, Sequence[int]]]:
        """The family and the support of each group of columns."""
        return [(self, *one) for one in self.supports(n_columns)]


class LikelihoodModule(nn.Module):
    """p(x|z) of rows: what a :class:`Likelihood` builds.

    What is learned beside the network are parameters, what is fixed are buffers.

    Parameters
    ----------
    n_columns : int
        Numbers and codes that a row x has.
    n_inputs : int or None
        Numbers that the encoder sees of a row; ``n_columns`` where None.
    n_raw : int or None
        Outputs of the decoder, ``raw``; ``n_columns`` where None.
    """

    def __init__(
        self, n_columns: int, n_inputs: int | None = None, n_raw: int | None = None
    ):
        super().__init__()
        self.n_columns = n_columns
        self.n_inputs = n_columns if n_inputs is None else n_inputs
        self.n_raw = n_columns if n_raw is None else n_raw
        #: Where the decoder's raw output starts, (n_raw,), and where the encoder's
        #: inputs lie and how far they spread, (n_inputs,). Nothing after the start.
        self.start = torch.zeros(self.n_raw)
        self.inputs: tuple[Tensor, Tensor] = (
            torch.zeros(self.n_inputs),
            torch.ones(self.n_inputs),
        )

    def starts_at(
        self, raw: Tensor, location: Tensor, spread: Tensor
    ) -> "LikelihoodModule":
        """Remember where the raw output starts, and where x lies (n_columns,)."""
        self.start = raw.float()
        near, far = self.see(location), self.see(location + spread)
        self.inputs = near, far - near
        return self

    @property
    def input_widths(self) -> list[int]:
        """How many of ``n_inputs`` belong to each column."""
        return [self.n_inputs // self.n_columns] * self.n_columns

    @property
    def raw_widths(self) -> list[int]:
        """How many of ``n_raw`` belong to each column."""
        return [self.n_raw // self.n_columns] * self.n_columns

    def see(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """What the encoder sees of x, (..., n_columns) to (..., n_inputs).

        ``seen``, a mask like x, tells which entries it may see; None stands for all.
        """
        return x if seen is None else x.where(seen, torch.zeros_like(x))

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x_d|z) in nats of each column, (..., n_columns).

        For families whose columns are independent given z.
        """
        raise NotImplementedError(
            f"the columns of {type(self).__name__} are not independent given z"
        )

    def log_prob(
        self, x: Tensor, raw: Tensor, observed: Tensor | None = None
    ) -> Tensor:
        """log p(x|z) in nats, summed over the columns: (..., n_raw) to (...).

        ``observed``, a mask like x, tells which entries count; None stands for all.
        """
        if observed is None:
            return self.log_prob_by_column(x, raw).sum(-1)
        # A missing entry may be NaN, and so would be its share of the gradient.
        by_column = self.log_prob_by_column(x.where(observed, torch.zeros_like(x)), raw)
        return by_column.where(observed, torch.zeros_like(by_column)).sum(-1)

    def forward(self, x: Tensor, raw: Tensor, observed: Tensor | None = None) -> Tensor:
        """As :meth:`log_prob`."""
        return self.log_prob(x, raw, observed)

    def closed_form(
        self, x: Tensor, raw: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """-log p(x|z) of rows (...,), and the gradient of its weighted sum by ``raw``.

        For families without parameters whose derivative is short; None where autograd
        is to find it.
        """
        return None

    def mean(self, raw: Tensor) -> Tensor:
        """E[x|z], of a category the most probable one: (..., n_raw) to (..., D)."""
        raise NotImplementedError

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x from p(x|z), (..., n_raw) to (..., n_columns)."""
        raise NotImplementedError


def located(summary: Summary, units: Units) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the columns inside the model, float32."""
    mean = (summary.mean - units.location) / units.scale
    deviation = summary.deviation / units.scale
    return (
        torch.tensor(mean, dtype=torch.float32),
        torch.tensor(deviation, dtype=torch.float32),
    )


def interleaved(first: Tensor, *others: Tensor | float) -> Tensor:
    """Numbers of each column side by side, flat: (D,) each to (k D,)."""
    columns = [first]
    for other in others:
        columns.append(torch.as_tensor(other, dtype=first.dtype).expand_as(first))
    return torch.stack(columns, -1).flatten()
