"""Numbers about codes, and about the factors behind the data."""

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
