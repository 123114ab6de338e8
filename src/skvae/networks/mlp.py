"""Fully connected networks, and pairs of modules of the user's own."""

import copy
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import Interval, StrOptions
from .base import (
    ACTIVATIONS,
    GaussianPosterior,
    Network,
    dense,
    only_level,
    set_bias,
)


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


class EncoderDecoder(Network):
    """A pair of plain modules of your own.

    Every fit starts from a copy of them with the weights that they have; weights that
    ask for no gradient stay so. The modules run in evaluation mode: Dropout does
    nothing, BatchNorm keeps the statistics that it has.

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
            copy.deepcopy(self.encoder).float().eval(),
            copy.deepcopy(self.decoder).float().eval(),
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
