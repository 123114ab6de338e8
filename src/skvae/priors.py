"""Priors: what p(z) is."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ._compat import Interval
from .flows import SplineFlow
from .spec import LOG_2_PI, Spec


class Prior(Spec):
    """Base of the priors.

    A prior is a family of densities over z; what it learns, if anything, is declared
    by :meth:`parameters` and handed back to every other method by name.

    Attributes
    ----------
    needs_encoder : bool
        Whether the methods are also handed ``encode``, the function from points of x
        (K, D) to means and log-variances (K, L) of q(z|x).
    """

    needs_encoder = False

    def parameters(
        self,
        *,
        latent_dim: int,
        mean: Tensor,
        spread: Tensor,
        generator: torch.Generator,
    ) -> Mapping[str, Tensor]:
        """Initial values of what the prior learns, by name. Nothing by default.

        ``mean`` and ``spread`` (D,) tell where the data lie, in the model's units.
        """
        return {}

    def log_prob(self, z: Tensor, **parameters: Any) -> Tensor:
        """log p(z) in nats: (..., L) to (...)."""
        raise NotImplementedError

    def kl(
        self, mean: Tensor, log_variance: Tensor, **parameters: Any
    ) -> Tensor | None:
        """KL(q || p) of diagonal Gaussians q by dimension, (N, L) to (N, L), in nats.

        None where there is no closed form: the objective then uses the draws.
        """
        return None

    def n_noise(self, latent_dim: int) -> int:
        """Standard normal numbers that a draw takes."""
        return latent_dim

    def draw(self, noise: Tensor, **parameters: Any) -> Tensor:
        """Turn standard normal noise (N, n_noise) into latent points (N, L)."""
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
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    def log_prob(self, z, **parameters):
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def kl(self, mean, log_variance, **parameters):
        # Each dimension as a whole, not (squares) minus (logs): near q = p the
        # difference of two large sums would lose its digits.
        return 0.5 * (mean.square() + (torch.expm1(log_variance) - log_variance))

    def draw(self, noise, **parameters):
        return noise


class _Mixture(Prior):
    """Shared by the mixtures of diagonal Gaussians."""

    def components(self, **parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (K,), means and log-variances (K, L)."""
        raise NotImplementedError

    def n_noise(self, latent_dim):
        return latent_dim + 1  # one more, which chooses the component

    def log_prob(self, z, **parameters):
        log_weights, mean, log_variance = self.components(**parameters)
        # sum_l (z - m)^2 / v, multiplied out into matrix products: a (..., K, L)
        # tensor of differences would be the largest of the whole model. In float64,
        # which only Apple's GPUs lack: a narrow component is a difference of large
        # numbers.
        if z.device.type != "mps":
            mean, log_variance = mean.double(), log_variance.double()
        point = z.to(mean.dtype)
        precision = torch.exp(-log_variance)
        scaled_mean = mean * precision
        square = point.square() @ precision.t() - 2 * (point @ scaled_mean.t())
        constant = (mean * scaled_mean + log_variance + LOG_2_PI).sum(-1)
        parts = log_weights - 0.5 * (square + constant)
        return torch.logsumexp(parts, -1).to(z.dtype)

    def draw(self, noise, **parameters):
        log_weights, mean, log_variance = self.components(**parameters)
        below = torch.special.ndtr(noise[:, -1:])
        # The last edge is 1 but for rounding: no draw may fall beyond it.
        edges = log_weights.exp().cumsum(0)[:-1]
        chosen = (below > edges).sum(-1)
        return mean[chosen] + torch.exp(0.5 * log_variance[chosen]) * noise[:, :-1]


class MixturePrior(_Mixture):
    r"""A learned mixture of diagonal Gaussians.

    .. math:: p(z) = \sum_k \pi_k\, \mathcal N(z; \mu_k, \mathrm{diag}(\sigma_k^2))

    Parameters
    ----------
    n_components : int, default=10

    References
    ----------
    Dilokthanakul et al. (2016), "Deep unsupervised clustering with Gaussian mixture
    variational autoencoders".

    Examples
    --------
    >>> from skvae import MixturePrior, VAEEstimator
    >>> VAEEstimator(prior=MixturePrior(n_components=5))
    VAEEstimator(prior=MixturePrior(n_components=5))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")]
    }

    def __init__(self, n_components=10):
        self.n_components = n_components

    def parameters(self, *, latent_dim, mean, spread, generator):
        shape = (self.n_components, latent_dim)
        return {
            "logits": torch.zeros(self.n_components, dtype=torch.float32),
            "means": torch.randn(shape, generator=generator, dtype=torch.float32),
            "log_variances": torch.zeros(shape, dtype=torch.float32),
        }

    def components(self, *, logits, means, log_variances):  # type: ignore[override]
        # exp(-7) = 0.03 squared: no component may shrink onto a single code.
        return logits.log_softmax(0), means, log_variances.clamp(-7, 7)


class VampPrior(_Mixture):
    r"""The mixture of posteriors at learned pseudo-inputs.

    .. math:: p(z) = \frac1K \sum_k q(z|u_k)

    The pseudo-inputs :math:`u_k` lie in the space of x and start spread as the data
    are, with no row of the data among them.

    Parameters
    ----------
    n_components : int, default=100
        Number of pseudo-inputs K. Each costs a row of the encoder at every step.

    References
    ----------
    Tomczak and Welling (2018), "VAE with a VampPrior".

    Examples
    --------
    >>> from skvae import VAEEstimator, VampPrior
    >>> VAEEstimator(prior=VampPrior(n_components=50))
    VAEEstimator(prior=VampPrior(n_components=50))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")]
    }

    needs_encoder = True

    def __init__(self, n_components=100):
        self.n_components = n_components

    def parameters(self, *, latent_dim, mean, spread, generator):
        noise = torch.randn(
            (self.n_components, len(mean)), generator=generator, dtype=torch.float32
        )
        return {"pseudo_inputs": mean + spread * noise}

    def components(self, *, pseudo_inputs, encode):  # type: ignore[override]
        mean, log_variance = encode(pseudo_inputs)
        weights = mean.new_full((len(mean),), 1 / len(mean))
        return weights.log(), mean, log_variance


class FlowPrior(Prior):
    r"""A neural spline flow from the standard normal.

    .. math:: \log p(z) = \log \mathcal N(f(z); 0, I)
        + \log \left|\det \partial f / \partial z\right|

    Needs zuko: ``pip install 'skvae[flows]'``.

    Parameters
    ----------
    n_transforms : int, default=3
        Autoregressive spline transforms in a row.
    hidden_dim : int, default=64
        Width of the two hidden layers of each transform's network.

    References
    ----------
    Durkan et al. (2019), "Neural spline flows"; Chen et al. (2017), "Variational lossy
    autoencoder".

    Examples
    --------
    >>> from skvae import FlowPrior, VAEEstimator
    >>> VAEEstimator(prior=FlowPrior(n_transforms=2))
    VAEEstimator(prior=FlowPrior(n_transforms=2))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        name: [Interval(Integral, 1, None, closed="left")]
        for name in ("n_transforms", "hidden_dim")
    }

    def __init__(self, n_transforms=3, hidden_dim=64):
        self.n_transforms = n_transforms
        self.hidden_dim = hidden_dim

    def _flow(self, latent_dim: int, seed: int = 0) -> SplineFlow:
        return SplineFlow(
            latent_dim,
            n_transforms=self.n_transforms,
            hidden_dim=self.hidden_dim,
            seed=seed,
        )

    def parameters(self, *, latent_dim, mean, spread, generator):
        seed = generator.initial_seed() % 2**31
        # A parameter's name may hold no dot.
        return {
            name.replace(".", "-"): value.detach()
            for name, value in self._flow(latent_dim, seed).named_parameters()
        }

    def _apply(self, x: Tensor, parameters: Mapping[str, Tensor], **options: bool):
        flow = self._flow(x.shape[-1])
        values = {name.replace("-", "."): value for name, value in parameters.items()}
        for name, value in flow.named_buffers():
            values[name] = value.to(x.device)
        return torch.func.functional_call(flow, values, (x,), options)

    def log_prob(self, z, **parameters):
        noise, log_slope = self._apply(z, parameters)
        return StandardNormal().log_prob(noise) + log_slope

    def draw(self, noise, **parameters):
        return self._apply(noise, parameters, inverse=True)[0]


PRIORS: dict[str, type[Prior]] = {
    "normal": StandardNormal,
    "mixture": MixturePrior,
    "vamp": VampPrior,
    "flow": FlowPrior,
}
