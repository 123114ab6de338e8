"""Likelihoods of values between 0 and 1: grey values, shares, probabilities."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._compat import StrOptions
from ..spec import LOG_2_PI
from .base import Likelihood
from .special import (
    MAX_LOG,
    draw_log_gamma,
    full_precision,
    stirling_error,
    weighted_log_ratio,
)

# Half the distance of 1 to the float32 below: between this and its complement, both x
# and 1 - x are numbers.
MARGIN = 2.0**-24


class _UnitInterval(Likelihood):
    """Shared by the families over [0, 1]."""

    tolerates_rounding = True
    support = "[0, 1]"

    def in_support(self, X):
        return (X >= 0) & (X <= 1)

    def nearest_in_support(self, X):
        return np.clip(X, 0, 1)


class Bernoulli(_UnitInterval):
    r"""Independent Bernoulli features: binary cross-entropy.

    .. math:: \log p(x|z) = \sum_d x_d \ell_d - \log(1 + e^{\ell_d})

    with logits :math:`\ell`. For x strictly between 0 and 1 (grey pixels) this is the
    usual cross-entropy loss, but no normalised density: such scores are not comparable
    with those of binary data, nor with :class:`ContinuousBernoulli`.

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes", appendix C.

    Examples
    --------
    >>> import torch
    >>> from skvae import Bernoulli
    >>> Bernoulli().log_prob(torch.ones(1, 2), torch.zeros(1, 2, 1))
    tensor([-1.3863])
    """

    def output_bias(self, mean):
        # A pixel that is always black starts at a probability of 0.001, not at 0.
        return torch.logit(mean.clamp(1e-3, 1 - 1e-3)).unsqueeze(-1)

    def log_prob(self, x, raw, **parameters):
        logits = raw.squeeze(-1)
        return (x * logits - F.softplus(logits)).sum(-1)

    def reconstruction_and_gradient(self, x, raw, row_weights, **parameters):
        # The hot spot of the default model, in few and cheap passes: d/dl = p - x with
        # p = sigmoid(l), and softplus(l) = relu(l) - log(max(p, 1 - p)), of which one
        # logarithm of a product does for many features.
        logits = raw.squeeze(-1)
        exact = logits.float()
        p = exact.sigmoid() if exact is logits else exact.sigmoid_()
        linear = logits.relu().addcmul_(x, logits, value=-1)
        likelier = p.sub(0.5).abs_().add_(0.5)
        products = likelier.unflatten(-1, (-1, _in_one_product(x.shape[-1]))).prod(-1)
        terms = linear.sum(-1, dtype=torch.float32) - products.log_().sum(-1)
        slope = p.sub_(x).to(logits.dtype)
        if row_weights is not None:
            slope.mul_(row_weights.unsqueeze(-1).to(slope.dtype))
        return terms, slope.unsqueeze(-1), {}

    def mean(self, raw, **parameters):
        return torch.sigmoid(raw.squeeze(-1))

    def draw(self, raw, generator, **parameters):
        return torch.bernoulli(self.mean(raw), generator=generator)


@lru_cache
def _in_one_product(n_features: int) -> int:
    """How many factors of at least 1/2 to multiply before float32 underflows."""
    return max(n for n in range(1, 101) if n_features % n == 0)


class ContinuousBernoulli(_UnitInterval):
    r"""Continuous Bernoulli features: a normalised density over [0, 1].

    .. math:: \log p(x|z) = \sum_d x_d \ell_d - \log \frac{e^{\ell_d} - 1}{\ell_d}

    References
    ----------
    Loaiza-Ganem and Cunningham (2019), "The continuous Bernoulli: fixing a pervasive
    error in variational autoencoders".

    Examples
    --------
    At logit 0 it is the uniform density:

    >>> import torch
    >>> from skvae import ContinuousBernoulli
    >>> x = torch.tensor([[0.1, 0.5, 0.9]])
    >>> ContinuousBernoulli().log_prob(x, torch.zeros(1, 3, 1))
    tensor([0.])
    """

    def log_prob(self, x, raw, **parameters):
        logits = raw.squeeze(-1)
        return (x * logits - self._log_normaliser(logits)).sum(-1)

    @staticmethod
    def _log_normaliser(logits: Tensor) -> Tensor:
        """log((exp(l) - 1) / l) = l / 2 + log(sinh(l / 2) / (l / 2)), an even part."""
        size = logits.abs()
        small = size < 0.1
        # where() differentiates both branches: keep the unused one away from log(0).
        safe = torch.where(small, torch.ones_like(size), size)
        exact = safe / 2 + torch.log(-torch.expm1(-safe) / safe)
        square = logits.square()
        series = square / 24 - square.square() / 2880
        return logits / 2 + torch.where(small, series, exact)

    def mean(self, raw, **parameters):
        logits = raw.squeeze(-1)
        small = logits.abs() < 0.1
        safe = torch.where(small, torch.ones_like(logits), logits)
        exact = -1 / torch.expm1(-safe) - 1 / safe
        return torch.where(small, 0.5 + logits / 12 - logits**3 / 720, exact)

    def draw(self, raw, generator, **parameters):
        logits = raw.squeeze(-1).double()
        uniform = torch.rand(
            logits.shape, generator=generator, dtype=logits.dtype, device=logits.device
        )
        # The inverse distribution function of -|l|; the other sign is its mirror image.
        negative = -logits.abs().clamp(min=1e-6)
        x = torch.log1p(uniform * torch.expm1(negative)) / negative
        return torch.where(logits > 0, 1 - x, x).clamp(0, 1).to(raw.dtype)


class Beta(Likelihood):
    r"""Independent Beta features: shares strictly between 0 and 1.

    .. math:: \log p(x|z) = \sum_d (\alpha_d - 1) \log x_d
        + (\beta_d - 1) \log(1 - x_d) - \log \mathrm B(\alpha_d, \beta_d),
        \quad \alpha = m \phi, \; \beta = (1 - m) \phi

    of mean :math:`m = \mathrm{sigmoid}(\ell)` and precision :math:`\phi`, that is of
    variance :math:`m (1 - m) / (1 + \phi)`. The decoder gives the logits :math:`\ell`.

    Parameters
    ----------
    precision : {"row", "feature", "shared"}, default="row"
        Whether :math:`\phi` is a second output of the decoder, learned for each
        feature, or learned once for all.

    References
    ----------
    Ferrari and Cribari-Neto (2004), "Beta Regression for Modelling Rates and
    Proportions", Journal of Applied Statistics.

    Examples
    --------
    Precision 2 and mean 1/2 is the uniform density:

    >>> import torch
    >>> from skvae import Beta
    >>> x, raw = torch.tensor([[0.1, 0.5, 0.9]]), torch.zeros(1, 3, 1)
    >>> log_precision = torch.log(torch.tensor([2.0]))
    >>> density = Beta("shared").log_prob(x, raw, log_precision=log_precision).exp()
    >>> print(f"{density.item():.4f}")
    1.0000
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "precision": [StrOptions({"row", "feature", "shared"})]
    }

    support = "(0, 1)"

    # A density with a single top, unless the data say otherwise.
    _initial_log_precision = 2.0

    def __init__(self, precision="row"):
        self.precision = precision

    @property
    def n_outputs(self):
        return 2 if self.precision == "row" else 1

    def in_support(self, X):
        return (X > 0) & (X < 1)

    def nearest_in_support(self, X):
        return np.where(X <= 0, MARGIN, np.where(X >= 1, 1 - MARGIN, X)).astype(X.dtype)

    def parameters(self, n_features):
        if self.precision == "row":
            return {}
        size = n_features if self.precision == "feature" else 1
        return {"log_precision": torch.full((size,), self._initial_log_precision)}

    def output_bias(self, mean):
        bias = mean.new_full((len(mean), self.n_outputs), self._initial_log_precision)
        bias[:, 0] = torch.logit(mean.clamp(1e-3, 1 - 1e-3))
        return bias

    @staticmethod
    def _shape(
        raw: Tensor, log_precision: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mean, 1 - mean, and the precision, within bounds."""
        logits = full_precision(raw[..., 0]).clamp(-MAX_LOG, MAX_LOG)
        if log_precision is None:
            log_precision = full_precision(raw[..., 1])
        precision = torch.exp(log_precision.clamp(-MAX_LOG, MAX_LOG))
        return torch.sigmoid(logits), torch.sigmoid(-logits), precision

    def log_prob(self, x, raw, **parameters):
        mean, rest, precision = self._shape(raw, **parameters)
        x = x.to(mean.dtype)
        # A float64 just below 1 has become 1.
        x = x.clamp(torch.finfo(x.dtype).tiny, 1 - MARGIN)
        alpha, beta = mean * precision, rest * precision
        complement = 1 - x
        # -precision KL(mean || x), the large part of the density, as a whole.
        ratios = weighted_log_ratio(mean, x, x - mean) + weighted_log_ratio(
            rest, complement, mean - x
        )
        return (
            precision * ratios
            - torch.log(x)
            - torch.log(complement)
            + 0.5 * (torch.log(mean) + torch.log(beta) - LOG_2_PI)
            + stirling_error(precision)
            - stirling_error(alpha)
            - stirling_error(beta)
        ).sum(-1)

    def mean(self, raw, **parameters):
        return self._shape(raw, **parameters)[0]

    def draw(self, raw, generator, **parameters):
        mean, rest, precision = self._shape(raw, **parameters)
        log_odds = draw_log_gamma(mean * precision, generator) - draw_log_gamma(
            rest * precision, generator
        )
        x = torch.sigmoid(log_odds).clamp(MARGIN, 1 - MARGIN)
        return x.to(raw.dtype)
