"""Numbers about fitted estimators."""

from typing import Any

import numpy as np

from .estimator import unwrap


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
    vae, X = unwrap(estimator, X)
    reconstruction, kl = vae._by_blocks(X, None, vae._fitted.elbo_parts)
    return {"reconstruction": reconstruction, "kl": kl, "total": reconstruction + kl}
