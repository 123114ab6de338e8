"""Likelihoods of real numbers."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._compat import Interval, StrOptions
from ..forms.base import Column, Summary
from ..spec import LOG_2_PI
from ..units import Units
from .base import Likelihood, LikelihoodModule, interleaved, located
from .special import MAX_LOG, draw_log_gamma, full_precision, stirling_error

# Of a scale that the network gives: neither exp(2 * 30) nor a residual of 1e4 over the
# floor overflows in float32.
MAX_LOG_SCALE = 30.0
# A draw from heavy tails may be larger than any float32; after this it stays finite in
# the user's units too.
MAX_DRAW = 1e30


class _LocationScale(Likelihood):
    """Shared by the families of a location and a scale."""

    _parameter_constraints: dict[str, list[Any]] = {
        "scale": [
            StrOptions({"shared", "feature", "row"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "min_scale": [Interval(Real, 0, None, closed="neither")],
    }

    real_valued = True
    scale: Any
    min_scale: float


class _LocationScaleModule(LikelihoodModule):
    """The location is the first raw output of a column.

    The log of the scale is learned beside the network, fixed, or the second raw output.
    """

    log_scale: Tensor

    def __init__(
        self,
        spec: _LocationScale,
        columns: Sequence[Column],
        summary: Summary,
        units: Units,
    ) -> None:
        n = len(columns)
        self.by_row = spec.scale == "row"
        super().__init__(n, n_raw=2 * n if self.by_row else n)
        self.is_fixed = not isinstance(spec.scale, str)
        self.log_min_scale = math.log(spec.min_scale)
        if self.is_fixed:
            # In float64: a scale of 1e-200 is no float32, its logarithm is.
            log_scale = math.log(spec.scale) - np.log(units.scale)
            fixed = torch.tensor(log_scale, dtype=torch.float32)
            self.register_buffer("log_scale", fixed)
        elif not self.by_row:
            size = n if spec.scale == "feature" else 1
            self.log_scale = nn.Parameter(torch.zeros(size, dtype=torch.float32))
        location, spread = located(summary, units)
        start = interleaved(location, 0.0) if self.by_row else location
        self.starts_at(start, location, spread)

    def mean(self, raw: Tensor) -> Tensor:
        return raw.unflatten(-1, (-1, 2))[..., 0] if self.by_row else raw

    def log_variance(self, raw: Tensor) -> Tensor:
        """(..., D) where each row has its own, else (D,) or (1,)."""
        if self.is_fixed:
            return 2 * self.log_scale
        log_scale = self.log_scale if not self.by_row else self._second(raw)
        floor = torch.full_like(log_scale, 2 * self.log_min_scale)
        return torch.logaddexp(2 * log_scale, floor)

    @staticmethod
    def _second(raw: Tensor) -> Tensor:
        log_scale = full_precision(raw.unflatten(-1, (-1, 2))[..., 1])
        return log_scale.clamp(max=MAX_LOG_SCALE)


class Gaussian(_LocationScale):
    r"""Independent Gaussian features with a learned or a fixed scale.

    .. math:: \log p(x|z) = \sum_d \log \mathcal N(x_d; \mu_d(z), \sigma_d^2)

    Parameters
    ----------
    scale : {"shared", "feature", "row"} or float, default="shared"
        The standard deviation :math:`\sigma`. "shared" learns one for all features,
        in the standardised units that the network works in (so one *relative* to each
        feature's spread where ``standardize`` is on); "feature" learns one for each;
        "row" makes it a second output of the decoder, :math:`\sigma_d(z)`; a number
        fixes it, in the units of X.
    min_scale : float, default=1e-3
        Floor of a learned scale, in standardised units, so that the density stays
        bounded where a feature can be reconstructed exactly.

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes", appendix C;
    Lucas et al. (2019), "Don't Blame the ELBO!", for the linear case.

    Examples
    --------
    >>> from skvae import Gaussian, VAEEstimator
    >>> VAEEstimator(likelihood=Gaussian(scale="feature"))
    VAEEstimator(likelihood=Gaussian(scale='feature'))
    """

    def __init__(self, scale: Any = "shared", min_scale: Any = 1e-3) -> None:
        self.scale = scale
        self.min_scale = min_scale

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return GaussianModule(self, columns, summary, units)


class GaussianModule(_LocationScaleModule):
    """The module that :class:`Gaussian` builds."""

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        log_variance = self.log_variance(raw)
        square = (x - self.mean(raw)).square()
        return -0.5 * (square * torch.exp(-log_variance) + log_variance + LOG_2_PI)

    def log_prob(
        self, x: Tensor, raw: Tensor, observed: Tensor | None = None
    ) -> Tensor:
        if observed is not None:
            return super().log_prob(x, raw, observed)
        # The log-variances, which are often few, are summed by themselves.
        log_variance = self.log_variance(raw)
        square = (x - self.mean(raw)).square()
        shape = (*log_variance.shape[:-1], x.shape[-1])
        return -0.5 * (
            (square * torch.exp(-log_variance)).sum(-1)
            + (log_variance + LOG_2_PI).expand(shape).sum(-1)
        )

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean(raw)
        noise = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=mean.device
        )
        return mean + torch.exp(0.5 * self.log_variance(raw)) * noise


class StudentT(_LocationScale):
    r"""Independent features with Student's t distribution: outliers cost little.

    .. math:: \log p(x|z) = \sum_d \log \frac{\Gamma(\frac{\nu + 1}2)}
        {\Gamma(\frac\nu2) \sqrt{\nu \pi} \, \sigma_d}
        - \frac{\nu + 1}2 \log\left(1 +
        \frac{(x_d - \mu_d(z))^2}{\nu \sigma_d^2}\right)

    For :math:`\nu \le 1` there is no mean; the location :math:`\mu` stands for it.

    Parameters
    ----------
    degrees_of_freedom : float or "learned", default=4.0
        :math:`\nu`; a Gaussian at infinity. "learned" learns one for each feature,
        starting at 4.
    scale : {"shared", "feature", "row"} or float, default="shared"
        :math:`\sigma`, as for :class:`Gaussian`.
    min_scale : float, default=1e-3
        Floor of a learned scale, in standardised units.

    References
    ----------
    Lange, Little and Taylor (1989), "Robust Statistical Modeling Using the t
    Distribution".

    Examples
    --------
    >>> from skvae import StudentT, VAEEstimator
    >>> VAEEstimator(likelihood=StudentT(degrees_of_freedom=2.0))
    VAEEstimator(likelihood=StudentT(degrees_of_freedom=2.0))
    """

    _parameter_constraints = {
        **_LocationScale._parameter_constraints,
        "degrees_of_freedom": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"learned"}),
        ],
    }

    def __init__(
        self,
        degrees_of_freedom: Any = 4.0,
        scale: Any = "shared",
        min_scale: Any = 1e-3,
    ) -> None:
        self.degrees_of_freedom = degrees_of_freedom
        self.scale = scale
        self.min_scale = min_scale

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return StudentTModule(self, columns, summary, units)


class StudentTModule(_LocationScaleModule):
    """The module that :class:`StudentT` builds."""

    log_degrees_of_freedom: Tensor

    def __init__(
        self, spec: StudentT, columns: Sequence[Column], summary: Summary, units: Units
    ) -> None:
        super().__init__(spec, columns, summary, units)
        if spec.degrees_of_freedom == "learned":
            initial = torch.full((len(columns),), math.log(4.0), dtype=torch.float32)
            self.log_degrees_of_freedom = nn.Parameter(initial)
        else:
            value = torch.tensor([math.log(spec.degrees_of_freedom)])
            self.register_buffer("log_degrees_of_freedom", value.float())

    @property
    def half_degrees(self) -> Tensor:
        """Half of the degrees of freedom, within bounds."""
        return 0.5 * torch.exp(self.log_degrees_of_freedom.clamp(-MAX_LOG, MAX_LOG))

    def log_prob_by_column(self, x: Tensor, raw: Tensor) -> Tensor:
        half, log_variance = self.half_degrees, self.log_variance(raw)
        # log(Gamma(half + 1/2) / (Gamma(half) sqrt(half))) is all that Gamma adds.
        log_gammas = (
            half * torch.log1p(0.5 / half)
            - 0.5
            + stirling_error(half + 0.5)
            - stirling_error(half)
        )
        square = (x - self.mean(raw)).square() * torch.exp(-log_variance)
        return (
            log_gammas
            - 0.5 * (log_variance + LOG_2_PI)
            - (half + 0.5) * torch.log1p(square / (2 * half))
        )

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        mean, half = self.mean(raw).double(), self.half_degrees.double()
        noise = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=mean.device
        )
        # A Gaussian whose precision is Gamma(half) / half.
        log_precision = draw_log_gamma(half.expand(mean.shape), generator) - half.log()
        log_variance = self.log_variance(raw) - log_precision
        x = mean + torch.exp(0.5 * log_variance).clamp(max=MAX_DRAW) * noise
        return x.clamp(-MAX_DRAW, MAX_DRAW).to(raw.dtype)
