"""What the networks share: the spec's base, posteriors, layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..spec import LOG_2_PI, Spec

# exp(15 / 2) = 1,800 standard deviations of the prior: wide enough for any posterior,
# narrow enough that neither exp nor its square overflows in float32.
MAX_LOG_VARIANCE = 15.0

# (mean, log_variance) of diagonal Gaussians -> their KL from the prior by dimension.
PriorKL = Callable[[Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class Posterior:
    """Draws from q(z|x).

    Attributes
    ----------
    z : Tensor of shape (S, N, L)
        The draws.
    mean : Tensor of shape (N, L)
        The code of each row; at zero noise, what ``transform`` gives.
    """

    z: Tensor
    mean: Tensor

    def log_prob(self, *, path_derivative: bool = False) -> Tensor:
        """log q(z|x) of the draws, (S, N), in nats.

        With ``path_derivative`` gradients flow through z, not through the parameters.
        """
        raise NotImplementedError

    def kl(self, prior_kl: PriorKL) -> Tensor | None:
        """KL from the prior by dimension, (N, L), where there is a closed form."""
        return None

    @property
    def prior_z(self) -> Tensor:
        """The part of z that the prior covers: all of it, but for a hierarchy."""
        return self.z

    def inner_log_prior(self) -> Tensor | float:
        """log-density of z under the network's own conditional priors, (S, N)."""
        return 0.0

    def gaussian(self) -> tuple[Tensor, Tensor] | None:
        """Mean and log-variance (N, L) where all of q(z|x) is a diagonal Gaussian."""
        return None

    def prior_gaussian(self) -> tuple[Tensor, Tensor] | None:
        """The same of the part of z that the prior covers."""
        return self.gaussian()


@dataclass(frozen=True)
class GaussianPosterior(Posterior):
    """Draws from a diagonal Gaussian q(z|x), and its parameters.

    Attributes
    ----------
    z : Tensor of shape (S, N, L)
        Draws, ``mean + exp(log_variance / 2) * noise``.
    mean, log_variance : Tensor of shape (N, L)
    noise : Tensor of shape (S, N, L)
        The standard normal noise that made the draws.
    """

    log_variance: Tensor
    noise: Tensor

    @classmethod
    def draw(
        cls, mean: Tensor, log_variance: Tensor, noise: Tensor
    ) -> "GaussianPosterior":
        """Draw by reparameterisation (Kingma and Welling, 2014)."""
        log_variance = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        z = mean + torch.exp(0.5 * log_variance) * noise
        return cls(z, mean, log_variance, noise)

    def log_prob(self, *, path_derivative=False):
        if path_derivative:
            return log_normal(
                self.z, self.mean.detach(), self.log_variance.detach()
            ).sum(-1)
        return -0.5 * (self.noise.square() + self.log_variance + LOG_2_PI).sum(-1)

    def kl(self, prior_kl):
        return prior_kl(self.mean, self.log_variance)

    def gaussian(self):
        return self.mean, self.log_variance


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, exp(log_variance)) of each number, in nats."""
    square = (z - mean).square() * torch.exp(-log_variance)
    return -0.5 * (square + log_variance + LOG_2_PI)


class Network(Spec):
    """Base of the networks. Subclasses implement :meth:`build`.

    Attributes
    ----------
    posterior : {"gaussian", "hierarchical", "flow"}
        What q(z|x) is: one diagonal Gaussian; several levels of them, the top one
        given x alone; or something without a closed form.
    needs_float32 : bool
        Whether bfloat16 would spoil it in training.
    """

    posterior = "gaussian"
    needs_float32 = False

    def build(
        self,
        *,
        n_features: int,
        latent_dim: tuple[int, ...],
        hidden_dim: Sequence[int],
        n_outputs: int,
        output_bias: Tensor,
        n_conditions: int,
        image_shape: tuple[int, ...] | None,
        generator: torch.Generator,
    ) -> nn.Module:
        """Make the module with freshly initialised weights.

        Parameters
        ----------
        n_features : int
            Width D of x.
        latent_dim : tuple of int
            Widths of the levels of z, from the one nearest to x to the top; of length
            1 but for hierarchical networks.
        hidden_dim : sequence of int
            Widths of the hidden layers of the encoder; the decoder mirrors them.
        n_outputs : int
            Raw parameters per feature that the likelihood asks for.
        output_bias : Tensor of shape (n_features, n_outputs)
            Where the decoder's output starts.
        n_conditions : int
            Columns that follow z in what ``decode`` is given.
        image_shape : tuple of int or None
            (channels, height, width) where X came as images.
        generator : torch.Generator
            The only source of randomness.
        """
        raise NotImplementedError


def only_level(latent_dim: Sequence[int], network: Network) -> int:
    """The width of z for a network that knows of one level."""
    if len(latent_dim) != 1:
        raise ValueError(
            f"latent_dim={tuple(latent_dim)} has {len(latent_dim)} levels, but "
            f"{network!r} has one; give an int, or use network='ladder'."
        )
    return latent_dim[0]


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer, initialised as PyTorch does but from this generator."""
    # skip_init: PyTorch's own initialisation would draw from the global generator.
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float32)
    return initialise(layer, n_in, generator)


def initialise(layer: Any, fan_in: int, generator: torch.Generator) -> Any:
    """Draw the weights of a linear or convolutional layer from this generator."""
    bound = fan_in**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


def set_bias(layer: Any, output_bias: Tensor) -> None:
    """Start the decoder's output at this bias (D, n_outputs)."""
    with torch.no_grad():
        layer.bias.copy_(output_bias.flatten())


def dense(
    widths: Sequence[int],
    activation: type[nn.Module],
    generator: torch.Generator,
    *,
    layer_norm: bool = False,
) -> nn.Sequential:
    """Linear layers of these widths with the activation in between."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers.append(linear(n_in, n_out, generator))
        if layer_norm:
            layers.append(nn.LayerNorm(n_out, dtype=torch.float32))
        layers.append(activation())
    return nn.Sequential(*layers[: -2 if layer_norm else -1])
