"""The model: where network, likelihood, prior and objective meet.

Nobody else knows all four. From rows and noise it works out :class:`Terms` for the
objective; nothing in it draws a random number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .likelihoods import Likelihood
from .networks import Network, Posterior
from .objectives import Objective, Terms
from .priors import Prior


@dataclass(frozen=True)
class Architecture:
    """What determines the shapes of the weights, beside the choices and the width of x.

    Attributes
    ----------
    latent_dim : tuple of int
        Widths of the levels of z, one but for hierarchical networks.
    hidden_dim : tuple of int
    n_conditions : int
        Columns of what the decoder sees beside z.
    image_shape : tuple of int or None
        (channels, height, width) where X came as images.
    """

    latent_dim: tuple[int, ...]
    hidden_dim: tuple[int, ...]
    n_conditions: int = 0
    image_shape: tuple[int, ...] | None = None


@dataclass
class Batch:
    """Rows to train on, and all that the loss of them is a function of.

    Attributes
    ----------
    x : Tensor of shape (N, D)
    noise : Tensor of shape (S, N, n_training_noise)
    weights : Tensor of shape (N,) or None
    condition : Tensor of shape (N, n_conditions) or None
    n_rows : int
        Rows of the whole training set.
    progress : float
        Fraction of all training steps that are done.
    """

    x: Tensor
    noise: Tensor
    weights: Tensor | None = None
    condition: Tensor | None = None
    n_rows: int = 1
    progress: float = 1.0


def incompatibility(
    network: Network, likelihood: Likelihood, prior: Prior, objective: Objective
) -> str | None:
    """Why the four choices do not go together, and the mend; None where they do."""
    if objective.needs_gaussian_posterior and network.posterior != "gaussian":
        return (
            f"objective={objective!r} needs q(z|x) to be one diagonal Gaussian, but "
            f"that of network={network!r} is {network.posterior}; use an 'mlp' or "
            "'conv' network, or objective='elbo' or IWAE()."
        )
    if prior.needs_encoder and network.posterior == "flow":
        return (
            f"prior={prior!r} needs the density of q(z|u) at any z, which "
            f"network={network!r} does not give; use an 'mlp', 'conv' or 'ladder' "
            "network, or prior='mixture'."
        )
    return None


class Model(nn.Module):
    """A network with the learned parameters of its likelihood and prior.

    Parameters
    ----------
    network, likelihood, prior, objective : Spec
        The four choices.
    n_features : int
    latent_dim : tuple of int
        Widths of the levels of z, one but for hierarchical networks.
    hidden_dim : sequence of int
    unit : Tensor of shape (D,)
        What 1 inside the model is worth in the user's units.
    mean, spread : Tensor of shape (D,)
        Where the data lie, in the model's units.
    generator : torch.Generator
        Source of the initial weights.
    n_conditions : int
        Columns of what the decoder sees beside z.
    image_shape : tuple of int or None
        (channels, height, width) where X came as images.

    Attributes
    ----------
    latent_dim : int
        Width L of z, all levels together.
    """

    network: Any  # a module of the Network contract

    def __init__(
        self,
        network: Network,
        likelihood: Likelihood,
        prior: Prior,
        objective: Objective,
        *,
        n_features: int,
        latent_dim: Sequence[int],
        hidden_dim: Sequence[int],
        unit: Tensor,
        mean: Tensor,
        spread: Tensor,
        generator: torch.Generator,
        n_conditions: int = 0,
        image_shape: tuple[int, ...] | None = None,
    ):
        super().__init__()
        reason = incompatibility(network, likelihood, prior, objective)
        if reason is not None:
            raise ValueError(reason)
        self.likelihood = likelihood
        self.prior = prior
        self.objective = objective
        self.latent_dim = sum(latent_dim)
        self.top_dim = latent_dim[-1]
        self.n_conditions = n_conditions
        self.network = network.build(
            n_features=n_features,
            latent_dim=tuple(latent_dim),
            hidden_dim=hidden_dim,
            n_outputs=likelihood.n_outputs,
            output_bias=likelihood.output_bias(mean),
            n_conditions=n_conditions,
            image_shape=image_shape,
            generator=generator,
        )
        self.likelihood_parameters = _parameters(likelihood.parameters(n_features))
        # What the prior knows of x is what the encoder sees of it.
        seen = likelihood.network_input(torch.stack([mean, mean + spread]))
        self.prior_parameters = _parameters(
            prior.parameters(
                latent_dim=self.top_dim,
                mean=seen[0],
                spread=seen[1] - seen[0],
                generator=generator,
            )
        )
        constants = likelihood.constants(unit)
        for name, value in constants.items():
            self.register_buffer(f"likelihood_{name}", value)
        self._constant_names = tuple(constants)

    @property
    def n_noise(self) -> int:
        """Noise that a row needs for one draw from q(z|x)."""
        return self.network.n_noise

    @property
    def n_prior_noise(self) -> int:
        """Noise that one draw from p(z) needs."""
        inner = getattr(self.network, "n_inner_noise", 0)
        return self.prior.n_noise(self.top_dim) + inner

    @property
    def n_loss_noise(self) -> int:
        """Noise that a row needs for one draw in the loss."""
        if self.objective.needs_prior_draws:
            return self.n_noise + self.n_prior_noise
        return self.n_noise

    @property
    def n_training_noise(self) -> int:
        """Noise that a row needs for one draw in a training step."""
        return self.n_loss_noise + getattr(self.network, "n_dropout_noise", 0)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; densities are float32 at least."""
        return next(self.network.parameters()).dtype

    def likelihood_arguments(self) -> dict[str, Tensor]:
        """What the likelihood declared, learned and fixed, by name."""
        constants = {
            name: getattr(self, f"likelihood_{name}") for name in self._constant_names
        }
        return {**self.likelihood_parameters, **constants}

    def prior_arguments(self) -> dict[str, Any]:
        """What the prior declared, by name, and the encoder where it needs that."""
        if not self.prior.needs_encoder:
            return dict(self.prior_parameters)
        return {**self.prior_parameters, "encode": self._encode_top}

    def _encode_top(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the part of q(z|u) that the prior covers."""
        noise = torch.zeros(
            (1, len(u), self.n_noise), dtype=torch.float32, device=u.device
        )
        return self.network.infer(u.to(self.dtype), noise).prior_gaussian()

    def infer(self, x: Tensor, noise: Tensor, **dropout: Tensor) -> Posterior:
        """q(z|x) of rows (N, D) and its draws under noise (S, N, n_noise)."""
        seen = self.likelihood.network_input(x)
        return self.network.infer(seen.to(self.dtype), noise, **dropout)

    def decode(
        self, z: Tensor, condition: Tensor | None = None, **dropout: Tensor
    ) -> Tensor:
        """Raw parameters of p(x|z), (..., L) to (..., D, n_outputs).

        ``condition`` (N, n_conditions) belongs to the rows of z (..., N, L).
        """
        if condition is not None:
            condition = condition.expand(*z.shape[:-1], -1).to(z.dtype)
            z = torch.cat([z, condition], dim=-1)
        return self.network.decode(z.to(self.dtype), **dropout)

    def log_likelihood(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x|z), (S, N), in nats and in the model's units."""
        # In bfloat16 a sum over features would be off by tenths of a nat.
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return self.likelihood.log_prob(x, raw, **self.likelihood_arguments())

    def draw_latent(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise (N, n_prior_noise) into draws (N, L) of p(z)."""
        n_top = self.prior.n_noise(self.top_dim)
        z = self.prior.draw(noise[:, :n_top], **self.prior_arguments())
        if noise.shape[1] == n_top:
            return z
        return self.network.complete(z, noise[:, n_top:])

    def terms(
        self,
        x: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
        *,
        analytic_kl: bool,
        path_derivative: bool = False,
        **dropout: Tensor,
    ) -> Terms:
        """What rows (N, D) come to under noise (S, N, n_noise)."""
        posterior = self.infer(x, noise, **dropout)
        arguments = self.prior_arguments()
        kl = log_prior = log_posterior = None
        if analytic_kl:
            kl = posterior.kl(partial(self.prior.kl, **arguments))
        if kl is None:
            log_prior = self.prior.log_prob(posterior.prior_z, **arguments)
            log_prior = log_prior + posterior.inner_log_prior()
            log_posterior = posterior.log_prob(path_derivative=path_derivative)
        gaussian = posterior.gaussian()
        raw = self.decode(posterior.z, condition, **dropout)
        return Terms(
            log_likelihood=self.log_likelihood(x, raw),
            mean=posterior.mean,
            kl=kl,
            log_prior=log_prior,
            log_posterior=log_posterior,
            z=posterior.z,
            log_variance=None if gaussian is None else gaussian[1],
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Terms]:
        """The objective's loss of each row (N,), in nats, and what it is made of."""
        noise, objective = batch.noise, self.objective
        dropout = {}
        if noise.shape[-1] > self.n_loss_noise:
            dropout["dropout_noise"] = noise[..., self.n_loss_noise :]
        terms = self.terms(
            batch.x,
            noise[..., : self.n_noise],
            batch.condition,
            analytic_kl=objective.analytic_kl,
            path_derivative=objective.path_derivative,
            **dropout,
        )
        terms.weights = batch.weights
        terms.n_rows = batch.n_rows
        terms.progress = batch.progress
        if objective.needs_prior_draws:
            terms.prior_draws = self.draw_latent(
                noise[0, :, self.n_noise : self.n_loss_noise]
            )
        return objective.loss(terms), terms

    def mean(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x|z], (..., L) to (..., D), in the model's units."""
        raw = self.decode(z, condition).float()
        return self.likelihood.mean(raw, **self.likelihood_arguments())

    def draw(
        self, z: Tensor, generator: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """x drawn from p(x|z), (..., L) to (..., D), in the model's units."""
        raw = self.decode(z, condition).float()
        return self.likelihood.draw(raw, generator, **self.likelihood_arguments())


def _parameters(initial) -> nn.ParameterDict:
    return nn.ParameterDict({k: nn.Parameter(v) for k, v in initial.items()})
