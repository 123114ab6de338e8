"""The model: where network, likelihood, prior and objective meet.

Nobody else knows all four. From rows and noise it works out :class:`Terms` for the
objective; nothing in it draws a random number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .likelihoods import Likelihood
from .networks import GaussianPosterior, Network
from .objectives import Objective, Terms
from .priors import Prior


class Model(nn.Module):
    """A network with the learned parameters of its likelihood and prior.

    Parameters
    ----------
    network, likelihood, prior, objective : Spec
        The four choices.
    n_features, latent_dim : int
    hidden_dim : sequence of int
    unit : Tensor of shape (D,)
        What 1 inside the model is worth in the user's units.
    mean : Tensor of shape (D,)
        Mean of the data in the model's units, where the decoder starts.
    generator : torch.Generator
        Source of the initial weights.
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
        latent_dim: int,
        hidden_dim: Sequence[int],
        unit: Tensor,
        mean: Tensor,
        generator: torch.Generator,
    ):
        super().__init__()
        self.likelihood = likelihood
        self.prior = prior
        self.objective = objective
        self.latent_dim = latent_dim
        self.network = network.build(
            n_features=n_features,
            latent_dim=latent_dim,
            hidden_dim=hidden_dim,
            n_outputs=likelihood.n_outputs,
            output_bias=likelihood.output_bias(mean),
            generator=generator,
        )
        self.likelihood_parameters = _parameters(likelihood.parameters(n_features))
        self.prior_parameters = _parameters(prior.parameters(latent_dim, generator))
        constants = likelihood.constants(unit)
        for name, value in constants.items():
            self.register_buffer(f"likelihood_{name}", value)
        self._constant_names = tuple(constants)

    @property
    def n_noise(self) -> int:
        """Noise that a row needs for one draw."""
        return self.network.n_noise

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

    def infer(self, x: Tensor, noise: Tensor) -> GaussianPosterior:
        """q(z|x) of rows (N, D) and its draws under noise (S, N, n_noise)."""
        return self.network.infer(x.to(self.dtype), noise)

    def decode(self, z: Tensor) -> Tensor:
        """Raw parameters of p(x|z), (..., L) to (..., D, n_outputs)."""
        return self.network.decode(z.to(self.dtype))

    def log_likelihood(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x|z), (S, N), in nats and in the model's units."""
        return self.likelihood.log_prob(x, raw, **self.likelihood_arguments())

    def terms(self, x: Tensor, noise: Tensor, *, analytic_kl: bool) -> Terms:
        """All that an objective may ask of rows (N, D) under noise (S, N, n_noise)."""
        posterior = self.infer(x, noise)
        kl = log_prior = log_posterior = None
        if analytic_kl:
            kl = self.prior.kl(
                posterior.mean, posterior.log_variance, **self.prior_parameters
            )
        if kl is None:
            log_prior = self.prior.log_prob(posterior.z, **self.prior_parameters)
            log_posterior = posterior.log_prob()
        return Terms(
            log_likelihood=self.log_likelihood(x, self.decode(posterior.z)),
            mean=posterior.mean,
            kl=kl,
            log_prior=log_prior,
            log_posterior=log_posterior,
        )

    def training_terms(self, x: Tensor, noise: Tensor) -> Terms:
        """The terms as this model's objective wants them."""
        return self.terms(x, noise, analytic_kl=self.objective.analytic_kl)

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z], (..., L) to (..., D), in the model's units."""
        raw = self.decode(z).float()
        return self.likelihood.mean(raw, **self.likelihood_arguments())

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """x drawn from p(x|z), (..., L) to (..., D), in the model's units."""
        raw = self.decode(z).float()
        return self.likelihood.draw(raw, generator, **self.likelihood_arguments())


def _parameters(initial) -> nn.ParameterDict:
    return nn.ParameterDict({k: nn.Parameter(v) for k, v in initial.items()})
