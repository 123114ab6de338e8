"""The fitted VAE as a value: what training returns, and all that it can answer."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from ._compat import num_samples, release_pages, safe_indexing
from .checks import refuse_missing, warn
from .device import answering
from .forms import BY_KIND, Form, Labels, NoLabels
from .forms.base import Summary, check_keys
from .history import Record, columns_of, records_of
from .latent import draw_by_class, draw_like
from .model import AXES, Architecture, Choices, Model
from .noise import hash_rows, row_noise
from .plain import plain, revived
from .priors import log_mixture
from .units import Units

# Draws of z per row in an ELBO: two antithetic pairs.
ELBO_DRAWS = 4
# Draws of z that an importance-weighted estimate takes at once.
IMPORTANCE_BLOCK = 64
# Numbers that a block of rows may occupy at any one layer: what a CPU's caches hold, 2
# MB in float32. It takes more to keep another device busy.
BLOCK = 2**19
TIMES_ELSEWHERE = 8
# Rows whose codes are kept for ``sample(prior="mixture")``.
MAX_CODES = 2000

RESULTS = ("complete", "stopped", "interrupted", "diverged")
PRECISIONS = ("float32", "bfloat16")


def _computing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that computes without gradients, and safely in a forked process."""

    @wraps(method)
    def compute(*args: Any, **kwargs: Any) -> Any:
        with answering(), torch.no_grad():
            return method(*args, **kwargs)

    return compute


@dataclass(frozen=True, eq=False, repr=False)
class FittedVAE:
    """A fitted variational autoencoder. No method changes it.

    Rows X are what ``form.check`` gives; numbers are in the user's units.

    Attributes
    ----------
    choices : Choices
        Network, likelihood, prior and objective, resolved.
    architecture : Architecture
    module : Model
        The torch module, with the weights that were selected.
    units : Units
    form : Form
        The form of X.
    labels : Labels or NoLabels
        The form of y.
    history : tuple of Record
        One record per epoch, those of earlier calls included.
    n_epochs : int
        Epochs of the last call.
    best_epoch : int
        The epoch whose weights these are.
    result : {"complete", "stopped", "interrupted", "diverged"}
        How the training ended.
    n_steps : int
        Optimiser steps of the last call.
    seed : int
    precision : {"float32", "bfloat16"}
        Of the matrix products in training.
    draws : bool
        Whether ``sample`` draws from p(x|z) unless told otherwise.
    codes, codes_condition : ndarray or None
        One draw from q(z|x) of some training rows, chosen by their weight, and their
        conditions.
    message : str
        About a divergence.
    """

    choices: Choices
    architecture: Architecture
    module: Model
    units: Units
    form: Form
    labels: NoLabels
    history: tuple[Record, ...]
    n_epochs: int
    best_epoch: int
    seed: int
    precision: str
    draws: bool
    result: str = "complete"
    n_steps: int = 0
    codes: np.ndarray | None = None
    codes_condition: np.ndarray | None = None
    message: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return (
            f"<FittedVAE: {self.choices.network!r}, {self.choices.likelihood!r}, "
            f"latent_dim={self.latent_dim}, {len(self.history)} epochs, {self.result}>"
        )

    @property
    def latent_dim(self) -> int:
        """Width of z, all levels together."""
        return self.module.latent_dim

    # ------------------------------------------------------------------ blocks of rows

    def block_rows(self, draws: int = 1) -> int:
        """Rows to take at once so that every layer stays within a block."""
        network = self.module.network
        widest = max(max(p.shape, default=1) for p in network.parameters())
        # A convolution's weights do not tell how wide it is.
        widest = max(widest, network.n_widest)
        on_cpu = self.module.device.type == "cpu"
        block = BLOCK if on_cpu else TIMES_ELSEWHERE * BLOCK
        return max(1, block // (widest * draws))

    def _blocks(self, X: Any, draws: int = 1) -> Iterator[tuple[np.ndarray, slice]]:
        """Columns of X in the user's units, in blocks of bounded memory."""
        step = self.block_rows(draws)
        for start in range(0, num_samples(X), step):
            rows = slice(start, start + step)
            block, observed = self.form.batch(safe_indexing(X, rows))
            refuse_missing(observed, self.form.names)
            yield block, rows
            if isinstance(X, np.memmap):
                release_pages(X)

    def _scored(
        self, X: Any, condition: np.ndarray | None, draws: int
    ) -> Iterator[tuple[Tensor, np.ndarray, Tensor | None]]:
        """Blocks of X in the model's units, the hashes of their rows, conditions.

        A value outside the support counts as the nearest within.
        """
        likelihood, moved = self.choices.likelihood, False
        for block, rows in self._blocks(X, draws):
            if not likelihood.contains(block).all():
                block, moved = likelihood.nearest(block), True
            x = self.units.standardize(block, self.form.names)
            given = None if condition is None else self._tensor(condition[rows])
            yield self._tensor(x), hash_rows(self.form.hashed(x)), given
        if moved:
            warn(
                f"X has values outside the support {likelihood.support} of "
                f"{likelihood!r}; they were scored as the nearest value within."
            )

    def _tensor(self, array: np.ndarray) -> Tensor:
        # Row by row in memory: torch knows no negative strides, and the order of the
        # columns' sums would change the last digit.
        rows = np.ascontiguousarray(array, dtype=np.float32)
        return torch.tensor(rows, device=self.module.device)

    def _noise(self, hashes: np.ndarray, draws: int, first: int = 0) -> Tensor:
        return self._tensor(row_noise(hashes, draws, self.module.n_noise, first=first))

    # ------------------------------------------------------------------ codes and rows

    @_computing
    def encode(self, X: Any) -> np.ndarray:
        """Means of q(z|x), float32 (N, L)."""
        Z = np.empty((num_samples(X), self.latent_dim), dtype=np.float32)
        for block, rows in self._blocks(X):
            x = self._tensor(self.units.standardize(block, self.form.names))
            noise = x.new_zeros(1, len(x), self.module.n_noise)
            Z[rows] = self.module.infer(x, noise).mean.cpu().numpy()
        return Z

    @_computing
    def decode(
        self,
        Z: np.ndarray,
        condition: np.ndarray | None = None,
        generator: torch.Generator | None = None,
    ) -> np.ndarray:
        """Means of p(x|z), or draws from it where there is a generator.

        Columns (N, n_columns) in the user's units; ``form.decode`` makes rows of X of
        them.
        """
        X = np.empty((len(Z), self.form.n_columns), dtype=self.form.dtype)
        largest = np.finfo(X.dtype).max
        step = self.block_rows()
        for start in range(0, len(Z), step):
            rows = slice(start, start + step)
            z = self._tensor(Z[rows])
            given = None if condition is None else self._tensor(condition[rows])
            x = (
                self.module.mean(z, given)
                if generator is None
                else self.module.draw(z, generator, given)
            )
            # A heavy tail may reach beyond the dtype of the data.
            restored = self.units.restore(x.cpu().numpy())
            X[rows] = np.clip(restored, -largest, largest)
        return X

    @_computing
    def reconstruct(self, X: Any, y: Any = None) -> np.ndarray:
        """Columns of X, encoded and decoded again, (N, n_columns)."""
        condition = self.labels.given(y, num_samples(X))
        return self.decode(self.encode(X), condition)

    @_computing
    def draw_codes(self, X: Any) -> np.ndarray:
        """One draw from q(z|x) of each row, float32 (N, L)."""
        codes = [
            self.module.infer(x, self._noise(hashes, 1)).z[0].cpu().numpy()
            for x, hashes, _ in self._scored(X, None, 1)
        ]
        return np.concatenate(codes)

    def with_codes(
        self, X: Any, weights: np.ndarray | None, condition: np.ndarray | None
    ) -> "FittedVAE":
        """The same with the codes of at most 2,000 rows, chosen by their weight."""
        n_rows = num_samples(X)
        rows = None
        if weights is not None:
            # As many as there are, each as often as its weight says.
            shares = np.asarray(weights, dtype=np.float64)
            random_state = np.random.RandomState(self.seed)
            rows = random_state.choice(
                n_rows, min(n_rows, MAX_CODES), p=shares / shares.sum()
            )
        elif n_rows > MAX_CODES:
            random_state = np.random.RandomState(self.seed)
            rows = random_state.choice(n_rows, MAX_CODES, replace=False)
        if rows is not None:
            X = safe_indexing(X, rows)
            condition = None if condition is None else condition[rows]
        return replace(self, codes=self.draw_codes(X), codes_condition=condition)

    @_computing
    def sample(
        self,
        n_samples: int,
        seed: int,
        *,
        y: Any = None,
        observation_noise: bool | str = "auto",
        prior: Any = "model",
    ) -> np.ndarray:
        """New rows as columns (n_samples, n_columns)."""
        random_state = np.random.RandomState(seed)
        condition = self.labels.chosen(y, n_samples, random_state)
        if isinstance(prior, str) and prior == "model":
            noise = torch.randn(
                (n_samples, self.module.n_prior_noise),
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float32,
            )
            given = None if condition is None else self._tensor(condition)
            latent = self.module.draw_latent(noise.to(self.module.device), given)
            z = latent.cpu().numpy()
        else:
            assert self.codes is not None
            # In a state of its own: the labels may have been drawn from the other.
            random_state = np.random.RandomState(seed)
            z = (
                draw_like(self.codes, n_samples, prior, random_state)
                if condition is None or self.codes_condition is None
                else draw_by_class(
                    self.codes, self.codes_condition, condition, prior, random_state
                )
            )
        draws = self.draws if observation_noise == "auto" else observation_noise
        generator = torch.Generator(self.module.device).manual_seed(seed + 1)
        return self.decode(z, condition, generator if draws else None)

    # ------------------------------------------------------------------ scores

    @_computing
    def elbo_parts(self, X: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Reconstruction (-log p(x|z)) and KL of each row, in nats, float32.

        Minus their sum is the evidence lower bound.
        """
        return self._elbo_parts(X, self.labels.encode(y, num_samples(X)))

    def _elbo_parts(
        self, X: Any, condition: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        reconstruction, kl = [], []
        for x, hashes, given in self._scored(X, condition, ELBO_DRAWS):
            noise = self._noise(hashes, ELBO_DRAWS)
            terms = self.module.terms(x, noise, given, analytic_kl=True)
            reconstruction.append(terms.reconstruction.cpu().numpy())
            kl.append(terms.divergence.cpu().numpy())
        in_units = np.concatenate(reconstruction) + self.units.log_scale
        return in_units.astype(np.float32), np.concatenate(kl)

    @_computing
    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """The evidence lower bound of each row, in nats, float32 (N,)."""

        def bound(condition: np.ndarray | None) -> np.ndarray:
            reconstruction, kl = self._elbo_parts(X, condition)
            return -(reconstruction + kl)

        return self._over_labels(X, y, bound)

    @_computing
    def log_likelihood(
        self, X: Any, n_importance_samples: int, y: Any = None
    ) -> np.ndarray:
        """Importance-weighted estimates of log p(x), in nats, float32 (N,)."""
        draws = min(n_importance_samples, IMPORTANCE_BLOCK)
        constant = np.log(n_importance_samples) + self.units.log_scale

        def estimate(condition: np.ndarray | None) -> np.ndarray:
            parts = []
            for x, hashes, given in self._scored(X, condition, draws):
                total = torch.full((len(x),), -torch.inf, device=x.device)
                for first in range(0, n_importance_samples, draws):
                    n_draws = min(draws, n_importance_samples - first)
                    noise = self._noise(hashes, n_draws, first)
                    terms = self.module.terms(x, noise, given, analytic_kl=False)
                    total = torch.logaddexp(total, terms.log_weights.logsumexp(0))
                parts.append(total.cpu().numpy())
            return (np.concatenate(parts) - constant).astype(np.float32)

        return self._over_labels(X, y, estimate)

    def _over_labels(
        self, X: Any, y: Any, bound: Callable[[np.ndarray | None], np.ndarray]
    ) -> np.ndarray:
        """log sum_y p(y) exp(bound(y)) over the labels that a row may have."""
        alternatives = self.labels.alternatives(y, num_samples(X))
        if len(alternatives) == 1:
            log_share, condition = alternatives[0]
            return bound(condition) + np.float32(log_share)
        bounds = [share + bound(condition) for share, condition in alternatives]
        return logsumexp(bounds, axis=0).astype(np.float32)

    @_computing
    def posterior(
        self, X: Any, n_draws: int, y: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws from q(z|x), (N, S, L), and the logarithms of their weights, (N, S).

        Weights p(x|z) p(z) / q(z|x), in nats and in the user's units: their mean is an
        unbiased estimate of p(x).
        """
        condition = self.labels.encode(y, num_samples(X))
        z, log_weights = [], []
        for x, hashes, given in self._scored(X, condition, n_draws):
            noise = self._noise(hashes, n_draws)
            terms = self.module.terms(x, noise, given, analytic_kl=False)
            assert terms.z is not None
            z.append(terms.z.transpose(0, 1).cpu().numpy())
            log_weights.append(terms.log_weights.t().cpu().numpy())
        return np.concatenate(z), np.concatenate(log_weights) - self.units.log_scale

    @_computing
    def posterior_densities(self, X: Any) -> tuple[np.ndarray, ...]:
        """log q(z|x), log q(z) and log p(z) of draws from q(z|x), each (N, S), in nats.

        q(z) is the mean of q(z|x) over the rows. For Gaussian posteriors.
        """
        parts = []
        for x, hashes, _ in self._scored(X, None, ELBO_DRAWS):
            posterior = self.module.infer(x, self._noise(hashes, ELBO_DRAWS))
            gaussian = posterior.gaussian()
            assert gaussian is not None
            log_prior = self.module.log_prior(posterior)
            block = *gaussian, posterior.z.transpose(0, 1), log_prior.t()
            parts.append([tensor.cpu() for tensor in block])
        mean, log_variance, z, log_prior = map(torch.cat, zip(*parts, strict=True))
        # In float64: a narrow Gaussian has large squares to subtract.
        mean, log_variance, z = mean.double(), log_variance.double(), z.double()
        weights = torch.full((len(mean),), -np.log(len(mean)), dtype=torch.float64)
        aggregate = partial(
            log_mixture, log_weights=weights, mean=mean, log_variance=log_variance
        )
        step = max(1, BLOCK // max(mean.shape))
        points = z.reshape(-1, z.shape[-1]).split(step)
        log_aggregate = torch.cat([aggregate(block) for block in points])
        square = (z - mean.unsqueeze(1)).square() * torch.exp(-log_variance).unsqueeze(
            1
        )
        normal = square + log_variance.unsqueeze(1) + np.log(2 * np.pi)
        return (
            (-0.5 * normal.sum(-1)).numpy(),
            log_aggregate.reshape(z.shape[:2]).numpy(),
            log_prior.numpy(),
        )

    # ------------------------------------------------------------------ plain values

    def state(self) -> dict[str, Any]:
        """Plain values and arrays that :meth:`from_state` makes this of."""
        weights = self.module.state_dict()
        kinds = {form: name for name, form in BY_KIND.items()}
        return {
            "choices": {name: plain(one) for name, one in self.choices.named().items()},
            "architecture": asdict(self.architecture),
            "weights": {k: v.cpu().numpy().copy() for k, v in weights.items()},
            "units": self.units.state(),
            "form": {"kind": kinds[type(self.form)], **self.form.state()},
            "labels": self.labels.state(),
            "history": columns_of(self.history),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def from_state(
        cls, state: dict[str, Any], device: torch.device | str = "cpu"
    ) -> "FittedVAE":
        """The value of a :meth:`state`, on a device.

        Raises
        ------
        ValueError
            If the state is not as :meth:`state` makes it.
        """
        parts = parts_of(state)
        module = untrained(parts)
        weights = {k: torch.tensor(v) for k, v in state["weights"].items()}
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the model: {error}") from error
        return cls(module=module.to(device).eval(), **parts)

    def __reduce__(self) -> Any:
        return FittedVAE.from_state, (self.state(),)


# Fields that are plain values already.
_PLAIN = (
    *("n_epochs", "best_epoch", "result", "n_steps", "seed", "precision"),
    *("draws", "codes", "codes_condition"),
)


def parts_of(state: dict[str, Any]) -> dict[str, Any]:
    """The fields of a :class:`FittedVAE` from a state, all but its module.

    Specifications in the state may be revived already.

    Raises
    ------
    ValueError
        If something is not as it must be.
    """
    keys = {"choices", "architecture", "weights", "units", "form", "labels", "history"}
    check_keys("a fitted VAE", state, keys | set(_PLAIN))
    check_keys("choices", state["choices"], set(AXES))
    choices = revived(state["choices"])
    for name, base in AXES.items():
        if not isinstance(choices[name], base):
            raise ValueError(
                f"{type(choices[name]).__name__} is no {name}; expected a "
                f"{base.__name__} object."
            )
    form = dict(state["form"])
    kind = form.pop("kind", None)
    if kind not in BY_KIND:
        raise ValueError(f"the form {kind!r} must be one of {list(BY_KIND)}.")
    units = Units.from_state(state["units"])
    labels = Labels.from_state(state["labels"]) if state["labels"] else NoLabels()
    parts = {
        "choices": Choices(**choices),
        "architecture": _architecture(state["architecture"]),
        "units": units,
        "form": BY_KIND[kind].from_state(form, len(units.scale)),
        "labels": labels,
        "history": records_of(state["history"]),
        **{name: state[name] for name in _PLAIN},
    }
    n_columns = parts["form"].n_columns
    if len(parts["units"].scale) != n_columns:
        raise ValueError(
            f"the form has {n_columns} columns, but the units are those of "
            f"{len(parts['units'].scale)}."
        )
    if parts["architecture"].n_conditions != labels.n_conditions:
        raise ValueError("the labels do not fit the conditions of the decoder.")
    _check_plain(parts)
    return parts


def _check_plain(parts: dict[str, Any]) -> None:
    """Refuse the fields that are plain values where they are not what they must be."""
    n_epochs = len(parts["history"])
    limits = {
        "n_epochs": n_epochs,
        "best_epoch": n_epochs,
        "n_steps": np.iinfo(np.int64).max,
        "seed": np.iinfo(np.int32).max,
    }
    for name, most in limits.items():
        value = parts[name]
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name}={value!r} must be an int from 0 to {most}.")
    for name, values in (
        ("result", RESULTS),
        ("precision", PRECISIONS),
        ("draws", (True, False)),
    ):
        value = parts[name]
        if type(value) not in (str, bool) or value not in values:
            raise ValueError(f"{name}={value!r} must be one of {values}.")
    codes, conditions = parts["codes"], parts["codes_condition"]
    n_conditions = parts["labels"].n_conditions
    if codes is None or not n_conditions:
        expected = conditions is None
    else:
        expected = _is_table(conditions, n_conditions) and len(conditions) == len(codes)
    if not expected or not (
        codes is None or _is_table(codes, sum(parts["architecture"].latent_dim))
    ):
        raise ValueError(
            "codes and codes_condition must be None or finite float32 arrays of as "
            "many rows, of a column for each dimension of z and for each label."
        )


def _is_table(array: Any, n_columns: int) -> bool:
    return (
        isinstance(array, np.ndarray)
        and array.dtype == np.float32
        and array.ndim == 2
        and array.shape[1] == n_columns
        and len(array) > 0
        and bool(np.isfinite(array).all())
    )


def untrained(parts: dict[str, Any]) -> Model:
    """A model as the fields of a fitted VAE describe it, but for its weights."""
    form = parts["form"]
    return Model(
        parts["choices"],
        parts["architecture"],
        form.columns,
        Summary.unknown(form.n_columns),
        parts["units"],
        torch.Generator(),
    )


def _architecture(content: Any) -> Architecture:
    check_keys("an architecture", content, {one.name for one in fields(Architecture)})
    widths: list[Any] = []
    for name in ("latent_dim", "hidden_dim", "image_shape"):
        value = content[name]
        if name == "image_shape" and value is None:
            continue
        if type(value) is not tuple:
            raise ValueError(f"{name} must be a tuple of widths, got {value!r}.")
        widths += value
    if not content["latent_dim"]:
        raise ValueError("latent_dim=() has no level.")
    if type(content["n_conditions"]) is not int:
        raise ValueError("n_conditions must be an int.")
    for width in (*widths, content["n_conditions"] + 1):
        if type(width) is not int or width < 1:
            raise ValueError(f"the width {width!r} is not positive.")
    return Architecture(**content)
