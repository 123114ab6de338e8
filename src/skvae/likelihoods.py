"""Likelihoods: what p(x|z) is.

A likelihood turns the decoder's raw outputs, ``n_outputs`` per feature, into a density
over rows. What it learns beside the network (a shared variance) is declared by
``parameters``, what it fixes by ``constants``, and both are handed back to every other
method by name.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ._compat import Interval, StrOptions
from .spec import LOG_2_PI, Spec


class Likelihood(Spec):
    """Base of the likelihoods.

    Attributes
    ----------
    n_outputs : int
        Raw parameters per feature that the decoder must give.
    real_valued : bool
        Whether x is any real number: such data are standardised inside the model.
    support : str
        The support in words, for error messages.
    """

    n_outputs = 1
    real_valued = False
    support = "any finite number"

    def in_support(self, X: np.ndarray) -> np.ndarray:
        """Which entries of X this density can produce, a boolean array like X."""
        return np.isfinite(X)

    def check_support(
        self, X: np.ndarray, name: str = "X", columns: Sequence[Any] | None = None
    ) -> None:
        """Refuse X (N, D) at its first entry outside the support, naming it."""
        inside = self.in_support(X)
        if inside.all():
            return
        row, column = np.argwhere(~inside)[0]
        label = column if columns is None else repr(columns[column])
        raise ValueError(
            f"{name} has the value {X[row, column]!s} in row {row}, column {label}, "
            f"outside the support {self.support} of {self!r}. Scale the data "
            "(MinMaxScaler) or choose another likelihood, such as 'gaussian'."
        )

    def nearest_in_support(self, X: np.ndarray) -> np.ndarray:
        """X with each entry replaced by the nearest one in the support."""
        return X

    def parameters(self, n_features: int) -> Mapping[str, Tensor]:
        """Initial values of what is learned beside the network, by name."""
        return {}

    def constants(self, unit: Tensor) -> Mapping[str, Tensor]:
        """What is fixed beside the network, by name.

        ``unit`` (D,) is what 1 inside the model is worth in the user's units.
        """
        return {}

    def network_input(self, x: Tensor) -> Tensor:
        """What the encoder sees of x, (N, D) to (N, D)."""
        return x

    def output_bias(self, mean: Tensor) -> Tensor:
        """Where the decoder's raw output starts, (D,) to (D, n_outputs)."""
        return mean.new_zeros(len(mean), self.n_outputs)

    def log_prob(self, x: Tensor, raw: Tensor, **parameters: Tensor) -> Tensor:
        """log p(x|z) in nats, summed over features: (..., D, n_outputs) to (...)."""
        raise NotImplementedError

    def reconstruction_and_gradient(
        self,
        x: Tensor,
        raw: Tensor,
        row_weights: Tensor | None,
        **parameters: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """-log p(x|z) of N rows, and the gradient of its weighted sum over the rows.

        By autograd; a family with a short derivative may write it out. Returns the
        reconstruction terms (N,), the gradient by ``raw`` (N, D, n_outputs), and those
        by the parameters that ask for one, by name.
        """
        learned = {k: v for k, v in parameters.items() if v.requires_grad}
        with torch.enable_grad():
            raw = raw.detach().requires_grad_()
            terms = -self.log_prob(x, raw, **parameters)
            total = terms.sum() if row_weights is None else terms @ row_weights
            slope, *rest = torch.autograd.grad(total, [raw, *learned.values()])
        return terms.detach(), slope, dict(zip(learned, rest, strict=True))

    def mean(self, raw: Tensor, **parameters: Tensor) -> Tensor:
        """E[x|z], (..., D, n_outputs) to (..., D)."""
        raise NotImplementedError

    def draw(
        self, raw: Tensor, generator: torch.Generator, **parameters: Tensor
    ) -> Tensor:
        """Draw x from p(x|z), (..., D, n_outputs) to (..., D)."""
        raise NotImplementedError


class _UnitInterval(Likelihood):
    """Shared by the families over [0, 1]."""

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
        # The hot spot of the default model, in few passes: d/dl = sigmoid(l) - x, and
        # softplus(l) = relu(l) + log(1 + exp(-|l|)), since log1p is a slow kernel.
        logits = raw.squeeze(-1)
        negative = torch.copysign(logits, -1.0)
        terms = negative.exp_().float().add_(1).log_().sum(-1)
        terms += logits.relu().sum(-1) - torch.linalg.vecdot(x, logits)
        slope = torch.sigmoid(logits).sub_(x)
        if row_weights is not None:
            slope.mul_(row_weights.unsqueeze(-1).to(slope.dtype))
        return terms, slope.unsqueeze(-1), {}

    def mean(self, raw, **parameters):
        return torch.sigmoid(raw.squeeze(-1))

    def draw(self, raw, generator, **parameters):
        return torch.bernoulli(self.mean(raw), generator=generator)


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


class Gaussian(Likelihood):
    r"""Independent Gaussian features with a learned or a fixed scale.

    .. math:: \log p(x|z) = \sum_d \log \mathcal N(x_d; \mu_d(z), \sigma_d^2)

    Parameters
    ----------
    scale : {"shared", "feature"} or float, default="shared"
        The standard deviation :math:`\sigma`. "shared" learns one for all features,
        in the standardised units that the network works in (so one *relative* to each
        feature's spread where ``standardize`` is on); "feature" learns one for each;
        a number fixes it, in the units of X.
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

    _parameter_constraints: dict[str, list[Any]] = {
        "scale": [
            StrOptions({"shared", "feature"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "min_scale": [Interval(Real, 0, None, closed="neither")],
    }

    real_valued = True

    def __init__(self, scale="shared", min_scale=1e-3):
        self.scale = scale
        self.min_scale = min_scale

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
        return mean.unsqueeze(-1)

    def _log_variance(self, log_scale: Tensor) -> Tensor:
        if not isinstance(self.scale, str):
            return 2 * log_scale
        floor = torch.full_like(log_scale, 2 * math.log(self.min_scale))
        return torch.logaddexp(2 * log_scale, floor)

    def log_prob(self, x, raw, **parameters):
        log_variance = self._log_variance(**parameters)
        square = (x - raw.squeeze(-1)).square()
        return -0.5 * (
            (square * torch.exp(-log_variance)).sum(-1)
            + (log_variance + LOG_2_PI).expand(x.shape[-1]).sum()
        )

    def mean(self, raw, **parameters):
        return raw.squeeze(-1)

    def draw(self, raw, generator, **parameters):
        mean = self.mean(raw)
        noise = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=mean.device
        )
        return mean + torch.exp(0.5 * self._log_variance(**parameters)) * noise


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
}


def guess(X: np.ndarray) -> Likelihood:
    """The likelihood that ``"auto"`` stands for.

    Bernoulli where every value lies in [0, 1], Gaussian otherwise. Counts and
    categories are never guessed.
    """
    return Bernoulli() if X.min() >= 0 and X.max() <= 1 else Gaussian()
