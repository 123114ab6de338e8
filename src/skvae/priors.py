"""Priors: what p(z) is."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ._compat import Interval
from .flows import SplineFlow
from .spec import LOG_2_PI, Spec

# From points of the encoder's input to means and log-variances of q(z|x).
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PriorInputs:
    """What a prior is built from.

    Attributes
    ----------
    latent_dim : int
        Width L of the part of z that the prior covers.
    location, spread : Tensor of shape (n_inputs,)
        Where the encoder's inputs lie, and how far they spread.
    generator : torch.Generator
        The only source of randomness.
    """

    latent_dim: int
    location: Tensor
    spread: Tensor
    generator: torch.Generator


class Prior(Spec):
    """Base of the priors. Subclasses implement :meth:`build`.

    Attributes
    ----------
    needs_encoder : bool
        Whether the module's methods need ``encode``, the function from points of the
        encoder's input (K, n_inputs) to means and log-variances (K, L) of q(z|x).
    """

    needs_encoder = False

    def build(self, inputs: PriorInputs) -> "PriorModule":
        """Make the module with its initial values."""
        raise NotImplementedError


class PriorModule(nn.Module):
    """p(z), or p(z|y): what a :class:`Prior` builds.

    ``condition`` (N, n_conditions) is the condition of the rows or None; ``encode`` is
    handed over where the prior declares ``needs_encoder``.

    Parameters
    ----------
    n_noise : int
        Standard normal numbers that a draw takes.
    """

    def __init__(self, n_noise: int) -> None:
        super().__init__()
        self.n_noise = n_noise

    def log_prob(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        encode: Encode | None = None,
    ) -> Tensor:
        """log p(z) in nats: (..., L) to (...)."""
        raise NotImplementedError

    def kl(
        self,
        mean: Tensor,
        log_variance: Tensor,
        condition: Tensor | None = None,
        encode: Encode | None = None,
    ) -> Tensor | None:
        """KL(q || p) of diagonal Gaussians q by dimension, (N, L) to (N, L), in nats.

        None where there is no closed form: the objective then uses the draws.
        """
        return None

    def closed_form(
        self, mean: Tensor, log_variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """KL(q || p) of rows (...,), and its derivatives by both arguments.

        For priors without parameters whose derivative is short; None where autograd is
        to find it.
        """
        return None

    def draw(
        self,
        noise: Tensor,
        condition: Tensor | None = None,
        encode: Encode | None = None,
    ) -> Tensor:
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
    >>> from skvae import StandardNormal, VAEEstimator
    >>> VAEEstimator(prior=StandardNormal())
    VAEEstimator(prior=StandardNormal())
    """

    def build(self, inputs: PriorInputs) -> PriorModule:
        return StandardNormalModule(inputs.latent_dim)


class StandardNormalModule(PriorModule):
    """The module that :class:`StandardNormal` builds."""

    def log_prob(
        self, z: Tensor, condition: Tensor | None = None, encode: Encode | None = None
    ) -> Tensor:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def kl(
        self,
        mean: Tensor,
        log_variance: Tensor,
        condition: Tensor | None = None,
        encode: Encode | None = None,
    ) -> Tensor | None:
        # Each dimension as a whole, not (squares) minus (logs): near q = p the
        # difference of two large sums would lose its digits.
        return 0.5 * (mean.square() + (torch.expm1(log_variance) - log_variance))

    def closed_form(self, mean: Tensor, log_variance: Tensor) -> Any:
        expm1 = torch.expm1(log_variance)
        kl = (mean.square() + expm1).sub_(log_variance).sum(-1).mul_(0.5)
        return kl, mean, expm1.mul_(0.5)

    def draw(
        self,
        noise: Tensor,
        condition: Tensor | None = None,
        encode: Encode | None = None,
    ) -> Tensor:
        return noise


class MixtureModule(PriorModule):
    """A mixture of diagonal Gaussians; subclasses say of which."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim + 1)  # one more, which chooses the component

    def components(self, encode: Encode | None) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (K,), means and log-variances (K, L)."""
        raise NotImplementedError

    def log_prob(
        self, z: Tensor, condition: Tensor | None = None, encode: Encode | None = None
    ) -> Tensor:
        return log_mixture(z, *self.components(encode))

    def draw(
        self,
        noise: Tensor,
        condition: Tensor | None = None,
        encode: Encode | None = None,
    ) -> Tensor:
        log_weights, mean, log_variance = self.components(encode)
        below = torch.special.ndtr(noise[:, -1:])
        # The last edge is 1 but for rounding: no draw may fall beyond it.
        edges = log_weights.exp().cumsum(0)[:-1]
        chosen = (below > edges).sum(-1)
        return mean[chosen] + torch.exp(0.5 * log_variance[chosen]) * noise[:, :-1]


def log_mixture(
    z: Tensor, log_weights: Tensor, mean: Tensor, log_variance: Tensor
) -> Tensor:
    """log-density of a mixture of diagonal Gaussians (K, L) at z: (..., L) to (...)."""
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


class MixturePrior(Prior):
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

    def __init__(self, n_components: Any = 10) -> None:
        self.n_components = n_components

    def build(self, inputs: PriorInputs) -> PriorModule:
        return MixturePriorModule(int(self.n_components), inputs)


class MixturePriorModule(MixtureModule):
    """The module that :class:`MixturePrior` builds."""

    def __init__(self, n_components: int, inputs: PriorInputs) -> None:
        super().__init__(inputs.latent_dim)
        shape = (n_components, inputs.latent_dim)
        means = torch.randn(shape, generator=inputs.generator, dtype=torch.float32)
        self.logits = nn.Parameter(torch.zeros(n_components, dtype=torch.float32))
        self.means = nn.Parameter(means)
        self.log_variances = nn.Parameter(torch.zeros(shape, dtype=torch.float32))

    def components(self, encode: Encode | None) -> tuple[Tensor, Tensor, Tensor]:
        # exp(-7) = 0.03 squared: no component may shrink onto a single code.
        return self.logits.log_softmax(0), self.means, self.log_variances.clamp(-7, 7)


class VampPrior(Prior):
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

    def __init__(self, n_components: Any = 100) -> None:
        self.n_components = n_components

    def build(self, inputs: PriorInputs) -> PriorModule:
        return VampPriorModule(int(self.n_components), inputs)


class VampPriorModule(MixtureModule):
    """The module that :class:`VampPrior` builds."""

    def __init__(self, n_components: int, inputs: PriorInputs) -> None:
        super().__init__(inputs.latent_dim)
        noise = torch.randn(
            (n_components, len(inputs.location)),
            generator=inputs.generator,
            dtype=torch.float32,
        )
        self.pseudo_inputs = nn.Parameter(inputs.location + inputs.spread * noise)

    def components(self, encode: Encode | None) -> tuple[Tensor, Tensor, Tensor]:
        assert encode is not None
        mean, log_variance = encode(self.pseudo_inputs)
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

    def __init__(self, n_transforms: Any = 3, hidden_dim: Any = 64) -> None:
        self.n_transforms = n_transforms
        self.hidden_dim = hidden_dim

    def build(self, inputs: PriorInputs) -> PriorModule:
        flow = SplineFlow(
            inputs.latent_dim,
            n_transforms=int(self.n_transforms),
            hidden_dim=int(self.hidden_dim),
            seed=inputs.generator.initial_seed() % 2**31,
        )
        return FlowPriorModule(flow, inputs.latent_dim)


class FlowPriorModule(PriorModule):
    """The module that :class:`FlowPrior` builds."""

    def __init__(self, flow: SplineFlow, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.flow = flow

    def log_prob(
        self, z: Tensor, condition: Tensor | None = None, encode: Encode | None = None
    ) -> Tensor:
        noise, log_slope = self.flow(z)
        return -0.5 * (noise.square() + LOG_2_PI).sum(-1) + log_slope

    def draw(
        self,
        noise: Tensor,
        condition: Tensor | None = None,
        encode: Encode | None = None,
    ) -> Tensor:
        return self.flow(noise, inverse=True)[0]


PRIORS: dict[str, type[Prior]] = {
    "normal": StandardNormal,
    "mixture": MixturePrior,
    "vamp": VampPrior,
    "flow": FlowPrior,
}
