"""ConditionalVAEEstimator: a variational autoencoder that is told the class."""

from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from ._compat import fit_context, num_samples
from .checks import check_codes
from .estimator import VAEEstimator, draw_like


class ConditionalVAEEstimator(VAEEstimator):
    r"""Conditional variational autoencoder: a decoder that is told the class.

    Maximises

    .. math:: \log p(x|y) \ge \mathbb E_{q(z|x)} \log p(x|z, y)
        - \mathrm{KL}\left(q(z|x) \,\|\, p(z)\right).

    The encoder sees x alone, so that ``transform(X)`` keeps its shape and needs no
    labels; what the class already says about x, the code need not repeat. It holds what
    is left, the style: ``inverse_transform(transform(X), y)`` shows X in the style of
    its rows as members of other classes.

    Parameters
    ----------
    latent_dim, hidden_dim, ...
        Those of :class:`VAEEstimator`, all of them.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels seen during ``fit``, sorted.

    class_count_ : ndarray of shape (n_classes,)
        Rows of each class that were trained on.

    See Also
    --------
    VAEEstimator : The same without classes; its other attributes are here, too.

    References
    ----------
    Kingma, Rezende, Mohamed and Welling (2014), "Semi-supervised learning with deep
    generative models"; Sohn, Lee and Yan (2015), "Learning structured output
    representation using deep conditional generative models".

    Examples
    --------
    >>> from skvae import ConditionalVAEEstimator
    >>> from skvae.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> vae = ConditionalVAEEstimator(8, hidden_dim=64, epochs=5, random_state=0)
    >>> vae = vae.fit(X, y)
    >>> vae.sample(3, y=7, random_state=0).shape
    (3, 64)
    >>> vae.inverse_transform(vae.transform(X[:5]), y=0).shape
    (5, 64)
    """

    _state_constraints = {
        **VAEEstimator._state_constraints,
        "classes_": [np.ndarray],
        "class_count_": [np.ndarray],
    }

    # Classes that partial_fit was promised.
    _to_come: Any = None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    # ------------------------------------------------------------------ labels

    def _check_condition(self, y, X, *, reset) -> np.ndarray | None:
        labels = self._labels(y, len(X))
        if reset:
            check_classification_targets(labels)
            classes = labels if self._to_come is None else self._to_come
            self.classes_ = np.unique(classes)
        condition = self._encode_labels(labels)
        if reset:
            self.class_count_ = condition.sum(axis=0)
        return condition

    def _labels(self, y, n_rows) -> np.ndarray:
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is "
                "None: give one class label for each row."
            )
        labels = column_or_1d(y, warn=True)
        if len(labels) != n_rows:
            raise ValueError(
                f"y has {len(labels)} labels, but there are {n_rows} rows; expected "
                "one label for each row."
            )
        if any(label is None or label != label for label in labels.tolist()):
            raise ValueError("y has a missing label (NaN or None); drop those rows.")
        return labels

    def _encode_labels(self, labels: np.ndarray) -> np.ndarray:
        """One-hot rows (N, n_classes) of known labels."""
        known = self.classes_.tolist()
        code = {label: i for i, label in enumerate(known)}
        unknown = [label for label in labels.tolist() if label not in code]
        if unknown:
            raise ValueError(
                f"y has the unknown label {unknown[0]!r}; fit saw the classes "
                f"{known[:20]}{'...' if len(known) > 20 else ''}."
            )
        codes = [code[label] for label in labels.tolist()]
        return np.eye(len(known), dtype=np.float32)[codes]

    def _condition_of(self, y, n_rows) -> np.ndarray:
        """One-hot rows of one label, or of one for each row."""
        check_is_fitted(self)
        if y is not None and np.ndim(y) == 0:
            y = np.full(n_rows, y, dtype=object)
        return self._encode_labels(self._labels(y, n_rows))

    def _sample_codes(self, n_samples, prior, seed, condition):
        """Codes like those of training rows of the same class."""
        assert self._codes_condition is not None
        random_state = np.random.RandomState(seed)
        wanted, known = condition.argmax(axis=1), self._codes_condition.argmax(axis=1)
        z = np.empty((n_samples, self._codes.shape[1]), dtype=np.float32)
        for code in np.unique(wanted):
            rows, codes = wanted == code, self._codes[known == code]
            if len(codes) < 2:
                codes = self._codes
            z[rows] = draw_like(codes, int(rows.sum()), prior, random_state)
        return z

    # ------------------------------------------------------------------ training

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, *, sample_weight=None, X_val=None, y_val=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows within the support of the likelihood.
        y : array-like of shape (n_samples,)
            Class labels of any dtype.
        sample_weight : array-like of shape (n_samples,) or None
            Weight of each row in the loss. Only ratios matter.
        X_val, y_val : array-like or None
            Validation set, in place of ``validation_fraction``.

        Returns
        -------
        self : ConditionalVAEEstimator

        Raises
        ------
        ValueError
            If a parameter or the data are not as expected, or y is missing; the
            estimator is then as it was before.
        DivergenceError
            As for :class:`VAEEstimator`.
        """
        self._fit(X, y, sample_weight, X_val, y_val)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, *, classes=None, sample_weight=None):
        """Train for one pass over a chunk of rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        classes : array-like of shape (n_classes,) or None
            All labels that will ever come; needed in the first call where its chunk
            does not have them all.
        sample_weight : array-like of shape (n_samples,) or None

        Returns
        -------
        self : ConditionalVAEEstimator

        Raises
        ------
        ValueError
            As :meth:`fit` does, or where a label is not among the classes.
        """
        first = not hasattr(self, "model_")
        self._to_come = classes
        try:
            self._partial_fit(X, y, sample_weight)
        finally:
            del self._to_come
        if not first:
            more = self._encode_labels(column_or_1d(y)).sum(axis=0)
            self.class_count_ = self.class_count_ + more
        return self

    # ------------------------------------------------------------------ inference

    def inverse_transform(self, Z, y=None):
        """Means of p(x|z, y).

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
        y : label or array-like of shape (n_samples,)
            The class of each row, or one for all. With another class than the one
            whose codes these are: style transfer.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)

        Raises
        ------
        ValueError
            If y is missing or unknown.
        """
        fitted = self._fitted
        Z = check_codes(Z, self.model_.latent_dim)
        return fitted.decode(Z, condition=self._condition_of(y, len(Z)))

    def sample(
        self,
        n_samples=1,
        random_state=None,
        *,
        y=None,
        observation_noise="auto",
        prior="model",
    ):
        """New rows of given classes.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None
        y : label or array-like of shape (n_samples,)
            The class of each row, or one for all.
        observation_noise : {"auto"} or bool, default="auto"
        prior : {"model", "mixture"} or density estimator, default="model"
            As in :meth:`VAEEstimator.sample`; a density is fitted to the codes of each
            class. With a wide code and beta = 1 the code itself tells much about the
            class, and draws from p(z) may contradict y: "mixture", a larger beta or a
            smaller latent_dim keep the samples to their class.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)

        Raises
        ------
        ValueError
            If y is missing or unknown.
        """
        condition = self._condition_of(y, n_samples)
        return self._sample(
            n_samples, random_state, observation_noise, prior, condition
        )

    def reconstruct(self, X, y=None):
        """X encoded and decoded again, as members of the classes y.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
        """
        return self._reconstruct(X, y)

    def interpolate(self, a, b, n_steps=10, *, y=None):
        """Decode the straight line between the codes of two rows, in one class.

        Parameters
        ----------
        a, b : array-like of shape (n_features,) or (n_pairs, n_features)
        n_steps : int, default=10
        y : label or array-like of shape (n_pairs,)

        Returns
        -------
        X : ndarray of shape (n_steps, n_features) or (n_pairs, n_steps, n_features)
        """
        n_pairs = len(a) if np.ndim(a) == 2 else 1
        return self._interpolate(a, b, n_steps, self._condition_of(y, n_pairs))

    def score_samples(self, X, y=None):
        r"""The evidence lower bound (ELBO) of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or None
            With labels, the bound on log p(x|y). Without, the bound on
            :math:`\log p(x) = \log \sum_y p(y)\, p(x|y)`, with the classes as frequent
            as in training; it takes a pass for each class.

        Returns
        -------
        elbo : ndarray of float32, shape (n_samples,)
            In nats per row, in the units of X.
        """
        return self._score_samples(X, y)

    def _score_samples(self, X, y):
        if y is not None:
            return super()._score_samples(X, y)
        return self._over_classes(X, super()._score_samples)

    def _over_classes(self, X, bound) -> np.ndarray:
        """log sum_y p(y) exp(bound(X, y)), of each row."""
        n_rows = num_samples(X)
        seen = np.flatnonzero(self.class_count_)
        shares = self.class_count_[seen] / self.class_count_.sum()
        bounds = [
            np.log(share) + bound(X, np.full(n_rows, self.classes_[code]))
            for code, share in zip(seen, shares, strict=True)
        ]
        return logsumexp(bounds, axis=0).astype(np.float32)

    def score(self, X, y=None, *, sample_weight=None):
        """Mean evidence lower bound, in nats per row; higher is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or None
            As in :meth:`score_samples`.
        sample_weight : array-like of shape (n_samples,) or None

        Returns
        -------
        elbo : float
        """
        return super().score(X, y, sample_weight=sample_weight)

    def log_likelihood(self, X, n_importance_samples=100, *, y=None):
        """Estimate log p(x|y), or log p(x), of each row by importance sampling.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        n_importance_samples : int, default=100
        y : array-like of shape (n_samples,) or None
            As in :meth:`score_samples`.

        Returns
        -------
        log_likelihood : ndarray of float32, shape (n_samples,)
            In nats per row, in the units of X.
        """
        return self._log_likelihood(X, y, n_importance_samples)

    def _log_likelihood(self, X, y, n_importance_samples):
        estimate = super()._log_likelihood
        if y is not None:
            return estimate(X, y, n_importance_samples)
        return self._over_classes(X, lambda X, y: estimate(X, y, n_importance_samples))
