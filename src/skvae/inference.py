"""What a trained model does with arrays: NumPy in, NumPy out, in the user's units.

Everything works in blocks of bounded memory, in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .model import Model
from .noise import hash_rows, row_noise
from .priors import VampPrior
from .units import Units

# Draws of z per row in an ELBO: two antithetic pairs.
ELBO_DRAWS = 4
# Draws of z that an importance-weighted estimate takes at once.
IMPORTANCE_BLOCK = 64
# Numbers that a block of rows may occupy at any one layer: what a CPU's caches hold, 2
# MB in float32. It takes more to keep another device busy.
BLOCK = 2**19
TIMES_ELSEWHERE = 8


@dataclass(frozen=True)
class FittedModel:
    """A trained model, the units of its data, and the dtype they came in."""

    model: Model
    units: Units
    dtype: np.dtype

    def block_rows(self, draws: int = 1) -> int:
        """Rows to take at once so that every layer stays within a block."""
        network = self.model.network
        widest = max(max(p.shape, default=1) for p in network.parameters())
        # A convolution's weights do not tell how wide it is.
        widest = max(widest, getattr(network, "n_widest", 0))
        on_cpu = self.model.device.type == "cpu"
        block = BLOCK if on_cpu else TIMES_ELSEWHERE * BLOCK
        return max(1, block // (widest * draws))

    def _tensor(self, array: np.ndarray) -> Tensor:
        # Row by row in memory: torch knows no negative strides, and the order of the
        # columns' sums would change the last digit.
        rows = np.ascontiguousarray(array, dtype=np.float32)
        return torch.tensor(rows, device=self.model.device)

    @torch.no_grad()
    def encode(self, X: np.ndarray) -> np.ndarray:
        """Means of q(z|x), float32: (N, D) to (N, L)."""
        x = self._tensor(self.units.standardize(X))
        noise = x.new_zeros(1, len(x), self.model.n_noise)
        return self.model.infer(x, noise).mean.cpu().numpy()

    @torch.no_grad()
    def draw_codes(self, X: np.ndarray) -> np.ndarray:
        """One draw from q(z|x) of each row, float32: (N, D) to (N, L)."""
        codes = []
        for x, hashes, _ in self._blocks_with_hashes(X, 1, None):
            noise = self._tensor(row_noise(hashes, 1, self.model.n_noise))
            codes.append(self.model.infer(x, noise).z[0].cpu().numpy())
        return np.concatenate(codes)

    @torch.no_grad()
    def draw_posterior(self, X: np.ndarray) -> tuple[np.ndarray, ...]:
        """Gaussian q(z|x) of each row, and draws from it, all float32.

        Means and log-variances (N, L), draws z (N, S, L), log p(z) in nats (N, S).
        """
        parts = []
        for x, hashes, _ in self._blocks_with_hashes(X, ELBO_DRAWS, None):
            noise = self._tensor(row_noise(hashes, ELBO_DRAWS, self.model.n_noise))
            posterior = self.model.infer(x, noise)
            log_prior = self.model.prior.log_prob(
                posterior.z, **self.model.prior_arguments()
            )
            gaussian = posterior.gaussian()
            assert gaussian is not None
            block = *gaussian, posterior.z.transpose(0, 1), log_prior.t()
            parts.append([tensor.cpu().numpy() for tensor in block])
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    @torch.no_grad()
    def log_aggregate(
        self, z: np.ndarray, mean: np.ndarray, log_variance: np.ndarray
    ) -> np.ndarray:
        """log of the mean of Gaussians (N, L) at points z (M, L), in nats, (M,)."""
        # In float64, which MPS lacks: a narrow Gaussian has large squares to subtract.
        device = self.model.device
        device = torch.device("cpu") if device.type == "mps" else device
        gaussians = [
            torch.tensor(array, dtype=torch.float64, device=device)
            for array in (mean, log_variance)
        ]
        # The mixture of posteriors at some inputs; these inputs are the rows.
        mixture = partial(
            VampPrior().log_prob, pseudo_inputs=None, encode=lambda _: gaussians
        )
        log_density = np.empty(len(z))
        step = max(1, BLOCK // max(mean.shape))
        for start in range(0, len(z), step):
            rows = slice(start, start + step)
            points = torch.tensor(z[rows], dtype=torch.float64, device=device)
            log_density[rows] = mixture(points).cpu().numpy()
        return log_density

    @torch.no_grad()
    def draw_latent(self, n_samples: int, generator: torch.Generator) -> np.ndarray:
        """Draws from p(z), float32: (n_samples, L). The generator is on the CPU."""
        noise = torch.randn(
            (n_samples, self.model.n_prior_noise),
            generator=generator,
            dtype=torch.float32,
        )
        return self.model.draw_latent(noise.to(self.model.device)).cpu().numpy()

    @torch.no_grad()
    def decode(
        self,
        Z: np.ndarray,
        generator: torch.Generator | None = None,
        condition: np.ndarray | None = None,
    ) -> np.ndarray:
        """Means of p(x|z), or draws from it where there is a generator."""
        X = np.empty((len(Z), len(self.units.scale)), dtype=self.dtype)
        step = self.block_rows()
        for start in range(0, len(Z), step):
            rows = slice(start, start + step)
            z, given = self._tensor(Z[rows]), self._condition(condition, rows)
            x = (
                self.model.mean(z, given)
                if generator is None
                else self.model.draw(z, generator, given)
            )
            X[rows] = self.units.restore(x.cpu().numpy())
        return X

    def _condition(self, condition: np.ndarray | None, rows: slice) -> Tensor | None:
        return None if condition is None else self._tensor(condition[rows])

    @torch.no_grad()
    def elbo_parts(
        self, X: np.ndarray, condition: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reconstruction (-log p(x|z)) and KL of each row, in nats, float32.

        Minus their sum is the evidence lower bound.
        """
        reconstruction, kl = [], []
        for x, hashes, given in self._blocks_with_hashes(X, ELBO_DRAWS, condition):
            noise = self._tensor(row_noise(hashes, ELBO_DRAWS, self.model.n_noise))
            terms = self.model.terms(x, noise, given, analytic_kl=True)
            reconstruction.append(terms.reconstruction.cpu().numpy())
            kl.append(terms.divergence.cpu().numpy())
        in_units = np.concatenate(reconstruction) + self.units.log_scale
        return in_units.astype(np.float32), np.concatenate(kl)

    @torch.no_grad()
    def log_likelihood(
        self,
        X: np.ndarray,
        n_importance_samples: int,
        condition: np.ndarray | None = None,
    ) -> np.ndarray:
        """Importance-weighted estimates of log p(x), in nats per row, float32."""
        draws = min(n_importance_samples, IMPORTANCE_BLOCK)
        rows = []
        for x, hashes, given in self._blocks_with_hashes(X, draws, condition):
            total = torch.full((len(x),), -torch.inf, device=x.device)
            for first in range(0, n_importance_samples, draws):
                n_draws = min(draws, n_importance_samples - first)
                noise = row_noise(hashes, n_draws, self.model.n_noise, first=first)
                terms = self.model.terms(
                    x, self._tensor(noise), given, analytic_kl=False
                )
                total = torch.logaddexp(total, terms.log_weights.logsumexp(0))
            rows.append(total.cpu().numpy())
        constant = np.log(n_importance_samples) + self.units.log_scale
        return (np.concatenate(rows) - constant).astype(np.float32)

    def _blocks_with_hashes(
        self, X: np.ndarray, draws: int, condition: np.ndarray | None
    ) -> Iterator[tuple[Tensor, np.ndarray, Tensor | None]]:
        step = self.block_rows(draws)
        for start in range(0, len(X), step):
            rows = slice(start, start + step)
            block = self.units.standardize(X[rows])
            given = self._condition(condition, rows)
            yield self._tensor(block), hash_rows(block), given
