"""Likelihoods of counts."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import StrOptions
from ..forms.base import Column, Summary
from ..support import COUNTS
from ..units import Units
from .base import Likelihood, LikelihoodModule, interleaved, located
from .special import (
    MAX_LOG,
    draw_log_gamma,
    full_precision,
    stirling_error,
    weighted_log_ratio,
)

# exp(30) = 1e13: no count is larger, and no product of two such overflows in float32.
MAX_LOG_RATE = 30.0


class _Counts(Likelihood):
    """Shared by the families over 0, 1, 2, ..."""

    support = COUNTS
    advice = (
        "Counts must be whole and not negative: hand them over unscaled, or choose "
        "another likelihood, such as 'gaussian'."
    )


class _CountsModule(LikelihoodModule):
    """The first raw output of a column is a log-rate; the encoder sees log(1 + x)."""

    def __init__(
        self,
        columns: Sequence[Column],
        summary: Summary,
        units: Units,
        *,
        n_outputs: int = 1,
    ) -> None:
        n = len(columns)
        super().__init__(n, n_raw=n_outputs * n)
        self.n_outputs = n_outputs
        location, spread = located(summary, units)
        # A count that is always 0 starts at a rate of 0.001, not at 0.
        start = torch.log(location.clamp(min=1e-3))
        start = interleaved(start, 0.0) if n_outputs == 2 else start
        self.starts_at(start, location, spread)

    def see(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        return super().see(torch.log1p(x), seen)

    def mean(self, raw: Tensor) -> Tensor:
        if self.n_outputs == 2:
            raw = raw.unflatten(-1, (-1, 2))[..., 0]
        return torch.exp(full_precision(raw).clamp(-MAX_LOG_RATE, MAX_LOG_RATE))


def _log_factorial_excess(x: Tensor) -> Tensor:
    """log(x!) - x log(x) + x of counts."""
    counted = x.clamp(min=1)
    excess = 0.5 * torch.log(2 * math.pi * counted) + stirling_error(counted)
    return torch.where(x < 0.5, torch.zeros_like(x), excess)


class Poisson(_Counts):
    r"""Independent Poisson features: counts whose variance is their mean.

    .. math:: \log p(x|z) = \sum_d x_d \log \lambda_d(z) - \lambda_d(z) - \log x_d!

    The decoder gives :math:`\log \lambda`; the encoder sees :math:`\log(1 + x)`.

    References
    ----------
    Zhao et al. (2020), "Variational Autoencoders for Sparse and Overdispersed Discrete
    Data", AISTATS.

    Examples
    --------
    >>> from skvae import Poisson, VAEEstimator
    >>> VAEEstimator(likelihood=Poisson())
    VAEEstimator(likelihood=Poisson())
    """

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return PoissonModule(columns, summary, units)


class PoissonModule(_CountsModule):
    """The module that :class:`Poisson` builds."""

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        rate = self.mean(raw)
        ratio = weighted_log_ratio(x, rate, rate - x)
        return ratio + (x - rate) - _log_factorial_excess(x)

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(self.mean(raw), generator=generator).to(raw.dtype)


class NegativeBinomial(_Counts):
    r"""Independent negative binomial features: counts that vary more than a Poisson's.

    .. math:: \log p(x|z) = \sum_d \log \frac{\Gamma(x_d + r_d)}{\Gamma(r_d) \, x_d!}
        + r_d \log \frac{r_d}{r_d + \mu_d(z)}
        + x_d \log \frac{\mu_d(z)}{r_d + \mu_d(z)}

    of mean :math:`\mu` and variance :math:`\mu + \mu^2 / r`: the inverse dispersion r
    at infinity is a :class:`Poisson`. The decoder gives :math:`\log \mu`; the encoder
    sees :math:`\log(1 + x)`.

    Parameters
    ----------
    dispersion : {"feature", "shared", "row"}, default="feature"
        Whether r is learned for each feature, once for all, or is a second output of
        the decoder, :math:`r_d(z)`.

    References
    ----------
    Lopez et al. (2018), "Deep generative modeling for single-cell transcriptomics",
    Nature Methods.

    Examples
    --------
    >>> from skvae import NegativeBinomial, VAEEstimator
    >>> VAEEstimator(likelihood=NegativeBinomial("row"))
    VAEEstimator(likelihood=NegativeBinomial(dispersion='row'))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "dispersion": [StrOptions({"feature", "shared", "row"})]
    }

    def __init__(self, dispersion: Any = "feature") -> None:
        self.dispersion = dispersion

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return NegativeBinomialModule(self.dispersion, columns, summary, units)


class NegativeBinomialModule(_CountsModule):
    """The module that :class:`NegativeBinomial` builds."""

    log_inverse_dispersion: Tensor

    def __init__(
        self, dispersion: str, columns: Sequence[Column], summary: Summary, units: Units
    ) -> None:
        by_row = dispersion == "row"
        super().__init__(columns, summary, units, n_outputs=2 if by_row else 1)
        if not by_row:
            size = len(columns) if dispersion == "feature" else 1
            initial = torch.zeros(size, dtype=torch.float32)
            self.log_inverse_dispersion = nn.Parameter(initial)

    def inverse_dispersion(self, raw: Tensor) -> Tensor:
        """r, (..., D) where each row has its own, else (D,) or (1,)."""
        if self.n_outputs == 2:
            log_r = full_precision(raw.unflatten(-1, (-1, 2))[..., 1])
        else:
            log_r = self.log_inverse_dispersion
        return torch.exp(log_r.clamp(-MAX_LOG, MAX_LOG))

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        mean, r = self.mean(raw), self.inverse_dispersion(raw)
        # Of the quotients m (x + r) / (x (m + r)) and (m + r) / (x + r), both near 1.
        counted = weighted_log_ratio(
            x, mean * ((x + r) / (mean + r)), (mean - x) * (r / (mean + r))
        )
        rest = weighted_log_ratio(
            r, r * ((mean + r) / (x + r)), (mean - x) * (r / (x + r))
        )
        return (
            counted
            - rest
            - _log_factorial_excess(x)
            - 0.5 * torch.log1p(x / r)
            + stirling_error(x + r)
            - stirling_error(r)
        )

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean(raw).double()
        r = self.inverse_dispersion(raw).double()
        # A Poisson whose rate is Gamma(r) mean / r.
        log_rate = draw_log_gamma(r.expand(mean.shape), generator)
        rate = torch.exp(log_rate - r.log()) * mean
        return torch.poisson(rate, generator=generator).to(raw.dtype)
