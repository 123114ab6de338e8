"""Running an exported VAE with onnxruntime alone: nothing here imports torch."""

import os
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

from ..checks import check_codes, check_count, fresh_if_none, warn
from ..noise import hash_rows, row_noise
from .metadata import CONDITIONAL, Metadata, require

DTYPES = [np.float64, np.float32]
# Rows that are run at once: bounded memory that stays in the cache.
BLOCK_ROWS = 256
_ERRORS = 3


class OnnxFile:
    """The parts of an exported file as functions of arrays.

    The session is opened at first use.

    Parameters
    ----------
    path : path-like
    n_threads : int or None
        Threads per operator; None leaves it to onnxruntime.
    """

    def __init__(self, path: Any, n_threads: int | None = None):
        self.path = os.fspath(path)
        self.n_threads = n_threads

    @cached_property
    def session(self) -> Any:
        """onnxruntime's session."""
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        # It warns that inputs have defaults, as they are meant to.
        options.log_severity_level = _ERRORS
        if self.n_threads is not None:
            options.intra_op_num_threads = self.n_threads
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"there is no file {self.path!r}")
        return runtime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )

    @cached_property
    def metadata(self) -> Metadata:
        """What the file says about itself."""
        entries = self.session.get_modelmeta().custom_metadata_map
        return Metadata.read(entries, self.path)

    @cached_property
    def dtypes(self) -> dict[str, type]:
        """The dtype of each input, by its name in the file."""
        session = self.session
        inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
        return {
            value.name: np.float64 if "double" in value.type else np.float32
            for value in inputs
        }

    def feeds(self, part: str, **inputs: np.ndarray | None) -> dict[str, np.ndarray]:
        """Inputs of a part as the file names and types them."""
        names = {self.metadata.name(part, k): v for k, v in inputs.items()}
        return {
            name: rows.astype(self.dtypes[name], copy=False)
            for name, rows in names.items()
            if rows is not None
        }

    def run(self, part: str, output: str, **inputs: np.ndarray | None) -> np.ndarray:
        """One output of a part, block by block."""
        metadata = self.metadata
        if part not in metadata.parts:
            raise ValueError(
                f"{self.path!r} holds {metadata.part!r}, and this needs {part!r}; "
                f"export with part='all' or part={part!r}."
            )
        feeds = self.feeds(part, **inputs)
        n_rows = len(next(iter(feeds.values())))
        blocks = []
        for start in range(0, n_rows, BLOCK_ROWS):
            block = {k: v[start : start + BLOCK_ROWS] for k, v in feeds.items()}
            blocks += self.session.run([metadata.name(part, output)], block)
        return np.concatenate(blocks)

    def condition(self, part: str, y: Any, n_rows: int) -> np.ndarray | None:
        """Classes as one-hot rows (n_rows, n_classes); None without classes."""
        metadata = self.metadata
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
        one_hot = y[:, None] == np.array(metadata.classes)
        unknown = ~one_hot.any(axis=1)
        if unknown.any():
            raise ValueError(
                f"y has the value {y[unknown].tolist()[0]!r}; expected one of "
                f"{metadata.classes}."
            )
        return one_hot.astype(np.float32)

    def elbo_inputs(self, X: np.ndarray, y: Any) -> dict[str, Any]:
        """What the ELBO is computed from: rows, the noise that belongs to them, class.

        Values of the rows outside the support are moved into it.
        """
        metadata = self.metadata
        inside = metadata.nearest(X)
        x = metadata.units.standardize(inside, metadata.feature_names)
        noise = row_noise(hash_rows(x), metadata.n_draws, metadata.n_noise)
        condition = self.condition("elbo", y, len(X))
        return {"X": inside, "noise": noise.swapaxes(0, 1), "condition": condition}


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
    file_ : OnnxFile
        The parts of the file as functions of arrays.
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

    def __init__(self, path: Any, *, n_threads: int | None = None):
        self.path = path
        self.n_threads = n_threads

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "n_threads": self.n_threads}

    @cached_property
    def file_(self) -> OnnxFile:
        return OnnxFile(self.path, self.n_threads)

    @property
    def metadata_(self) -> Metadata:
        return self.file_.metadata

    @property
    def n_features_in_(self) -> int:
        return self.metadata_.n_features

    @property
    def feature_names_in_(self) -> np.ndarray:
        names = self.metadata_.feature_names
        if names is None:
            raise AttributeError("the exported estimator had no feature names")
        return np.array(names, dtype=object)

    @property
    def classes_(self) -> np.ndarray:
        if self.metadata_.classes is None:
            raise AttributeError("the exported estimator was not conditional")
        return np.array(self.metadata_.classes)

    @property
    def _n_features_out(self) -> int:
        return self.metadata_.latent_dim

    def _check(self, X: Any) -> np.ndarray:
        return validate_data(self, X, dtype=DTYPES, reset=False)

    def fit(self, X: Any = None, y: Any = None) -> "OnnxVAE":
        """Do nothing: the model comes fitted.

        Returns
        -------
        self : OnnxVAE
        """
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Means of q(z|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        Z : ndarray of float32, shape (n_samples, latent_dim)
        """
        return self.file_.run("encoder", "mean", X=self._check(X))

    def inverse_transform(self, Z: Any, y: Any = None) -> np.ndarray:
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
        condition = self.file_.condition("decoder", y, len(Z))
        X = self.file_.run("decoder", "X_mean", Z=Z, condition=condition)
        return X.astype(metadata.dtype, copy=False)

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
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
        inputs = self.file_.elbo_inputs(X, y)
        if not np.array_equal(inputs["X"], X):
            warn(
                f"X has values outside the support of {self.metadata_.likelihood}; "
                "they were scored as the nearest value within."
            )
        return self.file_.run("elbo", "elbo", **inputs)

    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, y: Any = None
    ) -> np.ndarray:
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
        return self.inverse_transform(self.file_.run("prior", "Z", noise=noise), y)
