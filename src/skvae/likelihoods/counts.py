"""Likelihoods of counts."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._compat import StrOptions
from .base import Likelihood
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
    """Shared by the families over 0, 1, 2, ...: the first raw output is a log-rate."""

    support = "{0, 1, 2, ...}"
    mend = (
        "Counts must be whole and not negative: hand them over unscaled, or choose "
        "another likelihood, such as 'gaussian'."
    )

    def in_support(self, X):
        return np.isfinite(X) & (X >= 0) & (np.rint(X) == X)

    def nearest_in_support(self, X):
        return np.maximum(np.rint(X), 0)

    def output_bias(self, mean):
        bias = mean.new_zeros(len(mean), self.n_outputs)
        # A count that is always 0 starts at a rate of 0.001, not at 0.
        bias[:, 0] = torch.log(mean.clamp(min=1e-3))
        return bias

    def network_input(self, x):
        return torch.log1p(x)

    def mean(self, raw, **parameters):
        log_rate = full_precision(raw[..., 0])
        return torch.exp(log_rate.clamp(-MAX_LOG_RATE, MAX_LOG_RATE))


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
    >>> import torch
    >>> from skvae import Poisson
    >>> Poisson().log_prob(torch.zeros(1, 2), torch.zeros(1, 2, 1))
    tensor([-2.])
    """

    def log_prob(self, x, raw, **parameters):
        rate = self.mean(raw)
        ratio = weighted_log_ratio(x, rate, rate - x)
        return (ratio + (x - rate) - _log_factorial_excess(x)).sum(-1)

    def draw(self, raw, generator, **parameters):
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
    At r = 1 and mean 1 it is a geometric distribution, of masses 1/2, 1/4, ...:

    >>> import torch
    >>> from skvae import NegativeBinomial
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> raw, log_r = torch.zeros(3, 1, 1), torch.zeros(1)
    >>> NegativeBinomial().log_prob(x, raw, log_inverse_dispersion=log_r).exp()
    tensor([0.5000, 0.2500, 0.1250])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "dispersion": [StrOptions({"feature", "shared", "row"})]
    }

    def __init__(self, dispersion="feature"):
        self.dispersion = dispersion

    @property
    def n_outputs(self):
        return 2 if self.dispersion == "row" else 1

    def parameters(self, n_features):
        if self.dispersion == "row":
            return {}
        size = n_features if self.dispersion == "feature" else 1
        return {"log_inverse_dispersion": torch.zeros(size, dtype=torch.float32)}

    @staticmethod
    def _inverse_dispersion(
        raw: Tensor, log_inverse_dispersion: Tensor | None = None
    ) -> Tensor:
        if log_inverse_dispersion is None:
            log_inverse_dispersion = full_precision(raw[..., 1])
        return torch.exp(log_inverse_dispersion.clamp(-MAX_LOG, MAX_LOG))

    def log_prob(self, x, raw, **parameters):
        mean = self.mean(raw)
        r = self._inverse_dispersion(raw, **parameters)
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
        ).sum(-1)

    def draw(self, raw, generator, **parameters):
        mean = self.mean(raw).double()
        r = self._inverse_dispersion(raw, **parameters).double()
        # A Poisson whose rate is Gamma(r) mean / r.
        log_rate = draw_log_gamma(r.expand(mean.shape), generator)
        rate = torch.exp(log_rate - r.log()) * mean
        return torch.poisson(rate, generator=generator).to(raw.dtype)
