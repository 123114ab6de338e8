"""Networks: how x becomes q(z|x), and how z becomes the parameters of p(x|z).

A network is a spec with one method, ``build``, which returns a module of two methods:

- ``infer(x, noise)`` turns rows (N, D) and standard normal noise (S, N, ``n_noise``)
  into a :class:`GaussianPosterior` of S draws;
- ``decode(z)`` turns latent points (..., L) into raw parameters of the likelihood
  (..., D, ``n_outputs``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ._compat import StrOptions
from .spec import LOG_2_PI, Spec

# exp(15 / 2) = 1,800 standard deviations of the prior: wide enough for any posterior,
# narrow enough that neither exp nor its square overflows in float32.
MAX_LOG_VARIANCE = 15.0


@dataclass(frozen=True)
class GaussianPosterior:
    """Draws from a diagonal Gaussian q(z|x), and its parameters.

    Attributes
    ----------
    z : Tensor of shape (S, N, L)
        Draws, ``mean + exp(log_variance / 2) * noise``.
    mean, log_variance : Tensor of shape (N, L)
    noise : Tensor of shape (S, N, L)
        The standard normal noise that made the draws.
    """

    z: Tensor
    mean: Tensor
    log_variance: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, mean: Tensor, log_variance: Tensor, noise: Tensor):
        """Draw by reparameterisation (Kingma and Welling, 2014)."""
        log_variance = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        z = mean + torch.exp(0.5 * log_variance) * noise
        return cls(z, mean, log_variance, noise)

    def log_prob(self) -> Tensor:
        """log q(z|x) of the draws, (S, N), in nats."""
        return -0.5 * (self.noise.square() + self.log_variance + LOG_2_PI).sum(-1)


class Network(Spec):
    """Base of the networks. Subclasses implement :meth:`build`."""

    def build(
        self,
        *,
        n_features: int,
        latent_dim: int,
        hidden_dim: Sequence[int],
        n_outputs: int,
        output_bias: Tensor,
        generator: torch.Generator,
    ) -> nn.Module:
        """Make the module with freshly initialised weights.

        Parameters
        ----------
        n_features, latent_dim : int
            Widths of x and z.
        hidden_dim : sequence of int
            Widths of the hidden layers of the encoder; the decoder mirrors them.
        n_outputs : int
            Raw parameters per feature that the likelihood asks for.
        output_bias : Tensor of shape (n_features, n_outputs)
            Where the decoder's output starts.
        generator : torch.Generator
            The only source of randomness.
        """
        raise NotImplementedError


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class MLP(Network):
    """Fully connected encoder and decoder, the decoder mirroring the encoder.

    The widths come from the estimator's ``hidden_dim``: 400 gives D-400-L-400-D,
    ``(400, 200)`` gives D-400-200-L-200-400-D, and ``()`` a linear model.

    Parameters
    ----------
    activation : {"relu", "tanh"}, default="relu"
        The nonlinearity after each hidden layer.

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes".

    Examples
    --------
    >>> from skvae import MLP, VAEEstimator
    >>> VAEEstimator(network=MLP(activation="tanh"), hidden_dim=(200, 200))
    VAEEstimator(hidden_dim=(200, 200), network=MLP(activation='tanh'))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "activation": [StrOptions(set(ACTIVATIONS))]
    }

    def __init__(self, activation="relu"):
        self.activation = activation

    def build(
        self, *, n_features, latent_dim, hidden_dim, n_outputs, output_bias, generator
    ):
        activation = ACTIVATIONS[self.activation]
        widths = [n_features, *hidden_dim]
        module = MLPModule(
            dense([*widths, 2 * latent_dim], activation, generator),
            dense(
                [latent_dim, *widths[:0:-1], n_features * n_outputs],
                activation,
                generator,
            ),
            latent_dim,
            n_outputs,
        )
        output = module.decoder[-1]
        assert isinstance(output, nn.Linear)
        with torch.no_grad():
            output.bias.copy_(output_bias.flatten())
        return module


class MLPModule(nn.Module):
    """The module that :class:`MLP` builds."""

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        encoder: nn.Sequential,
        decoder: nn.Sequential,
        latent_dim: int,
        n_outputs: int,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.n_noise = latent_dim
        self.n_outputs = n_outputs

    def infer(self, x: Tensor, noise: Tensor) -> GaussianPosterior:
        mean, log_variance = self.encoder(x).float().chunk(2, dim=-1)
        return GaussianPosterior.draw(mean, log_variance, noise)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).unflatten(-1, (-1, self.n_outputs))


def dense(
    widths: Sequence[int], activation: type[nn.Module], generator: torch.Generator
) -> nn.Sequential:
    """Linear layers of these widths with the activation in between."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        # skip_init: PyTorch's own initialisation would draw from the global generator.
        linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float32)
        bound = n_in**-0.5
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


NETWORKS: dict[str, type[Network]] = {"mlp": MLP}
