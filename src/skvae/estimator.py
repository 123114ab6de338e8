"""VAEEstimator: a variational autoencoder with scikit-learn's manners."""

from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackSupportMixin
from sklearn.exceptions import ConvergenceWarning

from ._compat import Interval, StrOptions, fit_context, num_samples
from .answers import FittedVAEMixin, checked_weights
from .callbacks import Epochs, Seen
from .checks import warn
from .device import resolve_device
from .fitted import FittedVAE
from .forms import Form, NoLabels, form_of
from .likelihoods import BY_NAME, Likelihood
from .networks import NETWORKS, Network
from .objectives import OBJECTIVES, Objective
from .plain import plain, revived
from .priors import PRIORS, Prior
from .training import SCHEDULES, TRAIN, Options, Request, Training, train_more
from .training.setup import Rows

# With a code of so many dimensions, at most one of them active after so many steps is
# no accident of a short training.
COLLAPSE_MIN_DIM = 4
COLLAPSE_MIN_STEPS = 500


class PosteriorCollapseWarning(UserWarning):
    """The code of a trained model holds next to nothing about x."""


class VAEEstimator(FittedVAEMixin, CallbackSupportMixin, BaseEstimator):
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
        "auto" is bernoulli where every value lies in [0, 1], gaussian otherwise, and
        mixed for a data frame with a column that holds no numbers; the choice is in
        ``likelihood_``. "mixed" takes a data frame of numbers, booleans and
        categories; see :class:`~skvae.Mixed`.

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

    fitted_ : skvae.fitted.FittedVAE
        The fitted model as a value; all other attributes are read from it.

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
        "likelihood": [StrOptions(set(BY_NAME)), Likelihood],
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

    _doc_link_module = "skvae"
    _doc_link_template = (
        "https://skvae.readthedocs.io/en/latest/api/skvae.{estimator_name}.html"
    )

    # The training that partial_fit keeps from call to call.
    _training: Training | None = None

    def __init__(
        self,
        latent_dim: int | tuple[int, ...] = 20,
        *,
        hidden_dim: int | tuple[int, ...] = 400,
        epochs: int = 20,
        batch_size: int = 100,
        learning_rate: float = 1e-3,
        learning_rate_schedule: str = "constant",
        network: str | Network | tuple[Any, Any] = "mlp",
        likelihood: str | Likelihood = "auto",
        prior: str | Prior = "normal",
        objective: str | Objective = "elbo",
        standardize: str | bool = "auto",
        validation_fraction: float | None = None,
        early_stopping: bool = False,
        n_iter_no_change: int = 10,
        tol: float = 0.0,
        max_gradient_norm: float | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
        warm_start: bool = False,
    ) -> None:
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    # ------------------------------------------------------------------ training

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
    ) -> "VAEEstimator":
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows within the support of the likelihood. Images may have the shape
            (n_samples, channels, height, width); see Notes.
        y : array-like of shape (n_samples,) or None
            Class labels, for a conditional estimator; ignored by others.
        sample_weight : array-like of shape (n_samples,) or None
            Weight of each row in the loss. Only ratios matter.
        X_val : array-like of shape (n_validation, n_features) or None
            Validation set, in place of ``validation_fraction``.
        y_val : array-like of shape (n_validation,) or None
            Class labels of the validation set, for a conditional estimator.

        Returns
        -------
        self : VAEEstimator

        Raises
        ------
        ValueError
            If a parameter or the data are not as expected; the estimator is then as it
            was before.
        DivergenceError
            If the loss stops being finite before an epoch is complete; the estimator is
            then as it was before. After a complete epoch the best weights are kept, and
            a ``ConvergenceWarning`` says so.

        Notes
        -----
        KeyboardInterrupt ends the training with a warning and keeps the best weights.

        Images are modelled as rows, channels first, and rows are what
        ``inverse_transform`` and ``sample`` give: ``X.reshape(-1, channels, height,
        width)`` makes images of them.
        """
        context = self._init_callback_context(max_subtasks=self.epochs)
        listener = Epochs(self, context)
        before = self.fitted_ if self.warm_start and self._is_fitted else None
        request, seen = self._request(X, y, sample_weight, X_val, y_val, before)
        listener.seen = seen
        value = TRAIN.get()(replace(request, listener=listener))
        listener.end(value)
        self._hold(value, seen)
        self._report(value)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any = None, *, classes: Any = None, sample_weight: Any = None
    ) -> "VAEEstimator":
        """Train for one pass over a chunk of rows.

        The first chunk decides the likelihood and the standardisation. The optimiser
        keeps its state from call to call; a copy or a pickle starts it afresh. The
        learning rate is constant, and the weights are those of the last pass.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or None
            Class labels, for a conditional estimator; ignored by others.
        classes : array-like of shape (n_classes,) or None
            All labels that will ever come; needed in the first call where its chunk
            does not have them all.
        sample_weight : array-like of shape (n_samples,) or None

        Returns
        -------
        self : VAEEstimator

        Raises
        ------
        ValueError
            As :meth:`fit` does, or where the parameters ask for another model than the
            fitted one.
        DivergenceError
            If the loss stops being finite; the estimator is then as it was before.
        """
        before = self.fitted_ if self._is_fitted else None
        request, seen = self._request(
            X, y, sample_weight, None, None, before, classes=classes
        )
        training, value = train_more(request, self._training)
        self._hold(value, seen, training)
        return self

    def _request(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        X_val: Any,
        y_val: Any,
        before: FittedVAE | None,
        classes: Any = None,
    ) -> tuple[Request, Seen]:
        """What to train, after all checks that need no model."""
        if before is None:
            form = form_of(X, self._kinds())
            # What scikit-learn's checks find out, they leave on the object that they
            # check for: not on this one, for a fit that fails changes nothing.
            stand_in = type(type(self).__name__, (BaseEstimator,), {})()
            checked = form.check(stand_in, X, reset=True)
            seen = Seen.of(stand_in)
            labels = self._labels_of(y, num_samples(checked), classes)
        else:
            form, labels = before.form, before.labels
            checked, seen = form.check(self, X), Seen.of(self)
        rows = Rows(
            checked,
            checked_weights(sample_weight, checked),
            labels.encode(y, num_samples(checked)),
            y,
        )
        options = Options(
            epochs=int(self.epochs),
            batch_size=int(self.batch_size),
            learning_rate=float(self.learning_rate),
            schedule=self.learning_rate_schedule,
            patience=int(self.n_iter_no_change) if self.early_stopping else None,
            tolerance=float(self.tol),
            max_gradient_norm=self.max_gradient_norm,
        )
        request = Request(
            network=self.network,
            likelihood=self.likelihood,
            prior=self.prior,
            objective=self.objective,
            latent_dim=self.latent_dim,
            hidden_dim=self.hidden_dim,
            standardize=self.standardize,
            options=options,
            device=self.device,
            precision=self.precision,
            random_state=self.random_state,
            validation_fraction=self.validation_fraction,
            form=form,
            labels=labels,
            rows=rows,
            validation=self._validation(X_val, y_val, form, labels, seen),
            before=before,
        )
        return request, seen

    def _kinds(self) -> dict[Any, str] | None:
        """Kinds of columns by name, where the likelihood asks for a data frame."""
        likelihood = self.likelihood
        if isinstance(likelihood, str):
            likelihood = BY_NAME[likelihood]()
        return likelihood.kinds

    def _labels_of(self, y: Any, n_rows: int, classes: Any = None) -> NoLabels:
        """The form of y."""
        if classes is not None:
            raise ValueError(
                f"classes={classes!r} was given, but {type(self).__name__} is not "
                "conditional on labels; use ConditionalVAEEstimator."
            )
        return NoLabels()

    def _validation(
        self, X_val: Any, y_val: Any, form: Form, labels: NoLabels, seen: Seen
    ) -> Rows | None:
        if X_val is None:
            if y_val is not None:
                raise ValueError("y_val was given without X_val; give both, or none.")
            return None
        if self.validation_fraction is not None:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and X_val both ask "
                "for a validation set; give one of them."
            )
        stand_in = seen.stand_in(type(self).__name__)
        checked = form.check(stand_in, X_val)
        return Rows(checked, None, labels.encode(y_val, num_samples(checked)))

    def _hold(
        self, value: FittedVAE, seen: Seen, training: Training | None = None
    ) -> None:
        """Take over a fitted value."""
        self.fitted_ = value
        self._training = training
        seen.leave_on(self)

    def _report(self, value: FittedVAE) -> None:
        """Warn of what the user should know of a training."""
        if value.result == "interrupted":
            warn(
                f"Training interrupted in epoch {len(value.history) + 1}; the best "
                "weights so far are kept."
            )
            return
        if value.result == "diverged":
            warn(value.message, ConvergenceWarning)
            return
        if not value.history:
            return
        dim = value.latent_dim
        record = value.history[value.best_epoch - 1]
        if (
            dim >= COLLAPSE_MIN_DIM
            and record.active_units <= 1
            and value.n_steps >= COLLAPSE_MIN_STEPS
        ):
            warn(
                f"The posterior has collapsed: {record.active_units} of {dim} latent "
                "dimensions are active, so the code holds next to nothing about x. "
                "Try objective=ELBO(warmup=0.5), ELBO(free_bits=0.1), a smaller beta, "
                "or a lower learning_rate.",
                PosteriorCollapseWarning,
            )

    def __getstate__(self) -> dict[str, Any]:
        """What pickles hold: plain values and arrays, no data, no optimiser."""
        state = dict(super().__getstate__())
        state.pop("_training", None)
        if "fitted_" in state:
            state["fitted_"] = state["fitted_"].state()
        return plain(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "model_" in state:
            raise ValueError(
                "This pickle was written by skvae 0.1, whose pickles this version does "
                "not read. Load it with skvae 0.1 and write it with skvae.save: such "
                "files are read by every later version."
            )
        state = revived(state)
        fitted = state.get("fitted_")
        if fitted is not None:
            try:
                device = resolve_device(state["device"])
            except ValueError:
                device = torch.device("cpu")  # fitted on a GPU that is not here
            state["fitted_"] = FittedVAE.from_state(fitted, device)
        super().__setstate__(state)
