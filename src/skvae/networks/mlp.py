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
    Chains,
    GaussianPosterior,
    Network,
    NetworkInputs,
    NetworkModule,
    Posterior,
    beside,
    dense,
    only_level,
    refuse_random_layers,
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

    def __init__(
        self, activation: Any = "relu", layer_norm: Any = False, dropout: Any = 0.0
    ) -> None:
        self.activation = activation
        self.layer_norm = layer_norm
        self.dropout = dropout

    def build(self, inputs: NetworkInputs) -> NetworkModule:
        n_latent = only_level(inputs.latent_dim, self)
        widths = [inputs.n_inputs, *inputs.hidden_dim]
        mirrored = [n_latent + inputs.n_conditions, *widths[:0:-1]]
        module = MLPModule(
            self._layers([*widths, 2 * n_latent], inputs.generator),
            self._layers([*mirrored, inputs.n_raw], inputs.generator),
            n_latent=n_latent,
            dropout=self.dropout,
            hidden_dim=inputs.hidden_dim,
        )
        set_bias(module.decoder[-1], inputs.output_bias)
        return module

    def _layers(self, widths: Any, generator: torch.Generator) -> Any:
        return dense(
            widths, ACTIVATIONS[self.activation], generator, layer_norm=self.layer_norm
        )


class MLPModule(NetworkModule):
    """The module that :class:`MLP` builds."""

    encoder: nn.Sequential
    decoder: nn.Sequential

    def __init__(
        self,
        encoder: nn.Sequential,
        decoder: nn.Sequential,
        *,
        n_latent: int,
        dropout: float = 0.0,
        hidden_dim: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.n_noise = n_latent
        self.dropout = dropout
        self.hidden_dim = hidden_dim
        # A number for each hidden unit.
        self.n_dropout_noise = 2 * sum(hidden_dim) if dropout else 0

    def infer(
        self, seen: Tensor, noise: Tensor, dropout_noise: Tensor | None = None
    ) -> Posterior:
        if dropout_noise is not None:
            dropout_noise = dropout_noise[0, :, : sum(self.hidden_dim)]
        encoded = self._through(self.encoder, seen, dropout_noise).float()
        mean, log_variance = encoded.chunk(2, dim=-1)
        return GaussianPosterior.draw(mean, log_variance, noise)

    def decode(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Tensor:
        if dropout_noise is not None:
            dropout_noise = dropout_noise[..., sum(self.hidden_dim) :]
        return self._through(self.decoder, beside(z, condition), dropout_noise)

    def chains(self) -> Chains | None:
        encoder, decoder = _chain(self.encoder), _chain(self.decoder)
        parameters = list(self.parameters())
        frozen = not all(parameter.requires_grad for parameter in parameters)
        if self.dropout or frozen or encoder is None or decoder is None:
            return None
        if len(parameters) > 2 * len(encoder[0] + decoder[0]):
            return None  # a module of the user's has more
        return Chains(encoder[0], decoder[0], (encoder[1], decoder[1]))

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
    ask for no gradient stay so. Dropout and BatchNorm are refused: the loss is a
    function of weights, batch and noise, in which they could not act.

    Parameters
    ----------
    encoder : torch.nn.Module
        From x (N, D) to means and log-variances side by side (N, 2 L).
    decoder : torch.nn.Module
        From z (..., L) to the likelihood's raw parameters (..., n_raw), those of a
        feature side by side. A conditional model appends the condition to z.

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

    def __init__(self, encoder: Any, decoder: Any) -> None:
        self.encoder = encoder
        self.decoder = decoder

    def build(self, inputs: NetworkInputs) -> NetworkModule:
        n_latent = only_level(inputs.latent_dim, self)
        pair = copy.deepcopy((self.encoder, self.decoder))
        module = MLPModule(*(part.float().eval() for part in pair), n_latent=n_latent)
        expected = {
            "encoder": (inputs.n_inputs, 2 * n_latent),
            "decoder": (n_latent + inputs.n_conditions, inputs.n_raw),
        }
        parts = {"encoder": module.encoder, "decoder": module.decoder}
        for name, (n_in, n_out) in expected.items():
            refuse_random_layers(name, parts[name])
            with torch.no_grad():
                try:
                    shape = tuple(parts[name](torch.zeros(2, n_in)).shape)
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


def _chain(layers: nn.Module) -> tuple[list[nn.Linear], bool] | None:
    """Linear layers with nothing but ReLU, or nothing but tanh, between them."""
    if type(layers) is not nn.Sequential:
        return None
    linear: list[Any] = list(layers)[::2]
    between = {type(layer) for layer in list(layers)[1::2]}
    simple = (
        len(layers) % 2 == 1
        and len(set(linear)) == len(linear)  # none is there twice
        and all(type(layer) is nn.Linear for layer in linear)
        and all(layer.bias is not None for layer in linear)
        and between in (set(), {nn.ReLU}, {nn.Tanh})
    )
    return (linear, between == {nn.Tanh}) if simple else None
