"""Objectives: what is minimised.

An objective sees only :class:`Terms`, numbers that the model has already worked out.
It can therefore be tested with a handful of values and no network.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ._compat import Interval, StrOptions
from .discrepancy import KERNELS, maximum_mean_discrepancy
from .spec import LOG_2_PI, Spec


@dataclass
class Terms:
    """What the model knows of N rows under S draws of z, all in nats.

    Attributes
    ----------
    log_likelihood : Tensor of shape (S, N)
        log p(x|z), summed over features.
    mean : Tensor of shape (N, L)
        Posterior means.
    kl : Tensor of shape (N, L) or None
        KL(q(z|x) || p(z)) of each latent dimension in closed form, where there is one.
    log_prior, log_posterior : Tensor of shape (S, N) or None
        log p(z) and log q(z|x) of the draws; not computed where ``kl`` serves.
    z : Tensor of shape (S, N, L) or None
        The draws.
    log_variance : Tensor of shape (N, L) or None
        Of q(z|x), where it is a diagonal Gaussian.
    prior_draws : Tensor of shape (N, L) or None
        As many draws from p(z), for the objectives that ask for them.
    weights : Tensor of shape (N,) or None
        Weights of the rows, for what is estimated from the batch as a whole.
    n_rows : int
        Rows of the whole training set.
    progress : float
        Fraction of all training steps that are done; 1 outside training.
    """

    log_likelihood: Tensor
    mean: Tensor
    kl: Tensor | None = None
    log_prior: Tensor | None = None
    log_posterior: Tensor | None = None
    z: Tensor | None = None
    log_variance: Tensor | None = None
    prior_draws: Tensor | None = None
    weights: Tensor | None = None
    n_rows: int = 1
    progress: float = 1.0

    @property
    def reconstruction(self) -> Tensor:
        """Mean over the draws of -log p(x|z), (N,)."""
        return -self.log_likelihood.mean(0)

    @property
    def divergence(self) -> Tensor:
        """KL(q || p), in closed form or estimated from the draws, (N,)."""
        if self.kl is not None:
            return self.kl.sum(-1)
        assert self.log_posterior is not None
        assert self.log_prior is not None
        return (self.log_posterior - self.log_prior).mean(0)

    @property
    def log_weights(self) -> Tensor:
        """Importance weights log p(x|z) p(z) / q(z|x) of the draws, (S, N)."""
        assert self.log_posterior is not None
        assert self.log_prior is not None
        return self.log_likelihood + self.log_prior - self.log_posterior

    def batch_mean(self, rows: Tensor) -> Tensor:
        """Weighted mean over the rows, (N, ...) to (...)."""
        if self.weights is None:
            return rows.mean(0)
        return torch.tensordot(self.weights, rows, 1) / self.weights.sum()


class Objective(Spec):
    """Base of the objectives. Subclasses implement :meth:`loss`.

    Attributes
    ----------
    n_draws : int
        Draws of z that a row needs at each step.
    analytic_kl : bool
        Whether the closed form of KL(q || p) may stand in for the log-densities.
    needs_prior_draws : bool
        Whether ``Terms.prior_draws`` is wanted.
    needs_gaussian_posterior : bool
        Whether q(z|x) must be one diagonal Gaussian.
    path_derivative : bool
        Whether log q(z|x) lets gradients through z only, not through its parameters.
    warmup : float
        Fraction of all steps during which losses do not compare with later ones: the
        best epoch is looked for, and early stopping waits, after it.
    follows_progress : bool
        Whether the loss depends on the share of all steps that is done.
    hidden_fraction : float
        Share of the observed entries that is hidden from the encoder in training.
    """

    n_draws: Any = 1
    analytic_kl: Any = True
    needs_prior_draws: Any = False
    needs_gaussian_posterior: Any = False
    path_derivative: Any = False
    warmup: Any = 0.0
    hidden_fraction: Any = 0.0

    @property
    def follows_progress(self) -> bool:
        return self.warmup > 0

    def kl_weight(self, progress: float) -> float | None:
        """The weight of the KL term, where the loss is reconstruction + weight * KL.

        None for any other loss.
        """
        return None

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
    warmup : float, default=0.0
        Fraction of all steps over which the weight rises linearly from 0 to ``beta``
        (or the capacity from 0 to ``capacity``). The best epoch is chosen among those
        after it.
    n_cycles : int, default=1
        With more than one, the rise is repeated so many times within ``warmup``; each
        cycle rises in its first half and stays at the top in its second.
    free_bits : float, default=0.0
        Nats of each latent dimension that cost nothing:
        :math:`\sum_l \max(\lambda, \overline{\mathrm{KL}}_l)`, the mean being that of
        the batch. Without a closed form all dimensions share one allowance.
    capacity : float or None, default=None
        Nats that the code shall carry: the KL term is then
        :math:`\beta\,|\overline{\mathrm{KL}} - C|`.

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes"; Higgins et al. (2017),
    "beta-VAE"; Bowman et al. (2016), "Generating sentences from a continuous space"
    (warm-up); Fu et al. (2019), "Cyclical annealing schedule"; Kingma et al. (2016),
    "Improving variational inference with inverse autoregressive flow" (free bits);
    Burgess et al. (2018), "Understanding disentangling in beta-VAE" (capacity).

    Examples
    --------
    >>> import torch
    >>> from skvae.objectives import ELBO, Terms
    >>> kl = torch.tensor([[0.5, 1.5]])
    >>> terms = Terms(torch.tensor([[-3.0]]), torch.zeros(1, 2), kl)
    >>> ELBO(beta=4).loss(terms)
    tensor([11.])
    >>> ELBO(free_bits=1).loss(terms)
    tensor([5.5000])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "beta": [Interval(Real, 0, None, closed="left")],
        "warmup": [Interval(Real, 0, 1, closed="left")],
        "n_cycles": [Interval(Integral, 1, None, closed="left")],
        "free_bits": [Interval(Real, 0, None, closed="left")],
        "capacity": [Interval(Real, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        beta: Any = 1.0,
        warmup: Any = 0.0,
        n_cycles: Any = 1,
        free_bits: Any = 0.0,
        capacity: Any = None,
    ) -> None:
        self.beta = beta
        self.warmup = warmup
        self.n_cycles = n_cycles
        self.free_bits = free_bits
        self.capacity = capacity

    def ramp(self, progress: float) -> float:
        """How far the warm-up has come, from 0 to 1."""
        if progress >= self.warmup:
            return 1.0
        if self.n_cycles == 1:
            return progress / self.warmup
        return min(1.0, 2 * (progress / self.warmup * self.n_cycles % 1.0))

    def kl_weight(self, progress: float) -> float | None:
        if self.free_bits or self.capacity is not None:
            return None
        return self.beta * self.ramp(progress)

    def loss(self, terms: Terms) -> Tensor:
        weight = self.kl_weight(terms.progress)
        if weight is not None:
            return terms.reconstruction + weight * terms.divergence
        if self.free_bits == 0:
            kl = terms.batch_mean(terms.divergence)
        elif terms.kl is not None:
            kl = terms.batch_mean(terms.kl).clamp(min=self.free_bits).sum()
        else:
            allowance = self.free_bits * terms.mean.shape[-1]
            kl = terms.batch_mean(terms.divergence).clamp(min=allowance)
        if self.capacity is None:
            return terms.reconstruction + self.beta * self.ramp(terms.progress) * kl
        target = self.capacity * self.ramp(terms.progress)
        return terms.reconstruction + self.beta * (kl - target).abs()


class MIWAE(Objective):
    r"""The mean of m importance-weighted bounds of k draws each.

    .. math:: -\frac1m \sum_{i=1}^m \log \frac1k \sum_{j=1}^k
        \frac{p(x|z_{ij})\, p(z_{ij})}{q(z_{ij}|x)}, \quad z_{ij} \sim q(z|x)

    The loss that is reported is this bound itself, whatever the gradient.

    Parameters
    ----------
    m : int, default=8
        Bounds to average. More of them calm the encoder's gradient.
    k : int, default=8
        Importance samples in each bound. More of them tighten it.
    gradient : {"standard", "doubly_reparameterized"}, default="standard"
        "doubly_reparameterized" is unbiased too, and keeps the encoder's signal where
        k is large. It asks for a Gaussian posterior.

    References
    ----------
    Rainforth et al. (2018), "Tighter variational bounds are not necessarily better";
    Tucker et al. (2019), "Doubly reparameterized gradient estimators".

    Examples
    --------
    >>> import torch
    >>> from skvae.objectives import MIWAE, Terms
    >>> zero = torch.zeros(4, 1)
    >>> log_likelihood = torch.tensor([[-1.0], [-1.0], [-3.0], [-3.0]])
    >>> terms = Terms(log_likelihood, zero, log_prior=zero, log_posterior=zero)
    >>> MIWAE(m=2, k=2).loss(terms)
    tensor([2.])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "m": [Interval(Integral, 1, None, closed="left")],
        "k": [Interval(Integral, 1, None, closed="left")],
        "gradient": [StrOptions({"standard", "doubly_reparameterized"})],
    }

    analytic_kl = False
    m = 1

    def __init__(self, m: Any = 8, k: Any = 8, gradient: Any = "standard") -> None:
        self.m = m
        self.k = k
        self.gradient = gradient

    @property
    def n_draws(self) -> int:
        return int(self.m) * int(self.k)  # of uint8 the product would overflow

    @property
    def path_derivative(self) -> bool:
        return self.gradient == "doubly_reparameterized"

    @property
    def needs_gaussian_posterior(self) -> bool:
        return self.path_derivative

    def loss(self, terms: Terms) -> Tensor:
        log_weights = terms.log_weights.unflatten(0, (int(self.m), int(self.k)))
        bound = (log_weights.logsumexp(1) - math.log(self.k)).mean(0)
        if not self.path_derivative or not log_weights.requires_grad:
            return -bound
        # The gradient of the bound is that of sum_j w_j log w_j at constant w; what
        # reaches the encoder through z is multiplied by w_j once more.
        share = log_weights.detach().softmax(1)
        assert terms.z is not None
        terms.z.register_hook(lambda slope: slope * share.flatten(0, 1).unsqueeze(-1))
        surrogate = (share * log_weights).sum(1).mean(0)
        return -(surrogate + (bound - surrogate).detach())


class IWAE(MIWAE):
    r"""The importance-weighted bound of k draws.

    .. math:: -\log \frac1k \sum_{j=1}^k \frac{p(x|z_j)\, p(z_j)}{q(z_j|x)},
        \quad z_j \sim q(z|x)

    k = 1 is the ELBO; the bound rises with k towards log p(x). Its loss does not
    compare with that of another objective: compare models by ``log_likelihood``.

    Parameters
    ----------
    k : int, default=5
        Importance samples.
    gradient : {"standard", "doubly_reparameterized"}, default="standard"
        As in :class:`MIWAE`.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016), "Importance Weighted Autoencoders".

    Examples
    --------
    >>> from skvae import IWAE, VAEEstimator
    >>> VAEEstimator(objective=IWAE(k=50))
    VAEEstimator(objective=IWAE(k=50))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        name: MIWAE._parameter_constraints[name] for name in ("k", "gradient")
    }

    def __init__(self, k: Any = 5, gradient: Any = "standard") -> None:
        self.k = k
        self.gradient = gradient


class _MMDObjective(Objective):
    """Shared by the objectives that compare q(z) and p(z) by samples."""

    needs_prior_draws = True

    def discrepancy(self, terms: Terms) -> Tensor:
        assert terms.z is not None
        assert terms.prior_draws is not None
        return maximum_mean_discrepancy(
            terms.z[0], terms.prior_draws, self.kernel, terms.weights
        )


class InfoVAE(_MMDObjective):
    r"""The ELBO with a penalty on the distance between q(z) and the prior.

    .. math:: -\mathbb E_{q(z|x)} \log p(x|z)
        + (1 - \alpha)\, \mathrm{KL}(q(z|x) \| p(z))
        + (\alpha + \lambda - 1)\, \mathrm{MMD}^2(q(z), p(z))

    Parameters
    ----------
    alpha : float, default=0.0
        1 takes the KL term away, which leaves the code free to hold as much
        information about x as it can; 0 keeps it.
    lambda_ : float, default=10.0
        Weight of the distance of the aggregate posterior q(z) from the prior.
        ``alpha=0, lambda_=1`` is the ELBO.
    kernel : {"imq", "rbf"}, default="imq"
        See :func:`~skvae.objectives.maximum_mean_discrepancy`.

    References
    ----------
    Zhao, Song and Ermon (2019), "InfoVAE: Balancing learning and inference in
    variational autoencoders".

    Examples
    --------
    >>> from skvae import InfoVAE, VAEEstimator
    >>> VAEEstimator(objective=InfoVAE(alpha=0.5))
    VAEEstimator(objective=InfoVAE(alpha=0.5))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "alpha": [Interval(Real, None, 1, closed="right")],
        "lambda_": [Interval(Real, 0, None, closed="left")],
        "kernel": [StrOptions(set(KERNELS))],
    }

    def __init__(
        self, alpha: Any = 0.0, lambda_: Any = 10.0, kernel: Any = "imq"
    ) -> None:
        self.alpha = alpha
        self.lambda_ = lambda_
        self.kernel = kernel

    def loss(self, terms: Terms) -> Tensor:
        return (
            terms.reconstruction
            + (1 - self.alpha) * terms.divergence
            + (self.alpha + self.lambda_ - 1) * self.discrepancy(terms)
        )


class WAE(_MMDObjective):
    r"""The Wasserstein autoencoder with the MMD penalty.

    .. math:: -\mathbb E_{q(z|x)} \log p(x|z)
        + \lambda\, \mathrm{MMD}^2(q(z), p(z))

    The cost of a reconstruction is the likelihood's (with ``Gaussian(scale=...)`` the
    squared error of the paper); the encoder stays random, and only the aggregate of
    its draws is held to the prior. Such a model has no tight ELBO: its ``score`` says
    little. The weights of a :class:`~skvae.MixturePrior` stay equal, since the choice
    of a component has no derivative.

    Parameters
    ----------
    lambda_ : float, default=10.0
        Weight of the penalty.
    kernel : {"imq", "rbf"}, default="imq"
        See :func:`~skvae.objectives.maximum_mean_discrepancy`.

    References
    ----------
    Tolstikhin et al. (2018), "Wasserstein Auto-Encoders".

    Examples
    --------
    >>> from skvae import WAE, VAEEstimator
    >>> VAEEstimator(objective=WAE(lambda_=100))
    VAEEstimator(objective=WAE(lambda_=100))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "lambda_": [Interval(Real, 0, None, closed="left")],
        "kernel": [StrOptions(set(KERNELS))],
    }

    def __init__(self, lambda_: Any = 10.0, kernel: Any = "imq") -> None:
        self.lambda_ = lambda_
        self.kernel = kernel

    def loss(self, terms: Terms) -> Tensor:
        return terms.reconstruction + self.lambda_ * self.discrepancy(terms)


class BetaTC(Objective):
    r"""The KL term taken apart, with a weight on the total correlation.

    .. math:: -\mathbb E_{q(z|x)} \log p(x|z) + \alpha\, I_q(x; z)
        + \beta\, \mathrm{KL}\Big(q(z) \,\Big\|\, \prod_l q(z_l)\Big)
        + \gamma\, \Big(\mathbb E \log \prod_l q(z_l) - \mathbb E \log p(z)\Big)

    The aggregate posterior q(z) is estimated from the batch by minibatch-weighted
    sampling. With all weights 1 it is the ELBO.

    Parameters
    ----------
    alpha : float, default=1.0
        Weight of the mutual information between rows and codes.
    beta : float, default=6.0
        Weight of the total correlation of the latent dimensions.
    gamma : float, default=1.0
        Weight of the divergence of each dimension from the prior.

    References
    ----------
    Chen et al. (2018), "Isolating sources of disentanglement in variational
    autoencoders".

    Examples
    --------
    >>> from skvae import BetaTC, VAEEstimator
    >>> VAEEstimator(objective=BetaTC(beta=4))
    VAEEstimator(objective=BetaTC(beta=4))
    """

    _parameter_constraints: dict[str, list[Any]] = {
        name: [Interval(Real, 0, None, closed="left")]
        for name in ("alpha", "beta", "gamma")
    }

    analytic_kl = False
    needs_gaussian_posterior = True

    def __init__(self, alpha: Any = 1.0, beta: Any = 6.0, gamma: Any = 1.0) -> None:
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma

    def parts(self, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
        """Mutual information, total correlation, dimension-wise KL, each (N,)."""
        assert terms.z is not None
        assert terms.log_variance is not None
        assert terms.log_posterior is not None
        assert terms.log_prior is not None
        # (i, j, l): log q(z_il | x_j), of every code under every row of the batch.
        square = (terms.z[0].unsqueeze(1) - terms.mean).square()
        density = -0.5 * (
            square * torch.exp(-terms.log_variance) + terms.log_variance + LOG_2_PI
        )
        n = len(terms.mean)
        log_share = -math.log(n * terms.n_rows)
        if terms.weights is not None:
            density_weights = torch.log(terms.weights).unsqueeze(-1)
        else:
            density_weights = density.new_zeros(n, 1)
        joint = density.sum(-1) + density_weights.squeeze(-1)
        log_aggregate = joint.logsumexp(1) + log_share
        log_marginals = (density + density_weights).logsumexp(1).add(log_share).sum(-1)
        return (
            terms.log_posterior[0] - log_aggregate,
            log_aggregate - log_marginals,
            log_marginals - terms.log_prior[0],
        )

    def loss(self, terms: Terms) -> Tensor:
        information, correlation, dimensions = self.parts(terms)
        return (
            terms.reconstruction
            + self.alpha * information
            + self.beta * correlation
            + self.gamma * dimensions
        )


OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": ELBO,
    "iwae": IWAE,
    "miwae": MIWAE,
    "infovae": InfoVAE,
    "wae": WAE,
    "beta_tc": BetaTC,
}
