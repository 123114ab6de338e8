"""Likelihoods of values between 0 and 1: grey values, shares, probabilities."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._compat import StrOptions
from ..forms.base import Column, Summary
from ..spec import LOG_2_PI
from ..support import UNIT_INTERVAL, Support
from ..units import Units
from .base import Likelihood, LikelihoodModule, interleaved, located
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
# A density with a single top, unless the data say otherwise.
START_LOG_PRECISION = 2.0


class _UnitInterval(Likelihood):
    """Shared by the families over [0, 1]."""

    tolerates_rounding = True
    support = UNIT_INTERVAL


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
    >>> from skvae import Bernoulli, VAEEstimator
    >>> VAEEstimator(likelihood=Bernoulli())
    VAEEstimator(likelihood=Bernoulli())
    """

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return BernoulliModule(columns, summary, units)


class BernoulliModule(LikelihoodModule):
    """The module that :class:`Bernoulli` builds."""

    def __init__(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> None:
        super().__init__(len(columns))
        location, spread = located(summary, units)
        # A pixel that is always black starts at a probability of 0.001, not at 0.
        start = torch.logit(location.clamp(1e-3, 1 - 1e-3))
        self.starts_at(start, location, spread)

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        return x * raw - F.softplus(raw)

    def closed_form(self, x: Tensor, raw: Tensor, weights: Tensor | None) -> Any:
        # The hot spot of the default model, in few and cheap passes: d/dl = p - x with
        # p = sigmoid(l), and softplus(l) = relu(l) - log(max(p, 1 - p)), of which one
        # logarithm of a product does for many features.
        exact = raw.float()
        p = exact.sigmoid() if exact is raw else exact.sigmoid_()
        linear = raw.relu().addcmul_(x, raw, value=-1)
        likelier = p.sub(0.5).abs_().add_(0.5)
        products = likelier.unflatten(-1, (-1, _in_one_product(x.shape[-1]))).prod(-1)
        terms = linear.sum(-1, dtype=torch.float32) - products.log_().sum(-1)
        slope = p.sub_(x).to(raw.dtype)
        if weights is not None:
            slope.mul_(weights.unsqueeze(-1).to(slope.dtype))
        return terms, slope

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw)

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
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
    >>> from skvae import ContinuousBernoulli, VAEEstimator
    >>> VAEEstimator(likelihood=ContinuousBernoulli())
    VAEEstimator(likelihood=ContinuousBernoulli())
    """

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return ContinuousBernoulliModule(columns, summary, units)


class ContinuousBernoulliModule(LikelihoodModule):
    """The module that :class:`ContinuousBernoulli` builds."""

    def __init__(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> None:
        super().__init__(len(columns))
        location, spread = located(summary, units)
        self.starts_at(torch.zeros_like(location), location, spread)

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        return x * raw - self._log_normaliser(raw)

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

    def mean(self, raw: Tensor) -> Tensor:
        logits = raw
        small = logits.abs() < 0.1
        safe = torch.where(small, torch.ones_like(logits), logits)
        exact = -1 / torch.expm1(-safe) - 1 / safe
        return torch.where(small, 0.5 + logits / 12 - logits**3 / 720, exact)

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        logits = raw.double()
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
    >>> from skvae import Beta, VAEEstimator
    >>> VAEEstimator(likelihood=Beta("feature"))
    VAEEstimator(likelihood=Beta(precision='feature'))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "precision": [StrOptions({"row", "feature", "shared"})]
    }

    support = Support(0.0, 1.0, margin=MARGIN, text="(0, 1)")

    def __init__(self, precision: Any = "row") -> None:
        self.precision = precision

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return BetaModule(self.precision, columns, summary, units)


class BetaModule(LikelihoodModule):
    """The module that :class:`Beta` builds."""

    log_precision: Tensor

    def __init__(
        self, precision: str, columns: Sequence[Column], summary: Summary, units: Units
    ) -> None:
        n = len(columns)
        self.by_row = precision == "row"
        super().__init__(n, n_raw=2 * n if self.by_row else n)
        location, spread = located(summary, units)
        start = torch.logit(location.clamp(1e-3, 1 - 1e-3))
        if self.by_row:
            start = interleaved(start, START_LOG_PRECISION)
        else:
            size = n if precision == "feature" else 1
            initial = torch.full((size,), START_LOG_PRECISION)
            self.log_precision = nn.Parameter(initial)
        self.starts_at(start, location, spread)

    def shape(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean, 1 - mean, and the precision, within bounds."""
        if self.by_row:
            logits, log_precision = (
                full_precision(raw).unflatten(-1, (-1, 2)).unbind(-1)
            )
        else:
            logits, log_precision = full_precision(raw), self.log_precision
        logits = logits.clamp(-MAX_LOG, MAX_LOG)
        precision = torch.exp(log_precision.clamp(-MAX_LOG, MAX_LOG))
        return torch.sigmoid(logits), torch.sigmoid(-logits), precision

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        mean, rest, precision = self.shape(raw)
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
        )

    def mean(self, raw: Tensor) -> Tensor:
        return self.shape(raw)[0]

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        mean, rest, precision = self.shape(raw)
        log_odds = draw_log_gamma(mean * precision, generator) - draw_log_gamma(
            rest * precision, generator
        )
        x = torch.sigmoid(log_odds).clamp(MARGIN, 1 - MARGIN)
        return x.to(raw.dtype)
