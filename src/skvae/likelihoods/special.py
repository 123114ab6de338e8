"""Functions that keep their digits where the textbook formula loses them.

The log-densities of counts and shares are small differences of large numbers: in
float32, ``lgamma(1e6)`` alone is wrong by 1. Stirling's formula has its large part
cancelled by hand.
"""

import math

import torch
from torch import Tensor

from .._compat import standard_gamma

# Bound of logits and logarithms of shape parameters: exp(15) = 3e6.
MAX_LOG = 15.0


def full_precision(raw: Tensor) -> Tensor:
    """At least float32: a density takes differences that bfloat16 cannot hold."""
    return raw.to(torch.promote_types(raw.dtype, torch.float32))


def stirling_error(a: Tensor) -> Tensor:
    r"""What Stirling's formula lacks of log Gamma(a), for a > 0.

    .. math:: \log \Gamma(a) - (a - \tfrac12) \log a + a - \tfrac12 \log 2 \pi
    """
    small = a < 8
    # where() differentiates both branches: keep the unused one in its range.
    safe = torch.where(small, a, torch.ones_like(a))
    exact = torch.lgamma(safe) - (safe - 0.5) * torch.log(safe) + safe
    inverse = 1 / torch.where(small, torch.full_like(a, 8), a)
    square = inverse.square()
    series = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))
    return torch.where(small, exact - 0.5 * math.log(2 * math.pi), inverse * series)


def weighted_log_ratio(n: Tensor, m: Tensor, difference: Tensor) -> Tensor:
    """n log(m / n), given m - n as exactly as it is known; 0 at n = 0."""
    safe = torch.where(n > 0, n, torch.ones_like(n))
    relative = difference / safe
    near = relative.abs() < 0.5
    close = torch.log1p(torch.where(near, relative, torch.zeros_like(relative)))
    return n * torch.where(near, close, torch.log(m) - torch.log(safe))


def draw_log_gamma(concentration: Tensor, generator: torch.Generator) -> Tensor:
    """Logarithms of Gamma(concentration, 1) variables, float64.

    Those of a small concentration are smaller than any float: they are drawn as
    Gamma(a) = Gamma(a + 1) U^(1/a).
    """
    concentration = concentration.double()
    uniform = torch.rand(
        concentration.shape,
        generator=generator,
        dtype=torch.double,
        device=concentration.device,
    )
    gamma = standard_gamma(concentration + 1, generator)
    return gamma.log() + torch.log1p(-uniform) / concentration


def choose(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw indices along the last dimension with probabilities softmax(logits)."""
    # The smallest of exponential variables with these rates (the Gumbel trick).
    waiting = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - waiting.log()).argmax(-1)
