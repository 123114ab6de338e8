"""Scorers of fitted estimators, for searches and cross-validation."""

from typing import Any

import numpy as np

from ._compat import EstimatorScorer
from .answers import unwrap


def _neg_elbo(
    estimator: Any, X: Any, y: Any = None, *, sample_weight: Any = None
) -> float:
    if sample_weight is None:
        return estimator.score(X, y)
    return estimator.score(X, y, sample_weight=sample_weight)


def _log_likelihood(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    n_importance_samples: Any,
) -> Any:
    vae, X = unwrap(estimator, X)
    rows = vae.log_likelihood(X, n_importance_samples, y=y)
    return float(np.average(rows.astype(np.float64), weights=sample_weight))


_neg_elbo.__name__ = "neg_elbo_scorer"
_log_likelihood.__name__ = "log_likelihood_scorer"

neg_elbo_scorer = EstimatorScorer(_neg_elbo)
neg_elbo_scorer.__doc__ = """Score by the ELBO, minus the negative ELBO: greater wins.

A scorer ``(estimator, X, y=None, *, sample_weight=None) -> float`` for ``scoring=``.

The score is the mean evidence lower bound in nats per row of a fitted VAEEstimator, or
of a Pipeline that ends in one. Within a Pipeline the density is that of the transformed
data: compare candidates of one preprocessing only.

Examples
--------
>>> from sklearn.datasets import load_digits
>>> from sklearn.model_selection import GridSearchCV
>>> from skvae import VAEEstimator, neg_elbo_scorer
>>> X = load_digits().data / 16
>>> search = GridSearchCV(
...     VAEEstimator(hidden_dim=32, random_state=0),
...     {"epochs": [2, 20]}, scoring=neg_elbo_scorer, cv=2)
>>> search.fit(X).best_params_
{'epochs': 20}
"""


def log_likelihood_scorer(n_importance_samples: Any = 100) -> Any:
    """Make a scorer of the importance-weighted log-likelihood.

    Parameters
    ----------
    n_importance_samples : int, default=100
        Draws per row. More of them tighten the bound and take longer.

    Returns
    -------
    scorer : callable(estimator, X, y=None, *, sample_weight=None) -> float
        Mean estimate of log p(x) in nats per row; greater is better.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEstimator, log_likelihood_scorer
    >>> X = load_digits().data / 16
    >>> vae = VAEEstimator(hidden_dim=32, epochs=2, random_state=0).fit(X)
    >>> log_likelihood_scorer(50)(vae, X[:100]) > vae.score(X[:100])
    True
    """
    return EstimatorScorer(_log_likelihood, n_importance_samples=n_importance_samples)
