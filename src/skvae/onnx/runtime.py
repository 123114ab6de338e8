"""Running an exported VAE with onnxruntime alone: nothing here imports torch."""

import os
import warnings
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import column_or_1d, validate_data

from ..checks import check_codes, check_count, fresh_if_none
from ..noise import hash_rows, row_noise
from .metadata import CONDITIONAL, Metadata, require

# Rows that are run at once: bounded memory that stays in the cache.
BLOCK_ROWS = 256
_ERRORS = 3


class OnnxVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A VAE from an ONNX file, run with onnxruntime; PyTorch is not needed.

    Gives the numbers of the estimator that was exported. What a file of one part does
    not hold, its methods say.

    Parameters
    ----------
    path : path-like
        A file of :func:`skvae.onnx.export`; with ``part="all"`` everything works.
    n_threads : int or None, default=None
        Threads per operator; None leaves it to onnxruntime.

    Attributes
    ----------
    metadata_ : skvae.onnx.metadata.Metadata
        What the file says about itself.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where the estimator was fitted with names.
    classes_ : ndarray
        Where the model is conditional.

    Notes
    -----
    It comes fitted: ``fit`` returns it as it is. The session is opened at first use, in
    each process anew, so that it can be pickled.

    Examples
    --------
    >>> from skvae import OnnxVAE
    >>> vae = OnnxVAE("vae.onnx")  # doctest: +SKIP
    >>> vae.score_samples(X)  # doctest: +SKIP
    """

    def __init__(self, path, *, n_threads=None):
        self.path = path
        self.n_threads = n_threads

    def __sklearn_is_fitted__(self):
        return True

    def __getstate__(self):
        return {"path": self.path, "n_threads": self.n_threads}

    @cached_property
    def _session(self) -> Any:
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        # It warns that inputs have defaults, as they are meant to.
        options.log_severity_level = _ERRORS
        if self.n_threads is not None:
            options.intra_op_num_threads = self.n_threads
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"there is no file {os.fspath(self.path)!r}")
        return runtime.InferenceSession(
            os.fspath(self.path), options, providers=["CPUExecutionProvider"]
        )

    @cached_property
    def metadata_(self) -> Metadata:
        entries = self._session.get_modelmeta().custom_metadata_map
        return Metadata.read(entries, self.path)

    @cached_property
    def _dtypes(self) -> dict[str, type]:
        session = self._session
        inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
        return {
            value.name: np.float64 if "double" in value.type else np.float32
            for value in inputs
        }

    @property
    def n_features_in_(self):
        return self.metadata_.n_features

    @property
    def feature_names_in_(self):
        names = self.metadata_.feature_names
        if names is None:
            raise AttributeError("the exported estimator had no feature names")
        return np.array(names, dtype=object)

    @property
    def classes_(self):
        if self.metadata_.classes is None:
            raise AttributeError("the exported estimator was not conditional")
        return np.array(self.metadata_.classes)

    @property
    def _n_features_out(self):
        return self.metadata_.latent_dim

    def fit(self, X=None, y=None):
        """Do nothing: the model comes fitted.

        Returns
        -------
        self : OnnxVAE
        """
        return self

    def _feeds(self, part: str, **inputs: np.ndarray | None) -> dict[str, np.ndarray]:
        """Inputs of a part as the file names and types them."""
        names = {self.metadata_.name(part, k): v for k, v in inputs.items()}
        return {
            name: rows.astype(self._dtypes[name], copy=False)
            for name, rows in names.items()
            if rows is not None
        }

    def _run(self, part: str, output: str, **inputs: np.ndarray | None) -> np.ndarray:
        """One output of a part, block by block."""
        metadata = self.metadata_
        if part not in metadata.parts:
            raise ValueError(
                f"{os.fspath(self.path)!r} holds {metadata.part!r}, and this needs "
                f"{part!r}; export with part='all' or part={part!r}."
            )
        feeds = self._feeds(part, **inputs)
        n_rows = len(next(iter(feeds.values())))
        blocks = []
        for start in range(0, n_rows, BLOCK_ROWS):
            block = {k: v[start : start + BLOCK_ROWS] for k, v in feeds.items()}
            blocks += self._session.run([metadata.name(part, output)], block)
        return np.concatenate(blocks)

    def _check(self, X) -> np.ndarray:
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)

    def _condition(self, part: str, y: Any, n_rows: int) -> np.ndarray | None:
        """Classes as one-hot rows (n_rows, n_classes); None without classes."""
        metadata = self.metadata_
        if metadata.classes is None or part not in CONDITIONAL:
            if y is not None:
                raise ValueError(
                    f"y was given, but {metadata.estimator} has no classes."
                )
            return None
        if y is None:
            raise ValueError(
                f"{metadata.estimator} is conditional: give y, one of "
                f"{metadata.classes} for each row."
            )
        y = column_or_1d(np.full(n_rows, y) if np.ndim(y) == 0 else y)
        if len(y) != n_rows:
            raise ValueError(f"y has {len(y)} entries for {n_rows} rows.")
        one_hot = y[:, None] == self.classes_
        unknown = ~one_hot.any(axis=1)
        if unknown.any():
            raise ValueError(
                f"y has the value {y[unknown][0]!r}; expected one of "
                f"{metadata.classes}."
            )
        return one_hot.astype(np.float32)

    def transform(self, X):
        """Means of q(z|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        Z : ndarray of float32, shape (n_samples, latent_dim)
        """
        return self._run("encoder", "mean", X=self._check(X))

    def inverse_transform(self, Z, y=None):
        """Means of p(x|z).

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
        y : array-like of shape (n_samples,), a class, or None
            Where the model is conditional.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            In the units and the dtype of the training data.
        """
        metadata = self.metadata_
        Z = check_codes(Z, metadata.latent_dim)
        condition = self._condition("decoder", y, len(Z))
        X = self._run("decoder", "X_mean", Z=Z, condition=condition)
        return X.astype(metadata.dtype, copy=False)

    def score_samples(self, X, y=None):
        """The evidence lower bound (ELBO) of each row; minus it is an anomaly score.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Values outside the likelihood's support count as the nearest within, with
            one warning.
        y : array-like of shape (n_samples,), a class, or None
            Where the model is conditional.

        Returns
        -------
        elbo : ndarray of float32, shape (n_samples,)
            In nats per row, in the units of X.
        """
        X = self._check(X)
        inputs = self._scored(X, y)
        if not np.array_equal(inputs["X"], X):
            warnings.warn(
                f"X has values outside the support of {self.metadata_.likelihood}; "
                "they were scored as the nearest value within.",
                UserWarning,
                stacklevel=2,
            )
        return self._run("elbo", "elbo", **inputs)

    def _scored(self, X: np.ndarray, y: Any) -> dict[str, Any]:
        """What the ELBO's graph is fed: rows, the noise that belongs to them, class."""
        metadata = self.metadata_
        inside = metadata.support.clip(X)
        hashes = hash_rows(metadata.units.standardize(inside))
        noise = row_noise(hashes, metadata.n_draws, metadata.n_noise)
        condition = self._condition("elbo", y, len(X))
        return {"X": inside, "noise": noise.swapaxes(0, 1), "condition": condition}

    def sample(self, n_samples=1, random_state=None, *, y=None):
        """New rows: means of p(x|z) for z drawn from the prior.

        The graph draws nothing, so there is no noise of p(x|z) on them, as with
        ``VAEEstimator.sample(observation_noise=False)``.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None
        y : array-like of shape (n_samples,), a class, or None
            Where the model is conditional.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
        """
        check_count("n_samples", n_samples, 1)
        normal = check_random_state(fresh_if_none(random_state)).standard_normal
        noise = normal((n_samples, self.metadata_.n_prior_noise))
        return self.inverse_transform(self._run("prior", "Z", noise=noise), y)
