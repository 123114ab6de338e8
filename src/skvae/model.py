"""The model: where network, likelihood, prior and objective meet.

No other module knows all four. From rows and noise it works out :class:`Terms` for the
objective; nothing in it draws a random number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .forms.base import Column, Summary
from .likelihoods import Likelihood
from .networks import Network, NetworkInputs, Posterior, refuse_random_layers
from .objectives import Objective, Terms
from .priors import Prior, PriorInputs
from .spec import Spec
from .units import Units


@dataclass(frozen=True)
class Architecture:
    """What determines the shapes of the weights, beside the choices and the columns.

    Attributes
    ----------
    latent_dim : tuple of int
        Widths of the levels of z, one but for hierarchical networks.
    hidden_dim : tuple of int
    n_conditions : int
        Columns of the condition that the decoder sees beside z.
    image_shape : tuple of int or None
        (channels, height, width) where X holds images.
    """

    latent_dim: tuple[int, ...]
    hidden_dim: tuple[int, ...]
    n_conditions: int = 0
    image_shape: tuple[int, ...] | None = None


# The axes on which a model is chosen.
AXES: dict[str, type[Spec]] = {
    "network": Network,
    "likelihood": Likelihood,
    "prior": Prior,
    "objective": Objective,
}


@dataclass(frozen=True)
class Choices:
    """The four choices, resolved.

    Attributes
    ----------
    network, likelihood, prior, objective : Spec
    """

    network: Network
    likelihood: Likelihood
    prior: Prior
    objective: Objective

    def named(self) -> dict[str, Spec]:
        """The choices by the name of their axis."""
        return {
            "network": self.network,
            "likelihood": self.likelihood,
            "prior": self.prior,
            "objective": self.objective,
        }

    def check(self) -> None:
        """Refuse choices that do not go together."""
        network, prior, objective = self.network, self.prior, self.objective
        if objective.needs_gaussian_posterior and network.posterior != "gaussian":
            raise ValueError(
                f"objective={objective!r} needs q(z|x) to be one diagonal Gaussian, "
                f"but that of network={network!r} is {network.posterior}; use an 'mlp' "
                "or 'conv' network, or objective='elbo' or IWAE()."
            )
        if prior.needs_encoder and network.posterior == "flow":
            raise ValueError(
                f"prior={prior!r} needs the density of q(z|u) at any z, which "
                f"network={network!r} does not give; use an 'mlp', 'conv' or 'ladder' "
                "network, or prior='mixture'."
            )


@dataclass(slots=True)
class Batch:
    """Rows to train on, and all that their loss is a function of.

    In a stack of M models every tensor has a leading axis M.

    Attributes
    ----------
    x : Tensor of shape (N, n_columns)
        Numbers and codes, in the model's units.
    noise : Tensor of shape (S, N, n_training_noise)
    observed : Tensor of bool, shape (N, n_columns), or None
        Which entries count in the density; None where all do.
    seen : Tensor of bool, shape (N, n_columns), or None
        Which entries the encoder sees; None where it sees all.
    condition : Tensor of shape (N, n_conditions) or None
    weights : Tensor of shape (N,) or None
    n_rows : int
        Rows of the whole training set.
    progress : float
        Share of all training steps that is done; 1 outside training.
    """

    x: Tensor
    noise: Tensor
    observed: Tensor | None = None
    seen: Tensor | None = None
    condition: Tensor | None = None
    weights: Tensor | None = None
    n_rows: int = 1
    progress: float = 1.0


class Model(nn.Module):
    """A network, a likelihood and a prior as modules, with the objective.

    Parameters
    ----------
    choices : Choices
        Resolved.
    architecture : Architecture
    columns : sequence of Column
    summary : Summary
        Statistics of the training rows; ``Summary.unknown`` where the weights are to be
        loaded.
    units : Units
    generator : torch.Generator
        Source of the initial weights.

    Attributes
    ----------
    latent_dim : int
        Width L of z, all levels together.
    """

    network: Any
    likelihood: Any
    prior: Any

    def __init__(
        self,
        choices: Choices,
        architecture: Architecture,
        columns: Sequence[Column],
        summary: Summary,
        units: Units,
        generator: torch.Generator,
    ):
        super().__init__()
        choices.check()
        self.objective = choices.objective
        self.latent_dim = sum(architecture.latent_dim)
        self.likelihood = choices.likelihood.build(columns, summary, units)
        self.network = choices.network.build(
            NetworkInputs(
                n_inputs=self.likelihood.n_inputs,
                latent_dim=architecture.latent_dim,
                hidden_dim=architecture.hidden_dim,
                n_raw=self.likelihood.n_raw,
                output_bias=self.likelihood.start,
                n_conditions=architecture.n_conditions,
                image_shape=architecture.image_shape,
                generator=generator,
            )
        )
        refuse_random_layers("network", self.network)
        location, spread = self.likelihood.inputs
        inputs = PriorInputs(architecture.latent_dim[-1], location, spread, generator)
        self.prior = choices.prior.build(inputs)
        self.prior_sees_encoder = choices.prior.needs_encoder

    @property
    def n_noise(self) -> int:
        """Noise that a row needs for one draw from q(z|x)."""
        return self.network.n_noise

    @property
    def n_prior_noise(self) -> int:
        """Noise that one draw from p(z) needs."""
        return self.prior.n_noise + self.network.n_inner_noise

    @property
    def n_loss_noise(self) -> int:
        """Noise that a row needs for one draw in the loss."""
        if self.objective.needs_prior_draws:
            return self.n_noise + self.n_prior_noise
        return self.n_noise

    @property
    def n_training_noise(self) -> int:
        """Noise that a row needs for one draw in a training step."""
        return self.n_loss_noise + self.network.n_dropout_noise

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; densities are float32 at least."""
        return next(self.network.parameters()).dtype

    def _encoder(self) -> dict[str, Any]:
        """The encoder, for a prior that needs it."""
        return {"encode": self._encode_top} if self.prior_sees_encoder else {}

    def _encode_top(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the part of q(z|u) that the prior covers."""
        noise = torch.zeros(
            (1, len(u), self.n_noise), dtype=torch.float32, device=u.device
        )
        return self.network.infer(u.to(self.dtype), noise).prior_gaussian()

    def infer(
        self,
        x: Tensor,
        noise: Tensor,
        seen: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Posterior:
        """q(z|x) of rows (N, n_columns) and its draws under noise (S, N, n_noise)."""
        inputs = self.likelihood.see(x, seen)
        return self.network.infer(inputs.to(self.dtype), noise, dropout_noise)

    def decode(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Tensor:
        """Raw parameters of p(x|z), (..., L) to (..., n_raw).

        ``condition`` (N, n_conditions) belongs to the rows of z (..., N, L).
        """
        if condition is not None:
            condition = condition.expand(*z.shape[:-1], -1)
        return self.network.decode(z.to(self.dtype), condition, dropout_noise)

    def log_prior(
        self, posterior: Posterior, condition: Tensor | None = None
    ) -> Tensor:
        """log p(z) of the draws (S, N, L) of a posterior, (S, N)."""
        top = self.prior.log_prob(
            posterior.prior_z, condition=condition, **self._encoder()
        )
        return top + posterior.inner_log_prior()

    def draw_latent(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Turn standard normal noise (N, n_prior_noise) into draws (N, L) of p(z)."""
        top, inner = noise.split([self.prior.n_noise, self.network.n_inner_noise], -1)
        z = self.prior.draw(top, condition, **self._encoder())
        return self.network.complete(z, inner)

    def terms(
        self,
        x: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
        *,
        observed: Tensor | None = None,
        seen: Tensor | None = None,
        analytic_kl: bool,
        path_derivative: bool = False,
        dropout_noise: Tensor | None = None,
    ) -> Terms:
        """Terms of rows (N, n_columns) under noise (S, N, n_noise)."""
        posterior = self.infer(x, noise, seen, dropout_noise)
        given: dict[str, Any] = {"condition": condition, **self._encoder()}
        kl = log_prior = log_posterior = None
        if analytic_kl:
            kl = posterior.kl(partial(self.prior.kl, **given))
        if kl is None:
            log_prior = self.log_prior(posterior, condition)
            log_posterior = posterior.log_prob(path_derivative=path_derivative)
        gaussian = posterior.gaussian()
        raw = self.decode(posterior.z, condition, dropout_noise)
        # In bfloat16 a sum over columns would be off by tenths of a nat.
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return Terms(
            log_likelihood=self.likelihood.log_prob(x, raw, observed),
            mean=posterior.mean,
            kl=kl,
            log_prior=log_prior,
            log_posterior=log_posterior,
            z=posterior.z,
            log_variance=None if gaussian is None else gaussian[1],
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """The objective's loss of each row (N,), in nats, and its terms."""
        noise, objective = batch.noise, self.objective
        dropout_noise = None
        if noise.shape[-1] > self.n_loss_noise:
            dropout_noise = noise[..., self.n_loss_noise :]
        terms = self.terms(
            batch.x,
            noise[..., : self.n_noise],
            batch.condition,
            observed=batch.observed,
            seen=batch.seen,
            analytic_kl=objective.analytic_kl,
            path_derivative=objective.path_derivative,
            dropout_noise=dropout_noise,
        )
        terms.weights = batch.weights
        terms.n_rows = batch.n_rows
        terms.progress = batch.progress
        if objective.needs_prior_draws:
            terms.prior_draws = self.draw_latent(
                noise[0, :, self.n_noise : self.n_loss_noise], batch.condition
            )
        return objective.loss(terms), terms

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """As :meth:`loss`."""
        return self.loss(batch)

    def mean(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x|z], (..., L) to (..., n_columns), in the model's units."""
        return self.likelihood.mean(self.decode(z, condition).float())

    def draw(
        self, z: Tensor, generator: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """x drawn from p(x|z), (..., L) to (..., n_columns), in the model's units."""
        return self.likelihood.draw(self.decode(z, condition).float(), generator)
