"""The maximum mean discrepancy between two samples."""

from typing import Any

import torch
from torch import Tensor

# Squared length scales of the kernels, as multiples of the prior's own 2 L, so that
# some of them see the difference however far q(z) is from p(z).
MMD_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
KERNELS = {
    "imq": lambda square, scale: scale / (scale + square),
    "rbf": lambda square, scale: torch.exp(-square / scale),
}


def maximum_mean_discrepancy(
    a: Tensor, b: Tensor, kernel: str = "imq", weights: Tensor | None = None
) -> Tensor:
    r"""The unbiased estimate of the squared MMD between two samples.

    .. math:: \mathrm{MMD}^2 = \mathbb E_{a \ne a'} k(a, a')
        + \mathbb E_{b \ne b'} k(b, b') - 2\, \mathbb E\, k(a, b)

    Pairs of a point with itself are left out, so that its expectation is 0 where both
    samples come from one density; a single estimate can be negative.

    Parameters
    ----------
    a, b : Tensor of shape (N, L)
        The samples; with fewer than two points the estimate is 0.
    kernel : {"imq", "rbf"}, default="imq"
        Inverse multiquadratic, :math:`C / (C + \|a - b\|^2)`, or Gaussian,
        :math:`\exp(-\|a - b\|^2 / C)`; the mean over seven scales C around 2 L, the
        squared distance of two standard normal points.
    weights : Tensor of shape (N,) or None
        Weights of the points of ``a``.

    Returns
    -------
    Tensor of shape ()

    References
    ----------
    Gretton et al. (2012), "A kernel two-sample test", lemma 6.
    """
    n = len(a)
    if n < 2:
        return (a * 0).sum()
    weights = a.new_ones(n) if weights is None else weights
    weights = weights / weights.sum()
    uniform = a.new_full((n,), 1 / n)

    def expectation(x: Tensor, y: Any, p: Any, q: Any, *, same: Any) -> Any:
        square = (x.unsqueeze(1) - y).square().sum(-1)
        similarity = sum(
            KERNELS[kernel](square, 2 * x.shape[1] * scale) for scale in MMD_SCALES
        ) / len(MMD_SCALES)
        pairs = p.unsqueeze(1) * q
        if same:
            pairs = pairs * (1 - torch.eye(n, dtype=x.dtype, device=x.device))
            # One row may have all the weight; there are no pairs then.
            pairs = pairs / pairs.sum().clamp(min=torch.finfo(x.dtype).tiny)
        return (similarity * pairs).sum()

    return (
        expectation(a, a, weights, weights, same=True)
        + expectation(b, b, uniform, uniform, same=True)
        - 2 * expectation(a, b, weights, uniform, same=False)
    )
