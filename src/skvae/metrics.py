"""Numbers about fitted estimators, and about codes and the factors behind the data."""

from typing import Any

import numpy as np
from scipy.stats import entropy
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import balanced_accuracy_score, mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import check_array, check_consistent_length

from .checks import check_count, fresh_if_none
from .estimator import unwrap
from .spec import LOG_2_PI

ERRORS = {"squared": np.square, "absolute": np.abs}


# --------------------------------------------------------------- fitted estimators


def elbo_parts(estimator: Any, X: Any, y: Any = None) -> dict[str, np.ndarray]:
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
    vae, X = unwrap(estimator, X)
    reconstruction, kl = vae._by_blocks(X, y, vae._fitted.elbo_parts, stacklevel=3)
    return {"reconstruction": reconstruction, "kl": kl, "total": reconstruction + kl}


def log_likelihood(
    estimator: Any, X: Any, n_importance_samples: int = 100, y: Any = None
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
        Class labels, for a conditional estimator: the density is then p(x|y).

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
    return vae._log_likelihood(X, y, n_importance_samples)


def reconstruction_error(
    estimator: Any, X: Any, metric: str = "squared", y: Any = None
) -> np.ndarray:
    r"""How far each row is from its reconstruction.

    .. math:: \sum_d (x_d - \hat x_d)^2 \quad\text{or}\quad
        \sum_d |x_d - \hat x_d|

    where :math:`\hat x` is what ``estimator.reconstruct(X)`` gives.

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
        Summed over features, in the units of X or their squares; in a Pipeline, of X
        as it reaches the estimator.

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
    vae, X = unwrap(estimator, X)
    fitted = vae._fitted

    def error(block, condition):
        reconstructed = fitted.decode(fitted.encode(block), condition=condition)
        difference = block.astype(np.float64) - reconstructed
        return (ERRORS[metric](difference).sum(axis=1),)

    (rows,) = vae._by_blocks(X, y, error)
    return rows


def active_units(estimator: Any, X: Any, threshold: float = 0.01) -> np.ndarray:
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
    vae, X = unwrap(estimator, X)
    return vae.transform(X).var(axis=0, dtype=np.float64) > threshold


def mutual_information(estimator: Any, X: Any) -> float:
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


def aggregate_posterior_kl(estimator: Any, X: Any) -> float:
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


def _densities(estimator: Any, X: Any) -> tuple[np.ndarray, ...]:
    """log q(z|x), log q(z) and log p(z) of draws from q(z|x), each (N, S), in nats."""
    vae, X = unwrap(estimator, X)
    fitted = vae._fitted
    if vae.network_.posterior != "gaussian":
        raise ValueError(
            "this metric needs q(z|x) to be one diagonal Gaussian, but that of "
            f"network={vae.network_!r} is {vae.network_.posterior}; use an 'mlp' or "
            "'conv' network, or elbo_parts(estimator, X)['kl']."
        )
    parts = [fitted.draw_posterior(block) for block in vae._blocks(vae._checked(X))]
    mean, log_variance, z, log_prior = map(np.concatenate, zip(*parts, strict=True))
    posterior = _log_normal(
        z.astype(np.float64), mean[:, None], log_variance[:, None].astype(np.float64)
    )
    points = z.reshape(-1, z.shape[-1])
    log_aggregate = fitted.log_aggregate(points, mean, log_variance)
    return posterior, log_aggregate.reshape(z.shape[:2]), log_prior


def _log_normal(z, mean, log_variance) -> np.ndarray:
    """log-density of diagonal Gaussians, (..., L) to (...)."""
    square = (z - mean) ** 2 * np.exp(-log_variance)
    return -0.5 * (square + log_variance + LOG_2_PI).sum(axis=-1)


# --------------------------------------------------------------- codes and factors


def mutual_information_gap(codes: Any, factors: Any, n_bins: int = 20) -> float:
    r"""MIG: whether each factor is held by one latent dimension, and by no second.

    .. math:: \frac1F \sum_f \frac{1}{H(v_f)} \left(I(z_{(1)}; v_f)
        - I(z_{(2)}; v_f)\right)

    where :math:`z_{(1)}` and :math:`z_{(2)}` are the two latent dimensions that know
    most of the factor :math:`v_f`.

    Parameters
    ----------
    codes : array-like of shape (n_samples, latent_dim)
        As ``transform`` gives.
    factors : array-like of shape (n_samples, n_factors)
        What generated the rows. A column of whole numbers is a discrete factor; any
        other is cut into bins.
    n_bins : int, default=20
        Bins of equal width that each code is cut into.

    Returns
    -------
    gap : float
        From 0 to 1, the better.

    References
    ----------
    Chen et al. (2018), "Isolating sources of disentanglement in variational
    autoencoders"; the bins are those of Locatello et al. (2019), "Challenging common
    assumptions in the unsupervised learning of disentangled representations".

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import mutual_information_gap
    >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> mutual_information_gap(3.0 * factors, factors)
    1.0
    >>> mixed = factors @ [[1, 1], [1, -1]]
    >>> mutual_information_gap(mixed, factors)
    0.0
    """
    check_count("n_bins", n_bins, 2)
    codes, factors = _check_codes_and_factors(codes, factors)
    cut = [_cut(code, n_bins) for code in codes.T]
    gaps = []
    for factor in factors.T:
        labels = _cut(factor, n_bins) if _is_continuous(factor) else factor
        shared = [_mutual_information(code, labels) for code in cut]
        gaps.append(_gap(shared) / _mutual_information(labels, labels))
    return float(np.mean(gaps))


def separated_attribute_predictability(codes: Any, factors: Any) -> float:
    r"""SAP: by how much the best latent dimension predicts a factor better than others.

    .. math:: \frac1F \sum_f \left(S_{(1) f} - S_{(2) f}\right)

    where :math:`S_{lf}` is how well the latent dimension l alone predicts the factor f:
    the squared correlation with a continuous factor; for a discrete one the balanced
    accuracy of thresholds, one fewer than there are classes; and 0 for a dimension that
    is constant. The two largest of a factor are compared.

    Parameters
    ----------
    codes : array-like of shape (n_samples, latent_dim)
        As ``transform`` gives.
    factors : array-like of shape (n_samples, n_factors)
        What generated the rows. A column of whole numbers is a discrete factor, any
        other a continuous one.

    Returns
    -------
    gap : float
        The greater, the better: up to 1 for continuous factors, up to 1 - 1/C for a
        factor of C classes, since chance gives 1/C.

    References
    ----------
    Kumar, Sattigeri and Balakrishnan (2018), "Variational inference of disentangled
    latent concepts from unlabeled observations".

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import separated_attribute_predictability
    >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> separated_attribute_predictability(3.0 * factors, factors)
    0.5
    """
    codes, factors = _check_codes_and_factors(codes, factors)
    gaps = []
    for factor in factors.T:
        score = _squared_correlation if _is_continuous(factor) else _threshold_accuracy
        gaps.append(
            _gap([score(code, factor) if np.ptp(code) else 0.0 for code in codes.T])
        )
    return float(np.mean(gaps))


def disentanglement_completeness_informativeness(
    codes: Any, factors: Any, *, n_estimators: int = 100, random_state: Any = 0
) -> dict[str, float]:
    r"""DCI: three views of which latent dimension matters for which factor.

    A random forest predicts each factor from all codes; the importances are a matrix
    :math:`R_{lf}`. With the entropy H to the base of the number of its terms,

    .. math:: \text{disentanglement} = \sum_l \rho_l
        \left(1 - H(R_{l\cdot} / \textstyle\sum_f R_{lf})\right), \quad
        \rho_l \propto \sum_f R_{lf}, \qquad
        \text{completeness} = \frac1F \sum_f
        \left(1 - H(R_{\cdot f} / \textstyle\sum_l R_{lf})\right)

    Parameters
    ----------
    codes : array-like of shape (n_samples, latent_dim)
        As ``transform`` gives.
    factors : array-like of shape (n_samples, n_factors)
        What generated the rows. A column of whole numbers is a discrete factor, any
        other a continuous one.
    n_estimators : int, default=100
        Trees of each forest.
    random_state : int, RandomState instance or None, default=0
        Of the forests. None takes fresh entropy.

    Returns
    -------
    scores : dict of float
        "disentanglement" (does a latent dimension hold one factor only?) and
        "completeness" (is a factor held by one latent dimension only?), from 0 to 1;
        "informativeness" (can the factors be predicted at all?), the forests' accuracy
        or coefficient of determination for rows that a tree has not seen, at most 1.
        The paper reports the error of prediction instead.

    References
    ----------
    Eastwood and Williams (2018), "A framework for the quantitative evaluation of
    disentangled representations".

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.metrics import disentanglement_completeness_informativeness
    >>> factors = np.random.default_rng(0).integers(3, size=(300, 2))
    >>> disentanglement_completeness_informativeness(-factors, factors)
    {'disentanglement': 1.0, 'completeness': 1.0, 'informativeness': 1.0}
    """
    codes, factors = _check_codes_and_factors(codes, factors)
    random_state = fresh_if_none(random_state)
    columns, scores = [], []
    for factor in factors.T:
        forest = (
            RandomForestRegressor if _is_continuous(factor) else RandomForestClassifier
        )(
            n_estimators,
            # All codes at every split: else trees must make do with irrelevant ones.
            max_features=None,
            oob_score=True,
            random_state=random_state,
        ).fit(codes, factor)
        columns.append(forest.feature_importances_)
        scores.append(forest.oob_score_)
    importances = np.transpose(columns)
    weights = importances.sum(axis=1)
    return {
        "disentanglement": float(np.average(_purity(importances), weights=weights)),
        "completeness": float(_purity(importances.T).mean()),
        "informativeness": float(np.mean(scores)),
    }


def knn_accuracy(
    Z_train: Any, y_train: Any, Z_test: Any, y_test: Any, n_neighbors: int = 5
) -> float:
    """Accuracy of the nearest neighbours' vote in the latent space.

    Parameters
    ----------
    Z_train, Z_test : array-like of shape (n_samples, latent_dim)
        Codes, as ``transform`` gives.
    y_train, y_test : array-like of shape (n_samples,)
        Class labels.
    n_neighbors : int, default=5

    Returns
    -------
    accuracy : float
        Share of the test rows whose label is that of most neighbours, from 0 to 1.

    References
    ----------
    Cover and Hart (1967), "Nearest neighbor pattern classification".

    Examples
    --------
    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import load_digits
    >>> from skvae.metrics import knn_accuracy
    >>> X, y = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(8, hidden_dim=64, learning_rate=5e-3, random_state=0)
    >>> Z = vae.fit(X[:1200]).transform(X)
    >>> knn_accuracy(Z[:1200], y[:1200], Z[1200:], y[1200:]) > 0.8
    True
    """
    classifier = KNeighborsClassifier(n_neighbors).fit(Z_train, y_train)
    return float(classifier.score(Z_test, y_test))


def _check_codes_and_factors(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    codes = check_array(codes, dtype=np.float64, input_name="codes")
    factors = check_array(factors, dtype=np.float64, input_name="factors")
    check_consistent_length(codes, factors)
    constant = np.flatnonzero(np.ptp(factors, axis=0) == 0)
    if len(constant):
        raise ValueError(
            f"column {constant[0]} of factors is constant at "
            f"{factors[0, constant[0]]:g}, so that no code can hold anything about "
            "it; drop the column."
        )
    return codes, factors


def _is_continuous(factor: np.ndarray) -> bool:
    return not np.array_equal(factor, np.round(factor))


def _cut(column: np.ndarray, n_bins: int) -> np.ndarray:
    """The bin of equal width that each value lies in."""
    return np.digitize(column, np.histogram_bin_edges(column, n_bins)[1:-1])


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Of two columns of labels, in nats; of one with itself, its entropy."""
    # From the table: handed the labels, scikit-learn warns of many classes.
    return mutual_info_score(None, None, contingency=contingency_matrix(a, b))


def _gap(scores: list[float]) -> float:
    """How far the largest is from the next; a single one is compared with 0."""
    next_best, best = sorted([0.0, *scores])[-2:]
    return best - next_best


def _squared_correlation(code: np.ndarray, factor: np.ndarray) -> float:
    return np.corrcoef(code, factor)[0, 1] ** 2


def _threshold_accuracy(code: np.ndarray, factor: np.ndarray) -> float:
    """Balanced accuracy of thresholds on a code, fitted to the same rows."""
    tree = DecisionTreeClassifier(
        max_leaf_nodes=len(np.unique(factor)), class_weight="balanced", random_state=0
    ).fit(code[:, None], factor)
    return balanced_accuracy_score(factor, tree.predict(code[:, None]))


def _purity(importances: np.ndarray) -> np.ndarray:
    """1 minus the entropy of each row, to the base of its length."""
    # The smallest number: a row of zeros counts as even, and a row of one as pure.
    shares = importances + np.finfo(np.float64).tiny
    return 1 - entropy(shares, base=max(2, shares.shape[1]), axis=1)
