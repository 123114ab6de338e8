"""Setup: from what an estimator asks for to a training, and to its result."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from .._compat import num_samples, safe_indexing
from ..checks import check_widths, fresh_if_none, refuse_missing
from ..device import PRECISIONS, available_memory, resolve_device, resolve_precision
from ..fingerprint import fingerprint
from ..fitted import FittedVAE
from ..forms import Form, NoLabels
from ..forms.base import Summary
from ..history import Record
from ..likelihoods import BY_NAME, Auto, Bernoulli, Likelihood
from ..model import Architecture, Choices, Model
from ..networks import NETWORKS, EncoderDecoder, Network
from ..noise import hash_rows, row_noise
from ..objectives import OBJECTIVES, Objective
from ..priors import PRIORS, Prior
from ..spec import resolve
from ..units import Units
from .data import Data
from .engine import pass_over, train_stack
from .training import DivergenceError, Options, Training

# Copies of the weights that a training keeps: themselves, their gradient, two moments,
# the best ones and those that are handed out.
COPIES = 6
# Networks of fewer weights than this are built without asking for the memory.
SMALL = 10_000_000
# Rows that are searched for grey values at a time.
GREY_ROWS = 1000


class Listener:
    """What hears of the epochs of a training; the base class ignores them."""

    def begin(self, rows: "Rows") -> None:
        """The training of these rows is about to begin."""

    def begin_epoch(self) -> None:
        """An epoch is about to begin."""

    def end_epoch(self, record: Record, value: Callable[[], FittedVAE]) -> bool:
        """An epoch has ended; whether to stop.

        ``value`` gives the fitted VAE as it is now.
        """
        return False

    def close(self) -> None:
        """The training has ended, in whatever way."""


@dataclass(frozen=True)
class Rows:
    """Checked rows, with weights and the condition, or None.

    Attributes
    ----------
    X : array or data frame
    weights : ndarray of shape (N,) or None
    condition : ndarray of shape (N, n_conditions) or None
    y : array-like or None
    columns : ndarray of shape (N, n_columns) or None
        The columns of X, once they are known.
    """

    X: Any
    weights: np.ndarray | None = None
    condition: np.ndarray | None = None
    y: Any = None
    columns: np.ndarray | None = None

    def encoded(self, form: Form) -> "Rows":
        """The same with the columns of X, which must have no missing entries."""
        columns, observed = form.batch(self.X)
        refuse_missing(observed, form.names)
        return replace(self, columns=columns)

    def __len__(self) -> int:
        return num_samples(self.X)

    @property
    def checked_columns(self) -> np.ndarray:
        """The columns, with NaN in the rows that weigh nothing, which are no rows."""
        assert self.columns is not None
        if self.with_weight() is None:
            return self.columns
        assert self.weights is not None
        return np.where(self.weights[:, None] > 0, self.columns, np.nan)

    def take(self, rows: np.ndarray | None) -> "Rows":
        """Some of the rows; all of them for None."""
        if rows is None:
            return self
        parts = (self.X, self.weights, self.condition, self.y, self.columns)
        return Rows(*(None if p is None else safe_indexing(p, rows) for p in parts))

    def with_weight(self) -> np.ndarray | None:
        """Indices of the rows that weigh anything, None where that is all of them."""
        if self.weights is None or np.all(self.weights > 0):
            return None
        return np.flatnonzero(self.weights > 0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A training that an estimator asks for.

    Attributes
    ----------
    network, likelihood, prior, objective : str or Spec
        As the estimator has them.
    latent_dim, hidden_dim : int or tuple of int
    standardize : bool or "auto"
    options : Options
    device, precision : str
    random_state : int, RandomState instance or None
    validation_fraction : float or None
    form : Form
    labels : NoLabels
        Without counts.
    rows : Rows
    validation : Rows or None
    before : FittedVAE or None
        What to go on from.
    with_codes : bool
        Whether the value is to hold codes of training rows.
    listener : Listener
    """

    network: Any
    likelihood: Any
    prior: Any
    objective: Any
    latent_dim: Any
    hidden_dim: Any
    standardize: Any
    options: Options
    device: Any
    precision: str
    random_state: Any
    validation_fraction: float | None
    form: Form
    labels: NoLabels
    rows: Rows
    validation: Rows | None = None
    before: FittedVAE | None = None
    with_codes: bool = True
    listener: Listener = field(default_factory=Listener)

    def architecture(self) -> Architecture:
        """What determines the shapes of the weights, beside the columns."""
        latent_dim = check_widths("latent_dim", self.latent_dim)
        if not latent_dim:
            raise ValueError("latent_dim=() has no level; give at least one.")
        return Architecture(
            latent_dim=latent_dim,
            hidden_dim=check_widths("hidden_dim", self.hidden_dim),
            n_conditions=self.labels.n_conditions,
            image_shape=self.form.image_shape,
        )

    def choices(self) -> Choices:
        """The choices as objects, the likelihood not yet resolved."""
        network = self.network
        if isinstance(network, tuple):
            if len(network) != 2:
                raise ValueError(
                    f"network={network!r} must be a pair (encoder, decoder) of torch "
                    f"modules; it has {len(network)} items."
                )
            network = EncoderDecoder(*network)
        return Choices(
            resolve(network, NETWORKS, "network", Network),
            resolve(self.likelihood, BY_NAME, "likelihood", Likelihood),
            resolve(self.prior, PRIORS, "prior", Prior),
            resolve(self.objective, OBJECTIVES, "objective", Objective),
        )


@torch.inference_mode(False)
def train(request: Request) -> FittedVAE:
    """Train, and return the fitted VAE.

    Raises
    ------
    DivergenceError
        If the loss stopped being finite before an epoch was complete.
    """
    training, rows = prepare(request)
    listener = request.listener
    epochs = train_stack([training])
    try:
        listener.begin(rows)
        listener.begin_epoch()
        for _ in epochs:
            if training.result == "diverged":
                break
            if listener.end_epoch(training.records[-1], training.value):
                training.result = "stopped"
            if training.ended:
                break
            listener.begin_epoch()
    except KeyboardInterrupt:
        if not INTERRUPTIBLE.get():
            raise  # an unfinished fit is no result
        training.interrupt()
    finally:
        epochs.close()
        listener.close()
    return finished(training, request, rows)


def _advice(request: Request, training: Training) -> str:
    """What to do about a training that diverged."""
    options, start = request.options, training.start
    attempts = [f"a learning_rate below {options.learning_rate:g}"]
    if options.max_gradient_norm is None:
        attempts.append("max_gradient_norm=10")
    if start.choices.likelihood.real_valued and start.units.is_identity:
        attempts.append("standardize=True")
    kept = "; the best weights before it are kept" if training.records else ""
    return f"{kept}. Try {', '.join(attempts)}."


@torch.inference_mode(False)
def train_more(
    request: Request, training: Training | None
) -> tuple[Training, FittedVAE]:
    """Train for one pass over a chunk of rows; go on with a training if there is one.

    Raises
    ------
    DivergenceError
        If the loss is no longer finite; the training is then as it was before.
    """
    rows = request.rows.encoded(request.form)
    start, before = start_of(request, rows), request.before
    if before is not None:
        _check_same("objective", start.choices.objective, before.choices.objective)
    rows = rows.take(rows.with_weight())
    if training is None:
        training = Training(start, request.options, PRECISIONS[start.precision])
    data = as_data(start, rows, training.precision)
    try:
        pass_over(training, data, request.options)
    except DivergenceError as error:
        raise DivergenceError(str(error) + _advice(request, training)) from None
    training.start = replace(
        training.start, labels=start.labels.counted(rows.y, rows.weights)
    )
    value = finished(training, request, rows)
    n_epochs = len(value.history)
    return training, replace(value, n_epochs=n_epochs, best_epoch=n_epochs)


def finished(training: Training, request: Request, rows: Rows) -> FittedVAE:
    """The value of a training, with codes where the request asks for them.

    Raises
    ------
    DivergenceError
        If no epoch was complete.
    """
    value = training.value()
    if training.result == "diverged":
        message = training.message + _advice(request, training)
        if not training.records:
            raise DivergenceError(message)
        value = replace(value, message=message)
    if not request.with_codes:
        return value
    return value.with_codes(rows.X, rows.weights, rows.condition)


#: What ``fit`` calls to turn a request into a fitted VAE.
TRAIN: ContextVar[Callable[[Request], FittedVAE]] = ContextVar("TRAIN", default=train)
#: Whether KeyboardInterrupt ends a fit with what there is, or goes on to the caller.
INTERRUPTIBLE: ContextVar[bool] = ContextVar("INTERRUPTIBLE", default=True)


@contextmanager
def setting(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Within, a context variable has this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class _Recorded(Exception):
    """Carries a request out of ``fit``."""

    def __init__(self, request: Request):
        super().__init__()
        self.request = request


def request_of(fit: Callable[[], object]) -> Request:
    """The request that a call of ``fit`` makes, without training."""

    def record(request: Request) -> FittedVAE:
        raise _Recorded(request)

    with setting(TRAIN, record):
        try:
            fit()
        except _Recorded as recorded:
            return recorded.request
    raise TypeError("fit did not ask for a training")


# ------------------------------------------------------------------------- preparing


@torch.inference_mode(False)
def prepare(request: Request) -> tuple[Training, Rows]:
    """A training that is ready to run, and the rows that it trains on."""
    rows = request.rows.encoded(request.form)
    validation = request.validation
    start = start_of(request, rows)
    names = start.form.names
    kept, out = _split(request, start.seed)
    if out is not None:
        validation = rows.take(out)
    elif validation is not None:
        validation = validation.encoded(start.form)
        assert validation.columns is not None
        start.choices.likelihood.check_support(validation.columns, "X_val", names)
    rows = rows.take(kept)
    labels = start.labels.counted(rows.y, rows.weights, anew=True)
    start = replace(start, labels=labels)
    precision = PRECISIONS[start.precision]
    training = Training(
        start,
        request.options,
        precision,
        as_data(start, rows, precision),
        None if validation is None else _held_out(validation, start),
    )
    return training, rows


def start_of(request: Request, rows: Rows) -> FittedVAE:
    """What to begin with."""
    if request.before is None:
        return _fresh(request, rows)
    return _go_on(request, request.before, rows)


def as_data(start: FittedVAE, rows: Rows, precision: torch.dtype) -> Data:
    """Rows in the units of the model, in the dtype that is fastest without loss.

    Grey values may be as coarse as the products; residuals and codes must not be.
    """
    assert rows.columns is not None
    data = Data.of(
        start.units.standardize(rows.columns, start.form.names),
        rows.weights,
        rows.condition,
        start.module.device,
        _data_dtype(start, precision),
    )
    if data.weights is None:
        return data
    # Both halves of a row's loss must see the same weight.
    return replace(data, weights=data.weights.to(precision).float())


def _data_dtype(start: FittedVAE, precision: torch.dtype) -> torch.dtype:
    likelihood = start.choices.likelihood
    supports = likelihood.supports(start.form.n_columns)
    coarse = likelihood.tolerates_rounding and all(s.high <= 1 for s, _ in supports)
    return precision if coarse else torch.float32


def _fresh(request: Request, rows: Rows) -> FittedVAE:
    """A fitted VAE before its first step."""
    form, columns = request.form, rows.checked_columns
    weighing = rows.take(rows.with_weight())
    assert weighing.columns is not None
    choices, summary = request.choices(), Summary(weighing.columns, weighing.weights)
    asked = choices.likelihood
    choices = replace(choices, likelihood=asked.resolve(form.columns, summary))
    likelihood = choices.likelihood
    for column in form.columns:
        if column.kind == "category" and not likelihood.takes_categories:
            raise ValueError(
                f"column {column.name!r} holds categories, which {likelihood!r} cannot "
                "have; use likelihood='mixed', or encode the column "
                "(OneHotEncoder) first."
            )
    if not likelihood.covers(summary):
        likelihood.check_support(columns, names=form.names)
    architecture = request.architecture()
    standardized = likelihood.standardizes(summary)
    if not request.standardize:
        standardized = np.zeros_like(standardized)
    elif request.standardize is True and not likelihood.real_valued:
        raise ValueError(
            f"standardize=True would move the data out of the support "
            f"{likelihood.support} of {likelihood!r}; use standardize='auto' or "
            "likelihood='gaussian'."
        )
    units = Units.identity(form.n_columns)
    if standardized.any():
        units = Units.of(summary, form.names).only(standardized)
    device = resolve_device(request.device)
    _check_size(request, architecture, form.n_columns, device)
    seed = seed_of(request.random_state)
    module = Model(
        choices,
        architecture,
        form.columns,
        summary,
        units,
        torch.Generator().manual_seed(seed),
    ).to(device)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            f"network={choices.network!r} has no weight that may change: all of them "
            "have requires_grad=False. Leave some of them free to be trained."
        )
    grey = isinstance(likelihood, Bernoulli) and _has_grey(columns)
    return FittedVAE(
        choices=choices,
        architecture=architecture,
        module=module.eval(),
        units=units,
        form=form,
        labels=request.labels,
        history=(),
        n_epochs=0,
        best_epoch=0,
        seed=seed,
        precision=_precision(request, choices, module),
        # Grey values under a Bernoulli: samples are means, as of a picture.
        draws=not grey,
    )


def _has_grey(columns: np.ndarray) -> bool:
    """Whether a value lies strictly between 0 and 1."""
    blocks = (columns[i : i + GREY_ROWS] for i in range(0, len(columns), GREY_ROWS))
    return any(bool(np.any((block > 0) & (block < 1))) for block in blocks)


def _precision(request: Request, choices: Choices, module: Model) -> str:
    dtype = resolve_precision(
        request.precision,
        module.device,
        exact=not choices.likelihood.tolerates_rounding,
        n_weights=sum(p.numel() for p in module.parameters()),
        needs_float32=choices.network.needs_float32,
    )
    return next(name for name, one in PRECISIONS.items() if one == dtype)


def _go_on(request: Request, before: FittedVAE, rows: Rows) -> FittedVAE:
    """What to begin with to go on from a fitted VAE.

    Raises
    ------
    ValueError
        If the request asks for another model than it is.
    """
    asked, known = request.choices(), before.choices
    columns, likelihood = rows.checked_columns, known.likelihood
    if not isinstance(asked.likelihood, Auto):
        # What was found out from the first rows, such as a number of categories, stays.
        highest = np.zeros((1, before.form.n_columns))
        for support, some in likelihood.supports(before.form.n_columns):
            if np.isfinite(support.high):
                highest[:, list(some)] = support.high
        summary = Summary(highest)
        likelihood = asked.likelihood.resolve(before.form.columns, summary)
    architecture = replace(
        request.architecture(), image_shape=before.architecture.image_shape
    )
    pairs = {
        "network": (asked.network, known.network),
        "likelihood": (likelihood, known.likelihood),
        "prior": (asked.prior, known.prior),
        "the architecture": (architecture, before.architecture),
    }
    for name, (new, old) in pairs.items():
        _check_same(name, new, old)
    known.likelihood.check_support(columns, names=before.form.names)
    choices = replace(known, objective=asked.objective)
    choices.check()
    device = resolve_device(request.device)
    module = _with_objective(before.module, asked.objective).to(device)
    return replace(
        before,
        choices=choices,
        module=module,
        precision=_precision(request, choices, module),
        labels=before.labels,
        codes=None,
        codes_condition=None,
    )


def _check_same(name: str, new: Any, old: Any) -> None:
    """Refuse to go on with another choice than the fitted model has."""
    if repr(new) != repr(old) or fingerprint(new) != fingerprint(old):
        raise ValueError(
            f"the fitted model cannot go on training with {name}={new!r}: it has "
            f"{old!r}. Keep the choices, latent_dim and hidden_dim, or set "
            "warm_start=False and call fit."
        )


def _with_objective(module: Model, objective: Objective) -> Model:
    changed = copy.deepcopy(module)
    changed.objective = objective
    return changed


def _split(request: Request, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Indices of the rows to train on and to hold out; None stands for all, none.

    A row of weight 0 is no row: no epoch may see it.
    """
    rows = request.rows.with_weight()
    if request.validation_fraction is None:
        return rows, None
    rows = np.arange(len(request.rows)) if rows is None else rows
    n_validation = max(1, round(request.validation_fraction * len(rows)))
    if n_validation >= len(rows):
        raise ValueError(
            f"validation_fraction={request.validation_fraction} of {len(rows)} rows "
            "leaves none to train on; give more rows or a smaller fraction."
        )
    rows = np.random.RandomState(seed).permutation(rows)
    return rows[n_validation:], rows[:n_validation]


def _held_out(validation: Rows, start: FittedVAE) -> tuple[Data, torch.Tensor]:
    """A validation set on the device, and the noise that belongs to its rows."""
    data = as_data(start, validation, torch.float32)
    assert validation.columns is not None
    x = start.units.standardize(validation.columns, start.form.names)
    objective, module = start.choices.objective, start.module
    hashes = hash_rows(start.form.hashed(x))
    noise = row_noise(hashes, objective.n_draws, module.n_loss_noise)
    return data, torch.from_numpy(noise).to(module.device)


def _check_size(
    request: Request, architecture: Architecture, n_columns: int, device: torch.device
) -> None:
    """Refuse widths whose weights would not fit into the memory."""
    n_latent = sum(architecture.latent_dim)
    widths = (n_columns, *architecture.hidden_dim, n_latent)
    n_weights = 2 * sum(n_in * n_out for n_in, n_out in pairwise(widths))
    needed = 4 * COPIES * n_weights
    if n_weights > SMALL and needed > 2 * available_memory(device.type):
        raise ValueError(
            f"latent_dim={request.latent_dim!r} and hidden_dim={request.hidden_dim!r} "
            f"make about {n_weights:.1e} weights, which take {needed / 2**30:.0f} GB "
            "in training, more than there is; give smaller widths."
        )


def seed_of(random_state: Any) -> int:
    """A seed from whatever stands for one; fresh entropy for None."""
    return check_random_state(fresh_if_none(random_state)).randint(
        np.iinfo(np.int32).max
    )
