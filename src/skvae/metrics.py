"""Metrics of fitted estimators, and of codes and the factors behind the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ._compat import num_samples, safe_indexing
from .answers import unwrap
from .checks import refuse_missing, warn
from .disentanglement import (
    disentanglement_completeness_informativeness,
    knn_accuracy,
    mutual_information_gap,
    separated_attribute_predictability,
)
from .estimator import VAEEstimator
from .fitted import FittedVAE
from .forms import Column

__all__ = [
    "active_units",
    "aggregate_posterior_kl",
    "disentanglement_completeness_informativeness",
    "elbo_parts",
    "knn_accuracy",
    "log_likelihood",
    "mutual_information",
    "mutual_information_gap",
    "reconstruction_error",
    "separated_attribute_predictability",
]

ERRORS = {"squared": np.square, "absolute": np.abs}
# Dates are columns of microseconds, and their errors count in days.
MICROSECONDS_PER_DAY = 24 * 3600 * 10**6


# --------------------------------------------------------------- fitted estimators


def _checked(estimator: VAEEstimator | Pipeline, X: Any) -> tuple[FittedVAE, Any]:
    """The fitted VAE at the end of an estimator, and X as it gets there, checked."""
    vae, X = unwrap(estimator, X)
    check_is_fitted(vae)
    return vae.fitted_, vae.fitted_.form.check(vae, X)


def elbo_parts(
    estimator: VAEEstimator | Pipeline, X: Any, y: Any = None
) -> dict[str, np.ndarray]:
    r"""Split the evidence lower bound of each row into its two parts.

    .. math:: -\mathrm{ELBO}(x) = \underbrace{-\mathbb E_q \log p(x|z)}_{
        \text{reconstruction}} + \underbrace{\mathrm{KL}(q(z|x) \| p(z))}_{\text{kl}}

    Parameters
    ----------
    estimator : VAEEstimator or Pipeline
        Fitted estimator, or a fitted Pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
    y : array-like of shape (n_samples,) or None
        Class labels, for a conditional estimator.

    Returns
    -------
    parts : dict of ndarray, each of shape (n_samples,)
        "reconstruction", "kl" and "total", in nats per row. The total is minus
        ``estimator.score_samples(X)``.

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes".

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.metrics import elbo_parts
    >>> X = load_digits().data
    >>> vae = VAEEstimator(hidden_dim=32, epochs=5, random_state=0).fit(X)
    >>> parts = elbo_parts(vae, X[:5])
    >>> parts["total"] == parts["reconstruction"] + parts["kl"]
    array([ True,  True,  True,  True,  True])
    """
    fitted, rows = _checked(estimator, X)
    reconstruction, kl = fitted.elbo_parts(rows, y)
    return {"reconstruction": reconstruction, "kl": kl, "total": reconstruction + kl}


def log_likelihood(
    estimator: VAEEstimator | Pipeline,
    X: Any,
    n_importance_samples: int = 100,
    y: Any = None,
) -> np.ndarray:
    r"""Estimate log p(x) of each row by importance sampling from the encoder.

    .. math:: \log \frac1K \sum_k \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)},
        \quad z_k \sim q(z|x)

    The estimator's own method, for Pipelines, too: there the density is that of the
    transformed data.

    Parameters
    ----------
    estimator : VAEEstimator or Pipeline
        Fitted estimator, or a fitted Pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
    n_importance_samples : int, default=100
        K. Time grows with it, memory does not.
    y : array-like of shape (n_samples,) or None
        Class labels, for a conditional estimator: the density is then p(x|y). Without
        them it is that of x alone, with the classes as frequent as in training.

    Returns
    -------
    log_likelihood : ndarray of float32, shape (n_samples,)
        In nats per row.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016), "Importance Weighted Autoencoders".

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.metrics import log_likelihood
    >>> X = load_digits().data
    >>> vae = VAEEstimator(hidden_dim=32, epochs=5, random_state=0).fit(X)
    >>> bool(log_likelihood(vae, X).mean() > vae.score(X))
    True
    """
    vae, X = unwrap(estimator, X)
    return vae.log_likelihood(X, n_importance_samples, y=y)


def reconstruction_error(
    estimator: VAEEstimator | Pipeline,
    X: Any,
    metric: str = "squared",
    y: Any = None,
) -> np.ndarray:
    r"""How far each row is from its reconstruction.

    .. math:: \sum_d (x_d - \hat x_d)^2 \quad\text{or}\quad
        \sum_d |x_d - \hat x_d|

    where :math:`\hat x` is what ``estimator.reconstruct(X)`` gives.

    In a data frame of several kinds of columns, a category or a boolean counts 0 where
    it is reconstructed and 1 where it is not, numbers count as they are, and dates in
    days. Nothing is divided by the spread of a column: a column of large numbers
    outweighs all others, unless it was scaled before.

    Parameters
    ----------
    estimator : VAEEstimator or Pipeline
        Fitted estimator, or a fitted Pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
        Values outside the likelihood's support count as the nearest within, with one
        warning.
    metric : {"squared", "absolute"}, default="squared"
    y : array-like of shape (n_samples,) or None
        Class labels, for a conditional estimator.

    Returns
    -------
    error : ndarray of float64, shape (n_samples,)
        Summed over the columns of X, in their units or the squares of these; in a
        Pipeline, of X as it reaches the estimator.

    References
    ----------
    An and Cho (2015), "Variational autoencoder based anomaly detection using
    reconstruction probability".

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.metrics import reconstruction_error
    >>> X = load_digits().data
    >>> vae = VAEEstimator(hidden_dim=32, epochs=5, random_state=0).fit(X)
    >>> reconstruction_error(vae, X, metric="absolute").shape
    (1797,)
    """
    if metric not in ERRORS:
        raise ValueError(f"metric={metric!r} must be one of {list(ERRORS)}.")
    fitted, X = _checked(estimator, X)
    form, likelihood = fitted.form, fitted.choices.likelihood
    condition = fitted.labels.encode(y, num_samples(X))
    error = np.empty(num_samples(X))
    step, moved = fitted.block_rows(), False
    for start in range(0, len(error), step):
        block = slice(start, start + step)
        rows = safe_indexing(X, block)
        x, observed = form.batch(rows)
        refuse_missing(observed, form.names)
        if not likelihood.contains(x).all():
            x, moved = likelihood.nearest(x), True
            rows = form.decode(x)
        given = None if condition is None else condition[block]
        reconstructed = form.decode(fitted.decode(fitted.encode(rows), given))
        # Columns of what the user gets: categories decided, integers rounded.
        decoded, _ = form.batch(reconstructed)
        error[block] = ERRORS[metric](_differences(x, decoded, form.columns)).sum(1)
    if moved:
        warn(
            f"X has values outside the support {likelihood.support} of {likelihood!r}; "
            "the nearest values within were compared with their reconstructions."
        )
    return error


def _differences(
    x: np.ndarray, decoded: np.ndarray, columns: Sequence[Column]
) -> np.ndarray:
    """Differences (n, n_columns) in float64, in the units of each kind of column."""
    difference = x.astype(np.float64) - decoded
    for i, column in enumerate(columns):
        if column.kind in ("category", "boolean"):
            difference[:, i] = difference[:, i] != 0
        elif column.kind == "date":
            difference[:, i] /= MICROSECONDS_PER_DAY
    return difference


def active_units(
    estimator: VAEEstimator | Pipeline, X: Any, threshold: float = 0.01
) -> np.ndarray:
    r"""Which latent dimensions the encoder uses.

    .. math:: \mathrm{Var}_x \big(\mathbb E_{q(z|x)} z_l\big) > \text{threshold}

    Parameters
    ----------
    estimator : VAEEstimator or Pipeline
        Fitted estimator, or a fitted Pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)
    threshold : float, default=0.01
        Variance above which a dimension counts as active. A standard normal prior has
        the variance 1.

    Returns
    -------
    active : ndarray of bool, shape (latent_dim,)
        Their number is ``active.sum()``.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016), "Importance Weighted Autoencoders",
    section 5.

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.metrics import active_units
    >>> X = load_digits().data
    >>> vae = VAEEstimator(4, hidden_dim=64, epochs=20, random_state=0).fit(X)
    >>> active_units(vae, X)
    array([ True,  True,  True,  True])
    """
    fitted, rows = _checked(estimator, X)
    return fitted.encode(rows).var(axis=0, dtype=np.float64) > threshold


def mutual_information(estimator: VAEEstimator | Pipeline, X: Any) -> float:
    r"""Information that a code holds about the row it came from.

    .. math:: I_q(x; z) = \frac1N \sum_i \mathbb E_{q(z|x_i)}
        \left[\log q(z|x_i) - \log q(z)\right], \qquad
        q(z) = \frac1N \sum_j q(z|x_j)

    The expectation is taken over four draws of z per row that depend on the row's
    values alone; q(z) is summed over all rows. The time grows with the square of their
    number, the memory does not.

    Parameters
    ----------
    estimator : VAEEstimator or Pipeline
        Fitted estimator whose q(z|x) is a diagonal Gaussian, or a fitted Pipeline that
        ends in one.
    X : array-like of shape (n_samples, n_features)

    Returns
    -------
    information : float
        In nats; at most log(n_samples), which it reaches where no two posteriors
        overlap.

    See Also
    --------
    aggregate_posterior_kl : What is left of the mean KL term.

    References
    ----------
    Hoffman and Johnson (2016), "ELBO surgery: yet another way to carve up the
    variational evidence lower bound".

    Examples
    --------
    >>> from math import log
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.metrics import mutual_information
    >>> X = load_digits().data
    >>> vae = VAEEstimator(4, hidden_dim=64, epochs=20, random_state=0).fit(X)
    >>> 1 < mutual_information(vae, X) < log(len(X))
    True
    """
    log_posterior, log_aggregate, _ = _densities(estimator, X)
    return float(np.mean(log_posterior - log_aggregate))


def aggregate_posterior_kl(estimator: VAEEstimator | Pipeline, X: Any) -> float:
    r"""Divergence of the aggregate posterior from the prior.

    .. math:: \mathrm{KL}(q(z) \| p(z)), \qquad q(z) = \frac1N \sum_j q(z|x_j)

    The mean KL term of the rows is this plus :func:`mutual_information`: with a large
    part here, draws from the prior are unlike the codes of the data, and ``sample``
    suffers. The same draws serve both.

    Parameters
    ----------
    estimator : VAEEstimator or Pipeline
        Fitted estimator whose q(z|x) is a diagonal Gaussian, or a fitted Pipeline that
        ends in one.
    X : array-like of shape (n_samples, n_features)

    Returns
    -------
    kl : float
        In nats. An estimate, which can fall below 0 where the two are close.

    References
    ----------
    Hoffman and Johnson (2016), "ELBO surgery: yet another way to carve up the
    variational evidence lower bound".

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.metrics import aggregate_posterior_kl, mutual_information
    >>> X = load_digits().data
    >>> vae = VAEEstimator(4, hidden_dim=64, epochs=20, random_state=0).fit(X)
    >>> aggregate_posterior_kl(vae, X) < mutual_information(vae, X)
    True
    """
    _, log_aggregate, log_prior = _densities(estimator, X)
    return float(np.mean(log_aggregate - log_prior))


def _densities(estimator: VAEEstimator | Pipeline, X: Any) -> tuple[np.ndarray, ...]:
    """log q(z|x), log q(z) and log p(z) of draws from q(z|x), each (N, S), in nats."""
    fitted, rows = _checked(estimator, X)
    network = fitted.choices.network
    if network.posterior != "gaussian":
        raise ValueError(
            "this metric needs q(z|x) to be one diagonal Gaussian, but that of "
            f"network={network!r} is {network.posterior}; use an 'mlp' or 'conv' "
            "network, or elbo_parts(estimator, X)['kl']."
        )
    return fitted.posterior_densities(rows)
