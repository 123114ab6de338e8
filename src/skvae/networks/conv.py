"""Convolutional networks."""

import math
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._compat import Interval, StrOptions
from .base import (
    ACTIVATIONS,
    GaussianPosterior,
    Network,
    NetworkInputs,
    NetworkModule,
    Posterior,
    beside,
    dense,
    initialise,
    only_level,
)


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
        "channels": [tuple, list, np.ndarray],
        "n_residual": [Interval(Integral, 0, None, closed="left")],
        "image_shape": [tuple, list, None],
        "activation": [StrOptions(set(ACTIVATIONS))],
    }

    def __init__(
        self,
        channels: Any = (32, 64),
        n_residual: Any = 1,
        image_shape: Any = None,
        activation: Any = "silu",
    ) -> None:
        self.channels = channels
        self.n_residual = n_residual
        self.image_shape = image_shape
        self.activation = activation

    def build(self, inputs: NetworkInputs) -> NetworkModule:
        n_latent = only_level(inputs.latent_dim, self)
        generator, hidden_dim = inputs.generator, inputs.hidden_dim
        shape = self._resolve_shape(inputs.n_inputs, inputs.image_shape)
        n_outputs = inputs.n_raw // inputs.n_inputs
        if inputs.n_raw != n_outputs * inputs.n_inputs:
            raise ValueError(
                f"{self!r} needs a likelihood that has as many raw outputs for each "
                f"pixel as for any other, but there are {inputs.n_raw} of "
                f"{inputs.n_inputs} inputs; use network='mlp'."
            )
        channels = self._channels()
        if min(shape[1:]) < 2 ** len(channels):
            raise ValueError(
                f"images of {shape[1]} x {shape[2]} cannot be halved "
                f"{len(channels)} times; give fewer than {len(channels)} "
                "channels."
            )
        activation = ACTIVATIONS[self.activation]
        sizes = [tuple(shape[1:])]
        for _ in channels:
            sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
        widths = [shape[0], *channels]
        down: list[nn.Module] = [nn.Unflatten(-1, shape)]
        for n_in, n_out in pairwise(widths):
            down.append(convolution(n_in, n_out, generator, stride=2))
            down += self._blocks(n_out, generator)
        n_flat = channels[-1] * sizes[-1][0] * sizes[-1][1]
        encoder = nn.Sequential(
            *down,
            nn.Flatten(),
            *dense([n_flat, *hidden_dim, 2 * n_latent], activation, generator),
        )

        mirrored = [n_latent + inputs.n_conditions, *hidden_dim[::-1], n_flat]
        up: list[nn.Module] = [
            *dense(mirrored, activation, generator),
            activation(),
            nn.Unflatten(-1, (channels[-1], *sizes[-1])),
        ]
        for n_in, n_out, size in zip(
            channels[:0:-1], channels[-2::-1], sizes[-2:0:-1], strict=True
        ):
            up += self._blocks(n_in, generator)
            up += [Doubling(n_in, n_out, size, generator), activation()]
        up += self._blocks(channels[0], generator)
        last = Doubling(channels[0], shape[0] * n_outputs, sizes[0], generator)
        module = ConvModule(
            encoder,
            nn.Sequential(*up, last),
            n_latent=n_latent,
            n_outputs=n_outputs,
            # A doubling makes four times its channels before it shuffles them.
            n_widest=max(
                math.prod(size) * max(n_in, 4 * n_out)
                for size, n_in, n_out in zip(
                    sizes[1:],
                    channels,
                    [shape[0] * n_outputs, *channels[:-1]],
                    strict=True,
                )
            ),
        )
        # Features are (channel, row, column), outputs (channel * output, row, column).
        bias = inputs.output_bias.unflatten(0, (*shape, n_outputs))
        bias = bias.movedim(-1, 1).flatten(0, 1)
        module.output_bias = nn.Parameter(bias.clone().contiguous())
        return module

    def _channels(self) -> list[int]:
        channels = list(self.channels)
        if not channels or any(
            not isinstance(c, Integral) or isinstance(c, bool) or c < 1
            for c in channels
        ):
            raise ValueError(
                f"channels={self.channels!r} must be a tuple of ints of at least 1, "
                "such as (32, 64)."
            )
        return [int(c) for c in channels]

    def _blocks(self, width: Any, generator: torch.Generator) -> Any:
        activation = ACTIVATIONS[self.activation]
        return [
            ResidualBlock(width, activation, generator) for _ in range(self.n_residual)
        ]

    def _resolve_shape(self, n_features: Any, image_shape: Any) -> tuple[int, ...]:
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
        if all(isinstance(side, Integral) for side in shape):
            shape = tuple(int(side) for side in shape)  # products of uint8 overflow
        if (
            len(shape) != 3
            or any(not isinstance(side, int) or side < 1 for side in shape)
            or shape[0] not in (1, 3)
            or math.prod(shape) != n_features
        ):
            raise ValueError(
                f"image_shape={shape} does not describe rows of {n_features} features; "
                "expected (height, width) or (channels, height, width) with 1 or 3 "
                "channels."
            )
        return shape


def convolution(
    n_in: int, n_out: int, generator: torch.Generator, stride: int = 1
) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, or halves it (rounding up)."""
    layer = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, device="meta")
    return initialise(layer, 9 * n_in, generator)


class ResidualBlock(nn.Module):
    """x plus two convolutions of it, each after normalisation and activation."""

    def __init__(
        self, width: int, activation: type[nn.Module], generator: torch.Generator
    ) -> None:
        super().__init__()
        # Of four channels at least: one that is normalised alone, where the image has
        # shrunk to a pixel, would say nothing.
        groups = math.gcd(8, max(1, width // 4))
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
    ) -> None:
        super().__init__()
        self.convolution = convolution(n_in, 4 * n_out, generator)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.pixel_shuffle(self.convolution(x), 2)
        return doubled[..., : self.size[0], : self.size[1]]


class ConvModule(NetworkModule):
    """The module that :class:`ConvNet` builds."""

    output_bias: nn.Parameter

    def __init__(
        self,
        encoder: nn.Sequential,
        decoder: nn.Sequential,
        *,
        n_latent: int,
        n_outputs: int,
        n_widest: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.n_noise = n_latent
        self.n_outputs = n_outputs
        self.n_widest = n_widest

    def infer(
        self, seen: Tensor, noise: Tensor, dropout_noise: Tensor | None = None
    ) -> Posterior:
        mean, log_variance = self.encoder(seen).float().chunk(2, dim=-1)
        return GaussianPosterior.draw(mean, log_variance, noise)

    def decode(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Tensor:
        z = beside(z, condition)
        images = self.decoder(z.flatten(0, -2)) + self.output_bias
        raw = images.unflatten(1, (-1, self.n_outputs)).movedim(2, -1)
        return raw.flatten(1).unflatten(0, z.shape[:-1])
