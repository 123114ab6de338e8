"""Likelihoods of images."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._compat import Interval
from ..forms.base import Column, Summary
from ..support import Support
from ..units import Units
from .base import Likelihood, LikelihoodModule, located
from .special import choose, full_precision

# The highest of the 256 levels of a byte, and half the distance of two.
HIGHEST = 255
HALF_LEVEL = 0.5 / HIGHEST
# exp(-8) is a tenth of a level, exp(5) makes 0 and 255 a coin toss.
MIN_LOG_SCALE, MAX_LOG_SCALE = -8.0, 5.0


class DiscretizedLogisticMixture(Likelihood):
    r"""8-bit images: a mixture of logistic distributions, rounded to 256 levels.

    .. math:: \log p(x|z) = \sum_i \log \sum_k \pi_{ik} \prod_c
        \left[F\left(\frac{x_{ic} + h - \mu_{ick}}{s_{ick}}\right)
        - F\left(\frac{x_{ic} - h - \mu_{ick}}{s_{ick}}\right)\right]

    over pixels i, components k and channels c, with the logistic function F and half a
    level h = 1/510; the levels 0 and 255 take the tails. Values are level / 255, as of
    bytes that were divided by 255. Features are channels first: all of the first
    channel, then all of the second.

    ``mean`` is that of the logistic distributions cut off at 0 and 1, off by less than
    half a level from that of the levels.

    Parameters
    ----------
    n_components : int, default=5
        Components of the mixture; the channels of a pixel share the choice.
    n_channels : int, default=3
        Channels of the images: 1 for grey, 3 for colour.

    References
    ----------
    Salimans et al. (2017), "PixelCNN++: Improving the PixelCNN with Discretized
    Logistic Mixture Likelihood and Other Modifications", without its autoregression.

    Examples
    --------
    >>> from skvae import DiscretizedLogisticMixture, VAEEstimator
    >>> likelihood = DiscretizedLogisticMixture(n_components=3, n_channels=1)
    >>> VAEEstimator(likelihood=likelihood).likelihood.n_components
    3
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "n_channels": [Interval(Integral, 1, None, closed="left")],
    }

    support = Support(0.0, 1.0, 1 / HIGHEST, text="{0, 1/255, ..., 1}")
    advice = (
        "Divide bytes by 255 and do nothing else to them, or choose another "
        "likelihood, such as 'gaussian'."
    )

    def __init__(self, n_components: Any = 5, n_channels: Any = 3) -> None:
        self.n_components = n_components
        self.n_channels = n_channels

    def resolve(self, columns: Sequence[Column], summary: Summary) -> Likelihood:
        if len(columns) % int(self.n_channels):
            raise ValueError(
                f"X has {len(columns)} features, which are no whole number of pixels "
                f"of n_channels={self.n_channels}; give the channels of the images (1 "
                "for grey ones)."
            )
        return self

    def build(
        self, columns: Sequence[Column], summary: Summary, units: Units
    ) -> LikelihoodModule:
        return DiscretizedLogisticMixtureModule(self, columns, summary, units)


class DiscretizedLogisticMixtureModule(LikelihoodModule):
    """The module that :class:`DiscretizedLogisticMixture` builds."""

    def __init__(
        self,
        spec: DiscretizedLogisticMixture,
        columns: Sequence[Column],
        summary: Summary,
        units: Units,
    ) -> None:
        k = int(spec.n_components)
        super().__init__(len(columns), n_raw=3 * k * len(columns))
        self.n_components, self.n_channels = k, int(spec.n_channels)
        location, spread = located(summary, units)
        # Components start side by side, a tenth wide: equal ones would stay equal.
        logits = location.new_zeros(len(location), k)
        apart = torch.linspace(-0.1, 0.1, k) if k > 1 else torch.zeros(1)
        means = location.unsqueeze(-1) + apart
        log_scales = torch.full_like(means, math.log(0.1))
        start = torch.cat([logits, means, log_scales], -1).flatten()
        self.starts_at(start, location, spread)

    def _components(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (..., P, K), means and log scales (..., C, P, K) of P pixels."""
        shape = (self.n_channels, -1, 3 * self.n_components)
        pixels = full_precision(raw).unflatten(-1, shape)
        logits, means, log_scales = pixels.chunk(3, -1)
        # Each channel's features have logits; those of a pixel are one, their sum.
        log_scales = log_scales.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        return logits.sum(-3), means, log_scales

    def log_prob(
        self, x: Tensor, raw: Tensor, observed: Tensor | None = None
    ) -> Tensor:
        logits, means, log_scales = self._components(raw)
        if observed is not None:
            # A missing entry may be NaN, and so would be its share of the gradient.
            x = x.where(observed, torch.zeros_like(x))
        level = torch.round(HIGHEST * x.to(means.dtype))
        level = level.unflatten(-1, (self.n_channels, -1)).unsqueeze(-1)
        distance = level / HIGHEST - means
        precision = torch.exp(-log_scales)
        below = F.logsigmoid((distance + HALF_LEVEL) * precision)
        above = F.logsigmoid((HALF_LEVEL - distance) * precision)
        # F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)): no difference of equal numbers.
        within = torch.log(-torch.expm1(-2 * HALF_LEVEL * precision))
        log_mass = torch.where(level == 0, below, below + above + within)
        log_mass = torch.where(level == HIGHEST, above, log_mass)
        if observed is not None:
            seen = observed.unflatten(-1, (self.n_channels, -1)).unsqueeze(-1)
            log_mass = log_mass.where(seen, torch.zeros_like(log_mass))
        log_weights = logits.log_softmax(-1)
        return (log_weights + log_mass.sum(-3)).logsumexp(-1).sum(-1)

    def mean(self, raw: Tensor) -> Tensor:
        logits, means, log_scales = self._components(raw)
        scales = torch.exp(log_scales)
        # The integral of 1 - F over [0, 1].
        upper, lower = F.softplus(means / scales), F.softplus((means - 1) / scales)
        clipped = (scales * (upper - lower)).clamp(0, 1)
        weights = logits.softmax(-1).unsqueeze(-3)
        return (weights * clipped).sum(-1).flatten(-2)

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        logits, means, log_scales = self._components(raw)
        chosen = choose(logits, generator)[..., None, :, None].expand(
            *means.shape[:-1], 1
        )
        means, log_scales = (p.gather(-1, chosen)[..., 0] for p in (means, log_scales))
        uniform = torch.rand(
            means.shape, generator=generator, dtype=means.dtype, device=means.device
        )
        x = means + torch.exp(log_scales) * torch.logit(uniform)
        level = torch.round(HIGHEST * x.clamp(0, 1))
        return (level / HIGHEST).flatten(-2).to(raw.dtype)
