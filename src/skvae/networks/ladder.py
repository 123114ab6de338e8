"""Hierarchical networks."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import StrOptions
from .base import (
    ACTIVATIONS,
    MAX_LOG_VARIANCE,
    GaussianPosterior,
    Network,
    NetworkInputs,
    NetworkModule,
    Posterior,
    PriorKL,
    beside,
    dense,
    linear,
    log_normal,
    set_bias,
)

# What the encoder first says of the levels below the top one: 20 times the variance.
START_LOG_VARIANCE = 3.0


class LadderNet(Network):
    r"""Several levels of z, inferred from the top down: a hierarchical VAE.

    With ``latent_dim=(l_1, ..., l_n)``, from the level nearest to x to the top,

    .. math:: p(z) = p(z_n) \prod_{i<n} p(z_i | z_{i+1}), \qquad
        q(z|x) = q(z_n|x) \prod_{i<n} q(z_i | z_{i+1}, x)

    with Gaussians throughout. A level's posterior merges what the bottom-up pass says
    of it, :math:`\hat\mu, \hat\sigma^2`, with what the level above says, in proportion
    to their precisions; the encoder gives :math:`\hat\mu / \hat\sigma^2`, so that it
    can say something while it is still unsure. The prior axis covers the top level. The
    decoder sees all levels; ``transform`` gives them side by side, in the order of
    ``latent_dim``. With one level it is the plain VAE.

    Train it with a warm-up, such as ``objective=ELBO(warmup=0.3)``: without one, upper
    levels tend to be given up before they have been of use.

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

    def __init__(self, activation: Any = "relu") -> None:
        self.activation = activation

    def build(self, inputs: NetworkInputs) -> NetworkModule:
        activation = ACTIVATIONS[self.activation]
        latent_dim, generator = inputs.latent_dim, inputs.generator
        widths = [inputs.n_inputs, *inputs.hidden_dim]
        top_width = widths[-1]
        total = sum(latent_dim)
        # In the order of an MLP's layers: with one level the weights are the same.
        bottom = dense([*widths, 2 * latent_dim[0]], activation, generator)
        mirrored = [total + inputs.n_conditions, *widths[:0:-1]]
        decoder = dense([*mirrored, inputs.n_raw], activation, generator)
        set_bias(decoder[-1], inputs.output_bias)
        up, heads, down = [bottom[:-1]], [bottom[-1]], []
        for width, above in pairwise(latent_dim):
            up.append(
                nn.Sequential(linear(top_width, top_width, generator), activation())
            )
            heads.append(linear(top_width, 2 * above, generator))
            down.append(dense([above, top_width, 2 * width], activation, generator))
        for head in heads[:-1]:
            assert isinstance(head, nn.Linear)
            # The encoder starts unsure: a posterior as wide as what it is measured by
            # costs nothing, and is not given up before it has been of use.
            with torch.no_grad():
                head.bias[len(head.bias) // 2 :] += START_LOG_VARIANCE
        return LadderModule(up, heads, down, decoder, latent_dim)


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

    def log_prob(self, *, path_derivative: bool = False) -> Tensor:
        parts = [q.log_prob(path_derivative=path_derivative) for q in self.levels]
        return torch.stack(parts).sum(0)

    @property
    def prior_z(self) -> Tensor:
        return self.levels[-1].z

    def prior_gaussian(self) -> tuple[Tensor, Tensor] | None:
        return self.levels[-1].gaussian()

    def inner_log_prior(self) -> Tensor | float:
        return sum(
            (
                log_normal(q.z, *prior).sum(-1)
                for q, prior in zip(self.levels, self.priors, strict=False)
            ),
            0.0,
        )

    def kl(self, prior_kl: PriorKL) -> Tensor | None:
        top = self.levels[-1].kl(prior_kl)
        if top is None:
            return None
        parts = []
        for q, (mean, log_variance) in zip(self.levels, self.priors, strict=False):
            ratio = q.log_variance - log_variance
            distance = (q.mean - mean).square() * torch.exp(-log_variance)
            parts.append((0.5 * (distance + (torch.expm1(ratio) - ratio))).mean(0))
        return torch.cat([*parts, top], dim=-1)


class LadderModule(NetworkModule):
    """The module that :class:`LadderNet` builds."""

    def __init__(
        self, up: Any, heads: Any, down: Any, decoder: Any, latent_dim: Any
    ) -> None:
        super().__init__()
        self.up = nn.ModuleList(up)
        self.heads = nn.ModuleList(heads)
        self.down = nn.ModuleList(down)
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.n_noise = sum(latent_dim)
        self.n_inner_noise = sum(latent_dim[:-1])

    def infer(
        self, seen: Tensor, noise: Tensor, dropout_noise: Tensor | None = None
    ) -> Posterior:
        x, said = seen, []
        for up, head in zip(self.up, self.heads, strict=True):
            x = up(x)
            said.append(head(x).float().chunk(2, dim=-1))
        noises = noise.split(self.latent_dim, dim=-1)
        mean, log_variance = said[-1]
        levels = [GaussianPosterior.draw(mean, log_variance, noises[-1])]
        priors: list[tuple[Tensor, Tensor]] = []
        for i in reversed(range(len(self.down))):
            prior_mean, prior_log_variance = self._below(i, levels[0].z)
            weighted_mean, log_variance = said[i]
            log_variance = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
            # Precisions add up, and so do means times their precisions.
            merged = -torch.logaddexp(-log_variance, -prior_log_variance)
            prior_share = torch.exp(merged - prior_log_variance)
            merged_mean = prior_share * prior_mean + torch.exp(merged) * weighted_mean
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
        levels = [z]
        noises = noise.split(self.latent_dim[:-1], dim=-1)
        for i in reversed(range(len(self.down))):
            mean, log_variance = self._below(i, levels[0])
            levels.insert(0, mean + torch.exp(0.5 * log_variance) * noises[i])
        return torch.cat(levels, dim=-1)

    def decode(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Tensor:
        return self.decoder(beside(z, condition))
