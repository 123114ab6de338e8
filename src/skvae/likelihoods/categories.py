"""Likelihoods of categories."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._compat import Interval
from .base import Likelihood
from .special import choose, full_precision


class Categorical(Likelihood):
    r"""Categorical variables, one-hot: in each block of columns one is 1, the rest 0.

    .. math:: \log p(x|z) = \sum_b \sum_{k \in b} x_k
        \log \frac{e^{\ell_k}}{\sum_{j \in b} e^{\ell_j}}

    over the blocks b, with logits :math:`\ell`. The mean is the probabilities.

    Parameters
    ----------
    n_categories : int, tuple of int or None, default=None
        Columns of each block: an int where all blocks have that many, a tuple of one
        size per block, None where the whole row is one block.

    References
    ----------
    Maddison, Tarlow and Minka (2014), "A* Sampling", for the draws.

    Examples
    --------
    >>> import torch
    >>> from skvae import Categorical
    >>> x = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]])
    >>> Categorical((3, 2)).log_prob(x, torch.zeros(1, 5, 1)).exp()
    tensor([0.1667])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_categories": [Interval(Integral, 1, None, closed="left"), tuple, list, None]
    }

    tolerates_rounding = True
    support = "of one-hot blocks"
    mend = (
        "Each block of columns must hold a single 1 among zeros (OneHotEncoder), and "
        "n_categories say how many columns each block has."
    )

    def __init__(self, n_categories=None):
        self.n_categories = n_categories

    def _sizes(self, n_features: int) -> list[int]:
        """Columns of each block."""
        if self.n_categories is None:
            return [n_features]
        if isinstance(self.n_categories, Integral):
            size = int(self.n_categories)
            return [size] * (n_features // size)
        return [int(size) for size in self.n_categories]

    def check_n_features(self, n_features):
        if not isinstance(self.n_categories, Integral | None):
            for size in self.n_categories:
                if not isinstance(size, Integral) or size < 1:
                    raise ValueError(
                        f"n_categories={self.n_categories!r} must hold ints of at "
                        f"least 1; {size!r} is not."
                    )
        total = sum(self._sizes(n_features))
        if total != n_features:
            raise ValueError(
                f"n_categories={self.n_categories!r} makes blocks of {total} columns "
                f"in all, but X has {n_features} features; give the number of columns "
                "of each block."
            )

    def in_support(self, X):
        sizes = self._sizes(X.shape[1])
        starts = np.cumsum([0, *sizes[:-1]])
        binary = np.logical_and.reduceat((X == 0) | (X == 1), starts, axis=1)
        one = np.add.reduceat(X, starts, axis=1) == 1
        return np.repeat(binary & one, sizes, axis=1)

    def nearest_in_support(self, X):
        nearest = np.zeros_like(X)
        start = 0
        for size in self._sizes(X.shape[1]):
            columns = start + X[:, start : start + size].argmax(axis=1)
            nearest[np.arange(len(X)), columns] = 1
            start += size
        return nearest

    def output_bias(self, mean):
        # A category that never occurs starts at a probability of 0.001, not at 0.
        return torch.log(mean.clamp(min=1e-3)).unsqueeze(-1)

    def _by_block(self, raw: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function of logits (..., K) to each block."""
        logits = full_precision(raw.squeeze(-1))
        sizes = self._sizes(logits.shape[-1])
        if len(set(sizes)) == 1:
            return function(logits.unflatten(-1, (-1, sizes[0]))).flatten(-2)
        return torch.cat([function(block) for block in logits.split(sizes, -1)], -1)

    def log_prob(self, x, raw, **parameters):
        return (x * self._by_block(raw, lambda b: b.log_softmax(-1))).sum(-1)

    def mean(self, raw, **parameters):
        return self._by_block(raw, lambda b: b.softmax(-1))

    def draw(self, raw, generator, **parameters):
        def draw_block(logits: Tensor) -> Tensor:
            return F.one_hot(choose(logits, generator), logits.shape[-1])

        return self._by_block(raw, draw_block).to(raw.dtype)
