"""VAEEstimator: a variational autoencoder with scikit-learn's manners."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from inspect import signature
from math import nan
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    clone,
)
from sklearn.callback import CallbackSupportMixin
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from ._compat import (
    Interval,
    StrOptions,
    check_sample_weight,
    fit_context,
    release_pages,
)
from .checks import check_codes, check_count
from .device import resolve_device
from .engine import SCHEDULES, DivergenceError, Record
from .fitting import (
    Fit,
    TrainingSet,
    as_trained_on,
    begin,
    decide,
    make_trainer,
    seed_of,
    untrained,
)
from .inference import FittedModel
from .likelihoods import LIKELIHOODS, Likelihood, Mixed
from .model import Architecture
from .networks import NETWORKS, Network
from .objectives import OBJECTIVES, Objective
from .priors import PRIORS, Prior
from .progress import Progress
from .state import flatten, revive
from .tables import Table
from .units import Units

# With a code of so many dimensions, at most one of them active after so many steps is
# no accident of a short training.
COLLAPSE_MIN_DIM = 4
COLLAPSE_MIN_STEPS = 500
# Rows whose codes are kept for ``sample(prior="mixture")``.
MAX_CODES = 2000


class PosteriorCollapseWarning(UserWarning):
    """The code of a trained model holds next to nothing about x."""


class VAEEstimator(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    r"""Variational autoencoder.

    Learns a decoder :math:`p(x|z)` and an encoder :math:`q(z|x)` by maximising the
    evidence lower bound

    .. math:: \log p(x) \ge \mathbb E_{q(z|x)} \log p(x|z)
        - \mathrm{KL}\left(q(z|x) \,\|\, p(z)\right)

    summed over features and averaged over rows, in nats. ``transform`` gives the mean
    of :math:`q(z|x)`, ``inverse_transform`` the mean of :math:`p(x|z)`, ``sample`` new
    rows, ``score`` the bound.

    Parameters
    ----------
    latent_dim : int or tuple of int, default=20
        Dimension of z. A tuple gives the levels of a hierarchical network, from the
        one nearest to x to the top.

    hidden_dim : int or tuple of int, default=400
        Width of the encoder's hidden layers; the decoder mirrors them. ``()`` is a
        linear model.

    epochs : int, default=20
        Passes over the data.

    batch_size : int, default=100
        Rows per step.

    learning_rate : float, default=1e-3
        Of Adam.

    learning_rate_schedule : {"constant", "cosine"}, default="constant"
        "cosine" brings the learning rate down to 0 over all steps of ``fit``, which
        usually buys a better bound.

    network : {"mlp", "conv", "ladder", "flow_mlp"}, Network or pair of modules, \
            default="mlp"
        How x becomes q(z|x) and z the parameters of p(x|z). A pair of torch modules
        (encoder, decoder) stands for :class:`~skvae.EncoderDecoder`.

    likelihood : {"auto", "bernoulli", "gaussian", ...} or Likelihood, default="auto"
        What p(x|z) is; the names are the keys of ``skvae.likelihoods.LIKELIHOODS``.
        "auto" is bernoulli where every value lies in [0, 1], gaussian otherwise; the
        choice is in ``likelihood_``. "mixed" takes a data frame of numbers, booleans
        and categories; see :class:`~skvae.Mixed`.

    prior : {"normal", "mixture", "vamp", "flow"} or Prior, default="normal"
        What p(z) is.

    objective : {"elbo", "iwae", "miwae", "infovae", "wae", "beta_tc"} or Objective, \
            default="elbo"
        What is minimised. ``ELBO(beta=4)`` weighs the KL term.

    standardize : {"auto"} or bool, default="auto"
        Whether the model works on features of mean 0 and standard deviation 1. "auto"
        does so for likelihoods of real-valued data. Everything handed out (scores,
        samples, reconstructions) is in the units of X in any case.

    validation_fraction : float or None, default=None
        Share of the rows to hold out; an explicit set can be given to ``fit`` as
        ``X_val``.

    early_stopping : bool, default=False
        Whether to stop after ``n_iter_no_change`` epochs in which the validation loss
        (the training loss where there is none) did not fall by more than ``tol``.

    n_iter_no_change : int, default=10
        Patience of early stopping, in epochs.

    tol : float, default=0.0
        What counts as an improvement for early stopping, in nats per row.

    max_gradient_norm : float or None, default=None
        Longer gradients are scaled down to this norm.

    device : str or torch.device, default="auto"
        "auto" is CUDA where there is a GPU, else the CPU; or any device of torch, such
        as "cpu", "cuda:1", "mps".

    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Of the matrix products in training. "auto" takes bfloat16 where the hardware has
        it and nothing is lost by it. Scores and transforms are always float32.

    random_state : int, RandomState instance or None, default=None
        Determines initial weights, validation split, order of rows and noise. None
        takes fresh entropy; NumPy's and torch's global generators are never touched.

    verbose : int, default=0
        1 shows a progress bar.

    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights of the previous ``fit``.

    Attributes
    ----------
    history_ : DataFrame (a list of dicts where pandas is missing)
        One row per epoch: epoch, loss, reconstruction, kl, validation_loss,
        validation_reconstruction, validation_kl, active_units, learning_rate, seconds.
        Losses in nats per row; the loss is what the objective minimises.

    model_ : skvae.model.Model
        The fitted torch module.

    network_, likelihood_, prior_, objective_ : Spec
        The choices as they were resolved at ``fit``.

    n_iter_ : int
        Epochs that were run.

    best_epoch_ : int
        The epoch whose weights were kept: the lowest validation loss, or the lowest
        training loss where there is no validation set, after the objective's warm-up.

    n_features_in_ : int
        Number of features seen during ``fit``.

    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where X has string names.

    References
    ----------
    Kingma and Welling (2014), "Auto-Encoding Variational Bayes", ICLR.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEstimator
    >>> X = load_digits().data / 16
    >>> vae = VAEEstimator(latent_dim=8, hidden_dim=64, epochs=5, random_state=0)
    >>> Z = vae.fit_transform(X)
    >>> Z.shape
    (1797, 8)
    >>> vae.inverse_transform(Z).shape
    (1797, 64)
    >>> vae.sample(3, random_state=0).shape
    (3, 64)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "latent_dim": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "hidden_dim": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "learning_rate_schedule": [StrOptions(set(SCHEDULES))],
        "network": [StrOptions(set(NETWORKS)), Network, tuple],
        "likelihood": [StrOptions({"auto", "mixed", *LIKELIHOODS}), Likelihood],
        "prior": [StrOptions(set(PRIORS)), Prior],
        "objective": [StrOptions(set(OBJECTIVES)), Objective],
        "standardize": [StrOptions({"auto"}), "boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "early_stopping": ["boolean"],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_gradient_norm": [Interval(Real, 0, None, closed="neither"), None],
        "device": [str, torch.device],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
    }

    # What a fitted estimator holds beside its parameters, as a file must have it.
    _state_constraints: dict[str, list[Any]] = {
        "model_": [dict],
        "network_": [Network],
        "likelihood_": [Likelihood],
        "prior_": [Prior],
        "objective_": [Objective],
        "units_": [Units],
        "n_features_in_": [Interval(Integral, 1, None, closed="left")],
        "feature_names_in_": [np.ndarray, None],
        "n_iter_": [Interval(Integral, 0, None, closed="left")],
        "best_epoch_": [Interval(Integral, 0, None, closed="left")],
        "_seed": [Interval(Integral, 0, np.iinfo(np.int32).max, closed="both")],
        "_dtype": [np.dtype],
        "_records": [list],
        "_architecture": [Architecture],
        "_draws": [bool],
        "_codes": [np.ndarray, None],
        "_codes_condition": [np.ndarray, None],
        "_image_shape": [tuple, None],
        "_table": [Table, None],
    }

    _records: list[Record]
    # How a data frame's columns of several kinds become numbers, if they do.
    _table: Table | None = None
    # (channels, height, width) where X came as images.
    _image_shape: tuple[int, ...] | None = None
    # Whether an interruption is the business of whoever fits this one among others.
    _within_search = False

    _doc_link_module = "skvae"
    _doc_link_template = (
        "https://skvae.readthedocs.io/en/latest/api/skvae.{estimator_name}.html"
    )

    def __init__(
        self,
        latent_dim=20,
        *,
        hidden_dim=400,
        epochs=20,
        batch_size=100,
        learning_rate=1e-3,
        learning_rate_schedule="constant",
        network="mlp",
        likelihood="auto",
        prior="normal",
        objective="elbo",
        standardize="auto",
        validation_fraction=None,
        early_stopping=False,
        n_iter_no_change=10,
        tol=0.0,
        max_gradient_norm=None,
        device="auto",
        precision="auto",
        random_state=None,
        verbose=0,
        warm_start=False,
    ):
        self.latent_dim = latent_dim
        self.hidden_dim = hidden_dim
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.network = network
        self.likelihood = likelihood
        self.prior = prior
        self.objective = objective
        self.standardize = standardize
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.max_gradient_norm = max_gradient_norm
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    # ------------------------------------------------------------------ training

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, sample_weight=None, X_val=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows within the support of the likelihood.
        y : Ignored
        sample_weight : array-like of shape (n_samples,) or None
            Weight of each row in the loss. Only ratios matter.
        X_val : array-like of shape (n_validation, n_features) or None
            Validation set, in place of ``validation_fraction``.

        Returns
        -------
        self : VAEEstimator

        Raises
        ------
        ValueError
            If a parameter or the data are not as expected; the estimator is then as it
            was before.
        DivergenceError
            If the loss stops being finite. The estimator then holds the last finite
            weights and its ``history_``.

        Notes
        -----
        KeyboardInterrupt ends the training with a warning and keeps the best weights.
        """
        self._fit(X, y, sample_weight, X_val, None)
        return self

    def _fit(self, X, y, sample_weight, X_val, y_val) -> None:
        context = self._init_callback_context(max_subtasks=self.epochs)
        with _unchanged_on_error(self):
            self._train(self._begin(X, y, sample_weight, X_val, y_val), context)
        self._raise_divergence()

    def _begin(self, X, y, sample_weight, X_val, y_val) -> Fit:
        """Everything that comes before the first step."""
        warm = self.warm_start and hasattr(self, "model_")
        data = self._check_training_data(X, y, sample_weight, reset=not warm)
        fitted = decide(self, data, warm=warm)
        validation = None
        if X_val is not None:
            validation = self._check_validation(X_val, y_val, fitted)
        return begin(self, fitted, replace(data, y=y), validation)

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, *, sample_weight=None):
        """Train for one pass over a chunk of rows.

        The first chunk decides the likelihood and the standardisation. The optimiser
        keeps its state from call to call; a copy or a pickle starts it afresh. The
        learning rate is constant, and the weights are those of the last pass.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,) or None

        Returns
        -------
        self : VAEEstimator

        Raises
        ------
        ValueError
            As :meth:`fit` does.
        """
        self._partial_fit(X, y, sample_weight)
        return self

    def _partial_fit(self, X, y, sample_weight) -> None:
        first = not hasattr(self, "model_")
        with _unchanged_on_error(self):
            data = self._check_training_data(X, y, sample_weight, reset=first)
            if first:
                self.__dict__.update(decide(self, data, warm=False))
            else:
                self.likelihood_.check_support(data.X, columns=self._columns)
            data = data.take(data.with_weight())
            if not hasattr(self, "_trainer"):
                self._trainer = make_trainer(self, self.__dict__)
            trainer = self._trainer
            trainer.learning_rate = self.learning_rate
            trainer.batch_size = self.batch_size
            trainer.max_gradient_norm = self.max_gradient_norm
            try:
                record = trainer.train_pass(as_trained_on(trainer, self.units_, data))
            except DivergenceError as error:
                del self._trainer
                self._divergence = str(error)
            else:
                self._records = [*self._records, record]
                self.n_iter_ = self.best_epoch_ = len(self._records)
                self._keep_codes(data)
        self._raise_divergence()

    @property
    def _columns(self):
        """Names of the columns for error messages, where there are any."""
        if self._table is not None:
            return self._table.encoded_names
        return getattr(self, "feature_names_in_", None)

    def _check_training_data(self, X, y, sample_weight, *, reset) -> TrainingSet:
        X, image_shape = _as_rows(X)
        if reset:
            self._image_shape = image_shape
            self._table = self._look_at_table(X)
        else:
            self._check_image_shape(image_shape)
        X = self._validate(X, reset=reset)
        condition = self._check_condition(y, X, reset=reset)
        if sample_weight is None:
            return TrainingSet(X, None, condition)
        weights = check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        if not np.any(weights > 0):
            raise ValueError(
                "sample_weight must hold at least one positive weight; all are zero."
            )
        return TrainingSet(X, weights, condition)

    def _look_at_table(self, X) -> Table | None:
        """How the columns of a data frame become numbers, where that is asked for."""
        likelihood = self.likelihood
        if isinstance(likelihood, str) and likelihood == "mixed":
            return Table.fit(X, None)
        if isinstance(likelihood, Mixed) and likelihood.of_data_frame:
            return Table.fit(X, likelihood.families)
        return None

    def _validate(self, X, *, reset, **options):
        """scikit-learn's checks of X; of a data frame with categories, its numbers."""
        if self._table is None:
            return validate_data(
                self, X, dtype=[np.float64, np.float32], reset=reset, **options
            )
        validate_data(self, X, reset=reset, skip_check_array=True)
        return X if options.get("skip_check_array") else self._table.encode(X)

    def _check_condition(self, y, X, *, reset) -> np.ndarray | None:
        """What the decoder sees beside z, (N, n_conditions); here nothing."""
        return None

    def _check_image_shape(self, image_shape: tuple[int, ...] | None) -> None:
        if image_shape is not None and image_shape != self._image_shape:
            raise ValueError(
                f"X holds images of shape {image_shape}, but the estimator was fitted "
                f"on {self._image_shape or 'rows'}."
            )

    def _check_validation(self, X_val, y_val, fitted) -> TrainingSet:
        if self.validation_fraction is not None:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and X_val both ask "
                "for a validation set; give one of them."
            )
        X_val, image_shape = _as_rows(X_val)
        self._check_image_shape(image_shape)
        if self._table is None:
            checked = check_array(
                X_val, dtype=[np.float64, np.float32], input_name="X_val"
            )
            self._check(X_val, skip_check_array=True)
        else:
            checked = self._check(X_val)
        fitted["likelihood_"].check_support(checked, "X_val", self._columns)
        condition = self._check_condition(y_val, checked, reset=False)
        return TrainingSet(checked, None, condition)

    def _train(self, fit: Fit, context) -> None:
        """Run the epochs and store what came of them, whatever ended them."""
        X, weights = fit.rows.X, fit.rows.weights
        hooks = {
            "estimator": self,
            "X": X,
            "y": X if fit.rows.y is None else fit.rows.y,
            "metadata": {} if weights is None else {"sample_weight": weights},
        }
        task = context.call_on_fit_task_begin(**hooks)
        progress = Progress(self.epochs) if self.verbose else None
        divergence = None

        def begin_epoch():
            nonlocal task
            task = context.subcontext(task_name="epoch")
            task.call_on_fit_task_begin(**hooks)

        def current() -> dict[str, Any]:
            model = copy.deepcopy(fit.fitted["model_"])
            return {**fit.attributes(), "model_": model}

        run = fit.run(self.epochs, on_epoch_begin=begin_epoch)
        try:
            for record in run:
                if progress is not None:
                    progress(record)
                if task.call_on_fit_task_end(
                    **hooks, reconstruction_attributes=current
                ):
                    break
        except KeyboardInterrupt:
            if self._within_search:
                raise  # half a fit is no result
            warnings.warn(
                f"Training interrupted in epoch {fit.trainer.n_epochs + 1}; the "
                "best weights so far are kept.",
                UserWarning,
                stacklevel=5,
            )
        except DivergenceError as error:
            divergence = str(error)
        finally:
            run.close()
            fit.trainer.close()
            if progress is not None:
                progress.close()

        self.__dict__.update(fit.attributes())
        self.__dict__.pop("_trainer", None)
        self._keep_codes(fit.rows)
        if divergence is not None:
            self._divergence = divergence
        elif fit.records:
            self._warn_of_collapse(fit.trainer.n_steps)
        context.call_on_fit_task_end(**hooks, reconstruction_attributes=dict)

    def _raise_divergence(self):
        """Fail after the last finite weights have been stored."""
        cause = self.__dict__.pop("_divergence", None)
        if cause is None:
            return
        mends = [f"a learning_rate below {self.learning_rate:g}"]
        if self.max_gradient_norm is None:
            mends.append("max_gradient_norm=10")
        if self.likelihood_.real_valued and self.units_.is_identity:
            mends.append("standardize=True")
        raise DivergenceError(
            f"Training stopped: {cause}. Likely mends: {', '.join(mends)}. The "
            "estimator holds the last finite weights."
        )

    def _keep_codes(self, data: TrainingSet) -> None:
        """A draw of the aggregate posterior, for ``sample(prior="mixture")``."""
        if len(data.X) > MAX_CODES:
            random_state = np.random.RandomState(self._seed)
            data = replace(data, y=None)  # whatever that is, and however long
            data = data.take(random_state.choice(len(data.X), MAX_CODES, replace=False))
        self._codes = self._fitted.draw_codes(data.X)
        self._codes_condition = data.condition

    def _warn_of_collapse(self, n_steps):
        dim = self.model_.latent_dim
        record = self._records[self.best_epoch_ - 1]
        if (
            dim >= COLLAPSE_MIN_DIM
            and record.active_units <= 1
            and n_steps >= COLLAPSE_MIN_STEPS
        ):
            warnings.warn(
                f"The posterior has collapsed: {record.active_units} of {dim} latent "
                "dimensions are active, so the code holds next to nothing about x. "
                "Likely mends: objective=ELBO(warmup=0.5), ELBO(free_bits=0.1), a "
                "smaller beta, or a lower learning_rate.",
                PosteriorCollapseWarning,
                stacklevel=6,
            )

    # ------------------------------------------------------------------ inference

    @property
    def _fitted(self) -> FittedModel:
        check_is_fitted(self)
        return FittedModel(self.model_, self.units_, self._dtype)

    def _check(self, X, **options):
        return self._validate(X, reset=False, **options)

    def _restored(self, X: np.ndarray) -> Any:
        """What is handed out for decoded rows: a data frame where X was one."""
        return X if self._table is None else self._table.decode(X)

    def _checked(self, X) -> np.ndarray:
        """X, checked; a memory map as it is, since it is never read as a whole."""
        X, image_shape = _as_rows(X)
        if not isinstance(X, np.memmap):
            X = self._check(X)
        else:
            self._check(X, skip_check_array=True)
        self._check_image_shape(image_shape)
        return X

    def _blocks(self, checked: np.ndarray) -> Iterator[np.ndarray]:
        """What ``_checked`` gave, in blocks of bounded memory."""
        mapped = isinstance(checked, np.memmap)
        step = self._fitted.block_rows()
        for start in range(0, len(checked), step):
            block = checked[start : start + step]
            if mapped:
                block = check_array(
                    block, dtype=[np.float64, np.float32], input_name="X"
                )
            yield block
            if isinstance(checked, np.memmap):
                release_pages(checked)

    def transform(self, X):
        """Means of q(z|x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        Z : ndarray of float32, shape (n_samples, latent_dim)
        """
        fitted = self._fitted
        X = self._checked(X)
        return _join((fitted.encode(block) for block in self._blocks(X)), len(X))

    def inverse_transform(self, Z):
        """Means of p(x|z).

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            In the units and the dtype of the training data.
        """
        fitted = self._fitted
        return self._restored(fitted.decode(check_codes(Z, self.model_.latent_dim)))

    def sample(
        self,
        n_samples=1,
        random_state=None,
        *,
        observation_noise="auto",
        prior="model",
    ):
        """New rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None
            None takes fresh entropy.
        observation_noise : {"auto"} or bool, default="auto"
            True draws x from p(x|z), so that the rows have the spread of the data;
            False gives the mean of p(x|z). "auto" is True, but for grey values that
            were modelled by a Bernoulli: there the mean is what people expect.
        prior : {"model", "mixture"} or density estimator, default="model"
            Where z comes from. "model" is the model's p(z). "mixture" is scikit-learn's
            GaussianMixture of ten components, fitted to codes of training rows, which
            follows the aggregate posterior where that is far from p(z); another object
            with ``fit`` and ``sample``, such as ``GaussianMixture(50)``, is cloned and
            fitted likewise.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            In the units and the dtype of the training data.
        """
        return self._sample(n_samples, random_state, observation_noise, prior, None)

    def _sample(self, n_samples, random_state, observation_noise, prior, condition):
        fitted = self._fitted
        check_count("n_samples", n_samples, 1)
        if observation_noise not in ("auto", True, False):
            raise ValueError(
                f"observation_noise={observation_noise!r} must be 'auto', True or "
                "False."
            )
        seed = seed_of(random_state)
        if isinstance(prior, str) and prior == "model":
            z = fitted.draw_latent(n_samples, torch.Generator().manual_seed(seed))
        else:
            z = self._sample_codes(n_samples, prior, seed, condition)
        draws = self._draws if observation_noise == "auto" else observation_noise
        device = self.model_.device
        noise = torch.Generator(device).manual_seed(seed + 1) if draws else None
        return self._restored(fitted.decode(z, noise, condition))

    def _sample_codes(self, n_samples, prior, seed, condition) -> np.ndarray:
        """Codes from a density that is fitted to those of training rows."""
        return draw_like(self._codes, n_samples, prior, np.random.RandomState(seed))

    def reconstruct(self, X):
        """X encoded and decoded again: ``inverse_transform(transform(X))``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
        """
        return self._reconstruct(X, None)

    def _reconstruct(self, X, y):
        fitted = self._fitted
        X = self._checked(X)
        condition = self._check_condition(y, X, reset=False)

        def reconstructed():
            start = 0
            for block in self._blocks(X):
                given = _rows_of(condition, start, len(block))
                yield fitted.decode(fitted.encode(block), condition=given)
                start += len(block)

        return self._restored(_join(reconstructed(), len(X)))

    def interpolate(self, a, b, n_steps=10):
        """Decode the straight line between the codes of two rows.

        Parameters
        ----------
        a, b : array-like of shape (n_features,) or (n_pairs, n_features)
            Where to start, and where to end.
        n_steps : int, default=10
            Points on each line, both ends included.

        Returns
        -------
        X : ndarray of shape (n_steps, n_features) or (n_pairs, n_steps, n_features)
            Of data frames one data frame, line after line.
        """
        return self._interpolate(a, b, n_steps, None)

    def _interpolate(self, a, b, n_steps, condition):
        fitted = self._fitted
        check_count("n_steps", n_steps, 2)
        if self._table is not None:
            a, b = self._check(a), self._check(b)
        else:
            a, b = np.asarray(a), np.asarray(b)
        width = len(self.units_.scale)
        if a.shape != b.shape or a.shape[-1:] != (width,) or a.ndim > 2:
            raise ValueError(
                f"a and b must both have the shape ({width},) or (n_pairs, {width}); "
                f"got {a.shape} and {b.shape}."
            )
        start = fitted.encode(check_array(np.atleast_2d(a), input_name="a"))
        stop = fitted.encode(check_array(np.atleast_2d(b), input_name="b"))
        steps = np.linspace(0, 1, n_steps, dtype=np.float32)[:, None]
        lines = start[:, None] * (1 - steps) + stop[:, None] * steps
        if condition is not None:
            condition = np.repeat(condition, n_steps, axis=0)
        X = fitted.decode(lines.reshape(-1, lines.shape[-1]), condition=condition)
        if self._table is not None:
            return self._table.decode(X)
        return X.reshape(*a.shape[:-1], n_steps, width)

    # ------------------------------------------------------------------ likelihood

    def _by_blocks(self, X, y, function, stacklevel=4) -> tuple[np.ndarray, ...]:
        """Apply a function of rows and conditions to blocks of X, and join.

        A value outside the support counts as the nearest within.
        """
        likelihood, moved, parts, start = self.likelihood_, False, [], 0
        X = self._checked(X)
        condition = self._check_condition(y, X, reset=False)
        for block in self._blocks(X):
            if not likelihood.in_support(block).all():
                block, moved = likelihood.nearest_in_support(block), True
            parts.append(function(block, _rows_of(condition, start, len(block))))
            start += len(block)
        if moved:
            warnings.warn(
                f"X has values outside the support {likelihood.support} of "
                f"{likelihood!r}; they were scored as the nearest value within.",
                UserWarning,
                stacklevel=stacklevel,
            )
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def score_samples(self, X):
        """The evidence lower bound (ELBO) of each row.

        Always the bound of the model itself (beta = 1), by four draws of z that depend
        on the row's values alone: the same row has the same score in any company.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Values outside the likelihood's support count as the nearest within, with
            one warning.

        Returns
        -------
        elbo : ndarray of float32, shape (n_samples,)
            In nats per row, in the units of X. Values of different likelihoods, or of
            grey and binarised data, are not comparable.
        """
        return self._score_samples(X, None)

    def _score_samples(self, X, y):
        reconstruction, kl = self._by_blocks(X, y, self._fitted.elbo_parts)
        return -(reconstruction + kl)

    def score(self, X, y=None, *, sample_weight=None):
        """Mean evidence lower bound, in nats per row; higher is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : Ignored
        sample_weight : array-like of shape (n_samples,) or None

        Returns
        -------
        elbo : float
            The weighted mean of :meth:`score_samples`.
        """
        elbo = self._score_samples(X, y).astype(np.float64)
        if sample_weight is not None:
            sample_weight = check_sample_weight(sample_weight, elbo[:, None])
        return float(np.average(elbo, weights=sample_weight))

    def log_likelihood(self, X, n_importance_samples=100):
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

        Returns
        -------
        log_likelihood : ndarray of float32, shape (n_samples,)
            In nats per row, in the units of X.

        References
        ----------
        Burda, Grosse and Salakhutdinov (2016), "Importance Weighted Autoencoders".
        """
        return self._log_likelihood(X, None, n_importance_samples)

    def _log_likelihood(self, X, y, n_importance_samples):
        fitted = self._fitted
        check_count("n_importance_samples", n_importance_samples, 1)

        def estimate(block, condition):
            rows = fitted.log_likelihood(block, int(n_importance_samples), condition)
            return (rows,)

        (rows,) = self._by_blocks(X, y, estimate)
        return rows

    # ------------------------------------------------------------------ the rest

    @property
    def _n_features_out(self):
        return self.model_.latent_dim

    @property
    def history_(self):
        check_is_fitted(self)
        rows = [
            {k: nan if v is None else v for k, v in asdict(record).items()}
            for record in self._records
        ]
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows, columns=list(Record.__dataclass_fields__))

    def __getstate__(self):
        """What pickles and files hold: plain values and arrays, no data, no optimiser.

        As :func:`skvae.state.flatten` gives them, weights as NumPy arrays.
        """
        state = dict(super().__getstate__())
        state.pop("_trainer", None)
        if "model_" in state:
            weights = state["model_"].state_dict()
            state["model_"] = {k: v.cpu().numpy().copy() for k, v in weights.items()}
        return flatten(state)

    def __setstate__(self, state):
        state = revive(state)
        weights = state.pop("model_", None)
        super().__setstate__(state)
        if weights is None:
            return
        model = untrained(self.__dict__)
        model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        try:
            device = resolve_device(self.device)
        except ValueError:
            device = torch.device("cpu")  # fitted on a GPU that is not here
        self.model_ = model.to(device)


def _as_rows(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """Images (N, channels, height, width) as rows, and their shape, if X holds any."""
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if len(shape) != 4:
        return X, None
    if shape[1] not in (1, 3):
        raise ValueError(
            f"X of shape {tuple(shape)} has {shape[1]} channels; expected (n_samples, "
            "channels, height, width) with 1 or 3. Channels that come last are moved "
            "by np.moveaxis(X, -1, 1)."
        )
    if not isinstance(X, np.ndarray):
        X = np.asarray(X)
    return X.reshape(len(X), -1), tuple(int(side) for side in shape[1:])


def _rows_of(array: np.ndarray | None, start: int, n_rows: int) -> np.ndarray | None:
    return None if array is None else array[start : start + n_rows]


def draw_like(
    codes: np.ndarray, n_samples: int, prior: Any, random_state: np.random.RandomState
) -> np.ndarray:
    """Codes from a density that is fitted to these."""
    if isinstance(prior, str) and prior == "mixture":
        density = GaussianMixture(min(10, len(codes)), reg_covar=1e-4)
    elif hasattr(prior, "fit") and hasattr(prior, "sample"):
        density = clone(prior)
    else:
        raise ValueError(
            f"prior={prior!r} must be 'model', 'mixture' or a density estimator "
            "with fit and sample, such as sklearn.mixture.GaussianMixture(50)."
        )
    if "random_state" in density.get_params():
        # Fitting and sampling both draw: one instance goes on from the other.
        density.set_params(random_state=random_state)
    # In float64: in float32 a covariance may lose its positive eigenvalues.
    density.fit(codes.astype(np.float64))
    options = {}
    if "random_state" in signature(density.sample).parameters:
        options["random_state"] = random_state  # KernelDensity wants it here
    drawn = density.sample(n_samples, **options)
    # Mixtures hand back the components, too, in whose order the rows are.
    z = drawn[0] if isinstance(drawn, tuple) else drawn
    return random_state.permutation(np.asarray(z, dtype=np.float32))


def _join(parts: Iterator[np.ndarray], n_rows: int) -> np.ndarray:
    """Parts of an array of so many rows, in memory for it and one part."""
    joined, start = None, 0
    for part in parts:
        if joined is None:
            joined = np.empty((n_rows, *part.shape[1:]), part.dtype)
        joined[start : start + len(part)] = part
        start += len(part)
    assert joined is not None
    return joined


def unwrap(estimator: Any, X: Any) -> tuple["VAEEstimator", Any]:
    """The VAE at the end of a (nested) Pipeline, and X as it gets there."""
    while isinstance(estimator, Pipeline):
        if len(estimator) > 1:
            X = estimator[:-1].transform(X)
        estimator = estimator[-1]
    return estimator, X


@contextmanager
def _unchanged_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """An error leaves the estimator with the attributes it had before."""
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        raise
