"""Objectives: what is minimised.

An objective sees only :class:`Terms`, numbers that the model has already worked out.
It can therefore be tested with a handful of values and no network.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from ._compat import Interval
from .spec import Spec


@dataclass(frozen=True)
class Terms:
    """What the model knows of N rows under S draws of z, all in nats.

    Attributes
    ----------
    log_likelihood : Tensor of shape (S, N)
        log p(x|z), summed over features.
    kl : Tensor of shape (N,) or None
        KL(q(z|x) || p(z)) in closed form, where there is one.
    log_prior, log_posterior : Tensor of shape (S, N) or None
        log p(z) and log q(z|x) of the draws; not computed where ``kl`` serves.
    mean : Tensor of shape (N, L)
        Posterior means.
    """

    log_likelihood: Tensor
    mean: Tensor
    kl: Tensor | None = None
    log_prior: Tensor | None = None
    log_posterior: Tensor | None = None

    @property
    def reconstruction(self) -> Tensor:
        """Mean over the draws of -log p(x|z), (N,)."""
        return -self.log_likelihood.mean(0)

    @property
    def divergence(self) -> Tensor:
        """KL(q || p), in closed form or estimated from the draws, (N,)."""
        if self.kl is not None:
            return self.kl
        assert self.log_posterior is not None
        assert self.log_prior is not None
        return (self.log_posterior - self.log_prior).mean(0)

    @property
    def log_weights(self) -> Tensor:
        """Importance weights log p(x|z) p(z) / q(z|x) of the draws, (S, N)."""
        assert self.log_posterior is not None
        assert self.log_prior is not None
        return self.log_likelihood + self.log_prior - self.log_posterior


class Objective(Spec):
    """Base of the objectives. Subclasses implement :meth:`loss`.

    Attributes
    ----------
    n_draws : int
        Draws of z that a row needs at each step.
    analytic_kl : bool
        Whether the closed form of KL(q || p) may stand in for the log-densities.
    """

    n_draws = 1
    analytic_kl = True

    def loss(self, terms: Terms) -> Tensor:
        """The loss of each row, (N,), in nats."""
        raise NotImplementedError


class ELBO(Objective):
    r"""The negative evidence lower bound, with the weight beta on the KL term.

    .. math:: -\mathbb E_{q(z|x)} \log p(x|z) + \beta\, \mathrm{KL}(q(z|x) \| p(z))

    Parameters
    ----------
    beta : float, default=1.0
        Weight of the KL term. 1 is the bound itself; larger values press the code
        towards the prior, smaller ones favour the reconstruction.

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes";
    Higgins et al. (2017), "beta-VAE".

    Examples
    --------
    >>> import torch
    >>> from skvae.objectives import ELBO, Terms
    >>> terms = Terms(torch.tensor([[-3.0]]), torch.zeros(1, 2), torch.tensor([2.0]))
    >>> ELBO(beta=4).loss(terms)
    tensor([11.])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "beta": [Interval(Real, 0, None, closed="left")]
    }

    def __init__(self, beta=1.0):
        self.beta = beta

    def loss(self, terms):
        return terms.reconstruction + self.beta * terms.divergence


OBJECTIVES: dict[str, type[Objective]] = {"elbo": ELBO}
