"""Networks: how x becomes q(z|x), and how z becomes the parameters of p(x|z).

A network is a spec with one method, ``build``, which returns a module with

- ``n_noise``, the standard normal numbers that a draw of z takes;
- ``infer(x, noise)``, from rows (N, D) and noise (S, N, ``n_noise``) to a
  :class:`Posterior` of S draws;
- ``decode(z)``, from latent points and conditions (..., L + ``n_conditions``) to raw
  parameters of the likelihood (..., D, ``n_outputs``).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._compat import Interval, StrOptions
from .flows import SplineFlow
from .spec import LOG_2_PI, Spec

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


class MLP(Network):
    """Fully connected encoder and decoder, the decoder mirroring the encoder.

    The widths come from the estimator's ``hidden_dim``: 400 gives D-400-L-400-D,
    ``(400, 200)`` gives D-400-200-L-200-400-D, and ``()`` a linear model.

    Parameters
    ----------
    activation : {"relu", "tanh", "silu", "gelu", "softplus"}, default="relu"
        The nonlinearity after each hidden layer.
    layer_norm : bool, default=False
        Whether each hidden layer is normalised before its activation.
    dropout : float, default=0.0
        Share of the hidden units that are left out at each training step.

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
        "activation": [StrOptions(set(ACTIVATIONS))],
        "layer_norm": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(self, activation="relu", layer_norm=False, dropout=0.0):
        self.activation = activation
        self.layer_norm = layer_norm
        self.dropout = dropout

    def build(
        self,
        *,
        n_features,
        latent_dim,
        hidden_dim,
        n_outputs,
        output_bias,
        n_conditions,
        image_shape,
        generator,
    ):
        n_latent = only_level(latent_dim, self)
        widths = [n_features, *hidden_dim]
        mirrored = [n_latent + n_conditions, *widths[:0:-1]]
        module = MLPModule(
            self._layers([*widths, 2 * n_latent], generator),
            self._layers([*mirrored, n_features * n_outputs], generator),
            n_latent=n_latent,
            n_outputs=n_outputs,
            dropout=self.dropout,
            hidden_dim=hidden_dim,
        )
        set_bias(module.decoder[-1], output_bias)
        return module

    def _layers(self, widths, generator):
        return dense(
            widths, ACTIVATIONS[self.activation], generator, layer_norm=self.layer_norm
        )


class MLPModule(nn.Module):
    """The module that :class:`MLP` builds."""

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        encoder: nn.Sequential,
        decoder: nn.Sequential,
        *,
        n_latent: int,
        n_outputs: int,
        dropout: float,
        hidden_dim: Sequence[int],
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.n_noise = n_latent
        self.n_outputs = n_outputs
        self.dropout = dropout
        self.hidden_dim = hidden_dim
        #: Noise that dropout takes in training: a number for each hidden unit.
        self.n_dropout_noise = 2 * sum(hidden_dim) if dropout else 0

    def infer(self, x: Tensor, noise: Tensor, dropout_noise: Tensor | None = None):
        """q(z|x) of rows (N, D) and its draws under noise (S, N, L)."""
        if dropout_noise is not None:
            dropout_noise = dropout_noise[0, :, : sum(self.hidden_dim)]
        encoded = self._through(self.encoder, x, dropout_noise).float()
        mean, log_variance = encoded.chunk(2, dim=-1)
        return GaussianPosterior.draw(mean, log_variance, noise)

    def decode(self, z: Tensor, dropout_noise: Tensor | None = None) -> Tensor:
        """Raw parameters (..., D, n_outputs) of z and conditions (..., L + C)."""
        if dropout_noise is not None:
            dropout_noise = dropout_noise[..., sum(self.hidden_dim) :]
        raw = self._through(self.decoder, z, dropout_noise)
        return raw.unflatten(-1, (-1, self.n_outputs))

    def _through(
        self, layers: nn.Sequential, x: Tensor, noise: Tensor | None
    ) -> Tensor:
        if noise is None:
            return layers(x)
        # A unit stays where its noise lies above the quantile of the dropout rate.
        limit = float(torch.special.ndtri(torch.tensor(self.dropout).double()))
        start = 0
        for layer in layers:
            x = layer(x)
            if not isinstance(layer, nn.Linear | nn.LayerNorm):
                stop = start + x.shape[-1]
                kept = noise[..., start:stop] > limit
                x = x * kept.to(x.dtype) / (1 - self.dropout)
                start = stop
        return x


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


class ConvNet(Network):
    """Convolutional encoder and decoder for images, with residual blocks.

    Each entry of ``channels`` halves the image by a strided convolution and adds
    residual blocks; dense layers of the estimator's ``hidden_dim`` stand between the
    last of them and z. The decoder mirrors all of it, doubling by pixel shuffle (and
    cropping, where a size was odd). Groups of channels are normalised row by row
    (GroupNorm): no statistic is shared between rows.

    Parameters
    ----------
    channels : tuple of int, default=(32, 64)
        Channels after each halving.
    n_residual : int, default=1
        Residual blocks at each size.
    image_shape : tuple of int or None, default=None
        (channels, height, width) or (height, width) of a row of X, flattened channels
        first. None takes the shape of a four-dimensional X, else a square with 1 or 3
        channels.
    activation : {"relu", "tanh", "silu", "gelu", "softplus"}, default="silu"

    References
    ----------
    He et al. (2016), "Deep residual learning"; Wu and He (2018), "Group
    normalization"; Shi et al. (2016), "Real-time single image super-resolution"
    (pixel shuffle).

    Examples
    --------
    >>> from skvae import ConvNet, VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> X = load_digits().data[:200]
    >>> vae = VAEEstimator(
    ...     4, network=ConvNet(channels=(8,)), hidden_dim=32, epochs=1, random_state=0)
    >>> vae.fit_transform(X).shape
    (200, 4)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "channels": [tuple, list],
        "n_residual": [Interval(Integral, 0, None, closed="left")],
        "image_shape": [tuple, list, None],
        "activation": [StrOptions(set(ACTIVATIONS))],
    }

    def __init__(
        self, channels=(32, 64), n_residual=1, image_shape=None, activation="silu"
    ):
        self.channels = channels
        self.n_residual = n_residual
        self.image_shape = image_shape
        self.activation = activation

    def build(
        self,
        *,
        n_features,
        latent_dim,
        hidden_dim,
        n_outputs,
        output_bias,
        n_conditions,
        image_shape,
        generator,
    ):
        n_latent = only_level(latent_dim, self)
        shape = self._resolve_shape(n_features, image_shape)
        if not self.channels or any(
            not isinstance(c, Integral) or c < 1 for c in self.channels
        ):
            raise ValueError(
                f"channels={self.channels!r} must be a tuple of ints of at least 1, "
                "such as (32, 64)."
            )
        if min(shape[1:]) < 2 ** len(self.channels):
            raise ValueError(
                f"images of {shape[1]} x {shape[2]} cannot be halved "
                f"{len(self.channels)} times; give fewer than {len(self.channels)} "
                "channels."
            )
        activation = ACTIVATIONS[self.activation]
        sizes = [tuple(shape[1:])]
        for _ in self.channels:
            sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
        widths = [shape[0], *self.channels]
        down: list[nn.Module] = [nn.Unflatten(-1, shape)]
        for n_in, n_out in pairwise(widths):
            down.append(convolution(n_in, n_out, generator, stride=2))
            down += self._blocks(n_out, generator)
        n_flat = self.channels[-1] * sizes[-1][0] * sizes[-1][1]
        encoder = nn.Sequential(
            *down,
            nn.Flatten(),
            *dense([n_flat, *hidden_dim, 2 * n_latent], activation, generator),
        )

        mirrored = [n_latent + n_conditions, *hidden_dim[::-1], n_flat]
        up: list[nn.Module] = [
            *dense(mirrored, activation, generator),
            activation(),
            nn.Unflatten(-1, (self.channels[-1], *sizes[-1])),
        ]
        outputs = [*widths[1:][: len(self.channels) - 1]]
        for n_in, n_out, size in zip(
            self.channels[:0:-1], outputs[::-1], sizes[-2:0:-1], strict=True
        ):
            up += self._blocks(n_in, generator)
            up += [Doubling(n_in, n_out, size, generator), activation()]
        up += self._blocks(self.channels[0], generator)
        last = Doubling(self.channels[0], shape[0] * n_outputs, sizes[0], generator)
        module = ConvModule(
            encoder,
            nn.Sequential(*up, last),
            n_latent=n_latent,
            n_outputs=n_outputs,
        )
        # Features are (channel, row, column), outputs (channel * output, row, column).
        bias = output_bias.unflatten(0, shape).movedim(-1, 1).flatten(0, 1)
        module.output_bias = nn.Parameter(bias.clone().contiguous())
        return module

    def _blocks(self, width, generator):
        activation = ACTIVATIONS[self.activation]
        return [
            ResidualBlock(width, activation, generator) for _ in range(self.n_residual)
        ]

    def _resolve_shape(self, n_features, image_shape) -> tuple[int, ...]:
        shape = image_shape if self.image_shape is None else self.image_shape
        if shape is None:
            for n_channels in (1, 3):
                side = math.isqrt(n_features // n_channels)
                if n_channels * side * side == n_features:
                    return (n_channels, side, side)
            raise ValueError(
                f"{n_features} features are no square image of 1 or 3 channels; give "
                "ConvNet(image_shape=(channels, height, width)) or an X of shape "
                "(n_samples, channels, height, width)."
            )
        shape = (1, *shape) if len(shape) == 2 else tuple(shape)
        if (
            len(shape) != 3
            or any(not isinstance(side, Integral) or side < 1 for side in shape)
            or shape[0] not in (1, 3)
            or math.prod(shape) != n_features
        ):
            raise ValueError(
                f"image_shape={shape} does not describe rows of {n_features} features; "
                "expected (height, width) or (channels, height, width) with 1 or 3 "
                "channels."
            )
        return tuple(int(side) for side in shape)


def convolution(
    n_in: int, n_out: int, generator: torch.Generator, stride: int = 1
) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, or halves it (rounding up)."""
    layer = nn.utils.skip_init(
        nn.Conv2d, n_in, n_out, 3, stride=stride, padding=1, dtype=torch.float32
    )
    return initialise(layer, 9 * n_in, generator)


class ResidualBlock(nn.Module):
    """x plus two convolutions of it, each after normalisation and activation."""

    def __init__(
        self, width: int, activation: type[nn.Module], generator: torch.Generator
    ):
        super().__init__()
        groups = math.gcd(8, width)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width, dtype=torch.float32),
            activation(),
            convolution(width, width, generator),
            nn.GroupNorm(groups, width, dtype=torch.float32),
            activation(),
            convolution(width, width, generator),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Doubling(nn.Module):
    """Twice the size by pixel shuffle, cropped to ``size``."""

    def __init__(
        self, n_in: int, n_out: int, size: tuple[int, ...], generator: torch.Generator
    ):
        super().__init__()
        self.convolution = convolution(n_in, 4 * n_out, generator)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.pixel_shuffle(self.convolution(x), 2)
        return doubled[..., : self.size[0], : self.size[1]]


class ConvModule(nn.Module):
    """The module that :class:`ConvNet` builds."""

    output_bias: nn.Parameter

    def __init__(
        self,
        encoder: nn.Sequential,
        decoder: nn.Sequential,
        *,
        n_latent: int,
        n_outputs: int,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.n_noise = n_latent
        self.n_outputs = n_outputs

    def infer(self, x: Tensor, noise: Tensor) -> GaussianPosterior:
        """q(z|x) of rows (N, D) and its draws under noise (S, N, L)."""
        mean, log_variance = self.encoder(x).float().chunk(2, dim=-1)
        return GaussianPosterior.draw(mean, log_variance, noise)

    def decode(self, z: Tensor) -> Tensor:
        """Raw parameters (..., D, n_outputs) of z and conditions (..., L + C)."""
        images = self.decoder(z.flatten(0, -2)) + self.output_bias
        raw = images.unflatten(1, (-1, self.n_outputs)).movedim(2, -1)
        return raw.flatten(1, 3).unflatten(0, z.shape[:-1])


class LadderNet(Network):
    r"""Several levels of z, inferred from the top down: a hierarchical VAE.

    With ``latent_dim=(l_1, ..., l_n)``, from the level nearest to x to the top,

    .. math:: p(z) = p(z_n) \prod_{i<n} p(z_i | z_{i+1}), \qquad
        q(z|x) = q(z_n|x) \prod_{i<n} q(z_i | z_{i+1}, x)

    with Gaussians throughout. A level's posterior merges what the bottom-up pass says
    of it, :math:`\hat\mu, \hat\sigma^2`, with what the level above says, in proportion
    to their precisions. The prior axis covers the top level. The decoder sees all
    levels; ``transform`` gives them side by side, in the order of ``latent_dim``. With
    one level it is the plain VAE.

    The first deterministic pass has the estimator's ``hidden_dim``; each higher level
    has one hidden layer of its last width.

    Parameters
    ----------
    activation : {"relu", "tanh", "silu", "gelu", "softplus"}, default="relu"

    References
    ----------
    Sonderby et al. (2016), "Ladder variational autoencoders".

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> X = load_digits().data
    >>> vae = VAEEstimator(
    ...     (8, 2), network="ladder", hidden_dim=64, epochs=2, random_state=0)
    >>> vae.fit_transform(X).shape
    (1797, 10)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "activation": [StrOptions(set(ACTIVATIONS))]
    }

    posterior = "hierarchical"

    def __init__(self, activation="relu"):
        self.activation = activation

    def build(
        self,
        *,
        n_features,
        latent_dim,
        hidden_dim,
        n_outputs,
        output_bias,
        n_conditions,
        image_shape,
        generator,
    ):
        activation = ACTIVATIONS[self.activation]
        widths = [n_features, *hidden_dim]
        top_width = widths[-1]
        total = sum(latent_dim)
        # In the order of an MLP's layers: with one level the weights are the same.
        bottom = dense([*widths, 2 * latent_dim[0]], activation, generator)
        mirrored = [total + n_conditions, *widths[:0:-1]]
        decoder = dense([*mirrored, n_features * n_outputs], activation, generator)
        set_bias(decoder[-1], output_bias)
        up, heads, down = [bottom[:-1]], [bottom[-1]], []
        for width, above in pairwise(latent_dim):
            up.append(
                nn.Sequential(linear(top_width, top_width, generator), activation())
            )
            heads.append(linear(top_width, 2 * above, generator))
            down.append(dense([above, top_width, 2 * width], activation, generator))
        return LadderModule(up, heads, down, decoder, latent_dim, n_outputs)


@dataclass(frozen=True)
class LadderPosterior(Posterior):
    """Draws from a hierarchy of Gaussians.

    Attributes
    ----------
    z : Tensor of shape (S, N, L)
        Draws of all levels side by side.
    mean : Tensor of shape (N, L)
        Means of all levels, of the lower ones averaged over the draws above them.
    levels : list of GaussianPosterior
        q of each level, in the order of ``latent_dim``; parameters of all but the top
        one have the shape (S, N, l).
    priors : list of (mean, log_variance)
        p(z_i | z_{i+1}) of all levels but the top one, (S, N, l).
    """

    levels: list[GaussianPosterior]
    priors: list[tuple[Tensor, Tensor]]

    def log_prob(self, *, path_derivative=False):
        parts = [q.log_prob(path_derivative=path_derivative) for q in self.levels]
        return torch.stack(parts).sum(0)

    @property
    def prior_z(self):
        return self.levels[-1].z

    def prior_gaussian(self):
        return self.levels[-1].gaussian()

    def inner_log_prior(self):
        return sum(
            (
                log_normal(q.z, *prior).sum(-1)
                for q, prior in zip(self.levels, self.priors, strict=False)
            ),
            0.0,
        )

    def kl(self, prior_kl):
        top = self.levels[-1].kl(prior_kl)
        if top is None:
            return None
        parts = []
        for q, (mean, log_variance) in zip(self.levels, self.priors, strict=False):
            ratio = q.log_variance - log_variance
            distance = (q.mean - mean).square() * torch.exp(-log_variance)
            parts.append((0.5 * (distance + (torch.expm1(ratio) - ratio))).mean(0))
        return torch.cat([*parts, top], dim=-1)


class LadderModule(nn.Module):
    """The module that :class:`LadderNet` builds."""

    def __init__(self, up, heads, down, decoder, latent_dim, n_outputs):
        super().__init__()
        self.up = nn.ModuleList(up)
        self.heads = nn.ModuleList(heads)
        self.down = nn.ModuleList(down)
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.n_outputs = n_outputs
        self.n_noise = sum(latent_dim)
        #: Noise that the levels below the top one take where z is drawn from the prior.
        self.n_inner_noise = sum(latent_dim[:-1])

    def infer(self, x: Tensor, noise: Tensor) -> LadderPosterior:
        """q(z|x) of rows (N, D) and its draws under noise (S, N, L)."""
        said = []
        for up, head in zip(self.up, self.heads, strict=True):
            x = up(x)
            said.append(head(x).float().chunk(2, dim=-1))
        noises = noise.split(self.latent_dim, dim=-1)
        mean, log_variance = said[-1]
        levels = [GaussianPosterior.draw(mean, log_variance, noises[-1])]
        priors: list[tuple[Tensor, Tensor]] = []
        for i in reversed(range(len(self.down))):
            prior_mean, prior_log_variance = self._below(i, levels[0].z)
            mean, log_variance = said[i]
            log_variance = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
            # Merged in proportion to the precisions, all in logarithms.
            share = torch.sigmoid(prior_log_variance - log_variance)
            merged_mean = prior_mean + share * (mean - prior_mean)
            merged = -torch.logaddexp(-log_variance, -prior_log_variance)
            levels.insert(0, GaussianPosterior.draw(merged_mean, merged, noises[i]))
            priors.insert(0, (prior_mean, prior_log_variance))
        means = [q.mean if q.mean.ndim == 2 else q.mean.mean(0) for q in levels]
        z = torch.cat([q.z for q in levels], dim=-1)
        return LadderPosterior(z, torch.cat(means, dim=-1), levels, priors)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _below(self, i: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """p(z_i | z_{i+1}) of draws of the level above."""
        mean, log_variance = self.down[i](z.to(self.dtype)).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)

    def complete(self, z: Tensor, noise: Tensor) -> Tensor:
        """All levels (N, L) from the top one and noise (N, n_inner_noise)."""
        levels = [z]
        noises = noise.split(self.latent_dim[:-1], dim=-1)
        for i in reversed(range(len(self.down))):
            mean, log_variance = self._below(i, levels[0])
            levels.insert(0, mean + torch.exp(0.5 * log_variance) * noises[i])
        return torch.cat(levels, dim=-1)

    def decode(self, z: Tensor) -> Tensor:
        """Raw parameters (..., D, n_outputs) of z and conditions (..., L + C)."""
        return self.decoder(z).unflatten(-1, (-1, self.n_outputs))


class FlowMLP(Network):
    r"""An :class:`MLP` whose posterior is bent by a flow.

    .. math:: z = f_{h(x)}(\epsilon), \quad \epsilon \sim \mathcal N(0, I), \qquad
        \log q(z|x) = \log \mathcal N(\epsilon; 0, I)
        - \log \left|\det \partial f / \partial \epsilon\right|

    with a neural spline flow f followed by a scale and a shift; h is the encoder's
    output. ``transform`` gives :math:`f_{h(x)}(0)`, which is the median of a Gaussian
    and near it otherwise. Needs zuko: ``pip install 'skvae[flows]'``.

    Parameters
    ----------
    n_transforms : int, default=2
        Autoregressive spline transforms in a row.
    flow_dim : int, default=64
        Width of the two hidden layers of each transform's network.
    activation : {"relu", "tanh", "silu", "gelu", "softplus"}, default="relu"

    References
    ----------
    Rezende and Mohamed (2015), "Variational inference with normalizing flows"; Durkan
    et al. (2019), "Neural spline flows".

    Examples
    --------
    >>> from skvae import FlowMLP, VAEEstimator
    >>> VAEEstimator(network=FlowMLP(n_transforms=1))
    VAEEstimator(network=FlowMLP(n_transforms=1))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_transforms": [Interval(Integral, 1, None, closed="left")],
        "flow_dim": [Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
    }

    posterior = "flow"
    needs_float32 = True

    def __init__(self, n_transforms=2, flow_dim=64, activation="relu"):
        self.n_transforms = n_transforms
        self.flow_dim = flow_dim
        self.activation = activation

    def build(self, *, latent_dim, generator, **sizes):
        mlp = MLP(self.activation).build(
            latent_dim=latent_dim, generator=generator, **sizes
        )
        n_latent = only_level(latent_dim, self)
        flow = SplineFlow(
            n_latent,
            n_context=2 * n_latent,
            n_transforms=self.n_transforms,
            hidden_dim=self.flow_dim,
            seed=generator.initial_seed() % 2**31,
        )
        return FlowModule(mlp, flow)


@dataclass(frozen=True)
class FlowPosterior(Posterior):
    """Draws from q(z|x) and their log-densities (S, N), as a flow gives them."""

    log_density: Tensor

    def log_prob(self, *, path_derivative=False):
        assert not path_derivative
        return self.log_density


class FlowModule(nn.Module):
    """The module that :class:`FlowMLP` builds."""

    def __init__(self, mlp: MLPModule, flow: SplineFlow):
        super().__init__()
        self.mlp = mlp
        self.flow = flow
        self.n_noise = mlp.n_noise

    def infer(self, x: Tensor, noise: Tensor) -> FlowPosterior:
        """q(z|x) of rows (N, D) and its draws under noise (S, N, L)."""
        context = self.mlp.encoder(x).float()
        shift, log_variance = context.chunk(2, dim=-1)
        log_variance = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        centre = torch.zeros_like(noise[:1])
        bent, log_slope = self.flow(
            torch.cat([noise, centre]), context.expand(len(noise) + 1, -1, -1)
        )
        z = shift + torch.exp(0.5 * log_variance) * bent
        log_density = (
            -0.5 * (noise.square() + LOG_2_PI + log_variance).sum(-1) - log_slope[:-1]
        )
        return FlowPosterior(z[:-1], z[-1], log_density)

    def decode(self, z: Tensor) -> Tensor:
        """Raw parameters (..., D, n_outputs) of z and conditions (..., L + C)."""
        return self.mlp.decode(z)


class EncoderDecoder(Network):
    """A pair of plain modules of your own.

    Every fit starts from a copy of them with the weights that they have.

    Parameters
    ----------
    encoder : torch.nn.Module
        From x (N, D) to means and log-variances side by side (N, 2 L).
    decoder : torch.nn.Module
        From z (..., L) to the likelihood's raw parameters (..., D * n_outputs), those
        of a feature side by side. A conditional model appends the condition to z.

    Examples
    --------
    >>> from torch import nn
    >>> from skvae import EncoderDecoder, VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> X = load_digits().data
    >>> encoder = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 2 * 3))
    >>> network = EncoderDecoder(encoder, decoder=nn.Linear(3, 64))
    >>> vae = VAEEstimator(3, network=network, epochs=1)
    >>> vae.fit_transform(X).shape
    (1797, 3)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "encoder": [nn.Module],
        "decoder": [nn.Module],
    }

    def __init__(self, encoder, decoder):
        self.encoder = encoder
        self.decoder = decoder

    def build(
        self,
        *,
        n_features,
        latent_dim,
        n_outputs,
        n_conditions,
        **unused,
    ):
        n_latent = only_level(latent_dim, self)
        module = MLPModule(
            copy.deepcopy(self.encoder).float(),
            copy.deepcopy(self.decoder).float(),
            n_latent=n_latent,
            n_outputs=n_outputs,
            dropout=0.0,
            hidden_dim=(),
        )
        expected = {
            "encoder": (n_features, 2 * n_latent),
            "decoder": (n_latent + n_conditions, n_features * n_outputs),
        }
        for name, (n_in, n_out) in expected.items():
            with torch.no_grad():
                try:
                    shape = tuple(getattr(module, name)(torch.zeros(2, n_in)).shape)
                except RuntimeError as error:
                    raise ValueError(
                        f"the {name} does not take an array of shape (n, {n_in}): "
                        f"{error}"
                    ) from error
            if shape != (2, n_out):
                raise ValueError(
                    f"the {name} turns an array of shape (2, {n_in}) into {shape}; "
                    f"expected (2, {n_out})."
                )
        return module


NETWORKS: dict[str, type[Network]] = {
    "mlp": MLP,
    "conv": ConvNet,
    "ladder": LadderNet,
    "flow_mlp": FlowMLP,
}
