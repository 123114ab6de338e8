"""Factor analysis as a value: a linear Gaussian model of rows with missing entries.

A row x of D columns is modelled with L factors z::

    x = mean + z @ loadings + e,    z ~ N(0, I),    e ~ N(0, diag(noise))

so that x ~ N(mean, loadings' loadings + diag(noise)). Densities, posteriors and
conditional means are exact, and computed from L x L matrices (Woodbury's identity),
never from the D x D covariance. All arithmetic is in float64.

References
----------
.. [1] Tipping and Bishop (1999), "Probabilistic principal component analysis", Journal
   of the Royal Statistical Society B 61: one noise for all columns, in closed form.
.. [2] Barber (2012), "Bayesian Reasoning and Machine Learning", chapter 21: the best
   loadings for a given noise, by a singular value decomposition.
.. [3] Jöreskog (1967), "Some contributions to maximum likelihood factor analysis",
   Psychometrika 32: the likelihood as a function of the noise alone, its gradient.
.. [4] Ghahramani and Jordan (1994), "Supervised learning from incomplete data via an EM
   approach", NIPS 6; Ghahramani and Hinton (1996), "The EM algorithm for mixtures of
   factor analyzers", CRG-TR-96-1: EM with missing entries, and for factor analysis.
.. [5] Liu, Rubin and Wu (1998), "Parameter expansion to accelerate EM", Biometrika 85.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.optimize import Bounds, minimize
from sklearn.utils.extmath import randomized_svd

from .noise import hash_rows

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Rows: TypeAlias = NDArray[np.intp]

#: Above this number of columns, decompositions are randomised instead of exact.
MAX_EXACT_COLUMNS = 2000
_BLOCK_SIZE = 2**20  # numbers in each array of a block of rows: 8 MB


class _Block(NamedTuple):
    """Posterior of B rows, in which P runs of rows miss the same entries."""

    rows: Rows  # (B,), indices into X
    run: Rows  # (B,), the run of each row, ascending
    seen: Array  # (P, D), 1 where the rows of a run are observed, else 0
    residual: Array  # (B, D), x - mean, 0 where missing
    means: Array  # (B, L)
    covariance: Array  # (P, L, L)
    log_likelihood: Array  # (B,)


@dataclass(frozen=True, eq=False)
class FactorAnalysis:
    """A fitted factor analysis: ``x = mean + z @ loadings + e``.

    Parameters
    ----------
    mean : ndarray of shape (D,)
    loadings : ndarray of shape (L, D)
        :meth:`fit` returns them in the canonical basis: ``loadings / noise @
        loadings.T`` is diagonal and descending, and the entry of largest absolute value
        in each row is positive. There the posterior of z given a complete row has a
        diagonal covariance.
    noise : ndarray of shape (D,)
        Variances, greater than 0, in squared units of the columns.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.linear import FactorAnalysis
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 1)) * [1.0, 2.0, -1.0] + rng.normal(size=(500, 3)) / 9
    >>> model = FactorAnalysis.fit(X, n_components=1)
    >>> model.loadings.round(1)
    array([[ 1.,  2., -1.]])
    >>> row = np.array([[1.0, np.nan, -1.0]])
    >>> model.fill(row, ~np.isnan(row)).round(1)
    array([[ 1.,  2., -1.]])
    """

    mean: Array
    loadings: Array
    noise: Array

    @classmethod
    def fit(
        cls,
        X: ArrayLike,
        n_components: int,
        *,
        sample_weight: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        noise: Literal["feature", "shared"] = "feature",
        min_noise: float = 1e-4,
        tol: float = 1e-5,
        max_iter: int = 1000,
    ) -> "FactorAnalysis":
        """Maximise the likelihood of the observed entries.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Finite where observed. Missing entries may hold anything.
        n_components : int
            L, at least 1. Factors that the data do not support get zero loadings.
        sample_weight : array-like of shape (N,), optional
            Non-negative. Integer weights equal repeated rows, rows of weight 0 are
            ignored, and only the ratios of the weights matter.
        observed : array-like of bool, shape (N, D), optional
            False where an entry is missing. A row with no observed entry is ignored. A
            column with none gets mean 0, zero loadings and noise 1 (or the shared
            noise), so that an imputer fills it with 0.
        noise : {"feature", "shared"}, default="feature"
            One variance per column (factor analysis) or one for all columns
            (probabilistic principal component analysis).
        min_noise : float, default=1e-4
            Lower bound of the noise, relative to the variance of the column (if shared,
            to the mean variance of the columns). Without a bound the likelihood has no
            maximum where columns determine each other. The variance of a column that is
            constant up to rounding counts as 1: its noise is ``min_noise`` and its
            loadings are 0.
        tol : float, default=1e-5
            Stop when an iteration increases the mean log-likelihood per row, in nats,
            by less than ``tol`` times its absolute value (or times 1 if that is more).
        max_iter : int, default=1000
            Maximum number of iterations of L-BFGS, and of EM. Neither decreases the
            likelihood, so the last parameters are returned without a warning.

        Returns
        -------
        FactorAnalysis
            The result is deterministic and uses no global random state.

        Notes
        -----
        Let S be the covariance of X, with the sum of weights as the divisor. For given
        noise psi, the best loadings have rows sqrt(l_i - 1) v_i psi^1/2, where l_i > 1
        are the largest eigenvalues of psi^-1/2 S psi^-1/2 and v_i its eigenvectors
        [2]_. For complete data the likelihood is then a function of psi alone, which
        L-BFGS maximises over log(psi) with the gradient of [3]_; shared noise has a
        closed form [1]_. With missing entries, the same is done with the column means
        in their place, and EM starts from there: the E-step solves one L x L system per
        pattern of missing entries, the M-step regresses each column on z over the rows
        that have it [4]_, and a change of basis of z accelerates it [5]_. An iteration
        of EM costs O(N L^2 (D + L)), less where rows share a pattern. Above 2,000
        columns the decomposition is a randomised one with a fixed seed, and no D x D
        matrix is formed.
        """
        X, mask = _check(X, observed)
        weights = np.ones(len(X))
        if sample_weight is not None:
            weights = np.array(sample_weight, dtype=np.float64)
        if weights.shape != (len(X),):
            raise ValueError(
                f"sample_weight has shape {weights.shape}; expected ({len(X)},)."
            )
        wrong = weights[~((weights >= 0) & (weights < np.inf))]
        if len(wrong):
            raise ValueError(
                f"sample_weight contains {wrong[0]}; pass finite numbers >= 0."
            )
        valid = n_components >= 1 and 0 < min_noise < 1
        if not valid or noise not in ("feature", "shared"):
            raise ValueError(
                f"n_components={n_components}, min_noise={min_noise}, noise={noise!r}; "
                "pass n_components of at least 1, min_noise between 0 and 1, and noise "
                '"feature" or "shared".'
            )
        kept = weights > 0 if mask is None else (weights > 0) & mask.any(axis=1)
        if not kept.any():
            raise ValueError(
                f"X has {len(X)} rows, none with a positive weight and an observed "
                "entry; pass at least one such row."
            )
        if not kept.all():
            X, weights = X[kept], weights[kept]
            mask = None if mask is None else mask[kept]
        mask = None if mask is None or mask.all() else mask
        weights /= weights.sum()

        mean, variance, present = _moments(X, mask, weights)
        eps = np.finfo(X.dtype if X.dtype.kind == "f" else np.float64).eps
        varying = np.sqrt(variance) > 10 * eps * np.abs(mean)
        shared = noise == "shared"
        learned = present if shared else varying
        if shared:
            variance[:] = variance[present].mean() if varying.any() else 1.0
        else:
            variance[~varying] = 1.0
        floor = min_noise * variance
        psi = np.where(present | shared, floor, 1.0)
        loadings = np.zeros((n_components, X.shape[1]))
        if not varying.any():
            return cls(mean, loadings, psi)

        scale = np.sqrt(variance)
        root, diagonal = _root(X, mask, weights, mean, scale, learned)
        if shared:
            level, found = _solve_shared(root, diagonal, n_components, min_noise)
            psi = level * variance
        else:
            ratio, found = _solve_feature(
                root, diagonal, n_components, min_noise, tol, max_iter
            )
            # Missing entries count as the mean here, and make the variance smaller.
            psi[learned] = np.maximum(ratio * variance[learned], floor[learned])
        loadings[: len(found), learned] = found * scale[learned]
        model = cls(mean, loadings, psi)
        if mask is not None:
            order, previous = _sort_by_pattern(mask), -np.inf
            for _ in range(max_iter):
                update, value = _em_step(
                    model, X, mask, order, weights, learned, floor, shared
                )
                if value - previous < tol * max(abs(value), 1.0):
                    break
                model, previous = update, value
        return cls(model.mean, _canonical(model.loadings, model.noise), model.noise)

    def log_likelihood(self, X: ArrayLike, observed: ArrayLike | None = None) -> Array:
        """Log-density of the observed entries of each row, in nats, shape (N,).

        It is 0 for a row with no observed entry.
        """
        X, mask = _check(X, observed, len(self.mean))
        result = np.empty(len(X))
        for block in self._blocks(X, mask):
            result[block.rows] = block.log_likelihood
        return result

    def posterior(
        self, X: ArrayLike, observed: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Mean and variances of z given the observed entries of each row.

        Returns
        -------
        means : ndarray of shape (N, L)
        variances : ndarray of shape (L,), or (N, L) if ``observed`` is given
            Diagonal of (I + loadings_o noise_o^-1 loadings_o')^-1, the covariance of z
            given the observed columns o. In the canonical basis its other entries are 0
            if the row is complete.
        """
        X, mask = _check(X, observed, len(self.mean))
        means = np.empty((len(X), len(self.loadings)))
        variances = np.empty_like(means)
        for block in self._blocks(X, mask):
            means[block.rows] = block.means
            diagonal = np.diagonal(block.covariance, axis1=1, axis2=2)
            variances[block.rows] = diagonal[block.run]
        return means, np.exp(self.encoder()[2]) if mask is None else variances

    def fill(self, X: ArrayLike, observed: ArrayLike) -> NDArray[Any]:
        """Copy of X, each missing entry replaced by its mean given the rest of the row.

        E[x_m | x_o] = mean_m + E[z | x_o] @ loadings_m, where m are the missing and o
        the observed columns. Observed entries are not changed. The result has the dtype
        of X if that is a float, else float64.
        """
        X, mask = _check(X, observed, len(self.mean))
        filled = np.array(X, dtype=X.dtype if X.dtype.kind == "f" else np.float64)
        for block in self._blocks(X, mask):
            expected = self.mean + block.means @ self.loadings
            seen = block.seen[block.run] > 0
            filled[block.rows] = np.where(seen, filled[block.rows], expected)
        return filled

    def encoder(self) -> tuple[Array, Array, Array]:
        """Posterior of z given a complete row, as an affine map of the row.

        Returns
        -------
        weight : ndarray of shape (L, D)
            E = M^-1 loadings noise^-1, where M = I + loadings noise^-1 loadings'.
        bias : ndarray of shape (L,)
            -E mean, so that E[z | x] = E x + bias.
        log_variance : ndarray of shape (L,)
            Log of the diagonal of the posterior covariance M^-1.
        """
        scaled = self.loadings / self.noise
        covariance = np.linalg.inv(np.eye(len(scaled)) + scaled @ self.loadings.T)
        weight = covariance @ scaled
        return weight, -weight @ self.mean, np.log(np.diagonal(covariance))

    def decoder(self) -> tuple[Array, Array]:
        """Weight (D, L) and bias (D,) of E[x | z] = weight z + bias."""
        return self.loadings.T.copy(), self.mean.copy()

    def covariance(self) -> Array:
        """Covariance of the rows (D, D), for a small number of columns."""
        return self.loadings.T @ self.loadings + np.diag(self.noise)

    def _blocks(
        self, X: NDArray[Any], mask: Mask | None, order: Rows | None = None
    ) -> Iterator[_Block]:
        """Posterior of z for blocks of rows, with one L x L inverse per run."""
        if mask is not None and order is None:
            order = _sort_by_pattern(mask)
        n_factors, n_columns = self.loadings.shape
        scaled = self.loadings / self.noise
        products = np.einsum("ld,kd->dlk", scaled, self.loadings).reshape(n_columns, -1)
        log_noise = np.log(2 * np.pi * self.noise)
        width = (n_factors + 1) ** 2
        for rows, residual in _residuals(X, mask, self.mean, order, width):
            if mask is None:
                seen, run = np.ones((1, n_columns)), np.zeros(len(rows), dtype=np.intp)
            else:
                observed = mask[rows]
                first = np.ones(len(rows), dtype=bool)
                first[1:] = (observed[1:] != observed[:-1]).any(axis=1)
                seen, run = observed[first].astype(np.float64), np.cumsum(first) - 1
            precision = (seen @ products).reshape(-1, n_factors, n_factors)
            precision += np.eye(n_factors)
            covariance = np.linalg.inv(precision)
            means = residual @ scaled.T
            if len(covariance) == 1:
                means = means @ covariance[0]
            else:
                means = (means[:, None] @ covariance[run])[:, 0]
            # r' Sigma^-1 r is the minimum over z of |r - z W|^2 / noise + |z|^2: no
            # difference of large numbers, and rounding of z has no first-order effect.
            error = residual - means @ self.loadings
            if mask is not None:
                error[~observed] = 0.0
            distance = error**2 @ (1 / self.noise) + (means**2).sum(axis=1)
            log_det = seen @ log_noise + np.linalg.slogdet(precision)[1]
            log_likelihood = -(distance + log_det[run]) / 2
            yield _Block(rows, run, seen, residual, means, covariance, log_likelihood)


def _solve_feature(
    root: Array,
    diagonal: Array,
    n_components: int,
    min_noise: float,
    tol: float,
    max_iter: int,
) -> tuple[Array, Array]:
    """Noise (D,) by L-BFGS over its log, and the best loadings for it."""

    def loss(log_noise: Array) -> tuple[float, Array]:
        """Minus the log-likelihood per row, without its constant, and its gradient."""
        values, vectors = _leading(root / np.exp(log_noise / 2), n_components)
        excess, ratio = np.maximum(values - 1, 0), diagonal / np.exp(log_noise)
        value = log_noise.sum() + ratio.sum() + (np.log1p(excess) - excess).sum()
        return value / 2, (1 + excess @ vectors**2 - ratio) / 2

    upper = np.log(diagonal)
    result = minimize(
        loss,
        upper,
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(upper + np.log(min_noise), upper),
        options={"maxiter": max_iter, "ftol": tol, "gtol": 1e-7},
    )
    noise = np.exp(result.x)
    values, vectors = _leading(root / np.sqrt(noise), n_components)
    gain = np.sqrt(np.maximum(values - 1, 0))
    return noise, gain[:, None] * vectors * np.sqrt(noise)


def _solve_shared(
    root: Array, diagonal: Array, n_components: int, min_noise: float
) -> tuple[float, Array]:
    """Noise and loadings: the noise is the mean of the eigenvalues left out."""
    values, vectors = _leading(root, n_components)
    rest = diagonal.sum() - values.sum()
    noise = max(rest / max(len(diagonal) - n_components, 1), min_noise)
    return noise, np.sqrt(np.maximum(values - noise, 0))[:, None] * vectors


def _leading(root: Array, n_components: int) -> tuple[Array, Array]:
    """Largest eigenvalues of root' root, descending, and their vectors as rows."""
    n_rows, n_columns = root.shape
    n_kept = min(n_components, n_rows, n_columns)
    if n_columns > MAX_EXACT_COLUMNS:
        _, singular, vectors = randomized_svd(root, n_kept, n_iter=7, random_state=0)
        return singular**2, vectors
    values, left = eigh(root @ root.T, subset_by_index=(n_rows - n_kept, n_rows - 1))
    values, left = values[::-1], left[:, ::-1]
    # The bound concerns only vectors of eigenvalues near 0, which get no loadings.
    return values, left.T @ root / np.sqrt(np.maximum(values, 1e-12))[:, None]


def _root(
    X: NDArray[Any],
    mask: Mask | None,
    weights: Array,
    mean: Array,
    scale: Array,
    columns: Mask,
) -> tuple[Array, Array]:
    """R such that R' R is the covariance of the scaled columns, and its diagonal.

    Missing entries count as the mean.
    """
    n_rows, n_columns = len(X), int(columns.sum())
    exact = n_columns <= min(n_rows, MAX_EXACT_COLUMNS)
    result = np.zeros((n_columns if exact else n_rows, n_columns))
    for rows, residual in _residuals(X, mask, mean):
        residual = (residual / scale * np.sqrt(weights[rows])[:, None])[:, columns]
        if exact:
            result += residual.T @ residual
        else:
            result[rows] = residual
    if not exact:
        return result, (result**2).sum(axis=0)
    values, vectors = eigh(result)
    kept = values > n_columns * np.finfo(np.float64).eps * values[-1]
    return np.sqrt(values[kept])[:, None] * vectors.T[kept], np.diagonal(result).copy()


def _em_step(
    model: FactorAnalysis,
    X: NDArray[Any],
    mask: Mask,
    order: Rows,
    weights: Array,
    learned: Mask,
    floor: Array,
    shared: bool,
) -> tuple[FactorAnalysis, float]:
    """The next parameters, and the mean log-likelihood per row of the given ones."""
    n_factors, n_columns = model.loadings.shape
    # Per column, over the rows that have it: weighted sums of u u', x u and x^2, where
    # u = (z, 1) and x is relative to the mean; and of u u' over all rows.
    uu, ux = np.zeros((n_columns, (n_factors + 1) ** 2)), np.zeros((n_columns, 1))
    xx, uu_all, value = np.zeros(n_columns), np.zeros((1, 1)), 0.0
    for block in model._blocks(X, mask, order):
        w = weights[block.rows]
        u = np.c_[block.means, np.ones(len(w))]
        wu = w[:, None] * u
        starts = np.flatnonzero(np.diff(block.run, prepend=-1))
        sums = np.add.reduceat(wu[:, :, None] * u[:, None], starts)
        sums[:, :-1, :-1] += sums[:, -1:, -1:] * block.covariance
        uu += block.seen.T @ sums.reshape(len(sums), -1)
        ux = ux + block.residual.T @ wu
        xx += w @ block.residual**2
        uu_all = uu_all + sums.sum(axis=0)
        value += float(w @ block.log_likelihood)
    uu = uu.reshape(n_columns, n_factors + 1, n_factors + 1)
    slopes = np.zeros_like(ux)
    slopes[learned] = np.linalg.solve(uu[learned], ux[learned][:, :, None])[:, :, 0]
    rest, share = xx - (ux * slopes).sum(axis=1), uu[:, -1, -1]
    noise = model.noise.copy()
    if shared:
        noise[:] = rest.sum() / share.sum()
    else:
        noise[learned] = rest[learned] / share[learned]
    # Parameter expansion: let z ~ N(center, spread), then change its basis to N(0, I).
    center = uu_all[-1, :-1]
    spread = uu_all[:-1, :-1] - np.outer(center, center)
    loadings = slopes[:, :-1].T
    mean = model.mean + slopes[:, -1] + center @ loadings
    loadings = np.linalg.cholesky(spread).T @ loadings
    return FactorAnalysis(mean, loadings, np.maximum(noise, floor)), value


def _canonical(loadings: Array, noise: Array) -> Array:
    """The basis of z that makes loadings noise^-1 loadings' diagonal and descending."""
    _, singular, vectors = np.linalg.svd(loadings / np.sqrt(noise), full_matrices=False)
    result = np.zeros_like(loadings)
    result[: len(singular)] = singular[:, None] * vectors * np.sqrt(noise)
    largest = np.abs(result).argmax(axis=1)[:, None]
    return result * np.where(np.take_along_axis(result, largest, axis=1) < 0, -1.0, 1.0)


def _sort_by_pattern(mask: Mask) -> Rows:
    """An order of the rows in which rows that miss the same entries are neighbours."""
    return hash_rows(np.packbits(mask, axis=1)).argsort(kind="stable")


def _moments(
    X: NDArray[Any], mask: Mask | None, weights: Array
) -> tuple[Array, Array, Mask]:
    """Mean and variance of the observed entries of each column, and if it has any."""
    share = np.ones(X.shape[1]) if mask is None else weights @ mask
    present, divisor = share > 0, np.where(share > 0, share, 1.0)
    mean, variance = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for rows, block in _residuals(X, mask, np.zeros(X.shape[1])):
        mean += weights[rows] @ block / divisor
    for rows, block in _residuals(X, mask, mean):
        variance += weights[rows] @ block**2 / divisor
    return mean, variance, present


def _residuals(
    X: NDArray[Any],
    mask: Mask | None,
    mean: Array,
    order: Rows | None = None,
    width: int = 1,
) -> Iterator[tuple[Rows, Array]]:
    """Blocks of rows, as indices into X and X - mean, which is 0 where missing.

    A block is small enough for ``width`` numbers per row as well.
    """
    order = np.arange(len(X)) if order is None else order
    step = max(1, _BLOCK_SIZE // max(X.shape[1], width))
    for begin in range(0, len(X), step):
        rows = order[begin : begin + step]
        residual = X[rows] - mean
        if mask is not None:
            residual[~mask[rows]] = 0.0
        yield rows, residual


def _check(
    X: ArrayLike, observed: ArrayLike | None, n_columns: int | None = None
) -> tuple[NDArray[Any], Mask | None]:
    """X and the mask as arrays, X finite where observed."""
    X = np.asarray(X)
    if X.dtype.kind not in "fiub":
        X = X.astype(np.float64)
    if X.ndim != 2 or X.shape[1] != (n_columns or X.shape[1]):
        raise ValueError(f"X has shape {X.shape}; expected (N, {n_columns or 'D'}).")
    bad, mask = ~np.isfinite(X), None
    if observed is not None:
        mask = np.asarray(observed)
        if mask.dtype != np.bool_ or mask.shape != X.shape:
            raise ValueError(
                f"observed has dtype {mask.dtype} and shape {mask.shape}; pass "
                f"booleans of the shape of X, {X.shape}."
            )
        bad &= mask
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"X[{row}, {column}] is {X[row, column]}, not finite, one of "
            f"{bad.sum()} such entries; pass observed with False where X is missing."
        )
    return X, mask
