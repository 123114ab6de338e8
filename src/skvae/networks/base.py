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

    def log_prob(self, *, path_derivative: bool = False) -> Tensor:
        if path_derivative:
            return log_normal(
                self.z, self.mean.detach(), self.log_variance.detach()
            ).sum(-1)
        return -0.5 * (self.noise.square() + self.log_variance + LOG_2_PI).sum(-1)

    def kl(self, prior_kl: PriorKL) -> Tensor | None:
        return prior_kl(self.mean, self.log_variance)

    def gaussian(self) -> tuple[Tensor, Tensor] | None:
        return self.mean, self.log_variance


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, exp(log_variance)) of each number, in nats."""
    square = (z - mean).square() * torch.exp(-log_variance)
    return -0.5 * (square + log_variance + LOG_2_PI)


@dataclass(frozen=True)
class NetworkInputs:
    """What a network is built from.

    Attributes
    ----------
    n_inputs : int
        Numbers that the encoder sees of a row.
    latent_dim : tuple of int
        Widths of the levels of z, from the one nearest to x to the top; of length 1 but
        for hierarchical networks.
    hidden_dim : tuple of int
        Widths of the hidden layers of the encoder; the decoder mirrors them.
    n_raw : int
        Outputs of the decoder: the raw parameters of the likelihood.
    output_bias : Tensor of shape (n_raw,)
        Where the decoder's output starts.
    n_conditions : int
        Columns of the condition that the decoder sees beside z.
    image_shape : tuple of int or None
        (channels, height, width) where X holds images.
    generator : torch.Generator
        The only source of randomness.
    """

    n_inputs: int
    latent_dim: tuple[int, ...]
    hidden_dim: tuple[int, ...]
    n_raw: int
    output_bias: Tensor
    n_conditions: int
    image_shape: tuple[int, ...] | None
    generator: torch.Generator


class Network(Spec):
    """Base of the networks. Subclasses implement :meth:`build`.

    Attributes
    ----------
    posterior : {"gaussian", "hierarchical", "flow"}
        What q(z|x) is: one diagonal Gaussian; several levels of them, the top one
        given x alone; or something without a closed form.
    needs_float32 : bool
        Whether bfloat16 would spoil it in training.
    image_shape : tuple of int or None
        (channels, height, width) or (height, width) that the network takes rows as,
        where it is told.
    """

    posterior = "gaussian"
    needs_float32 = False
    image_shape: tuple[int, ...] | None = None

    def build(self, inputs: NetworkInputs) -> "NetworkModule":
        """Make the module with freshly initialised weights."""
        raise NotImplementedError


@dataclass(frozen=True)
class Chains:
    """Encoder and decoder as linear layers with one activation between them.

    Attributes
    ----------
    encoder, decoder : list of nn.Linear
        From the inputs to means and log-variances side by side; from z and condition to
        the raw output.
    tanh : tuple of bool
        Of encoder and decoder, whether the activation is tanh; else it is ReLU.
    """

    encoder: list[nn.Linear]
    decoder: list[nn.Linear]
    tanh: tuple[bool, bool]


class NetworkModule(nn.Module):
    """What a :class:`Network` builds: :meth:`infer` and :meth:`decode`.

    Nothing in it may draw random numbers: noise is an argument.

    Attributes
    ----------
    n_noise : int
        Standard normal numbers that a draw of z takes.
    n_inner_noise : int
        Those that the levels below the top one take where z is drawn from the prior.
    n_dropout_noise : int
        Those that a row takes in training beside the draws of z.
    n_widest : int
        Numbers that the widest layer has for each row, where its weights do not tell.
    """

    n_noise: int
    n_inner_noise: int = 0
    n_dropout_noise: int = 0
    n_widest: int = 0

    def infer(
        self, seen: Tensor, noise: Tensor, dropout_noise: Tensor | None = None
    ) -> Posterior:
        """q(z|x) of rows (N, n_inputs) and its draws under noise (S, N, n_noise)."""
        raise NotImplementedError

    def decode(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Tensor:
        """Raw parameters (..., n_raw) of p(x|z) at z (..., L).

        ``condition`` (..., n_conditions) has the same leading axes.
        """
        raise NotImplementedError

    def complete(self, z: Tensor, noise: Tensor) -> Tensor:
        """All of z (N, L) from its top level and noise (N, n_inner_noise)."""
        return z

    def chains(self) -> Chains | None:
        """The layers, where they are all that there is; None otherwise."""
        return None


def beside(z: Tensor, condition: Tensor | None) -> Tensor:
    """z and the condition side by side, (..., L + n_conditions)."""
    if condition is None:
        return z
    return torch.cat([z, condition.to(z.dtype)], dim=-1)


# Layers whose output depends on random numbers, or on the other rows of a batch.
_DROPOUT = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_WITH_DROPOUT = (nn.RNNBase, nn.MultiheadAttention)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def refuse_random_layers(name: str, module: nn.Module) -> None:
    """Refuse Dropout, BatchNorm and their like, which could not act.

    The loss is a function of weights, batch and noise alone. A layer that draws, or
    that keeps statistics of the batch, would have to be switched off in it.
    """
    for layer in module.modules():
        if (isinstance(layer, _DROPOUT) and layer.p > 0) or (
            isinstance(layer, _WITH_DROPOUT) and layer.dropout > 0
        ):
            advice = "use MLP(dropout=...), whose noise is an argument, or leave it out"
        elif isinstance(layer, _BATCH_NORM) or (
            isinstance(layer, _INSTANCE_NORM) and layer.track_running_stats
        ):
            advice = "use LayerNorm or GroupNorm, which look at one row alone"
        else:
            continue
        raise ValueError(
            f"the {name} has the layer {layer!r}, which would never act: the loss must "
            "depend on the weights, the row and its noise alone, so that scores are "
            f"repeatable and models can train side by side; {advice}."
        )


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
    # Without memory at first: PyTorch's own initialisation would draw from the global
    # generator. (skip_init does the same, and imports a compiler for it.)
    layer = nn.Linear(n_in, n_out, device="meta")
    return initialise(layer, n_in, generator)


def initialise(layer: Any, fan_in: int, generator: torch.Generator) -> Any:
    """Give a layer without memory weights that are drawn from this generator."""
    bound = fan_in**-0.5
    for name, parameter in list(layer.named_parameters()):
        values = torch.empty(parameter.shape, dtype=torch.float32)
        values.uniform_(-bound, bound, generator=generator)
        setattr(layer, name, nn.Parameter(values))
    return layer


def set_bias(layer: Any, output_bias: Tensor) -> None:
    """Start the decoder's output at this bias (n_raw,)."""
    with torch.no_grad():
        layer.bias.copy_(output_bias)


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
