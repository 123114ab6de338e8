"""The answers of a fitted estimator: codes, rows and scores, from its fitted value."""

from dataclasses import asdict
from math import nan
from operator import attrgetter
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from ._compat import check_sample_weight
from .checks import check_codes, check_count
from .fitted import FittedVAE
from .history import Record
from .training.setup import seed_of


def _read(path: str, doc: str) -> Any:
    """A property that reads a field of the fitted value."""
    field = attrgetter(path)
    return property(lambda self: field(self._value), doc=doc)


class FittedVAEMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Methods and attributes that are read from the fitted value ``fitted_``."""

    fitted_: FittedVAE

    @property
    def _is_fitted(self) -> bool:
        try:
            return self.fitted_ is not None
        except AttributeError:
            return False

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_fitted

    @property
    def _value(self) -> FittedVAE:
        if not self._is_fitted:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' "
                "with appropriate arguments before using this estimator."
            )
        return self.fitted_

    def transform(self, X: Any) -> np.ndarray:
        """Means of q(z|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        Z : ndarray of float32, shape (n_samples, latent_dim)
        """
        value = self._value
        return value.encode(value.form.check(self, X))

    def inverse_transform(self, Z: Any, y: Any = None) -> Any:
        """Means of p(x|z), or of p(x|z, y).

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
        y : label, array-like of shape (n_samples,) or None
            For a conditional estimator the class of each row, or one for all. With
            another class than the one whose codes these are: style transfer.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), or data frame
            In the units and the dtype of the training data.

        Raises
        ------
        ValueError
            If y is missing or unknown for a conditional estimator, or given for
            another.
        """
        value = self._value
        codes = check_codes(Z, value.latent_dim)
        decoded = value.decode(codes, value.labels.given(y, len(codes)))
        return value.form.decode(decoded, like=Z)

    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        y: Any = None,
        observation_noise: bool | str = "auto",
        prior: Any = "model",
    ) -> Any:
        """New rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None
            None takes fresh entropy.
        y : label, array-like of shape (n_samples,) or None
            For a conditional estimator the class of each row, or one for all; None
            draws classes as frequent as in training.
        observation_noise : {"auto"} or bool, default="auto"
            True draws x from p(x|z), so that the rows have the spread of the data;
            False gives the mean of p(x|z). "auto" is True, but for grey values that
            were modelled by a Bernoulli: there the mean is what people expect.
        prior : {"model", "mixture"} or density estimator, default="model"
            Where z comes from. "model" is the model's p(z). "mixture" is scikit-learn's
            GaussianMixture of ten components, fitted to codes of training rows (those
            of a row's class, in a conditional estimator), which follows the aggregate
            posterior where that is far from p(z); another object with ``fit`` and
            ``sample``, such as ``GaussianMixture(50)``, is cloned and fitted likewise.
            With a wide code and beta = 1 the code of a conditional estimator tells much
            about the class, and draws from p(z) may contradict y: "mixture", a larger
            beta or a smaller latent_dim keep the samples to their class.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), or data frame
            In the units and the dtype of the training data.

        Raises
        ------
        ValueError
            If y is unknown for a conditional estimator, or given for another.
        """
        value = self._value
        n_samples = check_count("n_samples", n_samples, 1)
        if observation_noise not in ("auto", True, False):
            raise ValueError(
                f"observation_noise={observation_noise!r} must be 'auto', True or "
                "False."
            )
        sampled = value.sample(
            n_samples,
            seed_of(random_state),
            y=y,
            observation_noise=observation_noise,
            prior=prior,
        )
        return value.form.decode(sampled)

    def reconstruct(self, X: Any, y: Any = None) -> Any:
        """X encoded and decoded again.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or None
            For a conditional estimator, the classes to decode as.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), or data frame of the same index
        """
        value = self._value
        decoded = value.reconstruct(value.form.check(self, X), y)
        return value.form.decode(decoded, like=X)

    def interpolate(self, a: Any, b: Any, n_steps: int = 10, *, y: Any = None) -> Any:
        """Decode the straight line between the codes of two rows.

        Parameters
        ----------
        a, b : array-like of shape (n_features,) or (n_pairs, n_features)
            Where to start, and where to end.
        n_steps : int, default=10
            Points on each line, both ends included.
        y : label, array-like of shape (n_pairs,) or None
            For a conditional estimator the class of each line, or one for all.

        Returns
        -------
        X : ndarray of shape (n_steps, n_features) or (n_pairs, n_steps, n_features)
            Of a table one data frame, line after line.
        """
        value = self._value
        n_steps = check_count("n_steps", n_steps, 2)
        if np.shape(a) != np.shape(b):
            raise ValueError(
                f"a and b must have the same shape, got {np.shape(a)} and "
                f"{np.shape(b)}."
            )
        shape: tuple[int, ...] = (n_steps,)
        if np.ndim(a) == 1:
            a, b = value.form.row(a), value.form.row(b)
        else:
            shape = (len(a), n_steps)
        start, stop = (value.encode(value.form.check(self, end)) for end in (a, b))
        steps = np.linspace(0, 1, n_steps, dtype=np.float32)[:, None]
        lines = start[:, None] * (1 - steps) + stop[:, None] * steps
        condition = value.labels.given(y, len(start))
        if condition is not None:
            condition = np.repeat(condition, n_steps, axis=0)
        decoded = value.decode(lines.reshape(-1, lines.shape[-1]), condition)
        return value.form.stack(value.form.decode(decoded), shape)

    # ------------------------------------------------------------------ likelihood

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        r"""The evidence lower bound (ELBO) of each row.

        Always the bound of the model itself (beta = 1), by four draws of z that depend
        on the row's values alone: the same row has the same score in any company.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Values outside the likelihood's support count as the nearest within, with
            one warning.
        y : array-like of shape (n_samples,) or None
            For a conditional estimator: with labels, the bound on log p(x|y); without,
            the bound on :math:`\log p(x) = \log \sum_y p(y)\, p(x|y)`, with the classes
            as frequent as in training, in a pass for each class.

        Returns
        -------
        elbo : ndarray of float32, shape (n_samples,)
            In nats per row, in the units of X. Values of different likelihoods, or of
            grey and binarised data, are not comparable.
        """
        value = self._value
        return value.score_samples(value.form.check(self, X), y)

    def score(self, X: Any, y: Any = None, *, sample_weight: Any = None) -> float:
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
            The weighted mean of :meth:`score_samples`.
        """
        elbo = self.score_samples(X, y).astype(np.float64)
        weights = checked_weights(sample_weight, elbo[:, None])
        return float(np.average(elbo, weights=weights))

    def log_likelihood(
        self, X: Any, n_importance_samples: int = 100, *, y: Any = None
    ) -> np.ndarray:
        r"""Estimate log p(x) of each row by importance sampling from the encoder.

        .. math:: \log \frac1K \sum_k \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)},
            \quad z_k \sim q(z|x)

        A lower bound in expectation, which rises towards log p(x) with K and equals
        the ELBO in expectation at K = 1.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        n_importance_samples : int, default=100
            K. Time grows with it, memory does not.
        y : array-like of shape (n_samples,) or None
            As in :meth:`score_samples`.

        Returns
        -------
        log_likelihood : ndarray of float32, shape (n_samples,)
            In nats per row, in the units of X.

        References
        ----------
        Burda, Grosse and Salakhutdinov (2016), "Importance Weighted Autoencoders".
        """
        value = self._value
        draws = check_count("n_importance_samples", n_importance_samples, 1)
        return value.log_likelihood(value.form.check(self, X), draws, y)

    model_ = _read("module", "The fitted torch module.")
    units_ = _read("units", "Location and scale of each column inside the model.")
    n_iter_ = _read("n_epochs", "Epochs that were run.")
    best_epoch_ = _read("best_epoch", "The epoch whose weights were kept.")
    network_ = _read("choices.network", "The network as resolved at fit.")
    likelihood_ = _read("choices.likelihood", "The likelihood as resolved at fit.")
    prior_ = _read("choices.prior", "The prior as resolved at fit.")
    objective_ = _read("choices.objective", "The objective as resolved at fit.")

    @property
    def _n_features_out(self) -> int:
        return self._value.latent_dim

    @property
    def history_(self) -> Any:
        """One row per epoch."""
        rows = [
            {k: nan if v is None else v for k, v in asdict(record).items()}
            for record in self._value.history
        ]
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows, columns=list(Record.__dataclass_fields__))


def checked_weights(sample_weight: Any, X: Any) -> np.ndarray | None:
    """Weights of the rows, none of them negative and not all of them zero."""
    if sample_weight is None:
        return None
    weights = check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    if not np.any(weights > 0):
        raise ValueError(
            "sample_weight must hold at least one positive weight; all are zero."
        )
    return weights


def unwrap(estimator: Any, X: Any) -> tuple[Any, Any]:
    """The VAE at the end of a (nested) Pipeline, and X as it gets there."""
    while isinstance(estimator, Pipeline):
        if len(estimator) > 1:
            X = estimator[:-1].transform(X)
        estimator = estimator[-1]
    return estimator, X
