"""A fit: what is decided before its first step, and its epochs."""

import copy
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from ._compat import safe_indexing
from .checks import fresh_if_none
from .device import resolve_device, resolve_precision
from .engine import Data, Record, Trainer, train
from .likelihoods import LIKELIHOODS, Bernoulli, Likelihood, guess
from .model import Architecture, Model, incompatibility
from .networks import NETWORKS, EncoderDecoder, Network
from .noise import hash_rows, row_noise
from .objectives import OBJECTIVES, Objective
from .priors import PRIORS, Prior
from .spec import resolve
from .units import Units, column_means

# What warm_start takes over as it is.
LEARNED = (
    "network_",
    "likelihood_",
    "prior_",
    "units_",
    "_seed",
    "_dtype",
    "_records",
    "_architecture",
    "_draws",
    "_image_shape",
    "_table",
)


@dataclass(frozen=True)
class TrainingSet:
    """Checked rows, with weights and conditions or None; y as the user gave it."""

    X: np.ndarray
    weights: np.ndarray | None = None
    condition: np.ndarray | None = None
    y: Any = None

    def take(self, rows: np.ndarray | None) -> "TrainingSet":
        """Some of the rows; all of them for None."""
        if rows is None:
            return self
        weights, condition, y = (
            None if part is None else safe_indexing(part, rows)
            for part in (self.weights, self.condition, self.y)
        )
        return TrainingSet(safe_indexing(self.X, rows), weights, condition, y)

    def with_weight(self) -> np.ndarray | None:
        """Indices of the rows that weigh anything, None where that is all of them."""
        if self.weights is None or np.all(self.weights > 0):
            return None
        return np.flatnonzero(self.weights > 0)


@dataclass
class Fit:
    """A fit under way.

    Attributes
    ----------
    fitted : dict
        What was decided before the first step, by attribute name.
    trainer : Trainer
    rows : TrainingSet
        What it trains on, in the user's units.
    data : Data
        The rows as the engine has them.
    held_out : (Data, Tensor) or None
        The validation set and the noise to evaluate it with.
    records : list of Record
    """

    fitted: dict[str, Any]
    trainer: Trainer
    rows: TrainingSet
    data: Data
    held_out: tuple[Data, torch.Tensor] | None
    patience: int | None
    tolerance: float
    records: list[Record] = field(default_factory=list)

    def run(self, epochs: int, **options: Any) -> Generator[Record, None, None]:
        """The epochs, one by one; see :func:`skvae.engine.train` for the options."""
        validation, noise = self.held_out or (None, None)
        run = train(
            self.trainer,
            self.data,
            epochs=epochs,
            validation=validation,
            validation_noise=noise,
            patience=self.patience,
            tolerance=self.tolerance,
            **options,
        )
        try:
            for record in run:
                self.records.append(record)
                yield record
        finally:
            run.close()

    def attributes(self) -> dict[str, Any]:
        """What the estimator has learned so far, by name."""
        before = self.fitted["_records"]
        return {
            **self.fitted,
            "_records": [*before, *self.records],
            "n_iter_": len(self.records),
            "best_epoch_": self.trainer.best_epoch or len(before),
        }


def begin(
    vae: Any, fitted: dict[str, Any], data: TrainingSet, validation: TrainingSet | None
) -> Fit:
    """A fit of an estimator, from what :func:`decide` has decided, ready to run."""
    kept, held_out = _split(vae, data, fitted["_seed"])
    if held_out is not None:
        validation = data.take(held_out)
    data = data.take(kept)
    trainer = make_trainer(vae, fitted, vae.learning_rate_schedule)
    return Fit(
        fitted,
        trainer,
        data,
        as_trained_on(trainer, fitted["units_"], data),
        None if validation is None else _held_out(validation, fitted),
        patience=vae.n_iter_no_change if vae.early_stopping else None,
        tolerance=vae.tol,
    )


def as_trained_on(trainer: Trainer, units: Units, data: TrainingSet) -> Data:
    """Rows in the units of the model, where and as the trainer wants them."""
    return trainer.data(units.standardize(data.X), data.weights, data.condition)


def decide(vae: Any, data: TrainingSet, *, warm: bool) -> dict[str, Any]:
    """Everything that is decided before the first step, by attribute name."""
    X, weights = data.X, data.weights
    if vae._table is not None:
        likelihood = vae._table.likelihood
        likelihood._validate_params()
    elif isinstance(vae.likelihood, str) and vae.likelihood == "auto":
        likelihood = vae.likelihood_ if warm else guess(X)
    else:
        likelihood = resolve(vae.likelihood, LIKELIHOODS, "likelihood", Likelihood)
    likelihood.check_support(X, columns=vae._columns)
    architecture = _asked_architecture(vae, data.condition)
    if warm:
        return _decide_warm(vae, likelihood, architecture)
    standardized = likelihood.standardized(X.shape[1])
    if not vae.standardize:
        standardized = np.zeros_like(standardized)
    elif vae.standardize is True and not likelihood.real_valued:
        raise ValueError(
            f"standardize=True would move the data out of the support "
            f"{likelihood.support} of {likelihood!r}; use standardize='auto' or "
            "likelihood='gaussian'."
        )
    seed = seed_of(vae.random_state)
    fitted: dict[str, Any] = {
        "network_": _resolve_network(vae.network),
        "likelihood_": likelihood,
        "prior_": resolve(vae.prior, PRIORS, "prior", Prior),
        "objective_": resolve(vae.objective, OBJECTIVES, "objective", Objective),
        "units_": (
            Units.fit(X, weights, vae._columns).only(standardized)
            if standardized.any()
            else Units.identity(X.shape[1])
        ),
        "_seed": seed,
        "_dtype": X.dtype,
        "_records": [],
        "_architecture": architecture,
        # Grey values under a Bernoulli: samples are means, as of a picture.
        "_draws": not (
            isinstance(likelihood, Bernoulli) and bool(np.any((X > 0) & (X < 1)))
        ),
    }
    mean = column_means(X, weights)
    spread = np.sqrt(column_means(X, weights, center=mean))
    units = fitted["units_"]
    generator = torch.Generator().manual_seed(seed)
    fitted["model_"] = _build(
        fitted, units.standardize(mean), spread / units.scale, generator
    ).to(resolve_device(vae.device))
    return fitted


def _decide_warm(
    vae: Any, likelihood: Likelihood, architecture: Architecture
) -> dict[str, Any]:
    """Go on from what the last fit learned."""
    asked = (
        architecture,
        repr(_resolve_network(vae.network)),
        repr(resolve(vae.prior, PRIORS, "prior", Prior)),
        repr(likelihood),
    )
    learned = (
        vae._architecture,
        repr(vae.network_),
        repr(vae.prior_),
        repr(vae.likelihood_),
    )
    if asked != learned:
        raise ValueError(
            f"warm_start=True cannot go on from {learned} with {asked}; keep "
            "latent_dim, hidden_dim, network, prior and likelihood, or set "
            "warm_start=False."
        )
    model = copy.deepcopy(vae.model_)
    model.objective = resolve(vae.objective, OBJECTIVES, "objective", Objective)
    reason = incompatibility(vae.network_, vae.likelihood_, vae.prior_, model.objective)
    if reason is not None:
        raise ValueError(reason)
    return {
        **{name: vars(vae)[name] for name in LEARNED},
        "objective_": model.objective,
        "model_": model.to(resolve_device(vae.device)),
    }


def _resolve_network(network: Any) -> Network:
    if isinstance(network, tuple):
        if len(network) != 2:
            raise ValueError(
                f"network={network!r} must be a pair (encoder, decoder) of torch "
                f"modules; it has {len(network)} items."
            )
        network = EncoderDecoder(*network)
    return resolve(network, NETWORKS, "network", Network)


def _asked_architecture(vae: Any, condition: np.ndarray | None) -> Architecture:
    """What determines the shapes of the weights, beside the width of x."""
    latent_dim = _widths("latent_dim", vae.latent_dim)
    if not latent_dim:
        raise ValueError("latent_dim=() has no level; give at least one.")
    return Architecture(
        latent_dim=latent_dim,
        hidden_dim=_widths("hidden_dim", vae.hidden_dim),
        n_conditions=0 if condition is None else condition.shape[1],
        image_shape=vae._image_shape,
    )


def _widths(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, Integral):
        return (int(value),)
    for width in value:
        if not isinstance(width, Integral) or width < 1:
            raise ValueError(
                f"{name}={value!r} must be an int or a tuple of ints of at least "
                f"1; {width!r} is not."
            )
    return tuple(int(width) for width in value)


def _build(
    fitted: dict[str, Any],
    mean: np.ndarray,
    spread: np.ndarray,
    generator: torch.Generator,
) -> Model:
    units, architecture = fitted["units_"], fitted["_architecture"]
    return Model(
        fitted["network_"],
        fitted["likelihood_"],
        fitted["prior_"],
        fitted["objective_"],
        n_features=len(units.scale),
        **asdict(architecture),
        unit=torch.tensor(units.scale, dtype=torch.float32),
        mean=torch.tensor(mean, dtype=torch.float32),
        spread=torch.tensor(spread, dtype=torch.float32),
        generator=generator,
    )


def untrained(fitted: dict[str, Any]) -> Model:
    """A model as the learned attributes describe it, but for its weights."""
    anywhere = np.zeros(len(fitted["units_"].scale), dtype=np.float32)
    return _build(fitted, anywhere, anywhere, torch.Generator())


def make_trainer(
    vae: Any, fitted: dict[str, Any], schedule: str = "constant"
) -> Trainer:
    """A trainer with an estimator's parameters, of what has been decided."""
    model = fitted["model_"]
    # Every epoch so far moves the seed: to go on is not to repeat order and noise.
    n_epochs = len(fitted["_records"])
    seed = np.random.SeedSequence([fitted["_seed"], n_epochs]).generate_state(1)
    return Trainer(
        model,
        learning_rate=vae.learning_rate,
        batch_size=vae.batch_size,
        precision=resolve_precision(
            vae.precision,
            model.device,
            exact=(
                fitted["network_"].needs_float32
                or not model.likelihood.tolerates_rounding
            ),
            n_weights=sum(p.numel() for p in model.parameters()),
        ),
        generator=torch.Generator().manual_seed(int(seed[0])),
        n_epochs=n_epochs,
        schedule=schedule,
        max_gradient_norm=vae.max_gradient_norm,
        log_scale=fitted["units_"].log_scale,
    )


def _split(
    vae: Any, data: TrainingSet, seed: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Indices of the rows to train on and to hold out; None stands for all, none.

    A row of weight 0 is no row: no epoch may see it.
    """
    rows = data.with_weight()
    if vae.validation_fraction is None:
        return rows, None
    rows = np.arange(len(data.X)) if rows is None else rows
    n_validation = max(1, round(vae.validation_fraction * len(rows)))
    if n_validation >= len(rows):
        raise ValueError(
            f"validation_fraction={vae.validation_fraction} of {len(rows)} rows "
            "leaves none to train on; give more rows or a smaller fraction."
        )
    rows = np.random.RandomState(seed).permutation(rows)
    return rows[n_validation:], rows[:n_validation]


def _held_out(
    validation: TrainingSet, fitted: dict[str, Any]
) -> tuple[Data, torch.Tensor]:
    """A validation set on the device, and the noise that belongs to its rows."""
    model, rows = fitted["model_"], fitted["units_"].standardize(validation.X)
    data = Data.from_rows(
        rows, validation.weights, model.device, condition=validation.condition
    )
    noise = row_noise(hash_rows(rows), model.objective.n_draws, model.n_loss_noise)
    return data, torch.from_numpy(noise).to(model.device)


def seed_of(random_state: Any) -> int:
    """A seed from whatever stands for one; fresh entropy for None."""
    return check_random_state(fresh_if_none(random_state)).randint(
        np.iinfo(np.int32).max
    )
