"""Priors: what p(z) is."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .spec import LOG_2_PI, Spec


class Prior(Spec):
    """Base of the priors.

    A prior is a family of densities over z; what it learns, if anything, is declared
    by :meth:`parameters` and handed back to every other method by name.
    """

    def parameters(
        self, latent_dim: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Initial values of what the prior learns, by name. Nothing by default."""
        return {}

    def log_prob(self, z: Tensor, **parameters: Tensor) -> Tensor:
        """log p(z) in nats: (..., L) to (...)."""
        raise NotImplementedError

    def kl(
        self, mean: Tensor, log_variance: Tensor, **parameters: Tensor
    ) -> Tensor | None:
        """KL(q || p) of diagonal Gaussians q, (N, L) to (N,), in nats.

        None where there is no closed form: the objective then uses the draws.
        """
        return None

    def draw(
        self,
        n_samples: int,
        latent_dim: int,
        generator: torch.Generator,
        **parameters: Tensor,
    ) -> Tensor:
        """Draw latent points, (n_samples, latent_dim)."""
        raise NotImplementedError


class StandardNormal(Prior):
    r"""The standard normal prior.

    .. math:: p(z) = \mathcal N(z; 0, I), \qquad
        \mathrm{KL}(q \| p) = \tfrac12 \sum_l
        \left(\mu_l^2 + \sigma_l^2 - 1 - \log \sigma_l^2\right)

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes", appendix B.

    Examples
    --------
    >>> import torch
    >>> from skvae import StandardNormal
    >>> StandardNormal().kl(torch.ones(1, 4), torch.zeros(1, 4))
    tensor([2.])
    """

    def log_prob(self, z, **parameters):
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def kl(self, mean, log_variance, **parameters):
        # The bracket is evaluated as a whole, not as (sum of squares) minus (sum of
        # logs): near q = p the difference of two large sums would lose its digits.
        return 0.5 * (mean.square() + (torch.expm1(log_variance) - log_variance)).sum(
            -1
        )

    def draw(self, n_samples, latent_dim, generator, **parameters):
        return torch.randn(
            n_samples, latent_dim, generator=generator, dtype=torch.float32
        )


PRIORS: dict[str, type[Prior]] = {"normal": StandardNormal}
