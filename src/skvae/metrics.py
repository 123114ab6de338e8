"""Numbers about fitted estimators."""

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline


def elbo_parts(estimator: Any, X: Any) -> dict[str, np.ndarray]:
    r"""Split the evidence lower bound of each row into its two parts.

    .. math:: -\mathrm{ELBO}(x) = \underbrace{-\mathbb E_q \log p(x|z)}_{
        \text{reconstruction}} + \underbrace{\mathrm{KL}(q(z|x) \| p(z))}_{\text{kl}}

    Parameters
    ----------
    estimator : VAEEstimator or Pipeline
        Fitted estimator, or a fitted Pipeline that ends in one.
    X : array-like of shape (n_samples, n_features)

    Returns
    -------
    parts : dict of ndarray, each of shape (n_samples,)
        "reconstruction", "kl" and "total", in nats per row. The total is minus
        ``estimator.score_samples(X)``.

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
    if isinstance(estimator, Pipeline):
        X = estimator[:-1].transform(X)
        estimator = estimator[-1]
    reconstruction, kl = estimator._elbo_parts(X)
    return {"reconstruction": reconstruction, "kl": kl, "total": reconstruction + kl}
