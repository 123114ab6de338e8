"""Scorers for GridSearchCV and its kin."""

from functools import partial


def neg_elbo_scorer(estimator, X, y=None):
    """Score a fitted estimator by its ELBO: minus the negative ELBO, so greater wins.

    Parameters
    ----------
    estimator : VAEEstimator, or a Pipeline that ends in one
    X : array-like of shape (n_samples, n_features)
    y : Ignored

    Returns
    -------
    score : float
        Mean evidence lower bound in nats per row. Within a Pipeline the density is that
        of the transformed data: compare candidates of one preprocessing only.

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
    return estimator.score(X)


def log_likelihood_scorer(n_importance_samples=100):
    """Make a scorer of the importance-weighted log-likelihood.

    Parameters
    ----------
    n_importance_samples : int, default=100
        Draws per row. More of them tighten the bound and take longer.

    Returns
    -------
    scorer : callable(estimator, X, y=None) -> float
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
    return partial(_log_likelihood, n_importance_samples=n_importance_samples)


def _log_likelihood(estimator, X, y=None, *, n_importance_samples):
    if hasattr(estimator, "steps"):
        X = estimator[:-1].transform(X)
        estimator = estimator[-1]
    rows = estimator.log_likelihood(X, n_importance_samples)
    return float(rows.astype("float64").mean())
