"""Likelihoods of categories."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .._compat import Interval
from ..forms.base import Column, Summary
from ..support import Support
from ..units import Units
from .base import Likelihood, LikelihoodModule, SupportOfColumns
from .special import choose, full_precision

# A category that never occurs starts at a probability of 0.001, not at 0.
LEAST_SHARE = 1e-3


class Categorical(Likelihood):
    r"""Categorical variables: each column holds the codes 0, 1, ..., K - 1.

    .. math:: \log p(x|z) = \sum_d
        \log \frac{e^{\ell_{d x_d}}}{\sum_k e^{\ell_{dk}}}

    with logits :math:`\ell`, as many of each column as it has categories. The encoder
    sees them one-hot. The mean is the most probable code.

    Parameters
    ----------
    n_categories : int, tuple of int or None, default=None
        Categories of each column: an int where all columns have that many, a tuple of
        one number for each; None takes one more than the largest code seen at ``fit``
        (of a data frame's category, those that it declares).

    References
    ----------
    Maddison, Tarlow and Minka (2014), "A* Sampling", for the draws.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import Categorical, VAEEstimator
    >>> X = np.array([[0, 2], [1, 0], [1, 1], [0, 0]])
    >>> vae = VAEEstimator(1, likelihood=Categorical(), hidden_dim=4, random_state=0)
    >>> vae.fit(X).likelihood_
    Categorical(n_categories=(2, 3))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_categories": [Interval(Integral, 1, None, closed="left"), tuple, list, None]
    }

    tolerates_rounding = True
    takes_categories = True
    support = Support(0.0, float("inf"), 1.0, text="{0, 1, ..., n_categories - 1}")
    advice = (
        "Each column must hold codes from 0 on (OrdinalEncoder), and n_categories say "
        "how many each has."
    )

    def __init__(self, n_categories: Any = None) -> None:
        self.n_categories = n_categories

    def resolve(self, columns: Sequence[Column], summary: Summary) -> Likelihood:
        given = self.n_categories
        if given is None:
            sizes = [
                int(max(summary.high[i], 0)) + 1 if c.n_values is None else c.n_values
                for i, c in enumerate(columns)
            ]
        elif isinstance(given, Integral):
            sizes = [int(given)] * len(columns)
        else:
            for size in given:
                if not isinstance(size, Integral) or size < 1:
                    raise ValueError(
                        f"n_categories={given!r} must hold ints of at least 1; "
                        f"{size!r} is not."
                    )
            sizes = [int(size) for size in given]
        if len(sizes) != len(columns):
            raise ValueError(
                f"n_categories={given!r} tells of {len(sizes)} columns, but X has "
                f"{len(columns)} features; give a number for each column."
            )
        for column, size in zip(columns, sizes, strict=True):
            if column.n_values is not None and column.n_values > size:
                raise ValueError(
                    f"column {column.name!r} has {column.n_values} categories, but "
                    f"n_categories={given!r} says {size}."
                )
        return Categorical(tuple(sizes))

    def supports(self, n_columns: int) -> list[SupportOfColumns]:
        sizes = self.n_categories
        if isinstance(sizes, Integral | None):
            return super().supports(n_columns)
        return [
            (
                Support(0.0, size - 1.0, 1.0, text=f"{{0, ..., {size - 1}}}"),
                [i for i, other in enumerate(sizes) if other == size],
            )
            for size in sorted(set(sizes))
        ]

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return CategoricalModule(self.n_categories, summary)


class CategoricalModule(LikelihoodModule):
    """The module that :class:`Categorical` builds."""

    offsets: Tensor
    last: Tensor

    def __init__(self, sizes: Sequence[int], summary: Summary) -> None:
        n = sum(sizes)
        super().__init__(len(sizes), n_inputs=n, n_raw=n)
        self.sizes = list(sizes)
        offsets = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)
        last = torch.tensor(self.sizes) - 1
        self.register_buffer("last", last, persistent=False)
        shares = [summary.frequencies(i, size) for i, size in enumerate(self.sizes)]
        share = torch.cat([torch.tensor(s, dtype=torch.float32) for s in shares])
        self.start = torch.log(share.clamp(min=LEAST_SHARE))
        self.inputs = share, torch.sqrt(share * (1 - share))

    @property
    def input_widths(self) -> list[int]:
        return self.sizes

    @property
    def raw_widths(self) -> list[int]:
        return self.sizes

    def see(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """The columns one-hot; of an entry that is not seen, zeros."""
        ones = torch.ones_like(x)
        if seen is not None:
            ones, x = ones.where(seen, torch.zeros_like(x)), x.nan_to_num()
        # A code that fit has not seen counts as the nearest one.
        codes = x.long().clamp(min=0).minimum(self.last) + self.offsets
        zeros = x.new_zeros(*x.shape[:-1], self.n_inputs)
        return zeros.scatter(-1, codes, ones)

    def _by_column(
        self, raw: Tensor, function: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """A function of logits (..., k, K) of k columns of one size.

        All columns at once where they have one size, each by itself where not.
        """
        logits = full_precision(raw)
        if len(set(self.sizes)) == 1:
            return [function(logits.unflatten(-1, (-1, self.sizes[0])))]
        blocks = logits.split(self.sizes, -1)
        return [function(block.unsqueeze(-2)) for block in blocks]

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        shares = self._by_column(raw, lambda b: b.log_softmax(-1).flatten(-2))
        codes = x.nan_to_num().long() + self.offsets
        return torch.cat(shares, -1).gather(-1, codes.expand(*raw.shape[:-1], -1))

    def mean(self, raw: Tensor) -> Tensor:
        return torch.cat(self._by_column(raw, lambda b: b.argmax(-1)), -1).to(raw.dtype)

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        drawn = self._by_column(raw, lambda b: choose(b, generator))
        return torch.cat(drawn, -1).to(raw.dtype)
