"""Likelihoods of real numbers."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .._compat import Interval, StrOptions
from ..spec import LOG_2_PI
from .base import Likelihood
from .special import MAX_LOG, draw_log_gamma, full_precision, stirling_error

# Of a scale that the network gives: neither exp(2 * 30) nor a residual of 1e4 over the
# floor overflows in float32.
MAX_LOG_SCALE = 30.0
# A draw from heavy tails may be larger than any float32; after this it stays finite in
# the user's units too.
MAX_DRAW = 1e30


class _LocationScale(Likelihood):
    """Shared by the families of a location and a scale.

    The location is the first raw output; the log of the scale is learned beside the
    network, fixed, or the second raw output.
    """

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

    @property
    def n_outputs(self):
        return 2 if self.scale == "row" else 1

    def parameters(self, n_features):
        sizes = {"shared": 1, "feature": n_features}
        if self.scale in sizes:
            return {"log_scale": torch.zeros(sizes[self.scale], dtype=torch.float32)}
        return {}

    def constants(self, unit):
        if isinstance(self.scale, str):
            return {}
        return {"log_scale": torch.log(self.scale / unit)}

    def output_bias(self, mean):
        bias = mean.new_zeros(len(mean), self.n_outputs)
        bias[:, 0] = mean
        return bias

    def mean(self, raw, **parameters):
        # squeeze() where it will do: its gradient is a view, that of indexing a copy.
        return raw.squeeze(-1) if self.n_outputs == 1 else raw[..., 0]

    def _log_variance(self, raw: Tensor, log_scale: Tensor | None = None) -> Tensor:
        """(..., D) where each row has its own, else (D,) or (1,)."""
        if log_scale is None:
            log_scale = full_precision(raw[..., 1]).clamp(max=MAX_LOG_SCALE)
        elif not isinstance(self.scale, str):
            return 2 * log_scale
        floor = torch.full_like(log_scale, 2 * math.log(self.min_scale))
        return torch.logaddexp(2 * log_scale, floor)


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
    >>> import torch
    >>> from skvae import Gaussian
    >>> gaussian = Gaussian(scale=1.0)
    >>> fixed = gaussian.constants(unit=torch.ones(2))
    >>> gaussian.log_prob(torch.zeros(1, 2), torch.zeros(1, 2, 1), **fixed)
    tensor([-1.8379])
    """

    def __init__(self, scale="shared", min_scale=1e-3):
        self.scale = scale
        self.min_scale = min_scale

    def log_prob(self, x, raw, **parameters):
        log_variance = self._log_variance(raw, **parameters)
        square = (x - self.mean(raw)).square()
        shape = (*log_variance.shape[:-1], x.shape[-1])
        return -0.5 * (
            (square * torch.exp(-log_variance)).sum(-1)
            + (log_variance + LOG_2_PI).expand(shape).sum(-1)
        )

    def draw(self, raw, generator, **parameters):
        mean = self.mean(raw)
        noise = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=mean.device
        )
        return mean + torch.exp(0.5 * self._log_variance(raw, **parameters)) * noise


class StudentT(_LocationScale):
    r"""Independent features with Student's t distribution: outliers cost little.

    .. math:: \log p(x|z) = \sum_d \log \frac{\Gamma(\frac{\nu + 1}2)}
        {\Gamma(\frac\nu2) \sqrt{\nu \pi} \, \sigma_d}
        - \frac{\nu + 1}2 \log\left(1 +
        \frac{(x_d - \mu_d(z))^2}{\nu \sigma_d^2}\right)

    For :math:`\nu \le 1` there is no mean; :meth:`mean` gives the location
    :math:`\mu` in any case.

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
    One degree of freedom is the Cauchy density, at its top 1 / pi:

    >>> import torch
    >>> from skvae import StudentT
    >>> cauchy = StudentT(degrees_of_freedom=1.0, scale=1.0)
    >>> fixed = cauchy.constants(unit=torch.ones(1))
    >>> cauchy.log_prob(torch.zeros(1, 1), torch.zeros(1, 1, 1), **fixed).exp()
    tensor([0.3183])
    """

    _parameter_constraints = {
        **_LocationScale._parameter_constraints,
        "degrees_of_freedom": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"learned"}),
        ],
    }

    def __init__(self, degrees_of_freedom=4.0, scale="shared", min_scale=1e-3):
        self.degrees_of_freedom = degrees_of_freedom
        self.scale = scale
        self.min_scale = min_scale

    def parameters(self, n_features):
        learned = super().parameters(n_features)
        if self.degrees_of_freedom == "learned":
            initial = torch.full((n_features,), math.log(4.0), dtype=torch.float32)
            learned["log_degrees_of_freedom"] = initial
        return learned

    def constants(self, unit):
        fixed = super().constants(unit)
        if self.degrees_of_freedom != "learned":
            value = math.log(self.degrees_of_freedom)
            fixed["log_degrees_of_freedom"] = unit.new_full((1,), value)
        return fixed

    @staticmethod
    def _half(log_degrees_of_freedom: Tensor) -> Tensor:
        """Half of the degrees of freedom, within bounds."""
        return 0.5 * torch.exp(log_degrees_of_freedom.clamp(-MAX_LOG, MAX_LOG))

    def log_prob(self, x, raw, **parameters):
        half = self._half(parameters.pop("log_degrees_of_freedom"))
        log_variance = self._log_variance(raw, **parameters)
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
        ).sum(-1)

    def draw(self, raw, generator, **parameters):
        mean = self.mean(raw).double()
        half = self._half(parameters.pop("log_degrees_of_freedom")).double()
        noise = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=mean.device
        )
        # A Gaussian whose precision is Gamma(half) / half.
        log_precision = draw_log_gamma(half.expand(mean.shape), generator) - half.log()
        log_variance = self._log_variance(raw, **parameters) - log_precision
        x = mean + torch.exp(0.5 * log_variance).clamp(max=MAX_DRAW) * noise
        return x.clamp(-MAX_DRAW, MAX_DRAW).to(raw.dtype)
